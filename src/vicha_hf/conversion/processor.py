"""The processor that belongs to a converted checkpoint."""

from transformers import PreTrainedTokenizerBase

from ..families import PROCESSORS, read_for_task, trained_task
from ..models.modeling_vision_text import VisionTextPreTrainedModel
from ..models.processing_vision_text import VisionTextProcessor


def build_processor(model: VisionTextPreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> VisionTextProcessor:
    """
    A processor that prepares images and texts as the published code does: the model's image size, texts cleaned for its
    task and without a final [SEP].

    Args:
        model: what `convert_checkpoint` returned.
        tokenizer: the published models' is bert-base-uncased.

    Raises:
        TypeError, ValueError: a tokenizer that is not BERT-like.
    """
    image_processor_class, processor_class = PROCESSORS[model.config.model_type]
    side = model.config.vision_config.image_size
    processor = processor_class(
        image_processor_class(size={"height": side, "width": side}),
        tokenizer,
        final_sep="no_final_sep" not in model.config.reference_quirks,
    )
    task = trained_task(model)
    read_for_task(processor, task, model.config.text_config.max_position_embeddings)
    return processor
