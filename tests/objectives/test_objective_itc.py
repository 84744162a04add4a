"""Image-text contrast against a loop over pairs."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from vicha_hf.models.feature_queue import FeatureQueue
from vicha_hf.models.objective_itc import ImageTextContrast


BATCH, WIDTH, TEMPERATURE = 5, 6, 0.3


def features(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return list(normalize(torch.randn(4, count, WIDTH, generator=generator), dim=-1))


def filled_queue(size, count, image_ids):
    queue = FeatureQueue(size, WIDTH)
    images, texts, _, _ = features(count, seed=7)
    queue.enqueue(images, texts, torch.tensor(image_ids))
    return queue


def loop_loss(rows, teacher_rows, columns, row_ids, column_ids, alpha, same_image):
    """
    One direction. `columns`: the candidate features, of which column b < BATCH is row b's own pair; ids are `None`
    where images are all different.
    """
    total = 0.0
    for row in range(len(rows)):
        candidates, positives = [], []
        for column in range(len(columns)):
            own = column == row
            same = own or (row_ids is not None and row_ids[row] == column_ids[column])
            if same_image == "excluded" and same and not own:
                continue
            candidates.append(column)
            positives.append(same if same_image == "positive" else own)
        logits = [float(rows[row] @ columns[column]) / TEMPERATURE for column in candidates]
        teacher = [float(teacher_rows[row] @ columns[column]) / TEMPERATURE for column in candidates]
        log_normalizer = math.log(sum(math.exp(logit) for logit in logits))
        teacher_normalizer = sum(math.exp(logit) for logit in teacher)
        for logit, soft, positive in zip(logits, teacher, positives, strict=True):
            target = alpha * math.exp(soft) / teacher_normalizer + (1 - alpha) * positive / sum(positives)
            total -= target * (logit - log_normalizer)
    return total / len(rows)


CASES = {
    "no queue, no ids": (None, None),
    "no queue, ids": (None, [1, 2, 1, 3, 2]),
    "queue partly filled": ((9, 4, [11, 12, 13, 14]), [1, 2, 3, 4, 5]),
    "queue partly filled, same images in batch and queue": ((9, 4, [2, 11, 1, 2]), [1, 2, 1, 3, 2]),
    "queue full, same images": ((4, 6, [1, 1, 2, 11, 1, 3]), [1, 2, 1, 3, 2]),
    "queue of ids that are not given": ((9, 4, [2, 11, 1, 2]), None),
    "an id that empty entries have too": ((9, 4, [2, 11, 1, 2]), [-1, 2, -1, 3, 2]),
    "one image": ((9, 2, [7, 7]), [7] * BATCH),
}


@pytest.mark.parametrize("same_image", ["excluded", "positive"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_both_directions_equal_a_loop(case, alpha, same_image):
    queued, ids = CASES[case]
    queue = None if queued is None else filled_queue(*queued)
    images, texts, teacher_images, teacher_texts = features(BATCH, seed=1)
    observed = ImageTextContrast(same_image)(
        images,
        texts,
        teacher_images,
        teacher_texts,
        torch.tensor([TEMPERATURE]),
        alpha,
        queue,
        None if ids is None else torch.tensor(ids),
    )
    stored = [] if queue is None else [entry for entry in range(queue.size) if queue.usable()[entry]]
    column_ids = None if ids is None else ids + [int(queue.image_ids[entry]) for entry in stored]
    image_columns = list(teacher_images) + [queue.image_features[entry] for entry in stored]
    text_columns = list(teacher_texts) + [queue.text_features[entry] for entry in stored]
    i2t = loop_loss(images, teacher_images, text_columns, ids, column_ids, alpha, same_image)
    t2i = loop_loss(texts, teacher_texts, image_columns, ids, column_ids, alpha, same_image)
    assert observed.loss_i2t.item() == pytest.approx(i2t, abs=1e-5)
    assert observed.loss_t2i.item() == pytest.approx(t2i, abs=1e-5)
    assert observed.loss.item() == pytest.approx((i2t + t2i) / 2, abs=1e-5)


def test_targets_are_distributions_and_empty_entries_have_no_share():
    images, texts, teacher_images, teacher_texts = features(BATCH, seed=1)
    queue = filled_queue(9, 4, [2, 11, 1, 2])
    ids = torch.tensor([1, 2, 1, 3, 2])
    for same_image in ("excluded", "positive"):
        output = ImageTextContrast(same_image)(
            images, texts, teacher_images, teacher_texts, torch.tensor(TEMPERATURE), 0.4, queue, ids
        )
        for targets in (output.targets_i2t, output.targets_t2i):
            torch.testing.assert_close(targets.sum(dim=1), torch.ones(BATCH))
            assert (targets[:, BATCH + 4 :] == 0).all()


def test_gradient_reaches_rows_and_temperature():
    images, texts, teacher_images, teacher_texts = features(BATCH, seed=1)
    images.requires_grad_(), texts.requires_grad_()
    temperature = torch.tensor([TEMPERATURE], requires_grad=True)
    output = ImageTextContrast()(images, texts, teacher_images, teacher_texts, temperature, 0.4)
    output.loss.backward()
    for tensor in (images, texts, temperature):
        assert tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0

    def loss_at(other):
        # The targets keep their temperature: they are constants of the loss.
        pairs = ((output.sim_i2t, output.targets_i2t), (output.sim_t2i, output.targets_t2i))
        losses = [-((sim * TEMPERATURE / other).log_softmax(1) * target).sum(1).mean() for sim, target in pairs]
        return sum(losses).item() / 2

    numeric = (loss_at(TEMPERATURE + 1e-2) - loss_at(TEMPERATURE - 1e-2)) / 2e-2
    assert temperature.grad.item() == pytest.approx(numeric, rel=2e-2)


def test_a_lone_image_has_nothing_to_tell_apart():
    images, texts, teacher_images, teacher_texts = features(1, seed=1)
    images.requires_grad_()
    loss = ImageTextContrast()(images, texts, teacher_images, teacher_texts, torch.tensor(0.07), 0.4).loss
    loss.backward()
    assert loss.item() == 0
    assert (images.grad == 0).all()


@pytest.mark.parametrize("temperature", [0.001, 0.5])
def test_finite_at_the_ends_of_the_temperature_range(temperature):
    images, texts, teacher_images, teacher_texts = features(BATCH, seed=1)
    images.requires_grad_()
    queue = filled_queue(9, 4, [2, 11, 1, 2])
    ids = torch.tensor([1, 2, 1, 3, 2])
    for same_image in ("excluded", "positive"):
        images.grad = None
        output = ImageTextContrast(same_image)(
            images, texts, teacher_images, teacher_texts, torch.tensor(temperature), 0.4, queue, ids
        )
        output.loss.backward()
        assert output.loss.isfinite() and images.grad.isfinite().all()


def test_an_unknown_treatment_of_the_same_image_is_named():
    with pytest.raises(ValueError, match=r"same_image='ignored'.*excluded.*positive"):
        ImageTextContrast("ignored")
