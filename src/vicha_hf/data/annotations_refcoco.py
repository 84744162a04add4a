"""RefCOCO+ in its own files: expressions, COCO's boxes and a detector's proposals, joined into grounding records."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from .json_reading import read_json
from .plain_pickles import read_plain_pickle
from .raw_records import AnnotationError, RawRecord, RecordProblem, RecordSource, shorten


PICKLE_SUFFIXES = (".p", ".pkl", ".pickle")


@dataclass(frozen=True)
class RefCocoSource(RecordSource):
    """
    The files of RefCOCO, RefCOCO+ or RefCOCOg.

    Attributes:
        refs: list of `{"ref_id", "ann_id", "image_id", "split", "sentences": [{"sent": str}, ...]}`: the published
            `refs(unc).p`, whose pickle is read without running anything in it, or the same as JSON.
        instances: the published `instances.json`: `{"images": [{"id", "file_name", "width", "height"}], "annotations":
            [{"id", "image_id", "bbox"}]}`.
        images: folder of the images.
        detections: JSON with a detector's boxes, the proposals: `{image id: [{"box": [x, y, width, height]}]}`, or a list
            of `{"image_id", "box"}` (the published `dets.json`). None takes the boxes of all annotated things instead.
    """

    refs: str
    instances: str
    images: str
    detections: str | None = None

    @classmethod
    def from_mapping(cls, mapping: Mapping) -> "RefCocoSource":
        """Raises `AnnotationError` for unknown or missing fields."""
        known = [source_field.name for source_field in fields(cls)]
        if set(mapping) - set(known) or {"refs", "instances", "images"} - set(mapping):
            raise AnnotationError(
                f"RefCOCO+ as an annotation source is a mapping with refs, instances and images, and perhaps detections, "
                f"but this one has {list(mapping)}"
            )
        return cls(**{name: os.path.expanduser(path) for name, path in mapping.items() if path is not None})

    def __str__(self) -> str:
        return self.refs

    def iterate_records(self) -> Iterator[RawRecord]:
        """A grounding record for every sentence."""
        refs = read_refs(self.refs)
        instances = read_json(self.instances, dict, 'an object with "images" and "annotations"')
        images = _by_id(instances, "images", self.instances)
        things = _by_id(instances, "annotations", self.instances)
        proposals = self._proposals(things)
        for index, ref in enumerate(refs):
            try:
                records = list(self._records_of(ref, images, things, proposals))
            except RecordProblem as problem:
                yield RawRecord(None, self.refs, index, Path(self.images), problem=problem)
            else:
                for record in records:
                    yield RawRecord(record, self.refs, index, Path(self.images))

    def _records_of(self, ref, images: dict, things: dict, proposals: dict) -> Iterator[dict]:
        if not isinstance(ref, Mapping):
            raise RecordProblem("", "not an object", "write one ref per entry", f"got {shorten(ref)}")
        for name in ("ann_id", "image_id"):
            if not isinstance(ref.get(name), int | str | None):
                raise RecordProblem(name, "wrong type", "give a number", f"got {shorten(ref.get(name))}")
        remedy = f"take refs and instances of the same dataset (instances: {self.instances})"
        thing, image = things.get(ref.get("ann_id")), images.get(ref.get("image_id"))
        if thing is None:
            raise RecordProblem("ann_id", "not among the instances", remedy, f"got {shorten(ref.get('ann_id'))}")
        if image is None:
            raise RecordProblem("image_id", "not among the instances", remedy, f"got {shorten(ref.get('image_id'))}")
        sentences = ref.get("sentences")
        if not isinstance(sentences, list) or not sentences:
            raise RecordProblem("sentences", "empty", 'give [{"sent": text}, ...]', f"got {shorten(sentences)}")
        for sentence in sentences:
            yield {
                "ref_id": ref.get("ref_id"),
                "image": image.get("file_name"),
                "image_id": ref["image_id"],
                "text": sentence.get("sent") if isinstance(sentence, Mapping) else sentence,
                "bbox": thing.get("bbox"),
                "boxes": proposals.get(str(ref["image_id"]), []),
                "split": ref.get("split"),
                "width": image.get("width"),
                "height": image.get("height"),
            }

    def _proposals(self, things: dict) -> dict[str, list]:
        """Boxes by image id as text, as the keys of a JSON object are."""
        boxes = defaultdict(list)
        if self.detections is None:
            for thing in things.values():
                # COCO's instances hold boxes of height 0, which nothing can be found in.
                if has_area(thing.get("bbox")):
                    boxes[str(thing.get("image_id"))].append(thing["bbox"])
            return boxes
        detections = read_json(self.detections, (dict, list), "boxes by image id, or a list of detections")
        if isinstance(detections, dict):
            detections = [
                {**found, "image_id": image_id} if isinstance(found, Mapping) else found
                for image_id, group in detections.items()
                for found in (group if isinstance(group, list) else [group])
            ]
        for index, detection in enumerate(detections):
            if not isinstance(detection, Mapping) or "image_id" not in detection or "box" not in detection:
                raise AnnotationError(
                    f"{self.detections}, entry {index}: fields 'image_id' and 'box' expected, got {shorten(detection)}; "
                    'write {"image_id": 1, "box": [x, y, width, height]}'
                )
            boxes[str(detection["image_id"])].append(detection["box"])
        return boxes


def read_refs(path: str) -> list:
    """
    The refs of a pickle or of a JSON file.

    Raises:
        AnnotationError: not readable, or no list.
    """
    if Path(path).suffix not in PICKLE_SUFFIXES:
        return read_json(path, list, "a list of refs")
    refs = read_plain_pickle(path)
    if not isinstance(refs, list):
        raise AnnotationError(f"{path}: the top level is {shorten(refs)}; it must hold a list of refs")
    return refs


def has_area(box: object) -> bool:
    """Whether a box's width and height are above 0; what is no box is left to be refused with its record."""
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)
    return not is_box or (box[2] > 0 and box[3] > 0)


def _by_id(instances: dict, name: str, path: str) -> dict:
    entries = instances.get(name)
    if not isinstance(entries, list):
        raise AnnotationError(f"{path}: field {name!r}: no list; take COCO's format of instances")
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), int | str):
            raise AnnotationError(f"{path}, {name} {index}: field 'id': missing; take COCO's format of instances")
    return {entry["id"]: entry for entry in entries}
