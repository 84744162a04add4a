"""Similarity statistics against a slow, obvious version, and in the log of a real model."""

import pytest
import torch
from tiny_models import tiny_batch, tiny_pretraining_model, tiny_retrieval_model

from vicha_hf.models.objective_itc import ContrastiveOutput
from vicha_hf.training.batch_statistics import BatchStatistics, contrast_statistics


def slow_statistics(cosines, image_ids):
    """`cosines`: one [B, B] list per direction."""
    positives, hardest, ahead = [], [], []
    for matrix in cosines:
        for row, values in enumerate(matrix):
            others = [value for column, value in enumerate(values) if image_ids[column] != image_ids[row]]
            positives.append(values[row])
            hardest += [max(others)] if others else []
            ahead.append(all(values[row] > value for value in others))
    return {
        "positive_similarity": sum(positives) / len(positives),
        "hardest_negative_similarity": sum(hardest) / max(1, len(hardest)),
        "contrast_accuracy": sum(ahead) / len(ahead),
    }


@pytest.mark.parametrize("start", [0, 3], ids=["first process", "second process"])
@pytest.mark.parametrize("image_ids", [[0, 1, 2], [5, 5, 2], [4, 4, 4]], ids=["all differ", "one twice", "all same"])
def test_statistics_equal_the_slow_version(start, image_ids):
    generator = torch.Generator().manual_seed(3)
    sim_i2t, sim_t2i = torch.rand(2, 3, 9, generator=generator) * 2 - 1
    temperature = torch.tensor([0.07])
    output = ContrastiveOutput(sim_i2t=sim_i2t / temperature, sim_t2i=sim_t2i / temperature, batch_start=start)
    actual = contrast_statistics(output, temperature, torch.tensor(image_ids))
    expected = slow_statistics([part[:, start : start + 3].tolist() for part in (sim_i2t, sim_t2i)], image_ids)
    assert {name: value.item() for name, value in actual.items()} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("build", [tiny_pretraining_model, tiny_retrieval_model])
def test_a_model_in_training_is_watched(build):
    model = build().train()
    model.add_training_state()
    statistics = BatchStatistics(model)
    batch = tiny_batch(batch_size=4)
    teacher = model.training_state.teacher
    output = model(**batch, image_ids=torch.tensor([0, 0, 0, 1]), update_teacher=False)
    taken = statistics.take()
    names = {"positive_similarity", "hardest_negative_similarity", "contrast_accuracy", "matching_accuracy"}
    assert set(taken) == names and all(value.shape == () for value in taken.values())
    assert not any(value.requires_grad for value in taken.values())
    labels = torch.tensor([1] * 4 + [0] * 8)
    assert taken["matching_accuracy"].item() == pytest.approx(
        (output.itm_logits.argmax(1) == labels).float().mean().item()
    )
    base = teacher["vicha"]
    base.eval()
    with torch.no_grad():
        images = {name: batch[name] for name in ("pixel_values", "concept_input_ids", "concept_attention_mask")}
        online_images, teacher_images = model.vicha.encode_images(**images), base.encode_images(**images)
        texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
        online_texts, teacher_texts = model.vicha.encode_texts(**texts), base.encode_texts(**texts)
    cosines = [online_images.embeds @ teacher_texts.embeds.T, online_texts.embeds @ teacher_images.embeds.T]
    expected = slow_statistics([part.tolist() for part in cosines], [0, 0, 0, 1])
    assert {name: taken[name].item() for name in expected} == pytest.approx(expected, abs=1e-4)
    assert statistics.take() == {}


def test_forward_passes_are_averaged_and_evaluation_is_not_watched():
    model = tiny_pretraining_model().train()
    model.add_training_state()
    statistics = BatchStatistics(model)
    each = []
    for seed in (1, 2):
        model(**tiny_batch(seed=seed), update_teacher=False)
        each.append(statistics.take())
    for seed in (1, 2):
        model(**tiny_batch(seed=seed), update_teacher=False)
    taken = statistics.take()
    for name in ("positive_similarity", "contrast_accuracy"):
        assert taken[name].item() == pytest.approx((each[0][name] + each[1][name]).item() / 2, abs=1e-5)
    model.eval()
    with torch.no_grad():
        model(**tiny_batch())
    assert statistics.take() == {}
