"""SIMLA for weakly supervised grounding (RefCOCO+)."""

from .modeling_simla import SimlaForRetrieval
from .task_grounding import GroundingTask


class SimlaForGrounding(GroundingTask, SimlaForRetrieval):
    """
    Finds what an expression names, from training on (picture, expression) pairs alone: trains as `SimlaForRetrieval`,
    answers with a Grad-CAM heat map, for the expression and for each of its words.

    Example:

    ```python
    >>> inputs = processor(images=picture, text="the dog on the left", return_tensors="pt")
    >>> heatmaps = model.eval()(**inputs).heatmaps  # [1, h, w]
    >>> ranking = model.rank_boxes(heatmaps, boxes=[proposals], image_sizes=[(picture.height, picture.width)])
    >>> proposals[ranking.best_indices[0]]
    ```
    """


__all__ = ["SimlaForGrounding"]
