"""Visual reasoning and text assignment: the alternation between two images against the obvious version."""

import pytest
import torch
from head_checks import inference_inputs, step_inputs, tiny_head
from tiny_models import tiny_batch

from vicha_hf import ViChaForVisualReasoning
from vicha_hf.models.task_text_assignment import SIMILARITY_TEMPERATURE, ImagePairSampler


@torch.no_grad()
def _fuse_obviously(model, inputs, row, pair):
    """
    One text with its two images [(pixels, concept ids)], all alone: every fusion layer reads image 0, then its
    twin reads image 1, with the keys and values of the layer.
    """
    text_model, vicha = model.vicha.text_model, model.vicha
    states = vicha.encode_texts(
        inputs["input_ids"][row : row + 1, : inputs["attention_mask"][row].sum()]
    ).hidden_states
    images = [vicha.encode_images(*single).hidden_states for single in pair]
    first_fusion = model.config.text_config.fusion_layer
    for number in range(first_fusion, model.config.text_config.num_hidden_layers):
        layer, twin = text_model.encoder.layer[number], model.image_pair_encoder.twins[number - first_fusion]
        for step, image in ((layer, images[0]), (twin, images[1])):
            states = step.attention(states)
            key, value = layer.crossattention.self.key(image), layer.crossattention.self.value(image)
            heads = [part.unflatten(-1, (4, -1)).transpose(1, 2) for part in (key, value)]
            states = step.crossattention(states, *heads)
            wide = step.intermediate.activation(step.intermediate.dense(states))
            states = step.output(wide, states)
    return states[0]


def _image(inputs, row, index):
    ids, mask = inputs["concept_input_ids"][index][row], inputs["concept_attention_mask"][index][row]
    return inputs["pixel_values"][row, index][None], ids[None, : mask.sum()]


def test_layers_alternate_between_the_images():
    model, inputs = tiny_head("reasoning"), inference_inputs("reasoning")
    output = model(**inputs)
    for row in range(3):
        images = [_image(inputs, row, index) for index in range(2)]
        expected = _fuse_obviously(model, inputs, row, images)
        torch.testing.assert_close(output.last_hidden_state[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
    swapped = inputs | {"pixel_values": inputs["pixel_values"].flip(1)}
    assert (model(**swapped).logits - output.logits).abs().max() > 1e-3


def test_pairs_of_concepts_in_one_tensor_in_two_and_on_one_side():
    model, inputs = tiny_head("reasoning"), inference_inputs("reasoning")
    longest = max(ids.shape[1] for ids in inputs["concept_input_ids"])
    stacked = {
        key: torch.stack([torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in inputs[key]], dim=1)
        for key in ("concept_input_ids", "concept_attention_mask")
    }
    torch.testing.assert_close(model(**inputs).logits, model(**inputs | stacked).logits, rtol=1e-4, atol=1e-5)
    one_sided = {key: (inputs[key][0], None) for key in stacked}
    without = {key: (inputs[key][0], torch.zeros_like(inputs[key][1])) for key in stacked}
    torch.testing.assert_close(
        model(**inputs | one_sided).logits, model(**inputs | without).logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("quirks", [[], ["unmasked_concepts"]])
def test_processes_run_the_vision_encoder_equally_often(quirks):
    """However long each one's concepts are: where weights are split, all processes gather them together."""
    model, inputs = tiny_head("reasoning", reference_quirks=quirks), inference_inputs("reasoning", seed=1)
    calls = []
    model.vicha.vision_model.register_forward_hook(lambda *_: calls.append(1))
    first, second = (
        {key: inputs[key][side] for key in ("concept_input_ids", "concept_attention_mask")} for side in range(2)
    )
    assert first["concept_input_ids"].shape != second["concept_input_ids"].shape
    counts = []
    for pair in ((first, second), (first, first), (first, dict.fromkeys(first))):
        calls.clear()
        model(**inputs | {key: tuple(side[key] for side in pair) for key in first})
        counts.append(len(calls))
    assert counts == [2 if quirks else 1] * 3


def test_with_the_quirk_each_image_keeps_its_own_padding():
    """A longer neighbour must not add padding that the concepts attend to."""
    model, inputs = tiny_head("reasoning", reference_quirks=["unmasked_concepts"]), inference_inputs("reasoning")
    longer = {
        key: (inputs[key][0], torch.nn.functional.pad(inputs[key][1], (0, 9)))
        for key in ("concept_input_ids", "concept_attention_mask")
    }
    calls = []
    model.vicha.vision_model.register_forward_hook(lambda module, given, output: calls.append(output[0]))
    model(**inputs)
    model(**inputs | longer)
    torch.testing.assert_close(calls[0], calls[2])
    assert calls[1].shape[1] != calls[3].shape[1]


def test_twins_have_no_keys_and_values_of_their_own():
    model = tiny_head("reasoning")
    names = {name for name, _ in model.image_pair_encoder.named_parameters()}
    assert any(name.endswith("crossattention.self.query.weight") for name in names)
    assert not [name for name in names if "crossattention.self.key" in name or "crossattention.self.value" in name]


def test_reasoning_goes_on_where_text_assignment_stopped(tmp_path):
    model = tiny_head("text-assignment")
    model.save_pretrained(tmp_path)
    reasoning, info = ViChaForVisualReasoning.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.startswith("reasoning_classifier.") for name in info["missing_keys"])
    for name, value in model.image_pair_encoder.named_parameters():
        assert torch.equal(reasoning.image_pair_encoder.get_parameter(name), value), name


def test_quirk_shows_the_teacher_the_online_vision_encoder():
    losses = []
    for quirks in ([], ["nlvr_online_teacher"]):
        model = tiny_head("reasoning", momentum=1.0, reference_quirks=quirks).train()
        model.add_training_state()
        with torch.no_grad():
            for parameter in model.training_state.teacher["vicha"].vision_model.parameters():
                parameter.mul_(1.5)
        losses.append(model(**step_inputs("reasoning"), distillation_alpha=1.0).loss)
    assert (losses[0] - losses[1]).abs() > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(3, 3, 32, 32)}, r"\[B, 2, 3, H, W\]"),
        ({"concept_input_ids": torch.zeros(3, 5, dtype=torch.long)}, r"\[B, 2, C\]"),
        ({"concept_input_ids": (torch.zeros(3, 5, dtype=torch.long),)}, "each of the two"),
        ({"concept_input_ids": (torch.zeros(3, 2, dtype=torch.long), None)}, "concept_attention_mask"),
    ],
)
def test_impossible_pairs(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_head("reasoning")(**inference_inputs("reasoning") | change)


def test_text_assignment_reads_the_given_pair():
    model, batch = tiny_head("text-assignment"), tiny_batch(4, seed=3)
    pairs, labels = torch.tensor([[0, 1], [3, 1], [0, 3], [3, 0]]), torch.tensor([0, 1, 2, 0])
    output = model(**batch, pair_indices=pairs, labels=labels)
    for row in range(4):
        images = []
        for index in pairs[row]:
            concepts = batch["concept_attention_mask"][index].sum()
            images.append((batch["pixel_values"][index][None], batch["concept_input_ids"][index, :concepts][None]))
        expected = _fuse_obviously(model, batch, row, images)
        torch.testing.assert_close(output.last_hidden_state[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))


def test_drawn_pairs_mean_what_their_labels_say():
    torch.manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    ids = torch.tensor([0, 1, 0, 2, 3])
    sampler, counts, others = ImagePairSampler(), torch.zeros(3), torch.zeros(5, 5)
    for _ in range(2000):
        pairs = sampler(embeds, ids)
        assert pairs.exists.all()
        for row, ((first, second), label) in enumerate(
            zip(pairs.indices.tolist(), pairs.labels.tolist(), strict=True)
        ):
            foreign = [index for index, own in ((first, label == 0), (second, label == 1)) if not own]
            assert [first, second][label : label + 1] == [row][: label < 2]
            assert len(set(foreign)) == len(foreign) and all(ids[index] != ids[row] for index in foreign)
            counts[label] += 1
            others[row, foreign[0]] += 1
    torch.testing.assert_close(counts / counts.sum(), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    weights = (embeds @ embeds.T / SIMILARITY_TEMPERATURE).softmax(dim=1).masked_fill(ids[:, None] == ids, 0.0)
    torch.testing.assert_close(
        others / others.sum(1, keepdim=True), weights / weights.sum(1, keepdim=True), atol=0.04, rtol=0
    )


def test_batches_with_too_few_other_images():
    model = tiny_head("text-assignment").train()
    torch.manual_seed(0)
    for _ in range(20):
        assert (model(**tiny_batch(2)).labels < 2).all()
    output = model(**tiny_batch(1))
    output.loss.backward()
    assert output.loss == 0
    assert model(**tiny_batch(3), image_ids=torch.tensor([4, 4, 4])).loss == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"pair_indices": torch.tensor([[0, 1], [1, 2], [2, 3]]), "labels": torch.tensor([0, 0, 0])},
            "between 0 and 2",
        ),
        ({"pair_indices": torch.tensor([0, 1, 2]), "labels": torch.tensor([0, 0, 0])}, r"\[3, 2\]"),
        ({"labels": torch.tensor([0, 0, 0])}, "both"),
        ({"pair_indices": torch.tensor([[0, 1]] * 3), "labels": torch.tensor([0, 0, 3])}, "neither"),
    ],
)
def test_impossible_assignments(given, message):
    with pytest.raises(ValueError, match=message):
        tiny_head("text-assignment")(**tiny_batch(3), **given)
