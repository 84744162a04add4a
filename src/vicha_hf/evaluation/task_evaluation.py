"""One evaluation for every task and family: behind `examples/evaluate.py` and `vicha-hf evaluate`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from accelerate import Accelerator
from transformers.utils import cached_file

from ..arguments import require
from ..data.annotations import Annotations, read_image_text_records
from ..data.annotations_entailment import read_entailment_records
from ..data.annotations_grounding import read_grounding_records
from ..data.annotations_reasoning import read_reasoning_records
from ..data.annotations_vqa import read_question_records, vqa_references
from ..data.answer_list import check_answer_list, read_answer_list
from ..data.collators import EntailmentCollator, ReasoningCollator
from ..data.datasets_entailment import EntailmentDataset
from ..data.datasets_grounding import GroundingDataset
from ..data.datasets_reasoning import ReasoningDataset
from ..data.datasets_retrieval import RetrievalDataset
from ..data.datasets_vqa import QuestionAnsweringDataset
from ..data.reading_arguments import ReadingArguments
from ..data.transforms import EvaluationTransform, MeanImage
from ..families import find_model_folder, load_finetuned, load_processor, read_config, task_of_config
from ..models.concept_selector import ConceptSelector
from ..models.configuration_vision_text import GROUNDING_METHODS
from ..models.pipeline_answering import ANSWER_LIST_FILE
from .classification import evaluate_classification
from .found_concepts import find_concepts
from .grounding import evaluate_grounding
from .question_answering import evaluate_question_answering
from .recall_table import format_recall_table
from .retrieval import RetrievalScores, score_retrieval
from .task_result import TaskResult
from .vqa import DEFAULT_RULES


# Options that change what a model reaches, and say so beside its results.
_OF_RESULTS = (
    *("use_concepts", "concepts", "text_only", "splits", "k", "exact", "generate", "vqa_rules"),
    *("methods", "layer_itm", "layer_itc", "every_layer"),
)
# Options that only some tasks read.
_TASKS_OF = {
    "k": ("retrieval", "vqa"),
    "top": ("retrieval",),
    **dict.fromkeys(("answer_list", "exact", "generate", "vqa_rules"), ("vqa",)),
    **dict.fromkeys(("methods", "layer_itm", "layer_itc", "every_layer"), ("grounding",)),
}
# Tasks where a text alone can be answered; in the others chance says what an image is worth.
TASKS_WITH_TEXT_ONLY = ("vqa", "entailment", "reasoning")


@dataclass(kw_only=True)
class EvaluationArguments(ReadingArguments):
    """Options of an evaluation.

    Args:
        model: Folder or Hub id of a model of the task, with its processor; of a run's folder its `model/`.
        data: Annotation file or dataset of the task, or a list of them.
        task: "retrieval", "vqa", "entailment", "reasoning" or "grounding"; null takes the one that the model is for.
        output_dir: Folder of `metrics.json` and `predictions.json`; null writes nothing.
        json: File of the metrics alone; null writes none.
        add_to_card: Whether the model's card takes the results: `README.md` of the folder, or of the repository on the Hub.
        image_root: Folder that relative image paths start from, or a list of one for each source; null takes each annotation file's own folder. A source written as {path: ..., image_root: ...} has its own.
        on_bad_record: "raise" refuses annotations with bad records, "skip" leaves such records out and counts them; every image is decoded beforehand.
        allow_outside_root: Whether absolute image paths may lead out of the image root.
        batch_size: Samples at a time on one process.
        num_workers: Processes that load data, per process.
        device: "cpu", "cuda:1", ... for one process; null takes a GPU where there is one.
        use_concepts: Whether images come with their visual concepts.
        concepts: "given" reads them from the annotations, "auto" finds them by the concept index of the model's folder.
        k: Candidates of the second stage: of retrieval (published: 128, COCO 256), or answers of a question (128).
        top: How many of the best a retrieval's predictions hold per query.
        answer_list: JSON list of the answers to choose from; null takes the one beside the model.
        exact: Choose the likeliest answer of the whole list instead of the best of `k` candidates.
        generate: Have the model write its answers instead of choosing from the list.
        vqa_rules: Year of the official tool that answers are counted by, "2021" or "2017".
        methods: Grad-CAM of the matching head ("itm"), of the similarity ("itc"), or both.
        layer_itm: Layer whose cross-attention grounds; null takes the model's, by default the published one (8 of 12).
        layer_itc: Layer of the vision encoder whose attention grounds; null takes the model's, by default the published one (8 of 12).
        every_layer: Whether grounding tries every layer, and shows each and the best of each method.
        splits: Splits to evaluate, as the records' field `split` names them; null takes all.
        text_only: Replace every image by the mean image and leave its concepts out.
        text_only_model: Folder of a model fine-tuned with `data.text_only`; its metrics without images are written beside the others as `text_only_...`.
    """

    model: str
    data: str | dict[str, Any] | list[str | dict[str, Any]]
    task: Literal["retrieval", "vqa", "entailment", "reasoning", "grounding"] | None = None
    output_dir: str | None = None
    json: str | None = None
    add_to_card: bool = False
    batch_size: int = 32
    num_workers: int = 0
    device: str | None = None
    use_concepts: bool = True
    concepts: Literal["given", "auto"] = "given"
    k: int = 128
    top: int = 10
    answer_list: str | None = None
    exact: bool = False
    generate: bool = False
    vqa_rules: Literal["2021", "2017"] = DEFAULT_RULES
    methods: list[Literal["itm", "itc"]] = GROUNDING_METHODS
    layer_itm: int | None = None
    layer_itc: int | None = None
    every_layer: bool = False
    splits: list[str] | None = None
    text_only: bool = False
    text_only_model: str | None = None

    @property
    def evaluation_reading(self) -> dict[str, Any]:
        """Options of every reader of annotations."""
        return super().evaluation_reading | {"splits": self.splits}

    @property
    def unusual_settings(self) -> dict[str, Any]:
        """The options that a result depends on, where they are not the usual ones."""
        return {name: getattr(self, name) for name in _OF_RESULTS if self._is_unusual(name)}

    def _is_unusual(self, name: str) -> bool:
        value, usual = getattr(self, name), getattr(type(self), name)
        # The command line gives a list where the default is a tuple.
        return (tuple(value) if isinstance(value, list) else value) != usual

    def __post_init__(self):
        for name in ("batch_size", "k", "top"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "it must be at least 1.")
        require(
            self.use_concepts or self.concepts == "given",
            "concepts",
            self.concepts,
            "use_concepts=false leaves them out; choose one of the two.",
        )
        require(self.num_workers >= 0, "num_workers", self.num_workers, "it must not be negative.")
        for name in ("layer_itm", "layer_itc"):
            require(
                not self.every_layer or getattr(self, name) is None,
                name,
                getattr(self, name),
                "every_layer=true tries all of them; choose one of the two.",
            )
        for name, tasks in _TASKS_OF.items():
            require(
                self.task is None or self.task in tasks or not self._is_unusual(name),
                name,
                getattr(self, name),
                f"it belongs to {' and '.join(tasks)}, and the task is {self.task}; leave it out.",
            )
        require(bool(self.methods), "methods", self.methods, f"choose among {GROUNDING_METHODS}.")
        require(
            self.task in (None, *TASKS_WITH_TEXT_ONLY) or not (self.text_only or self.text_only_model),
            "text_only" if self.text_only else "text_only_model",
            self.text_only_model or True,
            f"only {', '.join(TASKS_WITH_TEXT_ONLY)} have answers to give without an image; compare {self.task} with "
            "the chance that stands beside its metrics.",
        )


@dataclass(frozen=True)
class _Setup:
    """A loaded model and how its images are shown."""

    arguments: EvaluationArguments
    model: Any
    processor: Any
    folder: str
    text_only: bool
    accelerator: Accelerator | None
    progress: bool

    @property
    def transform(self) -> Callable:
        kind = MeanImage if self.text_only else EvaluationTransform
        return kind.from_image_processor(self.processor.image_processor)

    @property
    def with_concepts(self) -> bool:
        return self.arguments.use_concepts and not self.text_only and getattr(self.model.config, "use_concepts", False)

    def with_found_concepts(self, annotations: Annotations) -> Annotations:
        """The annotations, with concepts that the model's index finds where these are asked for."""
        if self.arguments.concepts == "given" or self.text_only:
            return annotations
        require(
            self.with_concepts, "concepts", "auto", f"{self.folder} reads no visual concepts; leave the option out."
        )
        selector = ConceptSelector.from_pretrained(self.folder, device=str(self.model.device))
        return find_concepts(annotations, selector, **self.running)

    @property
    def running(self) -> dict[str, Any]:
        arguments = self.arguments
        return {"batch_size": arguments.batch_size, "num_workers": arguments.num_workers, "progress": self.progress}


def for_its_model(arguments: EvaluationArguments) -> EvaluationArguments:
    """
    The arguments with the folder of the model in place of a run's, and with the task of the model's head where they name
    none. A pretrained model is one for retrieval.

    Raises:
        OSError: as [`~vicha_hf.families.find_model_folder`].
        ValueError: as `EvaluationArguments`.
    """
    folder = find_model_folder(arguments.model)
    task = arguments.task or task_of_config(read_config(folder)) or "retrieval"
    return replace(arguments, model=folder, task=task)


def evaluate_task(
    arguments: EvaluationArguments, device: torch.device | str = "cpu", accelerator: Accelerator | None = None
) -> TaskResult:
    """
    The metrics and predictions that `arguments` ask for.

    Args:
        arguments: what to evaluate.
        device: where to run, without an accelerator.
        accelerator: shares the samples among its processes; every process must call, and all get the same.

    Raises:
        AnnotationError: bad annotations, by file, record and field.
        ValueError: a folder that was not fine-tuned for the task.
    """
    arguments = for_its_model(arguments)
    evaluate = _EVALUATIONS[arguments.task]
    where = {"device": device if accelerator is None else accelerator.device, "accelerator": accelerator}
    result = evaluate(_load(arguments, arguments.model, arguments.text_only, **where))
    if arguments.text_only_model is None:
        return result
    blind = evaluate(_load(arguments, arguments.text_only_model, text_only=True, **where))
    return TaskResult(
        result.metrics | {f"text_only_{name}": value for name, value in blind.metrics.items()},
        result.predictions,
        result.reading,
    )


def format_metrics(task: str, metrics: dict[str, float]) -> str:
    """The metrics for the terminal."""
    if task == "retrieval":
        return format_recall_table({"": metrics})
    width = max(map(len, metrics), default=0)
    return "\n".join(
        f"{name:{width}s} {value:8d}" if isinstance(value, int) else f"{name:{width}s} {value:8.2f}"
        for name, value in metrics.items()
    )


def find_answer_list(folder: str, path: str | None = None) -> list[str]:
    """
    The answers that a model chooses from.

    Args:
        folder: folder or Hub id of the model.
        path: a list of one's own instead of the model's.

    Raises:
        ValueError: there is none.
    """
    path = path or cached_file(folder, ANSWER_LIST_FILE, _raise_exceptions_for_missing_entries=False)
    if path is None:
        raise ValueError(
            f"{folder} holds no {ANSWER_LIST_FILE}: give one with answer_list, or have the answers written with "
            "generate."
        )
    return read_answer_list(path)


def _load(arguments: EvaluationArguments, folder: str, text_only: bool, device, accelerator) -> _Setup:
    folder = find_model_folder(folder)
    model = load_finetuned(arguments.task, folder).to(device)
    return _Setup(
        arguments,
        model,
        load_processor(folder),
        folder,
        text_only,
        accelerator,
        progress=accelerator is None or accelerator.is_main_process,
    )


def _retrieval(setup: _Setup) -> TaskResult:
    arguments = setup.arguments
    annotations = setup.with_found_concepts(
        read_image_text_records(arguments.data, for_evaluation=True, **arguments.evaluation_reading)
    )
    dataset = RetrievalDataset(annotations, setup.transform, use_concepts=setup.with_concepts)
    scores = score_retrieval(
        setup.model,
        setup.processor,
        dataset,
        k=arguments.k,
        with_concepts=setup.with_concepts,
        accelerator=setup.accelerator,
        **setup.running,
    )
    metrics = scores.metrics(dataset.captions_of_image, dataset.image_of_caption)
    best = best_of_each_query(scores, annotations, dataset, min(arguments.top, arguments.k))
    return TaskResult(metrics, best, annotations.report)


def best_of_each_query(scores: RetrievalScores, annotations: Annotations, dataset: RetrievalDataset, top: int) -> dict:
    """The predictions of a retrieval: images and captions, and for each the `top` best of the others by index."""
    names: dict[int, str] = {}
    for record in annotations:
        names.setdefault(record.image_id, str(record.image))
    return {
        "images": list(names.values()),
        "captions": dataset.texts,
        "image_to_text": _best(scores.rerank_i2t, top),
        "text_to_image": _best(scores.rerank_t2i, top),
    }


def _best(scores: torch.Tensor, top: int) -> list[list[dict]]:
    best = scores.topk(min(top, scores.shape[1]), dim=1)
    return [
        [{"index": index, "score": score} for index, score in zip(*row, strict=True)]
        for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _vqa(setup: _Setup) -> TaskResult:
    arguments = setup.arguments
    answers = None if arguments.generate else find_answer_list(setup.folder, arguments.answer_list)
    annotations = setup.with_found_concepts(
        read_question_records(arguments.data, for_evaluation=True, **arguments.evaluation_reading)
    )
    if answers is not None:
        where = arguments.answer_list or f"{setup.folder}/{ANSWER_LIST_FILE}"
        check_answer_list(answers, annotations, where)
    # The published test sets come without answers: then there is only something to hand in.
    known = any(record.answers for record in annotations)
    result = evaluate_question_answering(
        setup.model,
        setup.processor,
        QuestionAnsweringDataset(annotations, setup.transform, use_concepts=setup.with_concepts),
        answers,
        vqa_references(annotations) if known else None,
        k=arguments.k,
        exact=arguments.exact,
        rules=arguments.vqa_rules,
        with_concepts=setup.with_concepts,
        **setup.running,
    )
    return replace(result, reading=annotations.report)


def _classification(setup: _Setup, read: Callable, dataset_class: type, collator_class: type) -> TaskResult:
    arguments = setup.arguments
    annotations = setup.with_found_concepts(read(arguments.data, require_labels=False, **arguments.evaluation_reading))
    dataset = dataset_class(annotations, setup.transform, use_concepts=setup.with_concepts)
    collator = collator_class(setup.processor, with_concepts=setup.with_concepts)
    result = evaluate_classification(setup.model, dataset, collator, **setup.running)
    return replace(result, reading=annotations.report)


def _entailment(setup: _Setup) -> TaskResult:
    return _classification(setup, read_entailment_records, EntailmentDataset, EntailmentCollator)


def _reasoning(setup: _Setup) -> TaskResult:
    return _classification(setup, read_reasoning_records, ReasoningDataset, ReasoningCollator)


def _grounding(setup: _Setup) -> TaskResult:
    arguments = setup.arguments
    annotations = setup.with_found_concepts(
        read_grounding_records(arguments.data, for_evaluation=True, **arguments.evaluation_reading)
    )
    result = evaluate_grounding(
        setup.model,
        setup.processor,
        GroundingDataset(annotations, setup.transform, use_concepts=setup.with_concepts),
        methods=arguments.methods,
        layers={"itm": arguments.layer_itm, "itc": arguments.layer_itc},
        every_layer=arguments.every_layer,
        with_concepts=setup.with_concepts,
        **setup.running,
    )
    return replace(result, reading=annotations.report)


_EVALUATIONS: dict[str, Callable[[_Setup], TaskResult]] = {
    "retrieval": _retrieval,
    "vqa": _vqa,
    "entailment": _entailment,
    "reasoning": _reasoning,
    "grounding": _grounding,
}
