"""Two-stage evaluation of a real model against scoring every pair by itself."""

import pytest
import torch
from tiny_model_folder import tiny_processor, write_gallery
from tiny_models import tiny_retrieval_model

from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.datasets_retrieval import RetrievalDataset
from vicha_hf.data.transforms import EvaluationTransform
from vicha_hf.evaluation.retrieval import evaluate_retrieval, score_retrieval


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return tiny_processor(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, processor):
    annotations = read_image_text_records(write_gallery(tmp_path_factory.mktemp("gallery")))
    return RetrievalDataset(annotations, EvaluationTransform.from_image_processor(processor.image_processor))


@pytest.fixture(scope="module")
def model():
    return tiny_retrieval_model()


@torch.no_grad()
def one_pair_at_a_time(model, processor, dataset, with_concepts=True):
    """Cosine and match logit of every pair, each encoded alone, without padding."""
    similarity = torch.empty(len(dataset), len(dataset.texts))
    match = torch.empty(len(dataset), len(dataset.texts))
    for image, item in enumerate(dataset):
        concepts = processor(concepts=[item["concepts"]], return_tensors="pt") if with_concepts else {}
        encoded_image = model.encode_images(item["pixel_values"][None], **concepts)
        for text, caption in enumerate(dataset.texts):
            encoded_text = model.encode_texts(**processor(text=caption, return_tensors="pt"))
            similarity[image, text] = (encoded_image.embeds @ encoded_text.embeds.T).item()
            match[image, text] = model.score_pairs(encoded_image, encoded_text).item()
    return similarity, match


@pytest.mark.parametrize("with_concepts", [True, False])
def test_batches_give_the_scores_of_single_pairs(model, processor, dataset, with_concepts):
    similarity, match = one_pair_at_a_time(model, processor, dataset, with_concepts)
    for batch_size in (1, 2, 32):
        scores = score_retrieval(
            model, processor, dataset, k=100, batch_size=batch_size, with_concepts=with_concepts, progress=False
        )
        torch.testing.assert_close(scores.similarity, similarity, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scores.rerank_i2t, match, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scores.rerank_t2i, match.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kept_batches", [0, 1])
def test_images_that_memory_has_no_room_for_are_encoded_again(model, processor, dataset, kept_batches, monkeypatch):
    expected = score_retrieval(model, processor, dataset, k=3, batch_size=2, progress=False)
    encoded, encode_images = [], type(model).encode_images
    monkeypatch.setattr(
        type(model),
        "encode_images",
        lambda self, pixel_values, *concepts, **kwargs: (
            encoded.append(len(pixel_values)) or encode_images(self, pixel_values, *concepts, **kwargs)
        ),
    )
    # Room for somewhat more than the first batch: 2 images of 17 tokens and up to 55 concept tokens, 32 floats each.
    room = kept_batches * 2 * (17 + 55) * 32 * 4 / 2**30
    scores = score_retrieval(
        model,
        processor,
        dataset,
        k=3,
        batch_size=2,
        progress=False,
        kept_states_gib=min(room, 1.5 * 2 * 24 * 128 / 2**30),
    )
    assert encoded[:3] == [2, 2, 1] and sum(encoded[3:]) == (5 if kept_batches == 0 else 3)
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(scores, name), value, atol=1e-5, rtol=0)


def test_another_weight_of_the_similarity_needs_no_new_scores(model, processor, dataset):
    published = score_retrieval(model, processor, dataset, k=3, progress=False, similarity_weight=0)
    weighted = score_retrieval(model, processor, dataset, k=3, progress=False, similarity_weight=0.5)
    assert not torch.equal(published.rerank_i2t, weighted.rerank_i2t)
    for one, other in ((published.reweighted(0.5), weighted), (weighted.reweighted(0.0), published)):
        assert one.similarity_weight == other.similarity_weight
        torch.testing.assert_close(one.rerank_i2t, other.rerank_i2t, atol=1e-4, rtol=0)
        torch.testing.assert_close(one.rerank_t2i, other.rerank_t2i, atol=1e-4, rtol=0)
    metrics = weighted.metrics(dataset.captions_of_image, dataset.image_of_caption)
    alone = published.metrics(dataset.captions_of_image, dataset.image_of_caption)
    assert metrics["rerank_similarity_weight"] == 0.5 and alone["rerank_similarity_weight"] == 0.0
    for name in ("r1_i2t", "r5_t2i"):
        assert metrics[f"{name}_match_only"] == alone[name] == alone[f"{name}_match_only"]


def test_concepts_matter_only_where_there_are_some(model, processor, dataset):
    with_concepts = score_retrieval(model, processor, dataset, k=100, progress=False)
    without = score_retrieval(model, processor, dataset, k=100, with_concepts=False, progress=False)
    changed = (with_concepts.similarity - without.similarity).abs().amax(dim=1) > 1e-3
    assert changed.tolist() == [True, True, False, True, True]  # the third image has no concepts


def test_the_second_stage_ranks_the_k_best_of_the_first(model, processor, dataset):
    scores = score_retrieval(model, processor, dataset, k=2, progress=False)
    best = scores.similarity.topk(2, dim=1).indices
    scored = scores.rerank_i2t > -100
    assert scored.sum(dim=1).tolist() == [2] * len(dataset)
    assert scored.gather(1, best).all()


def test_the_metrics_are_those_of_the_scores(model, processor, dataset):
    metrics = evaluate_retrieval(model, processor, dataset, k=3, batch_size=2, progress=False)
    scores = score_retrieval(model, processor, dataset, k=3, batch_size=2, progress=False)
    assert metrics == scores.metrics(dataset.captions_of_image, dataset.image_of_caption)
    own_first = [scores.similarity[i].argmax().item() in own for i, own in enumerate(dataset.captions_of_image)]
    assert metrics["r1_i2t_itc_only"] == pytest.approx(100 * sum(own_first) / len(own_first))
    assert metrics["chance_r1"] == pytest.approx(20.0)
    assert (metrics["num_images"], metrics["num_captions"]) == (5, 8)


def test_the_model_is_left_as_it_was(model, processor, dataset):
    model.train()
    evaluate_retrieval(model, processor, dataset, progress=False)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_k_must_be_positive(model, processor, dataset):
    with pytest.raises(ValueError, match="k=0"):
        evaluate_retrieval(model, processor, dataset, k=0)
