"""Samples of a batch in words, for the message that something in it is not finite."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.utils.data import Dataset


def describe_samples(dataset: Dataset, collator: Callable[[list], dict], samples: Sequence[int]) -> str:
    """
    Images, and which value of which sample is not finite, in brackets; empty where nothing is known. Reads them again.

    Args:
        dataset: map-style; `describe_sample(index)` names a sample, if it exists.
        collator: of the batch.
        samples: indices of one batch.
    """
    batch = collator([dataset[index] for index in samples])
    suspects = [
        (index, name)
        for name, value in batch.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.shape[:1] == (len(samples),)
        for index, row in zip(samples, value, strict=True)
        if not row.isfinite().all()
    ]
    parts = [f"image_ids {batch['image_ids'].tolist()}"] if "image_ids" in batch else []
    parts += [f"{name} of {index} is not finite" for index, name in suspects]
    if hasattr(dataset, "describe_sample"):
        named = dict.fromkeys(index for index, _ in suspects) or samples
        parts += [f"{index} is {dataset.describe_sample(index)}" for index in named]
    return f" ({'; '.join(parts)})" if parts else ""
