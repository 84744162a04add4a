"""The feature queue against a list that forgets its head."""

import copy
import pickle

import pytest
import torch

from vicha_hf.models.feature_queue import UNKNOWN_IMAGE, FeatureQueue
from vicha_hf.models.objective_itc import ImageTextContrast


WIDTH = 2


def batch_of(first, count):
    """Features that say who they are: sample i has image feature (i, 0), text feature (0, i) and image id 100 + i."""
    numbers = torch.arange(first, first + count)
    images = torch.stack([numbers.float(), torch.zeros(count)], dim=1)
    return images, images.flip(1), 100 + numbers


def contents(queue):
    """Sample numbers in the queue, oldest first."""
    filled = int(queue.num_filled)
    places = [(int(queue.pointer) - filled + offset) % queue.size for offset in range(filled)]
    numbers = [int(queue.image_features[place, 0]) for place in places]
    assert [int(queue.text_features[place, 1]) for place in places] == numbers
    assert [int(queue.image_ids[place]) for place in places] == [100 + number for number in numbers]
    assert sorted(places) == queue.usable().nonzero().flatten().tolist()
    return numbers


@pytest.mark.parametrize(
    "batch_sizes",
    [[3, 3, 3], [1] * 9, [5, 4, 3, 2], [7], [2, 7, 1], [8], [3, 20], [20, 3, 8], [7, 7], [6, 1, 1]],
    ids=str,
)
def test_ring_buffer_holds_the_latest_of_any_batches(batch_sizes):
    queue, expected, first = FeatureQueue(7, WIDTH), [], 1
    assert contents(queue) == []
    for count in batch_sizes:
        queue.enqueue(*batch_of(first, count))
        expected = (expected + list(range(first, first + count)))[-7:]
        first += count
        assert contents(queue) == expected


def test_no_queue():
    queue = FeatureQueue(0, WIDTH)
    queue.enqueue(*batch_of(1, 3))
    assert queue.usable().shape == (0,) and queue.image_features.shape == (0, WIDTH)


def test_features_without_ids_belong_to_no_image():
    queue = FeatureQueue(4, WIDTH)
    images, texts, _ = batch_of(1, 3)
    queue.enqueue(images, texts)
    assert (queue.image_ids == UNKNOWN_IMAGE).all() and int(queue.num_filled) == 3


def test_the_queue_is_saved_and_restored():
    queue, other = FeatureQueue(4, WIDTH), FeatureQueue(4, WIDTH)
    queue.enqueue(*batch_of(1, 6))
    other.load_state_dict(queue.state_dict())
    assert contents(other) == [3, 4, 5, 6]
    other.enqueue(*batch_of(7, 1))
    assert contents(other) == [4, 5, 6, 7]


def test_features_keep_no_graph_and_take_the_queue_precision():
    queue = FeatureQueue(4, WIDTH)
    images, texts, ids = batch_of(1, 2)
    queue.enqueue(images.half().requires_grad_(), texts.half(), ids.int())
    assert queue.image_features.dtype == torch.float32 and not queue.image_features.requires_grad
    assert contents(queue) == [1, 2]


def test_entries_are_used_when_the_warmup_is_over():
    queue = FeatureQueue(4, WIDTH, warmup_batches=2)
    usable = []
    for _ in range(3):
        queue.enqueue(torch.randn(1, WIDTH), torch.randn(1, WIDTH))
        usable.append(int(queue.usable().sum()))
    assert usable == [0, 2, 3]


@pytest.mark.parametrize("batch_sizes", [[], [2], [3, 3, 3], [9]], ids=str)
def test_what_is_remembered_stays_as_it_was(batch_sizes):
    queue = FeatureQueue(7, WIDTH)
    queue.enqueue(*batch_of(1, 5))
    expected, (images, texts) = queue.image_features.clone(), queue.remember()
    for number, count in enumerate(batch_sizes):
        queue.enqueue(*batch_of(100 * (number + 1), count))
    assert torch.equal(images(), expected) and torch.equal(texts(), expected.flip(1))
    assert torch.equal(queue.image_features, expected) == (not batch_sizes)


def test_nothing_is_copied_for_those_who_forgot():
    queue = FeatureQueue(7, WIDTH)
    past = queue.remember()
    assert not past[0].replaced and len(copy.deepcopy(queue)._remembered) == 0
    pickle.dumps(queue)
    queue.enqueue(*batch_of(1, 5))
    assert len(past[0].replaced) == len(past[1].replaced) == 1
    del past
    queue.enqueue(*batch_of(6, 5))
    assert queue._remembered == []


def test_gradients_of_steps_whose_backward_passes_come_late():
    """Two batches are contrasted and join the queue before the first gradient is asked for."""
    expected, observed = [], []
    for found, is_late in ((expected, False), (observed, True)):
        queue, waiting = FeatureQueue(7, WIDTH), []
        queue.enqueue(*batch_of(1, 7))
        for first in (8, 10, 12):
            features, _, ids = batch_of(first, 2)
            rows = features.clone().requires_grad_()
            keys = (features, features.flip(1))
            loss = ImageTextContrast()(rows, rows.flip(1), *keys, torch.tensor(9.0), 0.4, queue, ids).loss
            queue.enqueue(features, features.flip(1), ids)
            waiting.append((loss, rows))
            if not is_late:
                loss.backward()
        for loss, rows in waiting:
            if is_late:
                loss.backward()
            found.append(rows.grad)
    for late, prompt in zip(observed, expected, strict=True):
        assert prompt.abs().max() > 0
        torch.testing.assert_close(late, prompt, rtol=1e-6, atol=1e-7)
