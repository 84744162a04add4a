import json
import math
from pathlib import Path

import pytest

from vicha_hf.training.schedule import PublishedSchedule, WarmupCosineSchedule, published_learning_rate, ramped_alpha


GOLDEN = json.loads((Path(__file__).parents[1] / "golden/data/lr_schedule.json").read_text())


@pytest.mark.parametrize("run", GOLDEN["runs"], ids=lambda run: run["name"])
def test_published_schedule_follows_every_published_run(run):
    published, length = run["schedular"], run["iterations_per_epoch"]
    rates = {
        "num_epochs": published["epochs"],
        "learning_rate": published["lr"],
        "min_learning_rate": published["min_lr"],
        "warmup_learning_rate": published["warmup_lr"],
    }
    schedule = PublishedSchedule(steps_per_epoch=length, warmup_steps=100 * published["warmup_epochs"], **rates)
    assert len(run["lr_used_per_epoch"]) == published["epochs"]
    for epoch, encoded in enumerate(run["lr_used_per_epoch"]):
        expected = [rate for rate, count in encoded for _ in range(count)]
        assert len(expected) == length
        used = [
            published_learning_rate(epoch, iteration, warmup_epochs=published["warmup_epochs"], **rates)
            for iteration in range(length)
        ]
        assert used == pytest.approx(expected, rel=1e-9, abs=0)
        assert used == [schedule(epoch * length + iteration) for iteration in range(length)]


def cosine(total_steps, warmup_steps):
    return WarmupCosineSchedule(
        total_steps=total_steps,
        learning_rate=1e-4,
        min_learning_rate=1e-5,
        warmup_learning_rate=2e-5,
        warmup_steps=warmup_steps,
    )


def test_cosine_warms_up_linearly_peaks_and_falls():
    schedule = cosine(total_steps=110, warmup_steps=10)
    assert schedule(0) == pytest.approx(2e-5)
    assert schedule(5) == pytest.approx(6e-5)
    assert schedule(10) == pytest.approx(1e-4)
    assert schedule(60) == pytest.approx(5.5e-5)
    assert schedule(85) == pytest.approx(1e-5 + 4.5e-5 * (1 + math.cos(math.pi * 0.75)))
    assert schedule(110) == pytest.approx(1e-5)
    after = [schedule(step) for step in range(10, 111)]
    assert after == sorted(after, reverse=True)


def test_cosine_without_warmup_starts_at_the_peak():
    assert cosine(total_steps=100, warmup_steps=0)(0) == pytest.approx(1e-4)
    assert cosine(total_steps=1, warmup_steps=0)(0) == pytest.approx(1e-4)


@pytest.mark.parametrize("total_steps", [1, 2, 49, 50])
def test_a_run_inside_the_warmup_is_the_beginning_of_a_longer_run(total_steps):
    short, long = cosine(total_steps, warmup_steps=50), cosine(10_000, warmup_steps=50)
    assert [short(step) for step in range(total_steps)] == [long(step) for step in range(total_steps)]
    assert short(50) == pytest.approx(1e-4)


def test_published_warmup_must_be_whole_jumps():
    with pytest.raises(ValueError, match=r"warmup_steps=150.*multiple"):
        PublishedSchedule(10, 2, 1e-4, 1e-5, 1e-5, warmup_steps=150)


def test_published_schedule_without_warmup():
    schedule = PublishedSchedule(10, 2, 1e-4, 0.0, 1e-5, warmup_steps=0)
    assert schedule(0) == pytest.approx(1e-4)
    assert schedule(10) == pytest.approx(5e-5)


@pytest.mark.parametrize("length", [1, 4, 1000])
def test_alpha_ramps_over_the_first_epoch_only(length):
    first = [ramped_alpha(0.4, 0, iteration, length) for iteration in range(length)]
    assert first == pytest.approx([0.4 * iteration / length for iteration in range(length)])
    assert ramped_alpha(0.4, 1, 0, length) == 0.4
    assert ramped_alpha(0.0, 0, length // 2, length) == 0.0
