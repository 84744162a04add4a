"""Expected time of a run: by its steps alone."""

from vicha_hf.training import run_clock
from vicha_hf.training.run_clock import STEPS_BEFORE_ESTIMATE, RunClock


def test_the_expected_time_leaves_out_the_first_step_and_evaluations(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(run_clock.time, "perf_counter", lambda: now[0])
    clock = RunClock(step=3, earlier_seconds=0.0)
    told = []
    for taken in range(1, STEPS_BEFORE_ESTIMATE + 2):
        now[0] += 50.0 if taken == 1 else 2.0
        told.append(clock.seconds_per_step(3 + taken))
        with clock.paused_rates():
            now[0] += 1000.0 if taken == 4 else 0.0
    assert told == [None] * (STEPS_BEFORE_ESTIMATE - 1) + [2.0, None]
