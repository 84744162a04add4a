"""Recall@K against a slow, obvious version, the published evaluation's numbers, and by hand."""

import os
from pathlib import Path

import pytest
import torch

from vicha_hf.evaluation.recall import best_ranks, chance_recall, recall_at_k
from vicha_hf.evaluation.retrieval import (
    SCALES,
    SIMILARITY_WEIGHTS,
    RetrievalScores,
    choose_similarity_weight,
    retrieval_metrics,
)


def slow_rank(scores, relevant):
    """Sorts one query's candidates, the irrelevant of equal score first, and looks for the first relevant one."""
    order = sorted(range(len(scores)), key=lambda candidate: (-scores[candidate], candidate in relevant))
    return next(place for place, candidate in enumerate(order) if candidate in relevant)


@pytest.mark.parametrize("levels", [3, 10_000])  # 3 levels: most scores are tied
@pytest.mark.parametrize("seed", range(3))
def test_ranks_equal_a_sorted_list(levels, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (23, 17), generator=generator).float()
    relevant = [torch.randperm(17, generator=generator)[: 1 + query % 4].tolist() for query in range(23)]
    expected = [slow_rank(row.tolist(), right) for row, right in zip(scores, relevant, strict=True)]
    assert best_ranks(scores, relevant).tolist() == expected


def test_metrics_by_hand():
    # Image 0 finds caption 0 at once, image 1 finds its best caption (2) second; caption 1 finds image 0 second.
    scores_i2t = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.2, 0.6]])
    scores_t2i = torch.tensor([[3.0, 2.0], [1.0, 2.0], [0.0, 5.0]])
    metrics = retrieval_metrics(scores_i2t, scores_t2i, [[0, 1], [2]], [0, 0, 1])
    assert metrics["r1_i2t"] == 50.0
    assert metrics["r5_i2t"] == metrics["r10_i2t"] == 100.0
    assert metrics["r1_t2i"] == pytest.approx(200 / 3)
    assert metrics["r_mean_i2t"] == pytest.approx(250 / 3)
    assert metrics["r_mean"] == pytest.approx((250 / 3 + (200 / 3 + 200) / 3) / 2)


def test_a_model_that_scores_everything_alike_finds_nothing():
    equal = torch.zeros(20, 20)
    pairs = list(range(20))
    metrics = retrieval_metrics(equal, equal, [[index] for index in pairs], pairs)
    assert metrics["r10_i2t"] == metrics["r10_t2i"] == 0.0


def test_the_order_of_the_candidates_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(3, (30, 30), generator=generator).float()
    order = torch.randperm(30, generator=generator)
    place_of = order.argsort().tolist()
    shuffled = recall_at_k(scores[:, order], [[place_of[query]] for query in range(30)])
    assert shuffled == recall_at_k(scores, [[query] for query in range(30)])


def test_a_relevant_pair_that_the_second_stage_left_out_is_not_found():
    scores = torch.full((1, 50), -100.0)
    scores[0, :4] = torch.tensor([3.0, 2.0, 1.0, 0.5])
    assert recall_at_k(scores, [[30]]) == {"r1": 0.0, "r5": 0.0, "r10": 0.0, "r_mean": 0.0}


def test_a_corpus_smaller_than_k():
    assert recall_at_k(torch.tensor([[0.1, 0.9]]), [[0]]) == {"r1": 0.0, "r5": 100.0, "r10": 100.0, "r_mean": 200 / 3}


def test_two_stages_and_chance_are_reported_side_by_side():
    eye = torch.eye(4)
    pairs = list(range(4))
    metrics = RetrievalScores(eye.flip(0), eye, eye).metrics([[index] for index in pairs], pairs)
    assert metrics["r1_i2t"] == metrics["r1_t2i"] == 100.0
    assert metrics["r1_i2t_itc_only"] == metrics["r1_t2i_itc_only"] == 0.0
    assert metrics["chance_r1"] == pytest.approx(25.0)
    assert (metrics["num_images"], metrics["num_captions"]) == (4, 4)


def test_chance_equals_the_average_over_random_rankings():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(4000, 12, generator=generator)
    relevant = [[0, 5, 7]] * 4000
    for k in (1, 5):
        assert recall_at_k(scores, relevant, [k])[f"r{k}"] == pytest.approx(chance_recall(12, [3], k), abs=2.5)
    assert chance_recall(200, [1], 1) == pytest.approx(0.5)
    assert chance_recall(3, [1], 10) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores_i2t": torch.zeros(3, 2)}, "scores_i2t must be"),
        ({"captions_of_image": [[0, 1], []]}, "image 1 has no caption"),
        ({"image_of_caption": [0, 1, 1]}, "caption 1 belongs to image 0"),
        ({"captions_of_image": [[0], [2]]}, "does not list"),
        ({"scores_t2i": torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [0.0, 1.0]])}, "query 1 hold NaN"),
    ],
)
def test_contradictory_input_is_an_error(change, message):
    right = {
        "scores_i2t": torch.rand(2, 3),
        "scores_t2i": torch.rand(3, 2),
        "captions_of_image": [[0, 1], [2]],
        "image_of_caption": [0, 0, 1],
    }
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**(right | change))


def test_the_evaluate_metric_loads_from_its_path(metric_cache):
    import evaluate

    import vicha_hf.evaluation

    script = Path(vicha_hf.evaluation.__file__).parent / "metrics" / "retrieval_recall"
    metric = evaluate.load(os.fspath(script))
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(15, 35, generator=generator, dtype=torch.float64)
    relevant = [[query, query + 15] if query % 2 else [query] for query in range(15)]  # rows of unequal length
    metric.add_batch(predictions=scores[:7].tolist(), references=relevant[:7])
    metric.add_batch(predictions=scores[7:].tolist(), references=relevant[7:])
    assert metric.compute() == recall_at_k(scores, relevant)


def test_the_weight_of_the_similarity_is_the_best_on_the_gallery():
    pairs = list(range(3))
    similarity = torch.tensor([[0.9, 0.0, 0.0], [0.0, 0.9, 0.0], [0.6, 0.0, 0.3]])
    # Matching alone confuses the first two; a little similarity mends that, much of it breaks the third.
    match = torch.tensor([[1.0, 1.3, 0.0], [1.3, 1.0, 0.0], [0.0, 0.0, 0.5]])
    scores = RetrievalScores(similarity, match, match.T, temperature=1.0)
    captions = [[index] for index in pairs]

    def r1(weight):
        metrics = scores.reweighted(weight).metrics(captions, pairs)
        return metrics["r1_i2t"] + metrics["r1_t2i"]

    chosen = choose_similarity_weight(scores, captions, pairs)
    assert chosen.similarity_weight == 1.0
    assert r1(0.5) == r1(1.0) == 200.0 and r1(0.0) < 200.0 and r1(2.0) < 200.0
    # Where the similarity says nothing, the published score stays.
    alike = RetrievalScores(similarity * 0, torch.eye(3), torch.eye(3))
    assert choose_similarity_weight(alike, captions, pairs).similarity_weight == 0.0


def test_among_weights_that_a_small_gallery_cannot_tell_apart_the_likeliest_wins():
    number, generator = 40, torch.Generator().manual_seed(0)
    similarity = torch.eye(number) + torch.randn(number, number, generator=generator)
    match = 2 * torch.eye(number) + torch.randn(number, number, generator=generator)
    i2t, t2i = match.clone(), match.T.clone()
    # The second half was not re-ranked; half of the queries have no right candidate.
    i2t[:, number // 2 :] = t2i[:, number // 2 :] = -100
    scores = RetrievalScores(similarity, i2t, t2i, temperature=0.5)
    own = [[index] for index in range(number)]
    table = []
    for weight in SIMILARITY_WEIGHTS:
        hits, likelihood_by_scale = [], []
        for scale in SCALES:
            likelihoods = []
            for logits, cosine in ((match, similarity), (match.T, similarity.T)):
                of_direction = []
                for query in range(number):
                    row = (logits[query] + weight / 0.5 * cosine[query])[: number // 2]
                    hits.append(query < number // 2 and int(row.argmax()) == query)
                    if query < number // 2:
                        of_direction.append((scale * row).log_softmax(0)[query].item())
                likelihoods.append(sum(of_direction) / len(of_direction))
            likelihood_by_scale.append(sum(likelihoods))
        table.append((sum(hits) / len(hits), max(likelihood_by_scale), weight))
    best = max(recall for recall, _, _ in table)
    error = (best * (1 - best) / (2 * number)) ** 0.5
    as_good = [row for row in table if row[0] >= best - error]
    expected = max(as_good, key=lambda row: row[1])
    assert 1 < len(as_good) < len(table) and expected[0] < best
    assert choose_similarity_weight(scores, own, range(number)).similarity_weight == expected[2]


def test_where_matching_knows_nothing_the_similarity_decides():
    number, generator = 60, torch.Generator().manual_seed(0)
    own = [[index] for index in range(number)]
    similarity = 0.1 * torch.eye(number) + 0.03 * torch.randn(number, number, generator=generator)
    match = torch.randn(number, number, generator=generator)
    scores = RetrievalScores(similarity, match, match.T, temperature=0.07)
    chosen = choose_similarity_weight(scores, own, range(number)).metrics(own, range(number))
    # A larger weight makes the wrong candidates surer as well, which must not speak against it.
    assert chosen["rerank_similarity_weight"] >= 8.0
    assert chosen["r1_i2t"] >= chosen["r1_i2t_itc_only"] - 2 > 50 > chosen["r1_i2t_match_only"]
