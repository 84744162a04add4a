import pytest
import torch
from torch import nn

from vicha_hf.training import muon
from vicha_hf.training.matmul_precision import float32_matmul_precision
from vicha_hf.training.muon import Muon, hidden_matrices, orthogonalise
from vicha_hf.training.optimizer import create_optimizer, parameter_groups


SHAPES = [(24, 24), (48, 24), (24, 48), (24, 24)]
CPU = torch.device("cpu")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(6, 24)
        self.layers = nn.ModuleList(nn.Linear(columns, rows) for rows, columns in SHAPES)
        self.head = nn.Linear(24, 24)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.teacher = nn.ModuleList([nn.Linear(24, 24)]).requires_grad_(False)


def set_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_every_singular_value_comes_near_one_and_every_direction_stays(shape):
    u, _, vh = torch.linalg.svd(
        torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    matrices = u * torch.linspace(0.05, 3, 24) @ vh  # The smallest is 0.006 of the norm.
    found = orthogonalise(matrices)
    assert found.shape == matrices.shape and found.dtype == matrices.dtype
    in_directions = u.mT @ found @ vh.mT
    lengths = in_directions.diagonal(dim1=1, dim2=2)
    assert (lengths > 0.77).all() and (lengths < 1.21).all()
    assert (in_directions - torch.diag_embed(lengths)).abs().max() < 1e-4
    for one, result in zip(matrices, found, strict=True):
        torch.testing.assert_close(orthogonalise(one[None])[0], result)


def test_a_matrix_without_gradient_direction_stays_finite():
    assert not orthogonalise(torch.zeros(1, 4, 6)).any()


@pytest.mark.parametrize("kept", [1, 2, 8])
def test_bfloat16_suffices_whatever_the_rank(kept):
    """A matrix of rank one has a singular value as large as its norm: the end of the first polynomial's interval."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(50, 24, kept, generator=generator) @ torch.randn(50, kept, 48, generator=generator)
    found = orthogonalise(matrices, torch.bfloat16)
    assert found.dtype == torch.float32
    lengths = torch.linalg.svdvals(found)[:, :kept]
    assert (lengths > 0.7).all() and (lengths < 1.3).all()


def test_matrices_move_as_torchs_muon_moves_them_one_by_one(monkeypatch):
    """
    With its one polynomial. `torch.optim.Muon` computes in bfloat16 (8 bits): a matrix's movements agree to about a percent of
    their length.
    """
    monkeypatch.setattr(muon, "_QUINTICS", ((3.4445, -4.7750, 2.0315),) * 5)
    monkeypatch.setattr(muon, "_ROOM", 1.0)
    model, other = Model(), Model()
    optimizer = create_optimizer(model, 1e-3, 0.1, CPU, kind="muon", matrix_lr_scale=20.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * group["lr_scale"]
    reference = torch.optim.Muon([layer.weight for layer in other.layers], lr=0.02, weight_decay=0.1)
    before = [layer.weight.detach().clone() for layer in model.layers]
    for step in range(3):
        set_gradients(model, step)
        set_gradients(other, step)
        optimizer.step()
        reference.step()
    for start, layer, expected in zip(before, model.layers, other.layers, strict=True):
        moved, wanted = layer.weight - start, expected.weight - start
        assert (moved - wanted).norm() < 0.02 * wanted.norm()


def test_all_else_moves_as_adamw_moves_it():
    model, other = Model(), Model()
    ours = create_optimizer(model, 1e-2, 0.02, CPU, temperature_lr_scale=0.1, kind="muon", matrix_lr_scale=2.0)
    theirs = create_optimizer(other, 1e-2, 0.02, CPU, temperature_lr_scale=0.1)
    for step in range(3):
        for each, optimizer in ((model, ours), (other, theirs)):
            set_gradients(each, step)
            optimizer.step()
    matrices = {f"layers.{index}.weight" for index in range(len(SHAPES))}
    expected = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]) != (name in matrices), name
    states = {frozenset(ours.state[layer.weight]) for layer in model.layers}
    assert states == {frozenset({"momentum_buffer"})}


def test_groups_tell_the_matrices_of_hidden_layers_apart():
    model = Model()
    assert hidden_matrices(model) >= {id(layer.weight) for layer in model.layers}
    groups = parameter_groups(model, 0.02, matrix_lr_scale=13.0)
    (matrices,) = (group for group in groups if group["orthogonal"])
    assert {id(p) for p in matrices["params"]} == {id(layer.weight) for layer in model.layers}
    assert (matrices["lr_scale"], matrices["weight_decay"]) == (13.0, 0.02)
    assert {group["lr_scale"] for group in groups if not group["orthogonal"]} == {1.0}
    assert not any(group["orthogonal"] for group in parameter_groups(model, 0.02))


def test_a_stopped_optimizer_goes_on_as_if_it_never_had():
    def trained(steps_before_a_stop):
        model = Model()
        optimizer = create_optimizer(model, 1e-2, 0.02, CPU, kind="muon")
        for step in range(4):
            if step == steps_before_a_stop:
                state = optimizer.state_dict()
                optimizer = create_optimizer(model, 1e-2, 0.02, CPU, kind="muon")
                optimizer.load_state_dict(state)
            set_gradients(model, step)
            optimizer.step()
        return model.state_dict()

    whole, stopped = trained(None), trained(2)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_layer_that_no_loss_reached_stays():
    model = Model()
    set_gradients(model, 0)
    model.layers[0].weight.grad = None
    before = model.layers[0].weight.detach().clone()
    optimizer = create_optimizer(model, 1e-2, 0.02, CPU, kind="muon")
    assert isinstance(optimizer, Muon)
    optimizer.step()
    assert torch.equal(model.layers[0].weight, before)
    assert optimizer.state_dict()["state"]


@pytest.mark.parametrize(
    ("precision", "has_bfloat16", "dtype"),
    [("medium", True, torch.bfloat16), ("medium", False, torch.float32), ("highest", True, torch.float32)],
)
def test_a_cpu_orthogonalises_in_bfloat16_where_it_may_and_can(monkeypatch, precision, has_bfloat16, dtype):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    used = []
    monkeypatch.setattr(muon, "orthogonalise", lambda matrices, dtype: used.append(dtype) or matrices)
    weight = nn.Parameter(torch.ones(2, 3))
    weight.grad = torch.ones(2, 3)
    optimizer = muon.Muon([{"params": [weight], "orthogonal": True, "weight_decay": 0.0}], lr=0.1)
    with float32_matmul_precision(precision):
        optimizer.step()
    assert used == [dtype]
