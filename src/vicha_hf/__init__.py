"""Efficient vision-language pretraining: ViCHA, ALBEF and SIMLA as Hugging Face models."""

import transformers

from .models.configuration_simla import SimlaConfig, SimlaTextConfig, SimlaVisionConfig
from .models.configuration_vicha import ViChaConfig, ViChaTextConfig, ViChaVisionConfig
from .models.hub_export import AUTO_CLASSES
from .models.image_processing_simla import SimlaImageProcessor
from .models.image_processing_vicha import ViChaImageProcessor
from .models.modeling_simla import (
    SimlaForGrounding,
    SimlaForPreTraining,
    SimlaForRetrieval,
    SimlaForTextAssignment,
    SimlaForVisualEntailment,
    SimlaForVisualReasoning,
    SimlaForVQA,
    SimlaModel,
)
from .models.modeling_vicha import (
    ViChaForGrounding,
    ViChaForPreTraining,
    ViChaForRetrieval,
    ViChaForTextAssignment,
    ViChaForVisualEntailment,
    ViChaForVisualReasoning,
    ViChaForVQA,
    ViChaModel,
)
from .models.processing_simla import SimlaProcessor
from .models.processing_vicha import ViChaProcessor
from .pipelines import register_pipelines


__version__ = "0.1.0"


def _register_family(config_class: type, image_processor: type, processor: type) -> None:
    """Lets transformers' Auto classes and pipelines find one family by its `model_type`."""
    transformers.AutoConfig.register(config_class.model_type, config_class)
    transformers.AutoImageProcessor.register(config_class, image_processor_classes={"pil": image_processor})
    transformers.AutoProcessor.register(config_class, processor)
    for auto_class, reference in AUTO_CLASSES[config_class.model_type].items():
        if auto_class != "AutoConfig":
            getattr(transformers, auto_class).register(config_class, globals()[reference.split(".")[1]])


_register_family(ViChaConfig, ViChaImageProcessor, ViChaProcessor)
_register_family(SimlaConfig, SimlaImageProcessor, SimlaProcessor)
register_pipelines()

__all__ = [
    "SimlaConfig",
    "SimlaForGrounding",
    "SimlaForPreTraining",
    "SimlaForRetrieval",
    "SimlaForTextAssignment",
    "SimlaForVQA",
    "SimlaForVisualEntailment",
    "SimlaForVisualReasoning",
    "SimlaImageProcessor",
    "SimlaModel",
    "SimlaProcessor",
    "SimlaTextConfig",
    "SimlaVisionConfig",
    "ViChaConfig",
    "ViChaForGrounding",
    "ViChaForPreTraining",
    "ViChaForRetrieval",
    "ViChaForTextAssignment",
    "ViChaForVQA",
    "ViChaForVisualEntailment",
    "ViChaForVisualReasoning",
    "ViChaImageProcessor",
    "ViChaModel",
    "ViChaProcessor",
    "ViChaTextConfig",
    "ViChaVisionConfig",
]
