"""ViCHA for weakly supervised grounding (RefCOCO+)."""

from .modeling_vicha import ViChaForRetrieval
from .task_grounding import GroundingTask


class ViChaForGrounding(GroundingTask, ViChaForRetrieval):
    """
    Finds what an expression names, from training on (picture, expression) pairs alone: trains as `ViChaForRetrieval`,
    answers with a Grad-CAM heat map.

    Example:

    ```python
    >>> inputs = processor(images=picture, text="the dog on the left", concepts=[["dog"]], return_tensors="pt")
    >>> heatmaps = model.eval()(**inputs).heatmaps  # [1, h, w]
    >>> ranking = model.rank_boxes(heatmaps, boxes=[proposals], image_sizes=[(picture.height, picture.width)])
    >>> proposals[ranking.best_indices[0]]
    ```
    """


__all__ = ["ViChaForGrounding"]
