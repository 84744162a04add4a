"""`select_concepts` against a slow obvious version, and on everything that breaks a top-k."""

import numpy as np
import pytest
import torch

from vicha_hf.concepts import select_concepts
from vicha_hf.models import concept_ranking
from vicha_hf.models.concept_ranking import ConceptRanking, fastest_product_dtype


def slow_ranking(images, concepts, k):
    """All cosines in float64, sorted with Python: best first, equal ones (as float32) by index."""
    images, concepts = np.asarray(images, np.float64), np.asarray(concepts, np.float64)
    lengths = np.linalg.norm(images, axis=1)[:, None] * np.linalg.norm(concepts, axis=1)[None]
    cosines = np.divide(images @ concepts.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    rows = [sorted(range(len(concepts)), key=lambda index: (-round(row[index], 6), index))[:k] for row in cosines]
    return np.array(rows, np.int64), np.take_along_axis(cosines, np.array(rows, np.int64), 1)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("num_concepts", [1, 14, 15, 16, 400, 5000])
def test_equals_the_slow_version(num_concepts):
    rng = np.random.default_rng(num_concepts)
    images, concepts = rng.normal(size=(40, 32)), rng.normal(size=(num_concepts, 32))
    indices, scores = select_concepts(images.astype(np.float32), concepts.astype(np.float32), k=15)
    expected, cosines = slow_ranking(images, concepts, 15)
    assert indices.dtype == np.int64 and scores.dtype == np.float32
    assert indices.shape == scores.shape == (40, min(15, num_concepts))
    assert np.array_equal(indices, expected)
    assert np.allclose(scores, cosines, atol=1e-6)


@pytest.mark.parametrize("product_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_concepts", [500, 3000, 8000], ids=["alone", "in groups", "in groups of groups"])
@pytest.mark.parametrize("spread", [1.0, 0.02, 0.0], ids=["far apart", "near ties", "all the same"])
def test_a_coarse_product_finds_the_same(product_dtype, num_concepts, spread, monkeypatch):
    """With a small spread all concepts are nearly equal: bfloat16 cannot tell them apart, and every one is a candidate."""
    monkeypatch.setattr(concept_ranking, "_MOST_CANDIDATES", 20_000)
    rng = np.random.default_rng(0)
    concepts = unit(rng.normal(size=(1, 32)) + spread * rng.normal(size=(num_concepts, 32))).astype(np.float16)
    images = unit(rng.normal(size=(30, 32))).astype(np.float16)
    images[7] = 0
    # Some images have no positive cosine.
    assert spread == 1 or ((images @ concepts.T).max(axis=1) < 0).any()
    # Every pair on its own, in the documented order of summation.
    left, right = (concept_ranking._unit_rows(rows, "", 0, "cpu") for rows in (images, concepts))
    exact = (left[:, None] * right[None]).sum(-1)
    expected = exact.sort(dim=1, descending=True, stable=True)
    indices, scores = ConceptRanking(concepts, 15, "cpu", product_dtype).rank(images)
    assert torch.equal(indices, expected.indices[:, :15])
    assert torch.equal(scores, expected.values[:, :15])


def test_rounded_unit_rows_are_compared_by_direction():
    """In float16 some unit rows are longer than others, by more than what their cosines differ by."""
    rng = np.random.default_rng(0)
    images, concepts = unit(rng.normal(size=(60, 8))), unit(rng.normal(size=(1, 8)) + 0.01 * rng.normal(size=(40, 8)))
    images, concepts = images.astype(np.float16), concepts.astype(np.float16)
    indices, scores = select_concepts(images, concepts, k=15)
    expected, cosines = slow_ranking(images, concepts, 15)
    assert np.abs(scores - cosines).max() < 2e-6
    assert np.mean(indices == expected) > 0.98


def test_the_product_may_be_of_either_precision():
    assert fastest_product_dtype() in (torch.float32, torch.bfloat16)


def test_duplicates_come_in_the_order_of_the_vocabulary():
    rng = np.random.default_rng(1)
    words = unit(rng.normal(size=(4, 16)))
    concepts = np.repeat(words, 100, axis=0)[rng.permutation(400)].astype(np.float32)
    concepts = np.concatenate([concepts, concepts, concepts])
    image = words[2:3].astype(np.float32)
    indices, scores = select_concepts(image, concepts, k=40)
    same = np.flatnonzero(np.isclose(concepts @ image[0], 1, atol=1e-5))
    assert indices[0].tolist() == same[:40].tolist()
    assert len(set(scores[0].tolist())) == 1


def test_a_pair_has_the_same_score_wherever_it_stands():
    rng = np.random.default_rng(2)
    images, concepts = rng.normal(size=(700, 48)).astype(np.float16), rng.normal(size=(2500, 48)).astype(np.float16)
    indices, scores = select_concepts(images, concepts)
    for part in (slice(0, 1), slice(3, 400), slice(690, 700)):
        alone, alone_scores = select_concepts(images[part], concepts)
        assert np.array_equal(alone, indices[part]) and np.array_equal(alone_scores, scores[part])


def test_arrays_memory_maps_and_tensors(tmp_path):
    rng = np.random.default_rng(3)
    images, concepts = rng.normal(size=(9, 8)).astype(np.float16), rng.normal(size=(20, 8)).astype(np.float16)
    expected = select_concepts(images, concepts, k=3)
    np.save(tmp_path / "images.npy", images)
    mapped = select_concepts(np.load(tmp_path / "images.npy", mmap_mode="r"), concepts, k=3)
    tensors = select_concepts(torch.from_numpy(images), torch.from_numpy(concepts), k=3)
    assert all(isinstance(part, np.ndarray) for part in mapped) and all(map(torch.is_tensor, tensors))
    for found in (mapped, tensors):
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_nothing_to_rank():
    indices, scores = select_concepts(np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32), k=2)
    assert indices.shape == scores.shape == (0, 2)
    indices, scores = select_concepts(np.ones((2, 4), np.float32), np.ones((0, 4), np.float32))
    assert indices.shape == scores.shape == (2, 0)


def test_zero_vectors_have_no_direction():
    concepts = np.array([[0, 0], [-1, 0], [1, 0]], np.float32)
    indices, scores = select_concepts(np.array([[0, 0], [5, 0]], np.float32), concepts)
    assert indices.tolist() == [[0, 1, 2], [2, 0, 1]]
    assert scores.tolist() == [[0, 0, 0], [1, 0, -1]]


def test_huge_and_tiny_rows_are_compared_by_direction():
    images = np.array([[3e38, 1e38], [1e-38, 0]], np.float32)
    indices, scores = select_concepts(images, np.array([[1, 0], [0, 1]], np.float32), k=1)
    assert indices.tolist() == [[0], [0]]
    assert scores[:, 0] == pytest.approx([3 / 10**0.5, 1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["image", "concept"])
def test_rows_that_are_not_finite_are_named(value, side):
    images, concepts = np.ones((600, 4), np.float16), np.ones((500, 4), np.float16)
    bad = images if side == "image" else concepts
    bad[[300, 417], 2] = value
    with pytest.raises(ValueError, match=rf"{side} embeddings that are not finite, rows 300, 417"):
        select_concepts(images, concepts)


@pytest.mark.parametrize(
    "images, concepts, k, problem",
    [
        (np.ones((2, 3)), np.ones((2, 4)), 1, "width 3 and concept_embeds 4"),
        (np.ones(3), np.ones((2, 3)), 1, r"image_embeds must be a matrix \[rows, width\], got shape \(3,\)"),
        (np.ones((2, 3)), np.ones((2, 3)), 0, "k=0 must be at least 1"),
    ],
)
def test_wrong_arguments(images, concepts, k, problem):
    with pytest.raises(ValueError, match=problem):
        select_concepts(images, concepts, k)
