"""SIMLA's models: what they compute does not depend on the batch, what they train hears of the loss, what is saved comes back."""

import warnings

import pytest
import torch
from head_checks import ANSWERS, inference_inputs, predict, step_inputs
from huggingface_hub.errors import StrictDataclassError
from simla_models import (
    GRID,
    SIMLA_HEADS,
    SimlaForPreTraining,
    SimlaForRetrieval,
    SimlaModel,
    block,
    simla_batch,
    simla_config,
    simla_model,
)
from tiny_models import CLS, MASK, PAD, SEP, VOCAB_SIZE, assert_same, fill_queue, gradients, predict_positions
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForVisualQuestionAnswering

from vicha_hf import SimlaForGrounding, SimlaForVisualReasoning, SimlaForVQA
from vicha_hf.visual_tokens.configuration import PatchVisualTokenizerConfig
from vicha_hf.visual_tokens.patches import PatchVisualTokenizer


LOSSES = {"itc_loss", "itm_loss", "mlm_loss", "mim_loss", "psl_loss"}
LENGTHS = [4, 7, 5, 8]


def given(batch_size=4):
    """Everything that a step would draw."""
    roll = torch.arange(batch_size).roll(1)
    return {
        "negative_image_indices": roll,
        "negative_text_indices": roll,
        "bool_masked_pos": block(batch_size),
    }


def padded(batch, columns=4):
    """More padding, filled with ids that would show if they were read."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    filler = torch.full((len(ids), columns), 11)
    return batch | {
        "input_ids": torch.cat([ids, filler], dim=1),
        "attention_mask": torch.cat([mask, torch.zeros_like(filler)], dim=1),
    }


def texts_of(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def results(model, batch, row):
    images, texts = model.encode_images(batch["pixel_values"]), model.encode_texts(**texts_of(batch))
    length = int(batch["attention_mask"][row].sum())
    output = model.simla(batch["pixel_values"], **texts_of(batch))
    ranking = model.rerank(images, texts, k=len(batch["input_ids"]))
    return {
        "image_embeds": images.embeds[row],
        "text_embeds": texts.embeds[row],
        "fused": output.last_hidden_state[row, :length],
        "similarity": output.logits_per_image[row, row],
        "match": model.score_pairs(images, texts)[row],
        "ranked": ranking.scores_i2t[row, row],
        "ranked_t2i": ranking.scores_t2i[row, row],
    }


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("row", [0, 3])
def test_alone_batched_reordered_and_padded_are_equal(row, attention):
    model, batch = simla_model(SimlaForRetrieval, attn_implementation=attention), simla_batch()
    length = int(batch["attention_mask"][row].sum())
    alone = {name: value[[row]] for name, value in batch.items()}
    alone = alone | {name: alone[name][:, :length] for name in texts_of(batch)}
    expected = results(model, alone, 0)
    assert_same(results(model, batch, row), expected)
    assert_same(results(model, {name: value.flip(0) for name, value in batch.items()}, 3 - row), expected)
    assert_same(results(model, padded(batch), row), expected)
    assert len({round(value.item(), 4) for value in (expected["match"], expected["similarity"])}) == 2


def test_texts_are_fused_from_their_ids_with_a_cross_attention_in_every_layer():
    model, batch = simla_model(SimlaForRetrieval), simla_batch()
    layers = model.simla.text_model.encoder.layer
    assert all(layer.crossattention is not None for layer in layers)
    with torch.no_grad():
        texts = model.encode_texts(**texts_of(batch))
        before = model.simla(batch["pixel_values"], **texts_of(batch))
        layers[0].crossattention.output.dense.weight.mul_(2)
        after = model.simla(batch["pixel_values"], **texts_of(batch))
        assert torch.equal(model.encode_texts(**texts_of(batch)).embeds, texts.embeds)
    assert (after.last_hidden_state - before.last_hidden_state).abs().max() > 1e-3


def test_encodings_of_unequal_batches_can_be_joined():
    model, batch = simla_model(SimlaForRetrieval), simla_batch()
    with torch.no_grad():
        whole = model.encode_texts(**texts_of(batch))
        parts = []
        for rows in (slice(0, 1), slice(1, 4)):
            longest = int(batch["attention_mask"][rows].sum(dim=1).max())
            parts.append(
                model.encode_texts(batch["input_ids"][rows, :longest], batch["attention_mask"][rows, :longest])
            )
        joined = type(whole).concatenate(parts)
        images = model.encode_images(batch["pixel_values"])
        torch.testing.assert_close(model.score_pairs(images, joined), model.score_pairs(images, whole))


def test_concepts_are_refused():
    model, batch = simla_model(SimlaForRetrieval), simla_batch(2)
    with pytest.raises(TypeError, match="SimlaModel, which has no visual concepts"):
        model.encode_images(batch["pixel_values"], torch.ones(2, 3).long())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_losses_and_gradients_do_not_depend_on_padding(attention):
    batch, observed = simla_batch(), []
    for variant in (batch, padded(batch)):
        model = simla_model(SimlaForPreTraining, attn_implementation=attention).train()
        predicted = predict_positions(variant, [[1], [1, 2], [], [2]])
        output = model(**variant, **predicted, **given())
        output.loss.backward()
        observed.append(gradients(model) | {name: output[name].detach() for name in LOSSES})
    assert_same(observed[1], observed[0])


def test_every_objective_is_a_field_and_the_loss_their_weighted_sum():
    fields = {"itm_weight": 2.0, "mim_weight": 0.5, "psl_weight": 3.0}
    model = simla_model(SimlaForPreTraining, **fields).train()
    output = model(**simla_batch())
    assert {name for name in output if name.endswith("_loss")} == LOSSES
    total = output.itc_loss + 2 * output.itm_loss + output.mlm_loss + 0.5 * output.mim_loss + 3 * output.psl_loss
    torch.testing.assert_close(output.loss, total)
    output.loss.backward()
    silent = [name for name, value in gradients(model).items() if value.abs().max() < 1e-8]
    assert [name for name in silent if not name.endswith(("key.bias", "k_proj.bias"))] == []


@pytest.mark.parametrize("name", ["itm", "mlm", "mim", "psl"])
def test_an_objective_that_is_off_has_no_parameters_and_no_loss(name):
    model = simla_model(SimlaForPreTraining, **{f"{name}_weight": 0}).train()
    batch = simla_batch()
    if name == "mim":
        del batch["visual_token_ids"]
    output = model(**batch)
    assert getattr(output, f"{name}_loss") is None
    module = {"itm": "itm_head", "mlm": "mlm_head"}.get(name, name)
    assert getattr(model, module) is None
    output.loss.backward()


def test_the_teacher_judges_by_its_own_inputs_unless_the_quirk_says_otherwise():
    def step(quirks):
        model = simla_model(SimlaForPreTraining, reference_quirks=quirks).train()
        model.add_training_state()
        with torch.no_grad():
            for parameter in model.training_state.teacher["simla"].vision_model.parameters():
                parameter.mul_(0.9)
            model.training_state.teacher["simla"].text_model.embeddings.word_embeddings.weight.mul_(0.5)
        predicted = predict_positions(simla_batch(), [[1], [1, 2], [], [2]])
        return model(**simla_batch(), **predicted, **given(), update_teacher=False, distillation_alpha=0.9)

    own, online = step([]), step(["simla_teacher_online_inputs"])
    torch.testing.assert_close(own.itc_loss, online.itc_loss)
    assert abs(own.mim_loss - online.mim_loss) > 1e-4
    mlm = step(["mlm_softmax_over_sequence"])
    torch.testing.assert_close(mlm.mim_loss, own.mim_loss)
    assert abs(mlm.mlm_loss - own.mlm_loss) > 1e-3


def test_the_teacher_follows_everything_that_teaches():
    model = simla_model(SimlaForPreTraining, momentum=0.5).train()
    model.add_training_state()
    before = {name: value.clone() for name, value in model.training_state.teacher.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    model(**simla_batch())
    teacher = dict(model.training_state.teacher.named_parameters())
    assert {"mim.mask_token", "mim.head.weight", "psl.head.weight"} <= teacher.keys()
    for name, value in teacher.items():
        if not name.endswith("temperature"):  # clamped
            torch.testing.assert_close(value, before[name] + 0.5, msg=name)


def test_visual_tokens_may_come_from_a_tokenizer_that_is_no_part_of_the_model(tmp_path):
    model, batch = simla_model(SimlaForPreTraining).train(), simla_batch()
    del batch["visual_token_ids"]
    tokenizer = PatchVisualTokenizer(PatchVisualTokenizerConfig(patch_size=8, vocab_size=20))
    names = set(model.state_dict())
    model.set_visual_tokenizer(tokenizer)
    assert set(model.state_dict()) == names and len(list(model.children())) == len(dict(model.named_children()))
    tokens = tokenizer(batch["pixel_values"])
    predicted = predict_positions(batch, [[1], [1, 2], [], [2]])
    losses = [model(**batch, **more, **predicted, **given()).mim_loss for more in ({}, {"visual_token_ids": tokens})]
    torch.testing.assert_close(*losses)
    with pytest.raises(ValueError, match=r"8 x 8 tokens .* 4 x 4 patches"):
        model.set_visual_tokenizer(PatchVisualTokenizer(PatchVisualTokenizerConfig(patch_size=4, vocab_size=20)))


def test_a_grid_that_does_not_fit_stops_the_step():
    model = simla_model(SimlaForPreTraining).train()
    wrong = simla_batch() | {"visual_token_ids": torch.zeros(4, 8, 8).long()}
    with pytest.raises(ValueError, match=r"8 x 8 per image.* 4 x 4 = 16 patches"):
        model(**wrong)


def test_degenerate_batches_are_finite():
    for batch_size in (1, 2):
        model, batch = simla_model(SimlaForPreTraining).train(), simla_batch(batch_size)
        batch["input_ids"] = torch.tensor([[CLS, SEP, PAD]] * batch_size)
        batch["attention_mask"] = torch.tensor([[1, 1, 0]] * batch_size)
        output = model(**batch, image_ids=torch.zeros(batch_size).long())
        output.loss.backward()
        assert output.loss.isfinite()
        assert all(value.isfinite().all() for value in gradients(model).values())


def test_keywords_are_words_with_falling_probabilities():
    model, pixels = simla_model(SimlaForPreTraining), simla_batch(2)["pixel_values"]
    with torch.no_grad():
        model.psl.head.bias[torch.tensor([CLS, PAD, SEP, MASK, 1])] = 50.0  # special tokens would be on top
        model.psl.head.bias[9] = 20.0
    found = model.predict_keywords(pixels, top_k=4)
    assert found.token_ids.shape == found.probabilities.shape == (2, 4)
    assert found.token_ids[:, 0].tolist() == [9, 9] and (found.token_ids > 4).all()
    assert (found.probabilities.diff(dim=1) <= 0).all() and found.probabilities.max() <= 1
    features = model.simla.encode_images(pixels).embeds
    expected = model.psl.head(features).sigmoid().gather(1, found.token_ids)
    torch.testing.assert_close(found.probabilities, expected)
    with pytest.raises(ValueError, match=f"choose 1 to {VOCAB_SIZE - 5}"):
        model.predict_keywords(pixels, top_k=VOCAB_SIZE)
    with pytest.raises(ValueError, match="psl_weight=0"):
        simla_model(SimlaForPreTraining, psl_weight=0).predict_keywords(pixels)


@pytest.mark.parametrize("model_class", [SimlaModel, SimlaForPreTraining, SimlaForRetrieval, *SIMLA_HEADS.values()])
def test_saving_and_loading(tmp_path, model_class):
    model = simla_model(model_class)
    if model_class in (SimlaForPreTraining, SimlaForRetrieval):
        model.add_training_state()
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("training_state.")}
    assert_same(loaded.state_dict(), own, tolerance=0)


def test_auto_classes_and_heads_load_a_pretraining_folder(tmp_path):
    model = simla_model(SimlaForPreTraining)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare = AutoModel.from_pretrained(tmp_path)
    assert type(bare) is SimlaModel and type(AutoModelForPreTraining.from_pretrained(tmp_path)) is SimlaForPreTraining
    batch = simla_batch(2)
    with torch.no_grad():
        expected = model.simla(batch["pixel_values"], **texts_of(batch)).logits_per_image
        torch.testing.assert_close(bare(batch["pixel_values"], **texts_of(batch)).logits_per_image, expected)
    answering = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert type(answering) is SimlaForVQA and len(answering.answer_decoder.encoder.layer) == 2
    layer = model.simla.text_model.encoder.layer[2]
    copied = answering.answer_decoder.encoder.layer[0]
    assert torch.equal(copied.crossattention.self.query.weight, layer.crossattention.self.query.weight)
    reasoning = SimlaForVisualReasoning.from_pretrained(tmp_path)
    twin = reasoning.image_pair_encoder.twins[0]
    assert torch.equal(twin.attention.self.query.weight, layer.attention.self.query.weight)


def test_starting_weights(tmp_path):
    model = simla_model(SimlaForPreTraining, spread=False)
    assert 0 < model.mim.mask_token.std() < 0.05 and model.simla.temperature.item() == pytest.approx(0.07)
    assert model.mlm_head.decoder.weight is model.simla.text_model.embeddings.word_embeddings.weight
    decayed = model.no_weight_decay()
    assert {"mim.mask_token", "simla.temperature", "simla.vision_model.embeddings.cls_token"} <= decayed
    assert simla_model(SimlaForPreTraining, reference_quirks=["decay_embeddings"]).no_weight_decay() == set()
    # A folder without the raw parameters gives fresh ones, not uninitialised memory.
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("mask_token")}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = SimlaForPreTraining.from_pretrained(tmp_path)
    assert 0 < loaded.mim.mask_token.std() < 0.05


def test_resizing():
    model = simla_model(SimlaForPreTraining, text_config={"max_position_embeddings": 64})
    model.resize_token_embeddings(VOCAB_SIZE + 3)
    assert model.psl.head.out_features == model.mlm_head.decoder.out_features == VOCAB_SIZE + 3
    assert model.config.text_config.vocab_size == VOCAB_SIZE + 3
    model.resize_image_size(48)
    batch = simla_batch(2) | {"pixel_values": torch.randn(2, 3, 48, 48)}
    batch["visual_token_ids"] = torch.zeros(2, 6, 6).long()
    output = model.train()(**batch)
    assert output.loss.isfinite()


@pytest.mark.parametrize("name", SIMLA_HEADS)
def test_heads_take_more_patches_than_the_text_encoder_has_positions(name, tmp_path):
    """At 384 pixels a base model has 577 image tokens and 512 text positions; only pretraining needs as many."""
    simla_model(SimlaForPreTraining).save_pretrained(tmp_path / "pretrained")
    head = SIMLA_HEADS[name].from_pretrained(tmp_path / "pretrained").eval()
    assert head.config.mim_weight == 1
    head.resize_image_size(48)
    head.save_pretrained(tmp_path / "head")
    loaded = SIMLA_HEADS[name].from_pretrained(tmp_path / "head").eval()
    assert loaded.config.mim_weight == 0 and loaded.config.vision_config.image_size == 48
    inputs = inference_inputs(name, 2, concepts=False)
    inputs["pixel_values"] = torch.randn(*inputs["pixel_values"].shape[:-2], 48, 48)
    torch.testing.assert_close(predict(name, loaded, inputs), predict(name, head, inputs))


def test_a_size_that_reconstruction_cannot_have_is_refused_before_anything_changes():
    model = simla_model(SimlaForPreTraining)
    with pytest.raises(StrictDataclassError, match=r"text_config\.max_position_embeddings=24"):
        model.resize_image_size(48)
    assert model.config.vision_config.image_size == 32
    assert model.train()(**simla_batch(2)).loss.isfinite()


@pytest.mark.parametrize("name", SIMLA_HEADS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_heads_predict_alone_as_in_a_batch(name, attention):
    model = simla_model(SIMLA_HEADS[name], attn_implementation=attention)
    inputs = inference_inputs(name, 3, concepts=False)
    expected = predict(name, model, inputs)
    assert expected.isfinite().all()
    if name == "text-assignment":
        return
    length = int(inputs["attention_mask"][0].sum())
    alone = {key: value[[0]] for key, value in inputs.items()}
    alone |= {key: alone[key][:, :length] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(predict(name, model, alone)[0], expected[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SIMLA_HEADS)
def test_heads_train(name):
    model = simla_model(SIMLA_HEADS[name]).train()
    model.add_training_state()
    output = model(**step_inputs(name, 3, concepts=False))
    output.loss.backward()
    silent = [key for key, value in gradients(model).items() if value.abs().max() == 0]
    assert [
        key for key in silent if not key.endswith(("key.bias", "k_proj.bias", "token_type_embeddings.weight"))
    ] == []


def test_the_two_images_alternate_from_the_first_layer():
    model = simla_model(SimlaForVisualReasoning, text_config={"first_doubled_layer": 3})
    assert len(model.image_pair_encoder.twins) == 1
    seen = []
    for layer in [*model.simla.text_model.encoder.layer, *model.image_pair_encoder.twins]:
        layer.register_forward_hook(
            lambda module, args, kwargs, output: seen.append(args[5].tolist() if len(args) > 5 else None),
            with_kwargs=True,
        )
    with torch.no_grad():
        model(**inference_inputs("reasoning", 2, concepts=False))
    assert seen == [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]


def test_grounding_by_any_layer():
    model = simla_model(SimlaForGrounding)
    inputs = inference_inputs("grounding", 2, concepts=False)
    first, last = (model(**inputs, layer=layer).heatmaps for layer in (0, 3))
    assert first.shape == (2, GRID, GRID) and (first - last).abs().max() > 0
    with pytest.raises(ValueError, match="layers 0 to 3"):
        model(**inputs, layer=4)


def test_answers_can_be_generated_and_ranked():
    model = simla_model(SimlaForVQA)
    inputs = inference_inputs("vqa", 2, concepts=False)
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 2
    assert model.rank_answers(**inputs, answers=ANSWERS, top_k=3).answer_indices.shape == (2, 3)


def test_training_continues_from_a_saved_training_state(tmp_path):
    model = simla_model(SimlaForPreTraining).train()
    model.add_training_state()
    fill_queue(model, 4)
    model.save_pretrained(tmp_path, training_state=True)
    loaded = SimlaForPreTraining.from_pretrained(tmp_path, training_state=True).train()
    predicted = predict_positions(simla_batch(), [[1], [1, 2], [], [2]])
    losses = [one(**simla_batch(), **predicted, **given()).loss for one in (model, loaded)]
    torch.testing.assert_close(*losses)
    assert simla_config().queue_size == loaded.training_state.queue.size
