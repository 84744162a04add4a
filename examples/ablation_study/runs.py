"""One training run of a study, by the ordinary script: planned, trained, resumed, evaluated, and read again."""

import copy
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from launching import launch_pretraining
from transformers import AutoProcessor

from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.datasets_retrieval import RetrievalDataset
from vicha_hf.data.transforms import EvaluationTransform
from vicha_hf.evaluation.retrieval import score_retrieval
from vicha_hf.families import load_finetuned
from vicha_hf.training.run_log import read_log
from vicha_hf.whole_files import write_whole_file


RECIPE_FILE, RESULT_FILE, TRAINING_FOLDER = "recipe.yaml", "result.json", "training"
# Checkpoints of a run: what a kill can cost.
_PARTS_OF_A_RUN = 10
# These count steps of a run, so they follow its length.
_STEP_COUNTS = ("warmup_steps", "teacher_start_step", "hard_negative_steps", "model.config.queue_warmup_batches")


@dataclass(frozen=True)
class RunResult:
    """
    Outcome of a run.

    Attributes:
        variant, part, data: what was compared, in which part of the study, on which data ("all", "random 10 %", ...).
        seed: of the run.
        steps: optimiser steps.
        train_seconds: of the training, evaluations and checkpoints included.
        seconds_per_step: median of the log, which leaves both out.
        tests: by test file and by what the model reads ("concepts", "no concepts"), R@1 in %, the mean of both
            directions, by "similarity" and "re-ranked" with both scores.
    """

    variant: str
    part: str
    data: str
    seed: int
    steps: int
    train_seconds: float
    seconds_per_step: float
    tests: dict[str, dict[str, dict[str, float]]]


def resolve_recipe(
    recipe: Mapping[str, Any], changes: Mapping[str, Any], steps: int, recipe_steps: int
) -> dict[str, Any]:
    """
    A recipe with changes by dotted name, for a run of `steps` where the recipe was made for `recipe_steps`.

    Warm-ups keep their share of the run. Validation comes once, at the end, where it chooses the weight of the similarity.
    """
    resolved = copy.deepcopy(dict(recipe))
    resolved.pop("num_epochs", None)
    for name in _STEP_COUNTS:
        value = _get(resolved, name)
        if value:
            _set(resolved, name, round(value * steps / recipe_steps))
    schedule = {
        "max_steps": steps,
        "evaluation_steps": steps,
        "checkpoint_steps": max(1, steps // _PARTS_OF_A_RUN),
        "logging_steps": max(1, min(resolved.get("logging_steps", 10), steps // _PARTS_OF_A_RUN)),
        "trackers": [],
    }
    for name, value in (schedule | dict(changes)).items():
        _set(resolved, name, value)
    return resolved


def _get(recipe: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        recipe = (recipe or {}).get(part)
    return recipe


def _set(recipe: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for part in parents:
        recipe = recipe.setdefault(part, {})
    recipe[last] = value


@dataclass(frozen=True)
class StudyRun:
    """
    A run of a study.

    Args:
        folder: of the run; holds its recipe, its training and its result.
        variant, part, data, seed: as in [`RunResult`].
        recipe: resolved, with the paths of the data.
        tests: annotation files.
        reads_concepts: whether the model reads concepts.
        num_processes: that train together.
        options: further ones of the script.
    """

    folder: Path
    variant: str
    part: str
    data: str
    seed: int
    recipe: Mapping[str, Any]
    tests: Sequence[str]
    reads_concepts: bool
    num_processes: int = 1
    options: Sequence[str] = ()

    def finished_result(self) -> RunResult | None:
        """
        The result of this run if it was finished earlier.

        Raises:
            ValueError: the folder holds a run of another recipe.
        """
        recipe, result = self.folder / RECIPE_FILE, self.folder / RESULT_FILE
        if recipe.is_file() and recipe.read_text(encoding="utf-8") != self._described():
            raise ValueError(
                f"{recipe} is of a run with other settings or data: give the options that it was made with, choose another "
                f"--output_dir, or remove {self.folder}"
            )
        if not result.is_file():
            return None
        # One run serves several parts of a study.
        return replace(RunResult(**json.loads(result.read_text(encoding="utf-8"))), part=self.part)

    def complete(self) -> RunResult:
        """
        The result: read, or reached by training from where the run stands.

        Raises:
            ValueError: the folder holds a run of another recipe.
            ChildProcessError: the training was stopped, or failed; the message says how to go on.
        """
        found = self.finished_result()
        if found is not None:
            return found
        write_whole_file(self.folder / RECIPE_FILE, self._described())
        training = self.folder / TRAINING_FOLDER
        if not (training / "metrics.json").is_file():
            self._train(training)
        result = self._evaluate(training)
        write_whole_file(self.folder / RESULT_FILE, json.dumps(asdict(result), indent=2) + "\n")
        return result

    def _described(self) -> str:
        further = f"# Behind it: {json.dumps(list(self.options))}\n" if self.options else ""
        return further + yaml.safe_dump(dict(self.recipe), sort_keys=False)

    def _train(self, training: Path) -> None:
        options = ["--config", str(self.folder / RECIPE_FILE), "--output_dir", str(training)]
        if training.exists():
            options += ["--resume_from_checkpoint", "latest"]
        status = launch_pretraining([*options, *self.options], self.num_processes)
        if status or not (training / "metrics.json").is_file():
            raise ChildProcessError(
                f"{self.folder.name} did not reach its end (status {status}); the same command goes on from its last "
                "checkpoint"
            )

    def _evaluate(self, training: Path) -> RunResult:
        model = load_finetuned("retrieval", str(training / "model"))
        processor = AutoProcessor.from_pretrained(training / "model")
        tests = {}
        for path in self.tests:
            dataset = RetrievalDataset(
                read_image_text_records(path, for_evaluation=True),
                EvaluationTransform.from_image_processor(processor.image_processor),
                use_concepts=self.reads_concepts,
            )
            tests[Path(path).stem] = {
                name: _recalls(
                    score_retrieval(
                        model, processor, dataset, k=self.recipe["data"]["rerank_k"], with_concepts=with_concepts
                    ).metrics(dataset.captions_of_image, dataset.image_of_caption)
                )
                for name, with_concepts in (("concepts", True), ("no concepts", False))
                if self.reads_concepts or not with_concepts
            }
        trained = json.loads((training / "metrics.json").read_text(encoding="utf-8"))
        rates = [record["samples_per_second"] for record in read_log(training) if "samples_per_second" in record]
        return RunResult(
            variant=self.variant,
            part=self.part,
            data=self.data,
            seed=self.seed,
            steps=trained["step"],
            train_seconds=trained["train_seconds"],
            seconds_per_step=trained["samples_per_step"] / statistics.median(rates),
            tests=tests,
        )


def _recalls(metrics: Mapping[str, float]) -> dict[str, float]:
    return {
        "similarity": (metrics["r1_i2t_itc_only"] + metrics["r1_t2i_itc_only"]) / 2,
        "re-ranked": (metrics["r1_i2t"] + metrics["r1_t2i"]) / 2,
    }
