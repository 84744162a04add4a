"""ViCHA for visual entailment (SNLI-VE)."""

from .configuration_vicha import ViChaConfig
from .head_classification import ClassificationHead
from .modeling_vicha import ViChaModel, ViChaPreTrainedModel
from .task_classification import VisualEntailmentTask


class ViChaForVisualEntailment(VisualEntailmentTask, ViChaPreTrainedModel):
    """
    Whether a picture contradicts a sentence, leaves it open or entails it.

    Example:

    ```python
    >>> inputs = processor(images=picture, text="two dogs are asleep", concepts=[["dog"]], return_tensors="pt")
    >>> logits = model(**inputs).logits  # [1, 3]
    >>> model.CLASSES[logits.argmax()]
    ```
    """

    def __init__(self, config: ViChaConfig):
        super().__init__(config)
        self.vicha = ViChaModel(config, add_projections=False)
        self.classifier = ClassificationHead(config.text_config.hidden_size, len(self.CLASSES))
        self.training_state = None
        self.post_init()


__all__ = ["ViChaForVisualEntailment"]
