"""The page of any run and task: read from its folder, with an evaluation of its model on data of the reader's choice."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.annotations import Annotations, read_image_text_records
from ..data.annotations_entailment import read_entailment_records
from ..data.annotations_grounding import read_grounding_records
from ..data.annotations_reasoning import read_reasoning_records
from ..data.annotations_vqa import read_question_records
from ..data.datasets_retrieval import RetrievalDataset
from ..data.read_report import REJECTS_FILE, RejectsFile
from ..evaluation.beside_chance import first_figures
from ..evaluation.task_evaluation import EvaluationArguments, evaluate_task
from ..evaluation.task_result import METRICS_FILE, TaskResult
from ..evaluation.words_alone import words_alone_recall
from ..families import BEST_MODEL_FOLDER, MODEL_FOLDER, find_model_folder, read_config, task_of_config
from ..yaml_files import read_yaml_mapping
from .evaluation_curves import evaluation_curves_html
from .gallery import CaptionQuery, ImageQuery, evenly_spaced
from .model_card import architecture_facts, method_name
from .result import Result
from .run_files import SETTINGS_FILE, read_log
from .run_report import RunReport
from .task_sections import (
    Example,
    concepts_html,
    confusion_html,
    examples_html,
    frequent_mistakes_html,
    metrics_html,
    rejects_html,
    thumbnail,
    with_boxes,
)


EXAMPLES_SHOWN, QUERIES_SHOWN, CANDIDATES_SHOWN = 12, 6, 5
TASK_NAMES = {
    "retrieval": "Retrieval",
    "vqa": "Question answering",
    "entailment": "Visual entailment",
    "reasoning": "Visual reasoning",
    "grounding": "Grounding",
}
# The metric that stands on top of a page without a training log.
PRIMARY = {"retrieval": "r_mean", "grounding": "accuracy_itm"}
# Facts of the run's settings that a reader looks for.
SETTINGS = (
    "num_epochs",
    "max_steps",
    "per_device_batch_size",
    "gradient_accumulation_steps",
    "optimizer",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "seed",
)


@dataclass(frozen=True)
class Run:
    """
    A run's output folder, or a model's folder alone.

    Attributes:
        folder: of the run; that of the model where it belongs to none.
        model: folder that was meant: the run's last model, unless its best one was named.
        task: that the model is evaluated on.
        settings: the run's arguments; empty without `config.yaml`.
        metrics: of `metrics.json`; empty without.
        log: records of the training.
    """

    folder: Path
    model: str
    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)

    @property
    def primary(self) -> str:
        """Metric that chose the best model."""
        return self.metrics.get("primary_metric") or PRIMARY.get(self.task, "accuracy")

    @property
    def data(self) -> Mapping[str, Any]:
        """Settings of the data."""
        return self.settings.get("data") or {}


def read_run(folder: str | Path) -> Run:
    """
    Reads a run's folder.

    Args:
        folder: of a run, whose last model counts; one of the models in it; or a model's folder alone.

    Raises:
        FileNotFoundError: no model there.
        ValueError: a model that is evaluated on nothing, such as one of text assignment.
    """
    model = find_model_folder(str(folder))
    folder = Path(folder)
    if folder.name in (MODEL_FOLDER, BEST_MODEL_FOLDER) and (folder.parent / SETTINGS_FILE).is_file():
        folder = folder.parent
    settings, metrics = folder / SETTINGS_FILE, folder / METRICS_FILE
    return Run(
        folder,
        model,
        _task_of(model),
        read_yaml_mapping(settings) if settings.is_file() else {},
        _read_metrics(metrics) if metrics.is_file() else {},
        read_log(folder),
    )


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): move it away, and the report is made without it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no metrics by name: move it away, and the report is made without it.")
    return content


def build_run_page(run: Run, data: str | None = None, **options: Any) -> RunReport:
    """
    Everything that a reader wants to know of a run.

    Args:
        run: from [`read_run`].
        data: annotations to evaluate on; None takes the run's validation data, and none where it has none.
        options: of [`~vicha_hf.evaluation.task_evaluation.EvaluationArguments`], such as `k` and `batch_size`.

    Raises:
        AnnotationError: bad annotations, by file, record and field.
        ValueError: a folder that was not fine-tuned for the task.
    """
    source = data if data is not None else run.data.get("validation")
    config = read_config(run.model)
    curves = evaluation_curves_html(run.log, run.primary)
    page = RunReport(
        title=f"{method_name(config)}: {run.folder.name}",
        summary=f"{TASK_NAMES[run.task]} with the model in {run.model}"
        + (f", evaluated on {source}." if source is not None else ", not evaluated: give --data."),
        tiles=[],
        results=[],
        log=run.log,
        first_sections=[curves] if curves else [],
        facts=_facts(run, config),
        config=config.to_dict(),
    )
    left_out = [rejects_html(RejectsFile(run.folder / REJECTS_FILE).records(), "the run")]
    if source is None:
        page.sections = [section for section in left_out if section]
        return page
    arguments = _evaluation_arguments(run, source, given=data is not None, **options)
    result = evaluate_task(arguments)
    page.tiles = [
        (f"{value:.1f} %", name if chance is None else f"{name} (chance {chance:.1f} %)")
        for name, value, chance in first_figures(result.metrics, run.primary)
    ]
    _SECTIONS[run.task](page, arguments, result)
    if result.reading is not None:
        left_out.append(rejects_html(result.reading.rejected, "this evaluation"))
    page.sections = [*page.sections, *(section for section in left_out if section)]
    return page


def _task_of(model: str) -> str:
    config = read_config(model)
    if (task := task_of_config(config)) is not None:
        return task
    names = ", ".join(config.architectures or ())
    raise ValueError(f"{model} is a {names or 'bare model'}: there is no evaluation of it to report.")


def _evaluation_arguments(run: Run, source: Any, given: bool, **options: Any) -> EvaluationArguments:
    """Options of the evaluation, as the run evaluated itself where its own data are meant."""
    own = {}
    if not given:
        names = ("image_root", "on_bad_record", "allow_outside_root")
        own = {name: run.data[name] for name in names if run.data.get(name) is not None}
        own["splits"] = run.data.get("validation_splits")
    return EvaluationArguments(**{"model": run.model, "data": source, "task": run.task, **own, **options})


def _facts(run: Run, config) -> dict[str, dict[str, object]]:
    trained = {
        name: run.metrics[name] for name in ("step", "epoch", "best_step", "num_processes") if name in run.metrics
    }
    if "train_seconds" in run.metrics:
        trained["minutes"] = run.metrics["train_seconds"] / 60
    data = {name: run.data[name] for name in ("train", "validation") if run.data.get(name) is not None}
    settings = {name: run.settings[name] for name in SETTINGS if run.settings.get(name) is not None}
    if "max_steps" in settings:
        # It decided alone.
        settings.pop("num_epochs", None)
    facts = {
        "Training": trained,
        "Data": data,
        "Records left out, by cause": run.metrics.get("rejected_records"),
        "Settings": settings,
        "Model": architecture_facts(config),
    }
    return {heading: table for heading, table in facts.items() if table}


def _retrieval(page: RunReport, arguments: EvaluationArguments, result: TaskResult) -> None:
    records = read_image_text_records(arguments.data, for_evaluation=True, **arguments.evaluation_reading)
    dataset = RetrievalDataset(records, transform=lambda image: image)
    first: dict[int, Any] = {}
    for record in records:
        first.setdefault(record.image_id, record)
    images = list(first.values())
    best = result.predictions
    page.results = [Result("data", "The data", "as the model reads them", result.metrics)]
    for caption in evenly_spaced(len(dataset.texts), QUERIES_SHOWN):
        found = [entry["index"] for entry in best["text_to_image"][caption]]
        own = dataset.image_of_caption[caption]
        shown = found[:CANDIDATES_SHOWN]
        page.caption_queries = [
            *page.caption_queries,
            CaptionQuery(
                dataset.texts[caption],
                [thumbnail(images[index].load_image()) for index in shown],
                [index == own for index in shown],
                found.index(own) + 1 if own in found else None,
            ),
        ]
    for image in evenly_spaced(len(images), QUERIES_SHOWN):
        found = [entry["index"] for entry in best["image_to_text"][image]]
        own = set(dataset.captions_of_image[image])
        shown = found[:CANDIDATES_SHOWN]
        page.image_queries = [
            *page.image_queries,
            ImageQuery(
                thumbnail(images[image].load_image()),
                list(images[image].concepts),
                [dataset.texts[index] for index in shown],
                [index in own for index in shown],
                next((place for place, index in enumerate(found, start=1) if index in own), None),
            ),
        ]
    concepts = [record.concepts for record in images]
    words = words_alone_recall(concepts, dataset.texts, dataset.image_of_caption) if any(concepts) else None
    page.sections = [section for section in [concepts_html(concepts, words)] if section]


def _questions(page: RunReport, arguments: EvaluationArguments, result: TaskResult) -> None:
    records = read_question_records(arguments.data, for_evaluation=True, **arguments.evaluation_reading)

    def example(record, prediction) -> Example:
        answers = list(dict.fromkeys(record.answers))
        is_right = prediction["answer"] in answers if answers else None
        return Example(
            [record.load_image()], record.question, prediction["answer"], " / ".join(answers) or None, is_right
        )

    mistakes = [
        (Counter(record.answers).most_common(1)[0][0], prediction["answer"])
        for record, prediction in zip(records, result.predictions, strict=True)
        if record.answers and prediction["answer"] not in record.answers
    ]
    _add(page, records, result, example, frequent_mistakes_html(mistakes))


def _classes(page: RunReport, arguments: EvaluationArguments, result: TaskResult) -> None:
    reads = read_entailment_records if arguments.task == "entailment" else read_reasoning_records
    records = reads(arguments.data, require_labels=False, **arguments.evaluation_reading)

    def example(record, prediction) -> Example:
        images = record.load_images() if arguments.task == "reasoning" else [record.load_image()]
        reference = None if prediction["reference"] is None else str(prediction["reference"])
        answer = f"{prediction['label']} ({100 * prediction['probability']:.0f} %)"
        is_right = None if reference is None else str(prediction["label"]) == reference
        return Example(list(images), record.sentence, answer, reference, is_right)

    known = [entry for entry in result.predictions if entry["reference"] is not None]
    confusion = ""
    if known:
        confusion = confusion_html(
            [str(entry["reference"]) for entry in known], [str(entry["label"]) for entry in known]
        )
    _add(page, records, result, example, confusion)


def _expressions(page: RunReport, arguments: EvaluationArguments, result: TaskResult) -> None:
    records = read_grounding_records(arguments.data, for_evaluation=True, **arguments.evaluation_reading)
    better = max(arguments.methods, key=lambda method: result.metrics[f"accuracy_{method}"])

    def example(record, prediction) -> Example:
        chosen = prediction[better]
        image = with_boxes(record.load_image(), {"reference": prediction["reference"], "chosen": chosen["box"]})
        answer = f"red box, overlap {chosen['iou']:.2f} ({better})"
        return Example([image], record.text, answer, "green box", chosen["iou"] >= 0.5)

    _add(page, records, result, example)


def _add(
    page: RunReport, records: Annotations, result: TaskResult, example: Callable[..., Example], further: str = ""
) -> None:
    shown = evenly_spaced(len(records), EXAMPLES_SHOWN)
    examples = [example(records[index], result.predictions[index]) for index in shown]
    page.first_sections = [metrics_html(result.metrics), *([further] if further else []), *page.first_sections]
    concepts = [concepts_of(record) for record in records]
    page.sections = [section for section in (examples_html(examples), concepts_html(concepts, None)) if section]


def concepts_of(record: Any) -> list[str]:
    """The concepts of a record of any task; those of both images of a pair."""
    return [word for one in record.concepts for word in ([one] if isinstance(one, str) else one)]


_SECTIONS: dict[str, Callable[[RunReport, EvaluationArguments, TaskResult], None]] = {
    "retrieval": _retrieval,
    "vqa": _questions,
    "entailment": _classes,
    "reasoning": _classes,
    "grounding": _expressions,
}
