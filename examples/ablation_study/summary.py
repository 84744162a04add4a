"""Means over seeds with their intervals, and whether the papers' order holds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev

from scipy.stats import t as student

from .runs import RunResult
from .variants import CLAIMS, Claim


CONFIDENCE = 0.95
SCORE = "re-ranked"


@dataclass(frozen=True)
class Estimate:
    """
    A mean over seeds.

    Attributes:
        mean: in the unit of the values.
        half: half the 95 % interval by Student's t; None of a single seed.
        number: of seeds.
    """

    mean: float
    half: float | None
    number: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """The estimate from the values of all seeds."""
        number = len(values)
        half = None
        if number > 1:
            half = float(student.ppf((1 + CONFIDENCE) / 2, number - 1)) * stdev(values) / math.sqrt(number)
        return cls(mean(values), half, number)

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.half is None else f"{self.mean:.1f} ± {self.half:.1f}"


@dataclass(frozen=True)
class Row:
    """
    Runs of one method on one part of the data, over its seeds.

    Attributes:
        part, variant, data: as in `RunResult`.
        steps, train_seconds, seconds_per_step: means.
        recalls: by test file, by what the model reads, by score.
    """

    part: str
    variant: str
    data: str
    steps: float
    train_seconds: float
    seconds_per_step: float
    recalls: dict[str, dict[str, dict[str, Estimate]]]

    def best_fed(self, test: str) -> dict[str, Estimate]:
        """The recalls with concepts where the model reads any."""
        return next(iter(self.recalls[test].values()))


def summarize(results: Iterable[RunResult]) -> list[Row]:
    """Rows in the order in which their first run comes."""
    groups: dict[tuple, list[RunResult]] = {}
    for result in results:
        groups.setdefault((result.part, result.variant, result.data), []).append(result)
    rows = []
    for (part, variant, data), runs in groups.items():
        recalls = {
            test: {
                condition: {
                    score: Estimate.of([run.tests[test][condition][score] for run in runs]) for score in scores
                }
                for condition, scores in conditions.items()
            }
            for test, conditions in runs[0].tests.items()
        }
        seconds = [mean(getattr(run, name) for run in runs) for name in ("train_seconds", "seconds_per_step")]
        rows.append(Row(part, variant, data, mean(run.steps for run in runs), *seconds, recalls))
    return rows


@dataclass(frozen=True)
class Verdict:
    """
    Outcome of a claim in a study, by the differences of runs with the same seed.

    Attributes:
        claim: of a paper.
        part, test: of the study, and the test file.
        difference: points of R@1 that the better row is ahead.
    """

    claim: Claim
    part: str
    test: str
    difference: Estimate

    @property
    def outcome(self) -> str:
        """ "holds", "reversed" or "not shown": the interval lies above zero, below it, or around it."""
        if self.difference.half is None:
            return "one seed says nothing"
        if abs(self.difference.mean) <= self.difference.half:
            return "not shown"
        return "holds" if self.difference.mean > 0 else "reversed"


def judge(results: Sequence[RunResult], part: str) -> list[Verdict]:
    """The claims about whose two rows a part of the study has runs with equal seeds, on every test file."""
    runs = {(run.variant, run.seed): run for run in results if run.part == part}
    verdicts = []
    for claim in CLAIMS:
        seeds = [seed for variant, seed in runs if variant == claim.better and (claim.worse, seed) in runs]
        for test in runs[claim.better, seeds[0]].tests if seeds else ():
            difference = Estimate.of(
                [_recall(runs[claim.better, s], test) - _recall(runs[claim.worse, s], test) for s in seeds]
            )
            verdicts.append(Verdict(claim, part, test, difference))
    return verdicts


def _recall(run: RunResult, test: str) -> float:
    return next(iter(run.tests[test].values()))[SCORE]


def as_json(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> dict:
    """Rows and verdicts for a program."""
    return {
        "rows": [asdict(row) for row in rows],
        "verdicts": [asdict(verdict) | {"outcome": verdict.outcome} for verdict in verdicts],
    }
