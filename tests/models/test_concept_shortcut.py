"""Concepts that count in an image's embedding as a text does, and texts that are read by the mean of their tokens."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_models import SEP, tiny_batch, tiny_config, tiny_model, tiny_pretraining_model, token_rows
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from vicha_hf import ViChaForPreTraining, ViChaModel
from vicha_hf.export.parts import ImageEncoderPart, TextEncoderPart
from vicha_hf.models.inputs import Concepts


@pytest.fixture(params=["first", "mean"])
def model(request):
    return tiny_model(concept_shortcut=True, text_pooling=request.param)


def without_shortcut(model):
    plain = ViChaModel(tiny_config()).eval()
    plain.load_state_dict(model.state_dict())
    return plain


@torch.no_grad()
def test_the_embedding_is_half_the_concepts_own(model):
    """Against a loop over the images, each without padding."""
    batch = tiny_batch()
    pixels, ids, mask = (batch[name] for name in ("pixel_values", "concept_input_ids", "concept_attention_mask"))
    mask = mask.clone()
    mask[1] = 0
    found = model.encode_images(pixels, ids, mask)
    plain = without_shortcut(model).encode_images(pixels, ids, mask)
    assert torch.equal(found.hidden_states, plain.hidden_states)
    for image in range(len(pixels)):
        real = ids[image, mask[image].bool()][None]
        if not real.numel():
            assert torch.allclose(found.embeds[image], plain.embeds[image], atol=1e-6)
            continue
        states = model.concept_model(real).last_hidden_state[0]
        pooled = states[0] if model.config.text_pooling == "first" else states.mean(0)
        own = normalize(model.text_projection(pooled), dim=0)
        expected = normalize(plain.embeds[image] + own, dim=0)
        assert torch.allclose(found.embeds[image], expected, atol=1e-5)


@torch.no_grad()
def test_no_concepts_in_a_batch_equal_none(model):
    batch = tiny_batch()
    empty = torch.zeros_like(batch["concept_attention_mask"])
    alone = model.encode_images(batch["pixel_values"]).embeds
    assert torch.allclose(
        model.encode_images(batch["pixel_values"], batch["concept_input_ids"], empty).embeds, alone, atol=1e-6
    )


@torch.no_grad()
def test_padding_of_a_text_does_not_count(model):
    ids, mask = token_rows([5, 9, 3])
    together = model.encode_texts(ids, mask).embeds
    for row in range(3):
        real = ids[row, mask[row].bool()][None]
        assert torch.allclose(model.encode_texts(real).embeds[0], together[row], atol=1e-5)


@torch.no_grad()
def test_exported_parts_embed_as_the_model_does(model):
    batch = tiny_batch()
    concepts = (batch["concept_input_ids"], batch["concept_attention_mask"])
    images = model.encode_images(batch["pixel_values"], *concepts).embeds
    texts = model.encode_texts(batch["input_ids"], batch["attention_mask"]).embeds

    class Head(torch.nn.Module):
        base_model, config = model, model.config

    assert torch.allclose(ImageEncoderPart(Head())(batch["pixel_values"], *concepts)[0], images, atol=1e-6)
    assert torch.allclose(TextEncoderPart(Head())(batch["input_ids"], batch["attention_mask"])[0], texts, atol=1e-6)


def test_both_halves_learn_and_so_does_the_teacher():
    model = tiny_pretraining_model(concept_shortcut=True, text_pooling="mean", share_word_embeddings=True).train()
    model.add_training_state()
    assert model.training_state.teacher["vicha"].config.concept_shortcut
    model(**tiny_batch()).itc_loss.backward()
    base = model.vicha
    for part in (base.vision_projection.weight, base.text_projection.weight, base.concept_model.encoder.layer[0]):
        gradients = [part.grad] if isinstance(part, torch.Tensor) else [p.grad for p in part.parameters()]
        assert any(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_pooling": "max"}, "text_pooling='max'"),
        ({"concept_shortcut": True, "use_concepts": False}, "concept_shortcut=True.* no concepts"),
    ],
)
def test_impossible_configurations_are_named(fields, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        tiny_config(**fields)


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory):
    """A BERT of three layers without a masked-language head."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3}
    bert = BertModel(BertConfig(**sizes, num_hidden_layers=3, vocab_size=60, max_position_embeddings=20))
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("encoder")
    bert.save_pretrained(folder)
    return str(folder), bert.eval()


def started(folder, **text_config):
    tokens = {"cls_token_id": 2, "sep_token_id": SEP, "mask_token_id": 4}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
    }
    return ViChaForPreTraining.from_vision_text_pretrained(
        None,
        folder,
        vision_config=vision,
        text_config=tokens | text_config,
        num_concept_layers=3,
        concept_shortcut=True,
        text_pooling="mean",
        hierarchical_itc_weight=0,
        mim_weight=0,
        queue_size=0,
    ).eval()


@torch.no_grad()
def test_a_whole_sentence_encoder_reads_captions_and_concepts_alike_from_the_first_step(sentence_encoder):
    folder, bert = sentence_encoder
    model = started(folder, num_hidden_layers=5, fusion_layer=3).vicha
    ids, mask = torch.tensor([[2, 7, 9, 11, 3], [2, 8, 3, 0, 0]]), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    states = bert(ids, mask).last_hidden_state
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    texts = model.encode_texts(ids, mask).embeds
    assert torch.allclose(texts, normalize(model.text_projection(mean), dim=-1), atol=1e-5)
    # The joint space is wider than the encoder and turns its mean: similarities are the sentence encoder's own.
    own = normalize(mean, dim=-1)
    assert torch.allclose(texts @ texts.T, own @ own.T, atol=1e-5)
    # The same words as concepts have the same embedding.
    concepts = model.concept_tokens(Concepts.given(ids, mask), 2).embeds
    assert torch.allclose(concepts, texts, atol=1e-5)


def test_layers_beyond_the_source_copy_its_last_ones(sentence_encoder):
    folder, bert = sentence_encoder
    layers = started(folder, num_hidden_layers=5, fusion_layer=3).vicha.text_model.encoder.layer
    for target, source in ((3, 1), (4, 2)):
        own, copied = layers[target].state_dict(), bert.encoder.layer[source].state_dict()
        assert all(torch.equal(own[name], value) for name, value in copied.items())
    with pytest.raises(ValueError, match=r"num_hidden_layers=7 is not possible: .* has 3 layers .* enough for 6"):
        started(folder, num_hidden_layers=7, fusion_layer=3)
