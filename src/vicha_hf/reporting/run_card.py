"""The card of a model that a script trained or converted: metadata that the Hub reads, and a page with the facts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..evaluation.card_results import TASK_METRICS, evaluation_results
from ..evaluation.metric_table import metric_table
from ..families import trained_task
from .citations import CITATIONS
from .model_card import architecture_facts, method_name


TEMPLATE = Path(__file__).with_name("run_card.md")
CURVE_FILE = "training_loss.svg"
UNKNOWN_LICENSE = "unknown"

# The Hub's pipeline tag of a task. All folders serve zero-shot classification.
_TAGS = {"vqa": "visual-question-answering"}
_USUAL_TAG = "zero-shot-image-classification"


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
        name: of the model for readers; by default the end of `model_id`.
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
    name: str = ""

    @property
    def title(self) -> str:
        return self.name or self.model_id.rstrip("/").split("/")[-1]

    @property
    def task(self) -> str:
        """The model's task, a key of `HEADS`."""
        return trained_task(self.model)

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
    def metric_table(self) -> str:
        """All that the evaluation gave, as readers see it; empty without results."""
        return metric_table(self.results) if self.results else ""

    @property
    def citation(self) -> str:
        return CITATIONS[method_name(self.model.config).lower()]

    def build(self) -> ModelCard:
        """The card, ready to be saved."""
        results = evaluation_results(self.task, self.dataset_name, self.results)
        metric = TASK_METRICS[self.task][1]
        data = ModelCardData(
            license=self.license or UNKNOWN_LICENSE,
            library_name="transformers",
            pipeline_tag=_TAGS.get(self.task, _USUAL_TAG),
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
    return TASK_METRICS[task][0].lower()
