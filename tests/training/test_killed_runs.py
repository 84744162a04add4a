"""A run that is killed again and again ends exactly as one that was left alone, on one and on two processes."""

import json
import random

import pytest
from killed_runs import (
    Script,
    after_seconds,
    assert_same_run,
    make_corpus,
    wait_until_gone,
    while_saving,
    while_training,
)

from vicha_hf.training.checkpoints import PROGRESS_FILE, list_checkpoints


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    """Output folders of runs that were left alone, by processes and epochs."""
    folders = {}

    def get(num_processes, num_epochs):
        key = num_processes, num_epochs
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("uninterrupted")
            Script(corpus, folders[key], num_processes, num_epochs).finish()
        return folders[key]

    return get


def kill_many_times(script, seed):
    """Twelve kills of all kinds, in an order of their own. Returns the processes left and the number of kills in a save."""
    rng = random.Random(seed)
    kinds = ["saving"] * 5 + ["training"] * 4 + ["any"] * 2
    rng.shuffle(kinds)
    orphans, saving = [], 0
    for kind in ["training", *kinds]:
        if kind == "saving":
            moment = while_saving(after=rng.randint(1, 3))
        elif kind == "training":
            moment = while_training(rng.randint(1, 6))
        else:
            # Longer, and two of them would train to the end.
            moment = after_seconds(rng.uniform(0.5, 6))
        left, was_saving = script.kill(moment, rng)
        orphans += left
        saving += was_saving and kind == "saving"
    return orphans, saving


def assert_stopped_cleanly(script, exit_code):
    printed = script.printed()
    # The launcher of several processes reports the end of the job in its own way.
    assert exit_code == (143 if script.num_processes == 1 else 1), printed
    stopped = json.loads((list_checkpoints(script.output_dir)[-1] / PROGRESS_FILE).read_text())["progress"]
    assert f"Stopped by SIGTERM after step {stopped['step']} of" in printed, printed
    assert not list(script.output_dir.glob(".*"))


def test_a_stopped_run_ends_as_one_left_alone(corpus, uninterrupted, tmp_path):
    rng = random.Random(1)
    script = Script(corpus, tmp_path, num_epochs=3)
    orphans, _ = script.kill(while_training(rng.randint(5, 8)), rng)
    more, was_saving = script.kill(while_saving(after=rng.randint(1, 4)), rng)
    assert orphans and more and was_saving
    assert_stopped_cleanly(script, script.terminate(while_training(rng.randint(3, 6))))
    script.finish()
    wait_until_gone(orphans + more)
    assert_same_run(uninterrupted(1, 3), tmp_path, num_processes=1)


def test_two_processes_stopped_end_as_two_left_alone(corpus, uninterrupted, tmp_path):
    rng = random.Random(2)
    script = Script(corpus, tmp_path, num_processes=2, num_epochs=2)
    script.kill(while_training(rng.randint(5, 8)), rng)
    assert_stopped_cleanly(script, script.terminate(while_training(rng.randint(3, 6))))
    script.finish()
    assert_same_run(uninterrupted(2, 2), tmp_path, num_processes=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_a_run_killed_twelve_times(corpus, uninterrupted, tmp_path, seed):
    script = Script(corpus, tmp_path, num_epochs=7)
    orphans, saving = kill_many_times(script, seed)
    script.finish()
    assert orphans and saving >= 3
    wait_until_gone(orphans)
    assert_same_run(uninterrupted(1, 7), tmp_path, num_processes=1)


@pytest.mark.slow
def test_two_processes_killed_twelve_times(corpus, uninterrupted, tmp_path):
    script = Script(corpus, tmp_path, num_processes=2, num_epochs=7)
    _, saving = kill_many_times(script, seed=5)
    script.finish()
    assert saving >= 3
    assert_same_run(uninterrupted(2, 7), tmp_path, num_processes=2)
