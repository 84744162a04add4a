"""Grounding: Grad-CAM against one sample at a time, whatever the caller's gradient mode, and the ranking of boxes."""

import pytest
import torch
from head_checks import inference_inputs, step_inputs, tiny_head
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_models import CLS, SEP
from torch.nn import functional

from vicha_hf import ViChaForGrounding


def _alone(inputs, row):
    concepts = inputs["concept_attention_mask"][row].sum()
    ids = inputs["input_ids"][row : row + 1, : inputs["attention_mask"][row].sum()]
    return inputs["pixel_values"][row : row + 1], ids, inputs["concept_input_ids"][row : row + 1, :concepts]


def _heard(module):
    heard = []
    handle = module.register_forward_hook(lambda module, arguments, output: heard.append(output[1]))
    return heard, handle


def _match_heatmap(model, inputs, row, layer, all_positions=None):
    """Grad-CAM of one unpadded sample, with the attention that eager attention returns."""
    pixels, ids, concepts = _alone(inputs, row)
    heard, handle = _heard(model.vicha.text_model.encoder.layer[layer].crossattention.self)
    images = model.vicha.encode_images(pixels, concepts)
    states = model.vicha.text_model(ids, encoder_hidden_states=images.hidden_states).last_hidden_state
    handle.remove()
    (gradient,) = torch.autograd.grad(model.itm_head(states[:, 0])[0, 1], heard[0])
    map_of_tokens = (heard[0] * gradient.clamp(min=0))[0, :, :, 1:17].mean(0).unflatten(-1, (4, 4))
    if all_positions is not None:
        return map_of_tokens.sum(0) / all_positions
    return map_of_tokens[(ids[0] != CLS) & (ids[0] != SEP)].mean(0)


def _similarity_heatmap(model, inputs, row, layer):
    pixels, ids, concepts = _alone(inputs, row)
    heard, handle = _heard(model.vicha.vision_model.layers[layer].attention)
    images = model.vicha.encode_images(pixels, concepts)
    handle.remove()
    similarity = (images.embeds @ model.vicha.encode_texts(ids).embeds.T / model.vicha.temperature)[0, 0]
    (gradient,) = torch.autograd.grad(similarity, heard[0])
    return (heard[0] * gradient.clamp(min=0))[0, :, 0, 1:17].mean(0).unflatten(-1, (4, 4))


def _close(observed, expected):
    torch.testing.assert_close(observed, expected.detach(), rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [None, 2, 3])
def test_match_heatmaps_against_single_samples(attn_implementation, layer):
    model, inputs = tiny_head("grounding", attn_implementation=attn_implementation), inference_inputs("grounding")
    with torch.no_grad():
        output = model(**inputs, layer=layer)
    eager = tiny_head("grounding", attn_implementation="eager")
    for row in range(3):
        _close(output.heatmaps[row], _match_heatmap(eager, inputs, row, 2 if layer is None else layer))


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [None, 0, 1])
def test_similarity_heatmaps_against_single_samples(attn_implementation, layer):
    model, inputs = tiny_head("grounding", attn_implementation=attn_implementation), inference_inputs("grounding")
    with torch.no_grad():
        output = model(**inputs, method="itc", layer=layer)
    eager = tiny_head("grounding", attn_implementation="eager")
    for row in range(3):
        _close(output.heatmaps[row], _similarity_heatmap(eager, inputs, row, 2 if layer is None else layer))


@pytest.mark.parametrize(("method", "layers"), [("itm", [2, 3]), ("itc", [0, 1, 2])])
def test_maps_of_every_layer_are_those_of_each_alone(method, layers):
    model, inputs = tiny_head("grounding"), inference_inputs("grounding")
    together = model.layer_heatmaps(**inputs, method=method)
    assert list(together) == layers
    for layer, heatmaps in together.items():
        torch.testing.assert_close(heatmaps, model(**inputs, method=method, layer=layer).heatmaps)
    assert not torch.equal(together[layers[0]], together[layers[1]])


def test_the_layer_of_the_configuration_is_that_of_its_method_alone():
    model, inputs = tiny_head("grounding", grounding_method="itc", grounding_layer=1), inference_inputs("grounding")
    assert torch.equal(model(**inputs).heatmaps, model(**inputs, method="itc", layer=1).heatmaps)
    assert torch.equal(model(**inputs, method="itm").heatmaps, model(**inputs, method="itm", layer=2).heatmaps)
    with pytest.raises(StrictDataclassClassValidationError, match=r"grounding_layer=1.*layers 2 to 3"):
        tiny_head("grounding", grounding_method="itm", grounding_layer=1)


def test_quirk_averages_over_all_positions():
    inputs = inference_inputs("grounding")
    length = inputs["input_ids"].shape[1]
    output = tiny_head("grounding", reference_quirks=["gradcam_all_positions"])(**inputs)
    eager = tiny_head("grounding", attn_implementation="eager")
    for row in range(3):
        _close(output.heatmaps[row], _match_heatmap(eager, inputs, row, 2, all_positions=length))


@pytest.mark.parametrize("method", ["itm", "itc"])
def test_callers_gradient_mode_does_not_matter_and_nothing_is_left_behind(method):
    model, inputs = tiny_head("grounding"), inference_inputs("grounding")
    expected = model(**inputs, method=method).heatmaps
    assert not expected.requires_grad and all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(**inputs, method=method).heatmaps, expected)
    with torch.inference_mode():
        made_here = {key: value.clone() for key, value in inputs.items()}
        assert torch.equal(model(**made_here, method=method).heatmaps, expected)
    model.requires_grad_(False)
    assert torch.equal(model(**inputs, method=method).heatmaps, expected)


def test_one_backward_pass_for_the_batch(monkeypatch):
    passes, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: passes.append(1) or grad(*args, **kwargs))
    tiny_head("grounding")(**inference_inputs("grounding"))
    assert len(passes) == 1
    tiny_head("grounding").layer_heatmaps(**inference_inputs("grounding"), method="itc")
    assert len(passes) == 2


def test_images_that_are_not_square_and_expressions_without_words():
    model, inputs = tiny_head("grounding"), inference_inputs("grounding")
    inputs["pixel_values"] = torch.randn(3, 3, 24, 40)
    inputs["input_ids"][0] = torch.tensor([CLS, SEP] + [0] * (inputs["input_ids"].shape[1] - 2))
    inputs["attention_mask"][0] = (inputs["input_ids"][0] != 0).long()
    heatmaps = model(**inputs).heatmaps
    assert heatmaps.shape == (3, 3, 5)
    assert (heatmaps[0] == 0).all() and (heatmaps[1:].amax((1, 2)) > 0).all()


def test_training_gives_the_retrieval_losses():
    model, inputs = tiny_head("grounding"), step_inputs("grounding")
    output = model(**inputs, return_loss=True, image_ids=torch.arange(3))
    torch.testing.assert_close(output.loss, output.itc_loss + output.itm_loss)
    assert model.train()(**inputs).itc_loss.requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"method": "mlm"}, "mlm"),
        ({"layer": 1}, "layers 2 to 3"),
        ({"layer": 3, "method": "itc"}, "layers 0 to 2"),
    ],
)
def test_impossible_calls(call, message):
    with pytest.raises(ValueError, match=message):
        tiny_head("grounding")(**inference_inputs("grounding"), **call)


def test_heatmaps_need_evaluation_mode():
    with pytest.raises(ValueError, match="eval"):
        tiny_head("grounding").train()(**inference_inputs("grounding"), return_loss=False)


def test_boxes_are_ranked_by_the_heat_inside():
    heatmaps = torch.zeros(3, 4, 4)
    heatmaps[0, 0, 3] = 1.0  # top right
    heatmaps[1] = -1.0
    boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0], [20.5, 1.2, 8.0, 8.0]]), [[0, 0, 5, 5]], []]
    ranking = ViChaForGrounding.rank_boxes(heatmaps, boxes, [(32, 32), (10, 20), (8, 8)])
    assert ranking.best_indices.tolist() == [1, -1, -1]
    upsampled = functional.interpolate(heatmaps[:1, None], size=(32, 32), mode="bicubic")[0, 0]
    torch.testing.assert_close(ranking.scores[0][1], upsampled[1:9, 20:28].sum() / 8.0)
    assert ranking.scores[1] < 0 and len(ranking.scores[2]) == 0
    outside = ViChaForGrounding.rank_boxes(heatmaps[:1], [[[-6, -6, 4, 4], [28, 0, 90, 5]]], [(32, 32)])
    assert outside.scores[0][0] == 0 and outside.best_indices.tolist() == [1]


@pytest.mark.parametrize(
    ("boxes", "sizes", "message"),
    [([[[0, 0, 0, 4]]], [(8, 8)], "area"), ([], [(8, 8)], "one"), ([[[0, 0, 1, 1]]], [], "one")],
)
def test_impossible_boxes(boxes, sizes, message):
    with pytest.raises(ValueError, match=message):
        ViChaForGrounding.rank_boxes(torch.zeros(1, 4, 4), boxes, sizes)
