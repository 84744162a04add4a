"""SIMLA for visual entailment (SNLI-VE)."""

from .modeling_simla import SimlaPreTrainedModel
from .task_classification import VisualEntailmentTask


class SimlaForVisualEntailment(VisualEntailmentTask, SimlaPreTrainedModel):
    """
    Whether a picture contradicts a sentence, leaves it open or entails it.

    Example:

    ```python
    >>> inputs = processor(images=picture, text="two dogs are asleep", return_tensors="pt")
    >>> logits = model(**inputs).logits  # [1, 3]
    >>> model.CLASSES[logits.argmax()]
    ```
    """


__all__ = ["SimlaForVisualEntailment"]
