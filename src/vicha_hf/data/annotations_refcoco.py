"""RefCOCO+ in its own files: expressions, COCO's boxes and a detector's proposals, joined into grounding records."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from .annotation_sources import AnnotationError, RawRecord, RecordProblem, RecordSource, shorten


@dataclass(frozen=True)
class RefCocoSource(RecordSource):
    """
    The files of RefCOCO, RefCOCO+ or RefCOCOg.

    Attributes:
        refs: JSON list of `{"ref_id", "ann_id", "image_id", "split", "sentences": [{"sent": str}, ...]}`: the published
            `refs(unc).p`, saved as JSON. A pickle can run any program and is never read.
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
        return cls(**mapping)

    def __str__(self) -> str:
        return self.refs

    def iterate_records(self) -> Iterator[RawRecord]:
        """A grounding record for every sentence."""
        refs = _read_json(self.refs, list, "a list of refs")
        instances = _read_json(self.instances, dict, 'an object with "images" and "annotations"')
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
                boxes[str(thing.get("image_id"))].append(thing.get("bbox"))
            return boxes
        detections = _read_json(self.detections, (dict, list), "boxes by image id, or a list of detections")
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


def _read_json(path: str, kind: type | tuple[type, ...], wanted: str):
    if Path(path).suffix in (".p", ".pkl", ".pickle"):
        raise AnnotationError(
            f"{path}: a pickle can run any program when it is opened and is never read; save its content as JSON"
        )
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AnnotationError(f"annotation file not found: {path}; check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path}: not readable as JSON ({error}); it must hold {wanted}") from error
    if not isinstance(content, kind):
        raise AnnotationError(f"{path}: the top level is {shorten(content)}; it must hold {wanted}")
    return content


def _by_id(instances: dict, name: str, path: str) -> dict:
    entries = instances.get(name)
    if not isinstance(entries, list):
        raise AnnotationError(f"{path}: field {name!r}: no list; take COCO's format of instances")
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or "id" not in entry:
            raise AnnotationError(f"{path}, {name} {index}: field 'id': missing; take COCO's format of instances")
    return {entry["id"]: entry for entry in entries}
