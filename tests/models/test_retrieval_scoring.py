"""Two-stage retrieval against scoring one pair at a time."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_models import tiny_batch, tiny_model, tiny_pretraining_model, tiny_retrieval_model, token_rows

from vicha_hf.models import packed_texts, retrieval_scoring
from vicha_hf.models.encodings import ImageEncoding, TextEncoding


NUM_IMAGES, NUM_TEXTS = 5, 7
CONCEPT_LENGTHS, TEXT_LENGTHS = [4, 0, 6, 3, 8], [4, 9, 5, 4, 7, 6, 8]


@pytest.fixture(scope="module")
def corpus():
    pixel_values = torch.randn(NUM_IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return pixel_values, *token_rows(CONCEPT_LENGTHS, seed=1), *token_rows(TEXT_LENGTHS, seed=2)


def encode(model, corpus):
    pixel_values, concepts, concept_mask, ids, mask = corpus
    with torch.no_grad():
        return model.encode_images(pixel_values, concepts, concept_mask), model.encode_texts(ids, mask)


@torch.no_grad()
def one_by_one(model, corpus):
    """Match logits and similarities [images, texts], each pair encoded alone and without padding."""
    pixel_values, concepts, concept_mask, ids, _ = corpus
    logits, similarities = torch.zeros(2, NUM_IMAGES, NUM_TEXTS)
    for image in range(NUM_IMAGES):
        length = CONCEPT_LENGTHS[image]
        own = (concepts[image : image + 1, :length], concept_mask[image : image + 1, :length]) if length else ()
        for text in range(NUM_TEXTS):
            words = ids[text : text + 1, : TEXT_LENGTHS[text]]
            fused = model.vicha(pixel_values[image : image + 1], words, None, *own)
            logits[image, text] = model.itm_head(fused.last_hidden_state[0, 0])[1]
            similarities[image, text] = fused.image_embeds[0] @ fused.text_embeds[0]
    return logits, similarities


def loop_scores(logits, similarities, k):
    """Each row's k most similar columns keep their logit."""
    scores = torch.full_like(logits, -100.0)
    for row in range(len(logits)):
        best = sorted(range(logits.shape[1]), key=lambda column: -similarities[row, column].item())[:k]
        scores[row, best] = logits[row, best]
    return scores


@pytest.fixture(params=[(1024, 4096), (2, 20), (1, 1)], ids=["one block", "small blocks", "blocks of 1"])
def block_sizes(request, monkeypatch):
    monkeypatch.setattr(retrieval_scoring, "TEXTS_PER_BLOCK", request.param[0])
    monkeypatch.setattr(packed_texts, "TOKENS_PER_BATCH", request.param[1])
    return request.param


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def scored(request, corpus):
    model = tiny_retrieval_model(attn_implementation=request.param)
    return model, *one_by_one(model, corpus)


@pytest.mark.parametrize("k", [1, 2, 4, 5, 7, 1000])
def test_rerank_equals_a_loop(scored, corpus, block_sizes, k):
    model, logits, similarities = scored
    observed = model.rerank(*encode(model, corpus), k=k)
    expected_i2t = loop_scores(logits, similarities, min(k, NUM_TEXTS))
    expected_t2i = loop_scores(logits.T, similarities.T, min(k, NUM_IMAGES))
    torch.testing.assert_close(observed.scores_i2t, expected_i2t, atol=1e-5, rtol=0)
    torch.testing.assert_close(observed.scores_t2i, expected_t2i, atol=1e-5, rtol=0)
    assert observed.scores_i2t.dtype == torch.float32


@pytest.mark.parametrize("weight", [0.0, 0.25, 2.0])
def test_similarity_joins_the_match_logit(scored, corpus, weight):
    model, logits, similarities = scored
    combined = logits + weight * similarities / model.vicha.temperature.item()
    observed = model.rerank(*encode(model, corpus), k=3, similarity_weight=weight)
    expected = loop_scores(combined, similarities, 3), loop_scores(combined.T, similarities.T, 3)
    torch.testing.assert_close(observed.scores_i2t, expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(observed.scores_t2i, expected[1], atol=1e-4, rtol=0)
    assert ((observed.scores_i2t == -100) == (expected[0] == -100)).all()


def test_the_default_weight_is_the_configurations(corpus):
    model = tiny_retrieval_model(rerank_similarity_weight=0.5)
    default, given, published = (
        model.rerank(*encode(model, corpus), k=3, similarity_weight=weight).scores_i2t for weight in (None, 0.5, 0)
    )
    torch.testing.assert_close(default, given, atol=0, rtol=0)
    assert not torch.equal(default, published)
    torch.testing.assert_close(
        published, tiny_retrieval_model().rerank(*encode(model, corpus), k=3).scores_i2t, atol=0, rtol=0
    )
    for weight in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="similarity_weight="):
            model.rerank(*encode(model, corpus), k=3, similarity_weight=weight)
        with pytest.raises(StrictDataclassError, match="rerank_similarity_weight"):
            tiny_retrieval_model(rerank_similarity_weight=weight)


def test_a_pair_is_scored_once_and_memory_is_bounded(scored, corpus, block_sizes, monkeypatch):
    model, pairs, tokens = scored[0], [], []
    fuse = packed_texts.PackedTexts.fuse
    monkeypatch.setattr(
        packed_texts.PackedTexts,
        "fuse",
        lambda self, states, index: pairs.append(len(index)) or fuse(self, states, index),
    )
    layer = model.vicha.text_model.encoder.layer[-1]
    hook = layer.intermediate.dense.register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0].shape))
    key_values = layer.crossattention.self.key.register_forward_hook(lambda *call: tokens.append(None))
    scores = model.rerank(*encode(model, corpus), k=3)
    hook.remove()
    key_values.remove()
    wanted = (scores.scores_i2t > -100) | (scores.scores_t2i.T > -100)
    assert pairs == wanted.sum(dim=1).tolist()
    # Keys once per image, and in the last layer one position per pair.
    assert tokens.count(None) == NUM_IMAGES
    shapes = [shape for shape in tokens if shape is not None]
    assert sum(shape[1] for shape in shapes) == int(wanted.sum())
    assert len(shapes) > NUM_IMAGES or block_sizes[1] > 1


def test_ties_are_broken_but_never_scored_beyond_k(corpus):
    """Every text is there three times: each query still has exactly k scored candidates."""
    model = tiny_retrieval_model()
    pixel_values, concepts, concept_mask, ids, mask = corpus
    tied = (pixel_values, concepts, concept_mask, ids[:2].repeat(3, 1), mask[:2].repeat(3, 1))
    observed = model.rerank(*encode(model, tied), k=4)
    assert ((observed.scores_i2t > -100).sum(dim=1) == 4).all()
    assert ((observed.scores_t2i > -100).sum(dim=1) == 4).all()
    # Copies of a text have one logit, wherever they are scored.
    for image in range(NUM_IMAGES):
        for text in range(2):
            copies = observed.scores_i2t[image, text::2]
            copies = copies[copies > -100]
            torch.testing.assert_close(copies, copies[:1].expand_as(copies), atol=1e-5, rtol=0)


def test_encodings_of_several_batches_give_the_same_scores(scored, corpus):
    model, logits, similarities = scored
    pixel_values, _, _, ids, mask = corpus
    images, texts = [], []
    with torch.no_grad():
        for rows in ([0, 1], [2, 3, 4]):
            longest = max(CONCEPT_LENGTHS[row] for row in rows)
            images.append(
                model.encode_images(pixel_values[rows], corpus[1][rows, :longest], corpus[2][rows, :longest])
            )
        for rows in ([0], [1, 2], [3, 4, 5, 6]):
            longest = max(TEXT_LENGTHS[row] for row in rows)
            texts.append(model.encode_texts(ids[rows, :longest], mask[rows, :longest]))
    images, texts = ImageEncoding.concatenate(images), TextEncoding.concatenate(texts)
    assert images.hidden_states.shape[:2] == images.attention_mask.shape == (5, 17 + 8)
    assert texts.attention_mask.sum(dim=1).tolist() == TEXT_LENGTHS
    observed = model.rerank(images, texts, k=1000)
    torch.testing.assert_close(observed.scores_i2t, logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(images.embeds @ texts.embeds.T, similarities, atol=1e-5, rtol=0)


def test_batches_with_and_without_concepts_are_joined(corpus):
    model, pixel_values = tiny_retrieval_model(), corpus[0]
    with torch.no_grad():
        without = model.encode_images(pixel_values[:2])
        with_concepts = model.encode_images(pixel_values[2:], corpus[1][2:], corpus[2][2:])
        texts = model.encode_texts(corpus[3], corpus[4])
    assert without.attention_mask is None
    joined = ImageEncoding.concatenate([without, with_concepts])
    assert joined.attention_mask[:2].sum(dim=1).tolist() == [17, 17]
    expected = torch.cat([model.rerank(part, texts, k=99).scores_i2t for part in (without, with_concepts)])
    torch.testing.assert_close(model.rerank(joined, texts, k=99).scores_i2t, expected, atol=1e-5, rtol=0)
    same = ImageEncoding.concatenate([without, without])
    assert same.attention_mask is None and same.hidden_states.shape == (4, 17, 32)


def test_score_pairs_follows_its_indices(scored, corpus):
    model, logits, _ = scored
    images, texts = encode(model, corpus)
    image_index, text_index = torch.tensor([4, 0, 0, 2, 1]), torch.tensor([6, 0, 3, 3, 1])
    with torch.no_grad():
        observed = model.score_pairs(images, texts, image_index, text_index)
        torch.testing.assert_close(observed, logits[image_index, text_index], atol=1e-5, rtol=0)
        first_texts = TextEncoding(**{name: value[:NUM_IMAGES] for name, value in texts.items()})
        in_order = model.score_pairs(images, first_texts)
        torch.testing.assert_close(in_order, logits[:, :NUM_IMAGES].diagonal(), atol=1e-5, rtol=0)
        one_image = model.score_pairs(images, texts, image_index=torch.zeros(NUM_TEXTS, dtype=torch.long))
        torch.testing.assert_close(one_image, logits[0], atol=1e-5, rtol=0)


def test_score_pairs_is_differentiable(corpus):
    model = tiny_retrieval_model()
    images = model.encode_images(corpus[0])
    texts = model.encode_texts(corpus[3][:NUM_IMAGES], corpus[4][:NUM_IMAGES])
    model.score_pairs(images, texts).sum().backward()
    assert model.vicha.vision_model.embeddings.cls_token.grad.abs().sum() > 0
    assert model.vicha.text_model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_the_pretraining_head_scores_alike(corpus):
    pretraining, retrieval = tiny_pretraining_model(), tiny_retrieval_model()
    retrieval.load_state_dict(
        {name: value for name, value in pretraining.state_dict().items() if name.startswith(("vicha.", "itm_head."))}
    )
    observed, expected = (model.rerank(*encode(model, corpus), k=3) for model in (pretraining, retrieval))
    assert torch.equal(observed.scores_i2t, expected.scores_i2t)


def test_progress_sees_every_image(corpus):
    model, images = tiny_retrieval_model(), []

    def progress(iterable):
        for image in iterable:
            images.append(image)
            yield image

    model.rerank(*encode(model, corpus), k=2, progress=progress)
    assert images == list(range(NUM_IMAGES))


def test_texts_in_batches_are_packed_as_one(scored, corpus):
    model, _, _ = scored
    _, texts = encode(model, corpus)
    batches = [
        TextEncoding(**{name: value[rows] for name, value in texts.items()}) for rows in (slice(3), slice(3, 7))
    ]
    whole, parts = model.pack_texts(texts), model.pack_texts(batches)
    assert len(parts) == NUM_TEXTS and parts.lengths.tolist() == TEXT_LENGTHS
    torch.testing.assert_close(parts.tokens, whole.tokens, atol=1e-6, rtol=0)
    assert parts.tokens.shape == (sum(TEXT_LENGTHS), 32)


def test_an_image_that_nobody_wants(corpus):
    model = tiny_retrieval_model()
    images, texts = encode(model, corpus)
    wanted = torch.zeros(NUM_IMAGES, NUM_TEXTS, dtype=torch.bool)
    wanted[1, 2] = True
    scores = model.score_candidates(images, model.pack_texts(texts), wanted)
    assert ((scores > -100) == wanted).all()
    expected = model.score_pairs(images, texts, torch.tensor([1]), torch.tensor([2]))
    torch.testing.assert_close(scores[1, 2], expected[0], atol=1e-5, rtol=0)


def test_texts_are_padded_on_the_right(corpus):
    model = tiny_retrieval_model()
    _, texts = encode(model, corpus)
    texts.attention_mask[2] = 0
    with pytest.raises(ValueError, match=r"Text 2 .*first position"):
        model.pack_texts(texts)


def test_impossible_requests_are_named(corpus):
    model = tiny_retrieval_model()
    with pytest.raises(ValueError, match="`k=0`"):
        model.rerank(*encode(model, corpus), k=0)
    without_matching = tiny_pretraining_model(itm_weight=0)
    with pytest.raises(ValueError, match="itm_weight=0"):
        without_matching.rerank(*encode(without_matching, corpus), k=1)


def test_bare_encodings_equal_the_heads(corpus):
    batch = tiny_batch(2)
    head, bare = tiny_retrieval_model(), tiny_model()
    bare.load_state_dict(head.vicha.state_dict())
    images = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(head.encode_images(**images).embeds, bare.encode_images(**images).embeds)
