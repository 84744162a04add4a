"""The card of a model that a script trained or converted: metadata that the Hub reads, and a page with the facts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..families import HEADS
from .citations import CITATIONS
from .model_card import architecture_facts, method_name


TEMPLATE = Path(__file__).with_name("run_card.md")
CARD_FILE = "README.md"
CURVE_FILE = "training_loss.svg"
UNKNOWN_LICENSE = "unknown"

# task -> its name for readers, the Hub's pipeline tag, and the metric's type. All folders serve zero-shot classification.
_TASKS = {
    "pretraining": ("Image-text retrieval", "zero-shot-image-classification", "recall"),
    "retrieval": ("Image-text retrieval", "zero-shot-image-classification", "recall"),
    "grounding": ("Visual grounding", "zero-shot-image-classification", "accuracy"),
    "vqa": ("Visual question answering", "visual-question-answering", "accuracy"),
    "entailment": ("Visual entailment", "zero-shot-image-classification", "accuracy"),
    "reasoning": ("Visual reasoning", "zero-shot-image-classification", "accuracy"),
    "text-assignment": ("Text assignment", "zero-shot-image-classification", "accuracy"),
}
# Not what a model reaches: chance, sizes, and what the texts alone give away.
_NO_RESULT = ("chance", "num_", "text_only")


@dataclass(frozen=True)
class RunCard:
    """
    Facts of one card. Numbers come from here alone: without `results` the model is described as not evaluated.

    Args:
        model: whose card it is.
        model_id: repository on the Hub, or the folder.
        summary: what the model is, one paragraph.
        license: of the weights, by the Hub's identifier; None where nobody has said.
        base_models: Hub ids of the models that training started from.
        datasets: Hub ids of the training data.
        origin: where the weights come from, if they were not trained by the run.
        data: facts about the data: {name: value}.
        training: facts about the training.
        results: of the last evaluation, in %.
        dataset_name: what was evaluated on.
        command: that evaluates again.
        curve: file name of the loss curve beside the card.
    """

    model: PreTrainedModel
    model_id: str
    summary: str
    license: str | None = None
    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    origin: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, float] = field(default_factory=dict)
    dataset_name: str = ""
    command: str = ""
    curve: str | None = None

    @property
    def task(self) -> str:
        """The model's task, a key of `HEADS`."""
        heads = HEADS[self.model.config.model_type]
        return next(task for task, head in heads.items() if isinstance(self.model, head))

    @property
    def title(self) -> str:
        return self.model_id.rstrip("/").split("/")[-1]

    @property
    def model_class(self) -> str:
        return type(self.model).__name__

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads the folder."""
        own = {"vqa": "AutoModelForVisualQuestionAnswering", "pretraining": "AutoModelForPreTraining"}
        return own.get(self.task, "AutoModel")

    @property
    def architecture(self) -> dict[str, Any]:
        return architecture_facts(self.model.config, self.model.num_parameters())

    @property
    def embeds(self) -> bool:
        """Whether the model has a joint space, with which sentence-transformers can work."""
        return getattr(self.model.base_model, "vision_projection", None) is not None

    @property
    def metrics(self) -> dict[str, str]:
        """All that the evaluation gave, as readers see it."""
        return {
            name: f"{value:.2f}" if isinstance(value, float) else str(value) for name, value in self.results.items()
        }

    @property
    def citation(self) -> str:
        return CITATIONS[method_name(self.model.config).lower()]

    def build(self) -> ModelCard:
        """The card, ready to be saved."""
        name, tag, metric = _TASKS[self.task]
        results = [
            EvalResult(
                task_type=name.lower().replace(" ", "-"),
                task_name=name,
                dataset_type=_as_identifier(self.dataset_name),
                dataset_name=self.dataset_name,
                metric_type=metric,
                metric_name=key,
                metric_value=round(value, 2),
            )
            for key, value in self.results.items()
            if isinstance(value, float) and not key.startswith(_NO_RESULT)
        ]
        data = ModelCardData(
            license=self.license or UNKNOWN_LICENSE,
            library_name="transformers",
            pipeline_tag=tag,
            tags=[
                *(method_name(self.model.config).lower(), "vision-language", self.task, "custom_code"),
                *(["sentence-transformers"] if self.embeds else []),
            ],
            base_model=list(self.base_models) or None,
            datasets=list(self.datasets) or None,
            metrics=[metric] if results else None,
            model_name=self.title,
            eval_results=results or None,
        )
        return ModelCard.from_template(data, template_path=str(TEMPLATE), card=self)


def task_name(task: str) -> str:
    """A task's name inside a sentence."""
    return _TASKS[task][0].lower()


def _as_identifier(name: str) -> str:
    kept = "".join(character if character.isalnum() or character in "._-/" else "-" for character in name.lower())
    return kept.strip("-./") or "own-data"
