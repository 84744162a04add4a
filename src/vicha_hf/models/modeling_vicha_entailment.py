"""ViCHA for visual entailment (SNLI-VE)."""

from .modeling_vicha import ViChaPreTrainedModel
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


__all__ = ["ViChaForVisualEntailment"]
