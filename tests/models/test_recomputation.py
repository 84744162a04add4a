"""What is computed again instead of kept changes nothing but the memory."""

import weakref
from contextlib import nullcontext

import pytest
import torch
from kept_memory import bytes_kept
from tiny_models import gradients, predict_positions, tiny_batch, tiny_pretraining_model
from torch import nn

from vicha_hf.models import encoder_recomputation, encoder_text, objective_itc
from vicha_hf.models.encoder_recomputation import recomputed_input
from vicha_hf.models.encoder_vision import VisionLayer


def step(function, states, linear):
    states = states.clone().requires_grad_()
    for parameter in linear.parameters():
        parameter.grad = None
    output = function(states)
    output.square().sum().backward()
    return [output, states.grad, *(parameter.grad for parameter in linear.parameters())]


@pytest.mark.parametrize("shape", [(7, 12), (2, 7, 12), (2, 3, 7, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_the_plain_layer(shape, bias):
    torch.manual_seed(0)
    linear, states = nn.Linear(12, 5, bias=bias), torch.randn(shape)
    expected = step(lambda states: linear(nn.functional.gelu(states)), states, linear)
    observed = step(lambda states: recomputed_input(nn.functional.gelu, states, linear), states, linear)
    for ours, plain in zip(observed, expected, strict=True):
        assert torch.equal(ours, plain)


def test_under_autocast():
    torch.manual_seed(0)
    linear, states = nn.Linear(12, 5), torch.randn(2, 7, 12)
    with torch.autocast("cpu", torch.bfloat16):
        expected = step(lambda states: linear(nn.functional.gelu(states)), states, linear)
        observed = step(lambda states: recomputed_input(nn.functional.gelu, states, linear), states, linear)
    for ours, plain in zip(observed, expected, strict=True):
        assert torch.equal(ours, plain)


def test_a_norm_under_autocast_whose_backward_pass_comes_after_it():
    """The norm's result is kept in neither precision: products read it in the lower one."""
    torch.manual_seed(0)
    norm, linear, states = nn.LayerNorm(12), nn.Linear(12, 5), torch.randn(2, 7, 12)
    results = []
    for forward in (lambda given: linear(norm(given)), lambda given: recomputed_input(norm, given, linear)):
        given = states.clone().requires_grad_()
        for parameter in (*norm.parameters(), *linear.parameters()):
            parameter.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            output = forward(given)
        output.float().square().sum().backward()
        results.append([output, given.grad, norm.weight.grad, linear.weight.grad])
    for ours, plain in zip(*reversed(results), strict=True):
        assert torch.equal(ours, plain)


def test_what_is_read_by_others_stays():
    """A wrapper (LoRA) reads the activated states too."""
    torch.manual_seed(0)
    linear, other, states = nn.Linear(12, 5), nn.Linear(12, 5), torch.randn(2, 7, 12)
    both = nn.ModuleList([linear, other])
    both.forward = lambda activated: linear(activated) + other(activated)
    expected = step(lambda states: both(nn.functional.gelu(states)), states, both)
    observed = step(lambda states: recomputed_input(nn.functional.gelu, states, both), states, both)
    for ours, plain in zip(observed, expected, strict=True):
        assert torch.equal(ours, plain)


def test_the_activated_states_are_not_kept():
    """What is alive before the backward pass, seen from outside: a weak reference to what the activation returned."""
    alive = []

    def activation(states):
        result = nn.functional.gelu(states)
        alive.append(weakref.ref(result.untyped_storage()))
        return result

    linear, states = nn.Linear(64, 16), torch.randn(2, 3, 64, requires_grad=True)
    output = recomputed_input(activation, states, linear)
    assert len(alive) == 1 and alive[0]() is None
    output.sum().backward()
    assert len(alive) == 2


def test_without_gradient_or_when_checkpointed_nothing_is_computed_twice():
    calls = []

    def activation(states):
        calls.append(torch.is_grad_enabled())
        return nn.functional.gelu(states)

    linear, states = nn.Linear(12, 5), torch.randn(2, 12, requires_grad=True)
    with torch.no_grad():
        recomputed_input(activation, states, linear)
    recomputed_input(activation, states, linear, checkpointed=True).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_vision_layer_keeps_less(checkpointing):
    """The state between its halves, queries, keys, values, context, the wide states and its output; no norm's result."""
    torch.manual_seed(0)
    model = tiny_pretraining_model()
    model.train()
    layer = model.vicha.vision_model.layers[0]
    assert isinstance(layer, VisionLayer)
    if checkpointing:
        model.activation_checkpointing_enable()
    config = model.config.vision_config
    states = torch.randn(8, 17, config.hidden_size, requires_grad=True)
    narrow, wide = states.numel(), 8 * 17 * config.intermediate_size
    expected = 4 * (narrow if checkpointing else 6 * narrow + wide)
    layer(states)
    kept, output = bytes_kept(lambda: layer(states))
    # Besides: statistics of the norms and of the softmax, the state of the random generator.
    assert expected <= kept < expected + 4 * narrow
    output.sum().backward()
    assert states.grad.isfinite().all()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_recomputation_saves_bytes_in_both_precisions(precision, monkeypatch):
    """By as much as the activated states, or the copies of keys and values, take in that precision."""
    torch.manual_seed(0)
    model = tiny_pretraining_model().train()
    model.add_training_state()
    block, layer = model.vicha.vision_model.layers[0], model.vicha.text_model.encoder.layer[-1]
    mlp, queue = block.mlp, model.training_state.queue
    images, texts_of_images = torch.randn(2, 4, model.config.projection_dim).unbind()
    images.requires_grad_(), texts_of_images.requires_grad_()

    def contrast():
        others = images.detach(), texts_of_images.detach()
        return model.itc(images, texts_of_images, *others, torch.tensor(0.1), 0.4, queue).loss

    states = torch.randn(4, 17, 32, requires_grad=True)
    key, value = (tensor.to(precision) for tensor in layer.crossattention.self.project(torch.randn(4, 33, 32)))
    key, value, index = key.detach().requires_grad_(), value.detach().requires_grad_(), torch.arange(4).repeat(3)
    texts = states.detach().repeat(3, 1, 1)
    size = precision.itemsize
    wide = 4 * 17 * model.config.vision_config.intermediate_size * size
    parts = {
        "vision": (lambda: mlp(states), wide),
        "norms": (lambda: block(states), wide + 2 * states.numel() * size),
        "queue": (contrast, 2 * (4 + model.training_state.queue.size) * model.config.projection_dim * size),
        "text": (lambda: layer.feed_forward(states), 4 * 17 * model.config.text_config.intermediate_size * size),
        "keys": (lambda: layer.crossattention.self(texts, key, value, index=index)[0], 3 * 2 * key.numel() * size),
    }
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        saved = {}
        for name, (function, _) in parts.items():
            function()
            saved[name] = -bytes_kept(function)[0]
        monkeypatch.setattr(encoder_recomputation, "recomputed", lambda *tensors, checkpointed=False: nullcontext())
        for module in (encoder_text, objective_itc):
            monkeypatch.setattr(module, "recomputed", lambda *tensors, checkpointed=False: nullcontext())
        for name, (function, _) in parts.items():
            saved[name] += bytes_kept(function)[0]
    assert saved == {name: expected for name, (_, expected) in parts.items()}


def test_a_text_layer_keeps_its_wide_states_once():
    """Feed-forward: the wide states before the activation, what the norm reads, and the output."""
    torch.manual_seed(0)
    model = tiny_pretraining_model()
    model.train()
    layer, config = model.vicha.text_model.encoder.layer[0], model.config.text_config
    states = torch.randn(2, 17, config.hidden_size, requires_grad=True)
    expected = 4 * 2 * 17 * config.intermediate_size + 2 * states.nbytes
    layer.feed_forward(states)
    kept, _ = bytes_kept(lambda: layer.feed_forward(states))
    assert expected <= kept < expected + states.nbytes


def test_a_whole_step_is_the_same_with_and_without_checkpointing():
    observed = []
    for checkpointing in (False, True):
        model = tiny_pretraining_model()
        model.add_training_state()
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        batch = tiny_batch(4)
        batch |= predict_positions(batch, [[1], [2], [1, 2], []])
        torch.manual_seed(0)
        model(**batch).loss.backward()
        observed.append(gradients(model))
    for name, value in observed[0].items():
        torch.testing.assert_close(observed[1][name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_images_taken_by_index_get_the_gradients_of_copied_ones(attn_implementation):
    torch.manual_seed(0)
    model = tiny_pretraining_model(attn_implementation=attn_implementation)
    attention = model.vicha.text_model.encoder.layer[-1].crossattention.self
    images, texts, index = torch.randn(2, 9, 32), torch.randn(5, 3, 32), torch.tensor([0, 1, 1, 0, 1])
    observed = []
    for copied in (False, True):
        inputs = [images.clone().requires_grad_(), texts.clone().requires_grad_()]
        key, value = attention.project(inputs[0])
        if copied:
            context, _ = attention(inputs[1], key.index_select(0, index), value.index_select(0, index))
        else:
            context, _ = attention(inputs[1], key, value, index=index)
        attention.zero_grad()
        context.square().sum().backward()
        observed.append([context, *(tensor.grad for tensor in (*inputs, *attention.parameters()))])
    for ours, plain in zip(*observed, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
        assert plain.abs().max() > 0 or plain.dim() == 1


def test_copies_of_keys_and_values_are_not_kept(monkeypatch):
    """Fused attention saves the very tensors that it is given."""
    alive, select = [], torch.Tensor.index_select

    def watched(self, *args):
        result = select(self, *args)
        alive.append(weakref.ref(result.untyped_storage()))
        return result

    model = tiny_pretraining_model()
    attention = model.vicha.text_model.encoder.layer[-1].crossattention.self
    key, value = attention.project(torch.randn(2, 9, 32, requires_grad=True))
    monkeypatch.setattr(torch.Tensor, "index_select", watched)
    context, _ = attention(torch.randn(5, 3, 32), key, value, index=torch.tensor([0, 1, 1, 0, 1]))
    assert len(alive) == 2 and all(reference() is None for reference in alive)
    context.sum().backward()
    # Made again, and gone again.
    assert all(reference() is None for reference in alive)


def test_a_step_without_a_backward_pass_is_freed():
    """The graph's ends at the parameters live as long as the graph: a mark on them tells whether it is still there."""
    model = tiny_pretraining_model().train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def ends():
        return [parameter.view_as(parameter).grad_fn.next_functions[0][0] for parameter in parameters]

    output = model(**tiny_batch())
    for end in ends():
        end.metadata["seen"] = True
    assert all(end.metadata for end in ends())
    del output, end
    assert not any(end.metadata for end in ends())
