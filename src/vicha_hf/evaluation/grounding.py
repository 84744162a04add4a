"""Weakly supervised grounding (RefCOCO+; ALBEF section 6.4): does the heat map choose the right box, and point into it?"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.collators import GroundingCollator
from ..models.configuration_vision_text import GROUNDING_METHODS
from .sharded_prediction import predict_all
from .task_result import TaskResult


Box = Sequence[float]

CORRECT_OVERLAP = 0.5


def intersection_over_union(box: Box, other: Box) -> float:
    """
    Overlap of two boxes (x, y, width, height), between 0 and 1. As in the official tool a box includes its last pixel
    (x + width - 1), and boxes that share a single row or column of pixels do not overlap.
    """
    left, top = max(box[0], other[0]), max(box[1], other[1])
    right = min(box[0] + box[2] - 1, other[0] + other[2] - 1)
    bottom = min(box[1] + box[3] - 1, other[1] + other[3] - 1)
    shared = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0.0
    return shared / (box[2] * box[3] + other[2] * other[3] - shared)


def grounding_accuracy(
    chosen_boxes: Sequence[Box | None], reference_boxes: Sequence[Box], splits: Sequence[str]
) -> dict[str, float]:
    """
    Share of the expressions whose chosen box overlaps the reference by at least 0.5, for each split.

    Args:
        chosen_boxes: for each expression a box (x, y, width, height), pixels, or `None` where no proposal scored above
            0, which counts as wrong.
        reference_boxes: what the expressions name, in the same order.
        splits: each expression's split, e.g. `"val"`, `"testA"`, `"testB"`.

    Returns:
        Split -> share between 0 and 1, for the splits that occur.

    Raises:
        ValueError: the arguments differ in length.
    """
    if not len(chosen_boxes) == len(reference_boxes) == len(splits):
        raise ValueError(
            f"{len(chosen_boxes)} `chosen_boxes`, {len(reference_boxes)} `reference_boxes` and {len(splits)} `splits`: "
            "give one of each per expression."
        )
    correct = defaultdict(list)
    for chosen, reference, split in zip(chosen_boxes, reference_boxes, splits, strict=True):
        overlap = 0.0 if chosen is None else intersection_over_union(chosen, reference)
        correct[split].append(overlap >= CORRECT_OVERLAP)
    return {split: fmean(values) for split, values in correct.items()}


def hottest_points(heatmaps: Tensor, image_sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int] | None]:
    """
    Finds the hottest pixel (x, y) of each map, brought to its image (bicubic); `None` for a map without heat.

    Args:
        heatmaps: [B, h, w].
        image_sizes: for each image (height, width), pixels.
    """
    points: list[tuple[int, int] | None] = []
    for heatmap, size in zip(heatmaps, image_sizes, strict=True):
        upsampled = nn.functional.interpolate(
            heatmap[None, None].float(), size=tuple(size), mode="bicubic", align_corners=False
        )[0, 0]
        y, x = divmod(int(upsampled.argmax()), upsampled.shape[1])
        points.append((x, y) if upsampled[y, x] > 0 else None)
    return points


def points_into(point: tuple[int, int] | None, box: Box) -> bool:
    """The pointing game: whether a pixel (x, y) lies in a box (x, y, width, height); no tolerance around the box."""
    if point is None:
        return False
    return 0 <= point[0] - box[0] < box[2] and 0 <= point[1] - box[1] < box[3]


def grounding_metrics(predictions: Sequence[Mapping], methods: Sequence[str] = GROUNDING_METHODS) -> dict[str, float]:
    """
    Everything that is known about the chosen boxes, in %.

    Args:
        predictions: of [`evaluate_grounding`].
        methods: heat maps that the predictions hold, by name.

    Returns:
        For each method `accuracy_METHOD` (overlap of at least 0.5) and `pointing_METHOD` (the hottest pixel lies in the
        box). What they compare with: `accuracy_random_proposal`, `pointing_random_pixel`, and
        `accuracy_best_proposal`, above which no choice among the proposals can come. `num_expressions`. With several
        splits all of them also as `..._SPLIT`.
    """
    result = _metrics_of_one_split(predictions, methods)
    splits = sorted({prediction["split"] for prediction in predictions})
    if len(splits) > 1:
        for split in splits:
            members = [prediction for prediction in predictions if prediction["split"] == split]
            result |= {f"{name}_{split}": value for name, value in _metrics_of_one_split(members, methods).items()}
    return result


def _metrics_of_one_split(predictions: Sequence[Mapping], methods: Sequence[str]) -> dict[str, float]:
    def percent(values) -> float:
        return 100 * fmean(values)

    result = {}
    for method in methods:
        result[f"accuracy_{method}"] = percent(entry[method]["iou"] >= CORRECT_OVERLAP for entry in predictions)
        result[f"pointing_{method}"] = percent(entry[method]["pointing"] for entry in predictions)
    return {
        **result,
        "accuracy_random_proposal": percent(entry["random_proposal"] for entry in predictions),
        "accuracy_best_proposal": percent(entry["best_iou"] >= CORRECT_OVERLAP for entry in predictions),
        "pointing_random_pixel": percent(entry["random_pixel"] for entry in predictions),
        "num_expressions": len(predictions),
    }


def choose_grounding_method(metrics: Mapping[str, float], methods: Sequence[str] = GROUNDING_METHODS) -> str:
    """The method with the highest `accuracy_METHOD`; among equal ones the higher `pointing_METHOD` decides, then the order."""
    return max(methods, key=lambda method: (metrics[f"accuracy_{method}"], metrics[f"pointing_{method}"]))


def evaluate_grounding(
    model,
    processor,
    dataset: Dataset,
    *,
    methods: Sequence[str] = GROUNDING_METHODS,
    layers: Mapping[str, int | None] | None = None,
    every_layer: bool = False,
    batch_size: int = 32,
    with_concepts: bool = True,
    num_workers: int = 0,
    progress: bool = True,
) -> TaskResult:
    """
    Grounds every expression by Grad-CAM and ranks its proposals.

    Args:
        model: a head for grounding, in evaluation mode.
        processor: the model's.
        dataset: a [`GroundingDataset`] of records with proposals, reference box and image size.
        methods: "itm" (cross-attention of the matching head), "itc" (vision attention of the similarity), or both.
        layers: method -> layer; by default those of the model's configuration. Without one for a method it is two thirds up.
        every_layer: try all layers instead. A method's metrics and predictions are then those of its best layer,
            `layer_METHOD`, and each layer has `accuracy_METHOD_layer_N` and `pointing_METHOD_layer_N`.
        batch_size, num_workers, progress: see [`predict_all`].
        with_concepts: False leaves the visual concepts out.

    Returns:
        [`grounding_metrics`]; predictions: for each expression the chosen `box` (None where no proposal has heat), its
        `iou`, the hottest `point` and whether that is a hit (`pointing`), by method.
    """
    records = list(dataset.annotations)
    layers = layers or {}
    # Names of the heat maps by method: its own name alone, or one for each layer.
    names = {
        method: [f"{method}_layer_{layer}" for layer in model.config.heatmap_layers(method)]
        if every_layer
        else [method]
        for method in methods
    }

    def heatmaps(batch, method: str) -> list[Tensor]:
        if every_layer:
            return list(model.layer_heatmaps(**batch, method=method).values())
        return [model(**batch, method=method, layer=layers.get(method), return_loss=False).heatmaps]

    def predict(batch, indices):
        members = [records[index] for index in indices]
        sizes = [record.image_size for record in members]
        answers: list[dict] = [{} for _ in members]
        for method in methods:
            for name, maps in zip(names[method], heatmaps(batch, method), strict=True):
                chosen = model.rank_boxes(maps, [record.boxes for record in members], sizes).best_indices.tolist()
                points = hottest_points(maps, sizes)
                for answer, record, best, point in zip(answers, members, chosen, points, strict=True):
                    box = list(record.boxes[best]) if best >= 0 else None
                    answer[name] = {
                        "box": box,
                        "iou": 0.0 if box is None else intersection_over_union(box, record.box),
                        "point": None if point is None else list(point),
                        "pointing": points_into(point, record.box),
                    }
        return answers

    answers = predict_all(
        dataset,
        GroundingCollator(processor, with_concepts=with_concepts),
        predict,
        device=model.device,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=progress,
        description="Grounding",
    )
    predictions = [
        {"ref_id": record.ref_id, "split": record.split, "text": record.text, "reference": list(record.box)}
        | _chances(record)
        | answer
        for record, answer in zip(records, answers, strict=True)
    ]
    metrics = grounding_metrics(predictions, [name for method in methods for name in names[method]])
    return (
        TaskResult(*_of_best_layers(metrics, predictions, names)) if every_layer else TaskResult(metrics, predictions)
    )


def _of_best_layers(
    metrics: Mapping[str, float], predictions: Sequence[Mapping], names: Mapping[str, Sequence[str]]
) -> tuple[dict[str, float], list[dict]]:
    """Metrics, with those of each method's best layer first, and predictions with that layer's alone."""
    best = {method: choose_grounding_method(metrics, of_layers) for method, of_layers in names.items()}
    of_best = {}
    for method, name in best.items():
        for metric, value in metrics.items():
            kind, separator, split = metric.partition(name)
            if separator and split[:1] in ("", "_"):
                of_best[f"{kind}{method}{split}"] = value
        of_best[f"layer_{method}"] = int(name.rpartition("_")[2])
    tried = {name for of_layers in names.values() for name in of_layers}
    kept = [
        {key: value for key, value in entry.items() if key not in tried}
        | {method: entry[name] for method, name in best.items()}
        for entry in predictions
    ]
    return {**of_best, **metrics}, kept


def _chances(record) -> dict[str, float]:
    """Chances that a random proposal, or a random pixel, is right; and the overlap of the best proposal."""
    overlaps = [intersection_over_union(box, record.box) for box in record.boxes]
    height, width = record.image_size
    return {
        "random_proposal": fmean(overlap >= CORRECT_OVERLAP for overlap in overlaps),
        "best_iou": max(overlaps),
        "random_pixel": record.box[2] * record.box[3] / (height * width),
    }
