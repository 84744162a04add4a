"""The training benchmark at toy size: the figures that others rely on, and that every slow way gives the same results."""

import json
import sys
from unittest import mock

import pytest
import torch
from script_modules import load_script

from vicha_hf.models.encoder_text import CrossAttention, TextEncoder
from vicha_hf.models.objective_mlm import MaskedLanguageModeling
from vicha_hf.models.teacher import TrainingState


@pytest.fixture(scope="module")
def benchmark():
    return load_script("examples/benchmarks/training.py")


@pytest.fixture(scope="module")
def jobs(benchmark):
    """What the benchmark runs in processes of their own."""
    return sys.modules["training_step"]


@pytest.fixture(scope="module")
def steps(jobs):
    made = {}
    return lambda family: made.setdefault(family, jobs.TrainingStep(family, "tiny", 2, dropout=False))


@pytest.mark.parametrize("family", ["vicha", pytest.param("simla", marks=pytest.mark.slow)])
def test_the_figures(benchmark, jobs, monkeypatch, tmp_path, capsys, family):
    threads = torch.get_num_threads()
    monkeypatch.setattr(benchmark, "run_apart", jobs.run_job)
    path = tmp_path / "out" / "training.json"
    options = ["--family", family, "--batch_size", "2", "--rounds", "1", "--threads", str(threads)]
    result = benchmark.main(["--size", "tiny", *options, "--json", str(path)])
    assert json.loads(path.read_text()) == {"benchmark": "training", **result}
    figures = result["families"][family]
    promised = {"seconds_per_step", "samples_per_second", "flops_per_step", "matmul_gflops", "matmul_share"}
    promised |= {"peak_rss_gib", "activation_gib", "activation_gib_checkpointed"}
    assert promised <= figures.keys() and all(figures[name] > 0 for name in promised)
    assert figures["optimisations"].keys() == benchmark.OPTIMISATIONS.keys()
    assert all(way["speedup_without"] > 0 for way in figures["optimisations"].values())
    # What is switched off shows in what is counted.
    published = figures["published"]
    for name in ("shared_key_values", "wanted_rows", "predicted_logits"):
        saved = figures["optimisations"][name]["flops_per_step"] - figures["flops_per_step"]
        assert 0 < saved < published["flops_per_step"] - figures["flops_per_step"]
    assert figures["activation_gib_checkpointed"] < figures["activation_gib"] < published["activation_gib"]
    # Gradients take the place of activations as far as they can.
    for way in (figures, published):
        assert 0 < way["beyond_state_gib"] <= way["activation_gib"]
    assert figures["beyond_state_ratio"] == figures["beyond_state_gib"] / published["beyond_state_gib"]
    agreement = figures["agreement"]
    assert agreement["loss_difference_published"] < 1e-4
    assert agreement["gradient_difference_checkpointed"] < 1e-5 < agreement["largest_gradient"]
    assert sum(figures["seconds_by_part"].values()) == pytest.approx(figures["seconds_per_step"])
    printed = capsys.readouterr().out
    assert all(title in printed for title, _ in benchmark.OPTIMISATIONS.values())


@pytest.mark.slow
def test_in_processes_of_their_own(benchmark):
    result = benchmark.main(["--size", "tiny", "--family", "albef", "--batch_size", "2", "--rounds", "1"])
    figures = result["families"]["albef"]
    assert figures["peak_rss_gib"] > figures["state_gib"] > 0


@pytest.mark.parametrize("family", ["vicha", "albef", "simla"])
def test_every_slow_way_gives_the_same_losses_and_gradients(benchmark, jobs, steps, family):
    step = steps(family)
    own = torch.arange(2)
    given = {"negative_image_indices": own.flip(0), "negative_text_indices": own.flip(0)}
    losses, gradients = step.gradients(jobs.Variant(), **given)
    assert all(value.isfinite().all() for value in gradients.values())
    ways = [jobs.Variant(without=(name,)) for name in benchmark.OPTIMISATIONS]
    for variant in [*ways, jobs.CPU_VARIANTS["published"], jobs.CPU_VARIANTS["checkpointed"]]:
        other_losses, other_gradients = step.gradients(variant, **given)
        assert other_losses == pytest.approx(losses, abs=1e-5), variant
        assert other_gradients.keys() == gradients.keys()
        for name, value in gradients.items():
            torch.testing.assert_close(other_gradients[name], value, rtol=1e-4, atol=1e-5, msg=f"{variant}: {name}")


def test_the_slow_ways_are_slow(jobs, steps):
    step = steps("vicha")

    def counted(*without) -> dict[str, int]:
        counts = dict.fromkeys(("projected images", "fused attention", "logits"), 0)

        def project(module, args):
            counts["projected images"] += len(args[0])

        def attend(*args, **kwargs):
            counts["fused attention"] += 1
            return original_attend(*args, **kwargs)

        def speak(module, args, output):
            counts["logits"] += output.numel() // output.shape[-1]

        original_attend = torch.nn.functional.scaled_dot_product_attention
        listeners = [step.model.mlm_head.register_forward_hook(speak)]
        for module in step.model.modules():
            if isinstance(module, CrossAttention):
                listeners.append(module.key.register_forward_pre_hook(project))
        with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attend):
            step.gradients(jobs.Variant(without=without))
        for listener in listeners:
            listener.remove()
        return counts

    ours = counted()
    layers = sum(layer.crossattention is not None for layer in step.model.base_model.text_model.encoder.layer)
    # Two images, for the model and for its teacher.
    assert ours["projected images"] == 2 * 2 * layers
    # Matching projects six instead of the two that MLM shares with it.
    assert counted("shared_key_values")["projected images"] == (6 + 2 + 2) * layers
    assert ours["fused attention"] > 0 == counted("fused_attention")["fused attention"]
    predicted = (step.batch["mlm_labels"] != -100).sum().item()
    assert ours["logits"] == predicted
    assert counted("predicted_logits")["logits"] == step.batch["mlm_labels"].numel() > predicted
    assert counted() == ours


def test_what_was_switched_off_is_on_again(benchmark, jobs, steps):
    step = steps("vicha")
    patched = [(TextEncoder, "forward"), (TextEncoder, "project_keys_values"), (TrainingState, "update_teacher")]
    patched += [(CrossAttention, "project"), (MaskedLanguageModeling, "on_pairs")]
    before = [getattr(owner, name) for owner, name in patched]
    with step.doing(jobs.CPU_VARIANTS["published"]):
        assert all(getattr(*place) is not value for place, value in zip(patched, before, strict=True))
        assert not any(group["fused"] for group in step.optimizer.param_groups)
    assert [getattr(*place) for place in patched] == before
    assert all(group["fused"] for group in step.optimizer.param_groups)


def test_teacher_and_optimizer_move_alike_one_by_one(jobs):
    moved = []
    for without in ((), ("foreach_teacher", "fused_optimizer")):
        step = jobs.TrainingStep("albef", "tiny", 2, dropout=False)
        for _ in range(2):
            torch.manual_seed(3)
            step.run(jobs.Variant(without=without))
        moved.append({name: value for name, value in step.model.state_dict().items() if value.is_floating_point()})
    for name, value in moved[0].items():
        torch.testing.assert_close(moved[1][name], value, rtol=1e-4, atol=2e-6, msg=name)


def test_rounds_go_there_and_back(jobs, monkeypatch):
    """A machine that gets slower by the minute must not slow the same ways in every round."""
    taken = []
    step = mock.Mock(model=torch.nn.Linear(1, 1), run=lambda variant: taken.append(variant) or {"forward": 1.0})
    monkeypatch.setattr(jobs, "TrainingStep", lambda *_: step)
    monkeypatch.setattr(jobs, "device", lambda: "cpu")
    found = jobs.measure_time("vicha", "tiny", 2, rounds=2)
    there = list(jobs.CPU_VARIANTS.values())
    assert taken == there + there + there[::-1]
    assert all(len(seconds) == 2 for seconds in found["seconds"].values())


def test_allocated_memory_is_counted_exactly(benchmark):
    measuring = sys.modules["measuring"]

    def allocate():
        first = torch.ones(1000)
        second = torch.ones(500)
        del first
        third = torch.ones(250)
        return second, third

    assert measuring.peak_allocated_gib(allocate) * 2**30 == pytest.approx(6000, abs=100)


def test_what_takes_the_place_of_another_tensor_is_no_addition(benchmark):
    """As where the published way puts a new tensor in the place of each of the teacher's."""
    held = [torch.ones(1000) for _ in range(10)]

    def replace():
        for index in range(len(held)):
            held[index] = torch.ones(1000)

    assert sys.modules["measuring"].peak_allocated_gib(replace) * 2**30 == pytest.approx(4000, abs=100)


def test_a_single_pair_has_no_negatives(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--batch_size", "1"])
    assert "use 2 or more" in capsys.readouterr().err
