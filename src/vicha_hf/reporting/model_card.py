"""Model cards: metadata that the Hub reads, and a page that says what was trained, on what, and how well it does."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.recall import CUTOFFS, DIRECTIONS
from ..models.configuration_vision_text import VisionTextConfig
from .citations import CITATIONS
from .result import Result


def build_model_card(
    *,
    model_id: str,
    summary: str,
    architecture: Mapping[str, Any],
    data: str | None = None,
    training: Mapping[str, Any] | None = None,
    dataset_type: str | None = None,
    dataset_name: str | None = None,
    results: Sequence[Result] = (),
    family: str = "vicha",
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    command: str = "",
    curve: str | None = None,
) -> ModelCard:
    """Fills in a card's template.

    Numbers come from the arguments alone: a model without `training` is described as untrained, one without `results`
    as not evaluated.

    Args:
        model_id: repository on the Hub, such as "org/vicha-tiny".
        summary: what the model is, one paragraph.
        architecture: facts about the model: {name: value}.
        data: what it was trained on, in Markdown.
        training: facts about the training; None = these weights do not exist.
        dataset_type: identifier of the evaluation's dataset, for the metadata.
        dataset_name: its name for readers.
        results: evaluations; each becomes a block of the table and entries of the metadata.
        family: "vicha", "albef" or "simla": which paper the card cites and how it says the model is used.
        license: of the weights, by the Hub's identifier. It depends on the data, so None leaves it open.
        language: of the texts, such as "en"; None leaves it open.
        command: that trains and evaluates again.
        curve: file name of the loss curve beside the card.

    Raises:
        ValueError: results without a dataset, or of a model that was not trained.
    """
    if results and (training is None or dataset_type is None or dataset_name is None):
        raise ValueError("results need `training`, `dataset_type` and `dataset_name`: say what was trained and tested")
    card_data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=[family, "vision-language", "image-text-retrieval", "custom_code"],
        metrics=["recall"] if results else None,
        model_name=model_id.split("/")[-1],
        eval_results=[entry for result in results for entry in _eval_results(result, dataset_type, dataset_name)]
        or None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(resources.files(__package__).joinpath("model_card.md")),
        model_id=model_id,
        model_name=card_data.model_name,
        summary=summary,
        architecture=_rounded(architecture),
        data=data,
        training=None if training is None else _rounded(training),
        dataset_name=dataset_name,
        results=results,
        cutoffs=CUTOFFS,
        family=family,
        command=command,
        curve=curve,
        citation=CITATIONS[family],
    )


def method_name(config: VisionTextConfig) -> str:
    """Name of a configuration in papers: "ViCHA", "ALBEF" (a ViCHA without all that ViCHA adds) or "SIMLA"."""
    if config.model_type == "simla":
        return "SIMLA"
    return "ViCHA" if config.use_concepts or config.hierarchical_itc_weight or config.mim_weight else "ALBEF"


# Weight of an objective, by the field of the configuration.
OBJECTIVES = {
    "itc_weight": "contrast",
    "itm_weight": "matching",
    "mlm_weight": "masked language",
    "hierarchical_itc_weight": "hierarchical contrast",
    "mim_weight": "masked image",
    "psl_weight": "keywords",
}


def architecture_facts(config: VisionTextConfig, num_parameters: int | None = None) -> dict[str, Any]:
    """Facts about a configuration of either family, for readers: {name: value}.

    Args:
        config: of the model.
        num_parameters: of the class that is described, counted; None leaves them out.
    """
    vision, text = config.vision_config, config.text_config
    weights = {title: getattr(config, field, 0) for field, title in OBJECTIVES.items()}
    facts = {
        **({} if num_parameters is None else {"parameters": f"{num_parameters:,}"}),
        "image": f"{vision.image_size} px, patches of {vision.patch_size} px",
        "vision encoder": f"{vision.num_hidden_layers} layers, width {vision.hidden_size}",
        "text encoder": f"{text.num_text_layers} layers, width {text.hidden_size}",
        "fusion": f"{text.num_hidden_layers - text.first_cross_attention_layer} layers"
        + ("" if text.first_cross_attention_layer else ", the text encoder's own"),
    }
    if config.use_concepts:
        facts["concept encoder"] = f"{config.num_concept_layers} layers"
    elif config.model_type == "vicha":
        facts["concept encoder"] = "none"
    facts |= {
        "projection": config.projection_dim,
        "pretraining objectives (weights)": ", ".join(
            f"{name} {weight:g}" for name, weight in weights.items() if weight
        ),
        "queue": config.queue_size,
        "momentum": config.momentum,
        "distillation alpha": config.distillation_alpha,
    }
    if weights["hierarchical contrast"]:
        facts["levels of hierarchical contrast"] = config.hierarchical_itc_levels
    if config.mim_weight and config.model_type == "simla":
        facts["masked image modelling"] = (
            f"{config.visual_vocab_size} visual tokens, up to {config.mim_max_masked_patches} of {vision.num_patches} "
            "patches masked"
        )
    elif config.mim_weight:
        facts["masked image modelling"] = f"{config.mim_mode}, {config.mim_mask_ratio:.0%} masked"
    return facts


def _rounded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same facts as a reader wants them: `492.926579787003` as `492.9`."""
    return {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in facts.items()}


def _eval_results(result: Result, dataset_type: str, dataset_name: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-text-retrieval",
            task_name="Image-text retrieval",
            dataset_type=dataset_type,
            dataset_name=f"{dataset_name}: {result.title}, {result.remark}",
            # The metadata keeps results apart by configuration, not by name.
            dataset_config=result.name,
            metric_type="recall",
            metric_name=f"R@{k}, {DIRECTIONS[way]}{stage}",
            metric_value=round(result.metrics[f"r{k}_{way}{suffix}"], 2),
        )
        for suffix, stage in (("", ""), ("_itc_only", ", similarity alone"))
        for way in DIRECTIONS
        for k in CUTOFFS
    ]
