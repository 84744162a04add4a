import pytest

from vicha_hf.training.data_order import DataOrder


def test_one_epoch_uses_every_sample_once_over_all_processes():
    order = DataOrder(dataset_size=48, batch_size=3, gradient_accumulation_steps=2, num_processes=2, seed=0)
    assert (order.samples_per_step, order.steps_per_epoch) == (12, 4)
    per_process = [order.batches(epoch=0, process_index=rank) for rank in range(2)]
    assert [len(batches) for batches in per_process] == [8, 8]
    seen = [index for batches in per_process for batch in batches for index in batch]
    assert sorted(seen) == list(range(48))


def test_order_depends_on_seed_and_epoch_only():
    def flat(seed, epoch, **sizes):
        sizes = {"batch_size": 4, "gradient_accumulation_steps": 1, **sizes}
        order = DataOrder(dataset_size=32, num_processes=1, seed=seed, **sizes)
        return [index for batch in order.batches(epoch, 0) for index in batch]

    assert flat(0, 0) == flat(0, 0)
    assert flat(0, 0) != flat(0, 1)
    assert flat(0, 0) != flat(1, 0)
    assert flat(0, 0) == flat(0, 0, batch_size=2, gradient_accumulation_steps=2)


def test_processes_share_the_samples_of_one_bigger_process():
    alone = DataOrder(dataset_size=32, batch_size=8, gradient_accumulation_steps=1, num_processes=1, seed=3)
    pair = DataOrder(dataset_size=32, batch_size=4, gradient_accumulation_steps=1, num_processes=2, seed=3)
    together = [left + right for left, right in zip(pair.batches(0, 0), pair.batches(0, 1), strict=True)]
    assert together == alone.batches(0, 0)


def test_the_middle_of_an_epoch_continues_the_same_order():
    order = DataOrder(dataset_size=24, batch_size=2, gradient_accumulation_steps=3, num_processes=1, seed=0)
    assert order.batches(5, 0, first_step=2) == order.batches(5, 0)[6:]
    assert order.batches(5, 0, first_step=4) == []


def test_the_remainder_is_left_out_but_not_always_the_same():
    order = DataOrder(dataset_size=10, batch_size=4, gradient_accumulation_steps=1, num_processes=1, seed=0)
    assert order.steps_per_epoch == 2
    left_out = {
        frozenset(range(10)) - {index for batch in order.batches(epoch, 0) for index in batch} for epoch in range(5)
    }
    assert len(left_out) > 1


def test_a_small_dataset_fills_one_step_by_repetition():
    order = DataOrder(dataset_size=3, batch_size=4, gradient_accumulation_steps=2, num_processes=1, seed=0)
    batches = order.batches(0, 0)
    assert (order.steps_per_epoch, [len(batch) for batch in batches]) == (1, [4, 4])
    assert {index for batch in batches for index in batch} == {0, 1, 2}


def test_an_empty_dataset_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        DataOrder(dataset_size=0, batch_size=4, gradient_accumulation_steps=1, num_processes=1, seed=0)
