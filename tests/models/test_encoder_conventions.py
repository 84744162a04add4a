"""What transformers promises of every model: recorded outputs, tuples, backends, compilation."""

import pytest
import torch
from tiny_models import NUM_PATCHES, tiny_batch, tiny_model, tiny_pretraining_model, tiny_retrieval_model, token_rows

from vicha_hf.models.inputs import Concepts


def image_inputs(model, batch):
    given = Concepts(batch["concept_input_ids"], batch["concept_attention_mask"])
    concepts = model.concept_tokens(given, len(batch["pixel_values"]))
    return batch["pixel_values"], concepts.tokens, concepts.mask


def test_vision_states_and_attentions():
    model, batch = tiny_model(attn_implementation="eager"), tiny_batch(2)
    inputs = image_inputs(model, batch)
    sequence = 1 + NUM_PATCHES + inputs[1].shape[1]
    with torch.no_grad():
        output = model.vision_model(*inputs, output_hidden_states=True, output_attentions=True)
        plain = model.vision_model(*inputs)
    assert len(output.hidden_states) == 3 + 1 and len(output.attentions) == 3
    assert {tuple(states.shape) for states in output.hidden_states} == {(2, sequence, 32)}
    assert {tuple(weights.shape) for weights in output.attentions} == {(2, 4, sequence, sequence)}
    # The states are the blocks' outputs; the final norm comes after the last.
    torch.testing.assert_close(model.vision_model.layernorm(output.hidden_states[-1]), plain.last_hidden_state)
    assert (output.hidden_states[-1] - plain.last_hidden_state).abs().max() > 1e-2
    embedded = model.vision_model.embeddings(batch["pixel_values"])
    torch.testing.assert_close(output.hidden_states[0], torch.cat([embedded, inputs[1]], dim=1))
    padding = batch["concept_attention_mask"][0] == 0
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
        assert (weights[0, :, :, 1 + NUM_PATCHES :][..., padding] == 0).all()
    assert plain.hidden_states is None and plain.attentions is None


@pytest.mark.parametrize(("mode", "layers", "cross_layers"), [("text", 2, 0), ("fusion", 2, 2), ("multimodal", 4, 2)])
def test_text_states_and_attentions(mode, layers, cross_layers):
    model = tiny_model(attn_implementation="eager")
    ids, mask = token_rows([5, 7], seed=0)
    image = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    image_mask = torch.ones(2, 9, dtype=torch.long)
    image_mask[0, 6:] = 0
    inputs = {"inputs_embeds": torch.randn(2, 7, 32)} if mode == "fusion" else {"input_ids": ids}
    if mode != "text":
        inputs |= {"encoder_hidden_states": image, "encoder_attention_mask": image_mask}
    with torch.no_grad():
        output = model.text_model(
            **inputs, attention_mask=mask, mode=mode, output_hidden_states=True, output_attentions=True
        )
    assert len(output.hidden_states) == layers + 1 and len(output.attentions) == layers
    assert {tuple(states.shape) for states in output.hidden_states} == {(2, 7, 32)}
    assert {tuple(weights.shape) for weights in output.attentions} == {(2, 4, 7, 7)}
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert all((weights[0, :, :, 5:] == 0).all() for weights in output.attentions)
    cross = output.cross_attentions or ()
    assert len(cross) == cross_layers
    for weights in cross:
        assert weights.shape == (2, 4, 7, 9)
        assert (weights[0, :, :, 6:] == 0).all() and (weights[1, :, :, 6:] > 0).all()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 7))


def test_concept_states():
    model, batch = tiny_model(attn_implementation="eager", num_concept_layers=2), tiny_batch(2)
    with torch.no_grad():
        output = model.concept_model(
            batch["concept_input_ids"],
            batch["concept_attention_mask"],
            output_hidden_states=True,
            output_attentions=True,
        )
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2


def test_the_bare_model_hands_on_what_text_and_fusion_layers_recorded():
    model, batch = tiny_model(attn_implementation="eager"), tiny_batch(2)
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_attentions=True)
        plain = model(**batch)
    assert len(output.hidden_states) == 5 and len(output.attentions) == 4 and len(output.cross_attentions) == 2
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert torch.equal(output.last_hidden_state, plain.last_hidden_state)
    assert plain.hidden_states is None


def test_modes_compose():
    """All layers at once equal text layers, then fusion layers; and one image may serve several texts."""
    model, batch = tiny_model(), tiny_batch(2)
    ids, mask = token_rows([5, 7, 4], seed=0)
    with torch.no_grad():
        image = model.encode_images(batch["pixel_values"], batch["concept_input_ids"], batch["concept_attention_mask"])
        index = torch.tensor([1, 0, 1])
        states = model.text_model(ids, mask, mode="text").last_hidden_state
        keys = model.text_model.project_keys_values(image.hidden_states)
        shared = model.text_model(
            inputs_embeds=states,
            attention_mask=mask,
            encoder_key_values=keys,
            encoder_attention_mask=image.attention_mask,
            encoder_index=index,
            mode="fusion",
        ).last_hidden_state
        together = model.text_model(
            ids,
            mask,
            encoder_hidden_states=image.hidden_states[index],
            encoder_attention_mask=image.attention_mask[index],
        ).last_hidden_state
    torch.testing.assert_close(shared, together)


def test_logits_are_cosines_over_temperature():
    model, batch = tiny_model(), tiny_batch(3)
    images = {key: value[:2] for key, value in batch.items() if key not in ("input_ids", "attention_mask")}
    texts = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = model(**images, **texts)
        image_features, text_features = model.get_image_features(**images), model.get_text_features(**texts)
    assert output.last_hidden_state is None
    assert output.logits_per_image.shape == (2, 3) and torch.equal(output.logits_per_text, output.logits_per_image.T)
    for features, embeds in ((image_features, output.image_embeds), (text_features, output.text_embeds)):
        torch.testing.assert_close(features.pooler_output, embeds)
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)))
    for image in range(2):
        for text in range(3):
            cosine = torch.cosine_similarity(output.image_embeds[image], output.text_embeds[text], dim=0)
            assert output.logits_per_image[image, text].item() == pytest.approx(cosine.item() / 0.07, abs=1e-4)


def test_token_types_are_accepted_and_read():
    model, batch = tiny_model(), tiny_batch(2)
    zeros = torch.zeros_like(batch["input_ids"])
    with torch.no_grad():
        without, with_zeros, with_ones = (
            model(**batch, **extra).text_embeds
            for extra in ({}, {"token_type_ids": zeros}, {"token_type_ids": zeros + 1})
        )
    assert torch.equal(without, with_zeros)
    assert (with_ones - without).abs().max() > 1e-4


def test_a_model_without_token_types():
    model = tiny_model(text_config={"type_vocab_size": 0})
    assert not any("token_type" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        assert model(**tiny_batch(2)).logits_per_image.isfinite().all()


@pytest.mark.parametrize("builder", [tiny_model, tiny_pretraining_model, tiny_retrieval_model])
def test_tuples(builder):
    model, batch = builder(), tiny_batch(2)
    torch.manual_seed(0)
    with torch.no_grad():
        output = model(**batch)
        torch.manual_seed(0)
        values = model(**batch, return_dict=False)
    assert isinstance(values, tuple)
    expected = output.to_tuple()
    assert len(values) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(values, expected, strict=True) if torch.is_tensor(pair[0]))


def test_wrong_inputs_are_named():
    model, batch = tiny_model(), tiny_batch(2)
    with pytest.raises(ValueError, match=r"pixel_values.*1 channels.*\[batch, 3"):
        model(**batch | {"pixel_values": batch["pixel_values"][:, :1]})
    long = torch.full((2, 25), 7)
    with pytest.raises(ValueError, match=r"25 tokens.*max_position_embeddings=24.*truncate"):
        model.encode_texts(long)
    with pytest.raises(ValueError, match=r"25 tokens.*max_position_embeddings=24"):
        model.encode_images(batch["pixel_values"], long)


def compiled(module):
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="eager")


def close(compiled_output, output):
    torch.testing.assert_close(compiled_output.last_hidden_state, output.last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_vision_encoder_compiles_without_graph_breaks(attention):
    model, batch = tiny_model(attn_implementation=attention), tiny_batch(2)
    with torch.no_grad():
        inputs = image_inputs(model, batch)
        for arguments in (inputs, inputs[:1]):
            close(compiled(model.vision_model)(*arguments), model.vision_model(*arguments))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_text_and_concept_encoders_compile_without_graph_breaks(attention):
    model = tiny_model(attn_implementation=attention)
    ids, mask = token_rows([5, 7], seed=0)
    image = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    image_mask = torch.ones(2, 9, dtype=torch.long)
    image_mask[0, 6:] = 0
    cross = {"encoder_hidden_states": image, "encoder_attention_mask": image_mask}
    text = model.text_model
    with torch.no_grad():
        states = text(ids, mask, mode="text").last_hidden_state
        modes = [{"input_ids": ids, "attention_mask": mask, **cross, "encoder_index": torch.tensor([1, 0])}]
        if attention == "sdpa":
            modes += [
                {"input_ids": ids, "attention_mask": mask, "mode": "text"},
                {"inputs_embeds": states, "attention_mask": mask, "mode": "fusion", **cross},
            ]
        for arguments in modes:
            close(compiled(text)(**arguments), text(**arguments))
        mask[1] = 0
        close(compiled(model.concept_model)(ids, mask), model.concept_model(ids, mask))


def test_the_bare_model_compiles_without_graph_breaks():
    model, batch = tiny_model(), tiny_batch(2)
    with torch.no_grad():
        observed, expected = compiled(model)(**batch), model(**batch)
    torch.testing.assert_close(observed.logits_per_image, expected.logits_per_image, atol=1e-4, rtol=1e-5)
    close(observed, expected)


def test_backends_can_be_switched():
    model, batch = tiny_pretraining_model(attn_implementation="sdpa"), tiny_batch(2)
    model.add_training_state()
    model.set_attn_implementation("eager")
    teacher = model.training_state.teacher["vicha"]
    for part in (model.vicha, teacher):
        for encoder in (part.vision_model, part.text_model, part.concept_model):
            assert encoder.config._attn_implementation == "eager"
    with torch.no_grad():
        assert model(**batch).loss.isfinite()
