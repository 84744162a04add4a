"""Hard negatives and image-text matching."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from simla_models import simla_batch, simla_model
from tiny_models import tiny_batch, tiny_pretraining_model, tiny_retrieval_model

from vicha_hf import SimlaForPreTraining
from vicha_hf.models.objective_itm import HardNegatives, HardNegativeSampler, ImageTextMatching


COPIES, CALLS = 300, 8


def draw_often(sim_i2t, sim_t2i, image_ids):
    """
    Shares of each column among many draws: negative images of texts, negative texts of images, both [B, B]. One call
    draws once per row, so every row and column is there many times: the same image, the same similarity.
    """
    torch.manual_seed(0)
    size = len(sim_i2t)
    sim_i2t, sim_t2i, ids = sim_i2t.repeat(COPIES, COPIES), sim_t2i.repeat(COPIES, COPIES), image_ids.repeat(COPIES)
    counts = torch.zeros(2, size, size)
    for _ in range(CALLS):
        negatives = HardNegativeSampler()(sim_i2t, sim_t2i, ids)
        for count, indices in zip(counts, (negatives.image_indices, negatives.text_indices), strict=True):
            pairs = torch.arange(len(indices)) % size * size + indices % size
            count += torch.bincount(pairs, minlength=size * size).view(size, size)
    return counts / (COPIES * CALLS)


def loop_shares(similarity, image_ids):
    """What each row should draw: the softmax over its candidates."""
    size = len(similarity)
    shares = torch.zeros(size, size)
    for row in range(size):
        candidates = [column for column in range(size) if column != row and image_ids[row] != image_ids[column]]
        if not candidates:
            shares[row, row] = 1.0
            continue
        weights = [float(similarity[row, column].exp()) for column in candidates]
        for column, weight in zip(candidates, weights, strict=True):
            shares[row, column] = weight / sum(weights)
    return shares


def test_draws_follow_the_softmaxed_similarity():
    torch.manual_seed(1)
    sim_i2t, sim_t2i = torch.randn(2, 5, 5)
    ids = [1, 2, 1, 3, 4]
    images, texts = draw_often(sim_i2t, sim_t2i, torch.tensor(ids))
    expected_images, expected_texts = loop_shares(sim_t2i, ids), loop_shares(sim_i2t, ids)
    # Three standard deviations of a share among 2400 draws are 0.03 at most.
    assert (images - expected_images).abs().max() < 0.035
    assert (texts - expected_texts).abs().max() < 0.035
    for impossible in (expected_images == 0).nonzero().tolist():
        assert images[tuple(impossible)] == 0


def test_own_pair_is_never_drawn_without_ids():
    similarity = torch.eye(300) * 5
    for seed in range(10):
        torch.manual_seed(seed)
        negatives = HardNegativeSampler()(similarity, similarity)
        own = torch.arange(300)
        assert (negatives.image_indices != own).all() and (negatives.text_indices != own).all()
        assert negatives.image_exists.all() and negatives.text_exists.all()


def test_a_dominant_own_pair_does_not_hide_which_negative_is_hard():
    similarity = torch.tensor([[900.0, 5.0, 1.0], [5.0, 900.0, 1.0], [1.0, 5.0, 900.0]])
    images, texts = draw_often(similarity, similarity, torch.tensor([1, 2, 3]))
    for shares in (images, texts):
        assert shares[0, 1] == pytest.approx(0.982, abs=0.015)
        assert shares[2, 1] == pytest.approx(0.982, abs=0.015)


def test_rows_without_a_candidate_draw_themselves_and_say_so():
    sim = torch.zeros(3, 3)
    negatives = HardNegativeSampler()(sim, sim, torch.tensor([8, 8, 8]))
    assert negatives.image_indices.tolist() == negatives.text_indices.tolist() == [0, 1, 2]
    assert not negatives.image_exists.any() and not negatives.text_exists.any()
    lone = HardNegativeSampler()(torch.zeros(1, 1), torch.zeros(1, 1))
    assert lone.image_indices.tolist() == [0] and not lone.image_exists.any()


def test_excluded_pairs_of_the_contrast_stay_excluded():
    """Pretraining's contrast has its similarities of the same image at the lowest float."""
    ids = torch.tensor([1, 1, 2])
    sim = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    sim[0, 1] = sim[1, 0] = torch.finfo(sim.dtype).min
    negatives = HardNegativeSampler()(sim, sim, ids)
    assert negatives.image_indices[:2].tolist() == [2, 2]
    assert negatives.image_exists.all()


def test_given_negatives_are_kept():
    sim = torch.zeros(3, 3)
    images, texts = torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])
    negatives = HardNegativeSampler()(sim, sim, image_indices=images, text_indices=texts)
    assert negatives.image_indices is images and negatives.text_indices is texts


def matching_loop(logits, image_exists, text_exists, smoothing=0.0):
    batch_size, total, count = len(logits) // 3, 0.0, 0
    for row in range(3 * batch_size):
        kind, sample = divmod(row, batch_size)
        if (kind == 1 and not image_exists[sample]) or (kind == 2 and not text_exists[sample]):
            continue
        probabilities = logits[row].double().softmax(dim=0)
        right = 1 if kind == 0 else 0
        total -= (1 - smoothing / 2) * probabilities[right].log().item() + smoothing / 2 * probabilities[
            1 - right
        ].log().item()
        count += 1
    return total / count


@pytest.mark.parametrize(
    ("image_exists", "text_exists"),
    [([True] * 3, [True] * 3), ([True, False, True], [True, False, True]), ([False] * 3, [False] * 3)],
)
def test_matching_loss_leaves_out_negatives_that_do_not_exist(image_exists, text_exists):
    logits = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    negatives = HardNegatives(image_exists=torch.tensor(image_exists), text_exists=torch.tensor(text_exists))
    output = ImageTextMatching()(logits, negatives)
    assert output.loss.item() == pytest.approx(matching_loop(logits.detach(), image_exists, text_exists), abs=1e-6)
    assert output.labels.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    output.loss.backward()
    counted = torch.tensor([True] * 3 + image_exists + text_exists)
    assert (logits.grad[~counted] == 0).all() and (logits.grad[counted] != 0).all()


def test_smoothed_labels_give_a_share_to_both_answers():
    logits = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    exists = [True, False, True]
    negatives = HardNegatives(image_exists=torch.tensor(exists), text_exists=torch.tensor(exists))
    loss = ImageTextMatching(label_smoothing=0.3)(logits, negatives).loss
    assert loss.item() == pytest.approx(matching_loop(logits, exists, exists, smoothing=0.3), abs=1e-6)
    assert loss.item() != pytest.approx(matching_loop(logits, exists, exists), abs=1e-2)


@pytest.mark.parametrize("build", [tiny_pretraining_model, tiny_retrieval_model])
def test_heads_smooth_as_the_configuration_says(build):
    assert build().itm.label_smoothing == 0
    assert build(itm_label_smoothing=0.1).itm.label_smoothing == 0.1
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(StrictDataclassError, match="itm_label_smoothing"):
            build(itm_label_smoothing=wrong)


def test_matching_counts_pairs_exactly_in_half_precision():
    """bfloat16 has no 381: a count in the logits' precision would be off by 0.3 %."""
    logits = torch.zeros(381, 2, dtype=torch.bfloat16)
    logits[:, 0] = 1.0
    exists = torch.ones(127, dtype=torch.bool)
    loss = ImageTextMatching()(logits, HardNegatives(image_exists=exists, text_exists=exists)).loss
    expected = matching_loop(logits.float(), exists, exists)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("hardness", [0.0, 0.4])
@pytest.mark.parametrize("family", ["vicha", "simla"])
def test_negatives_are_drawn_by_a_share_of_the_similarity(family, hardness):
    if family == "vicha":
        model, batch = tiny_pretraining_model().train(), tiny_batch(4)
    else:
        model, batch = simla_model(SimlaForPreTraining).train(), simla_batch(4)
    seen = []
    model.itc.register_forward_hook(lambda module, inputs, output: seen.append(output.sim_i2t[:, :4]))
    model.negative_sampler.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(**batch, negative_hardness=hardness)
    similarity, used = seen
    assert similarity.std() > 0
    torch.testing.assert_close(used, hardness * similarity)
