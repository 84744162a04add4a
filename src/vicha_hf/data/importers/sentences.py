"""Importers of sentences about images, and of the files that ALBEF and ViCHA publish."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..annotations_refcoco import PICKLE_SUFFIXES, RefCocoSource
from ..json_reading import read_json
from .importing import (
    Account,
    ImageLocator,
    ImportOptions,
    SplitChoice,
    json_lines,
    objects,
    usable_text,
    usable_words,
)


_NLVR2_IDENTIFIER = re.compile(r"(?P<pair>(?P<split>[a-z]+\d*)-\d+-\d+)-\d+")
_ENTAILMENT_LABELS = ("entailment", "neutral", "contradiction")


def nlvr2(sources: Sequence[Path], options: ImportOptions, account: Account) -> Iterator[dict]:
    """NLVR2's `train.json`, `dev.json`, `test1.json`, one object per line. Images lie in the folders of its archives."""
    locator = ImageLocator(options.images, account)
    for path in sources:
        for entry in json_lines(path, account):
            identifier, sentence = usable_text(entry.get("identifier")), usable_words(entry.get("sentence"))
            match = _NLVR2_IDENTIFIER.fullmatch(identifier or "")
            if match is None or sentence is None:
                account.leave_out("no identifier of NLVR2" if match is None else "no sentence")
                continue
            label = entry.get("label")
            if label is not None and str(label) not in ("True", "False"):
                account.leave_out("a label that is neither True nor False")
                continue
            # Training images lie in a hundred numbered folders.
            folders = [match["split"], *([str(entry["directory"])] if "directory" in entry else [])]
            names = ["/".join([*folders, f"{match['pair']}-img{side}.png"]) for side in range(2)]
            # The archive of training images has a folder `images` above.
            images = [locator.find(name, f"images/{name}") for name in names]
            if None in images:
                # One count for the record, however many of its images are missing.
                account.left_out["image file not found"] -= images.count(None) - 1
                continue
            record = {"images": images, "sentence": sentence, "identifier": identifier}
            yield record if label is None else record | {"label": str(label)}


def snli_ve(sources: Sequence[Path], options: ImportOptions, account: Account) -> Iterator[dict]:
    """SNLI-VE's `snli_ve_train.jsonl` and others. Pairs without a gold label (`-`) are left out."""
    locator = ImageLocator(options.images, account)
    for path in sources:
        for entry in json_lines(path, account):
            # The two versions of the dataset spell it differently.
            image_id = entry.get("Flickr30K_ID", entry.get("Flikr30kID"))
            sentence, label = usable_words(entry.get("sentence2")), entry.get("gold_label")
            if sentence is None or not image_id:
                account.leave_out("no sentence" if sentence is None else "no number of an image")
            elif label not in _ENTAILMENT_LABELS:
                account.leave_out("no gold label" if label in ("-", None) else "an unknown label")
            elif (found := locator.find(f"{str(image_id).removesuffix('.jpg')}.jpg")) is not None:
                yield {"image": found, "sentence": sentence, "label": label}


def refcoco(sources: Sequence[Path], options: ImportOptions, account: Account) -> Iterator[dict]:
    """
    The refs of RefCOCO, RefCOCO+ or RefCOCOg (the published pickle is read without running anything in it, or JSON), then
    `instances.json`, then a detector's boxes where they are given. One record per sentence.
    """
    if Path(sources[1]).suffix in PICKLE_SUFFIXES:
        sources = [sources[1], sources[0], *sources[2:]]
    locator, choice = ImageLocator(options.images, account), SplitChoice(options, account)
    source = RefCocoSource(*map(str, sources[:2]), images=".", detections=str(sources[2]) if sources[2:] else None)
    for raw in source.iterate_records():
        if raw.problem is not None:
            account.leave_out(raw.problem.label)
            continue
        record = {name: value for name, value in raw.value.items() if value is not None}
        if not choice.wants(record.get("split")):
            continue
        box = record.get("bbox")
        if not usable_words(record.get("text")) or not usable_text(record.get("image")):
            account.leave_out("no sentence" if not usable_words(record.get("text")) else "no image")
        elif not isinstance(box, list) or len(box) != 4 or min(box[2:]) <= 0:
            account.leave_out("a box without area")
        elif (found := locator.find(record["image"])) is not None:
            yield record | {"image": found}
    choice.end()


def albef(sources: Sequence[Path], options: ImportOptions, account: Account) -> Iterator[dict]:
    """The JSON lists that ALBEF and ViCHA publish for any task, with the paths of their images found anew."""
    locator = ImageLocator(options.images, account)
    for path in sources:
        for entry in objects(read_json(path, list, "a list of records"), account):
            record = dict(entry)
            if "caption" in record and not _has_text(record["caption"]):
                account.leave_out("no caption")
                continue
            if "kwords" in record:
                record["concepts"] = record.pop("kwords")
            if isinstance(record.get("images"), list) and all(usable_text(name) for name in record["images"]):
                images = [locator.find(name) for name in record["images"]]
                if None in images:
                    account.left_out["image file not found"] -= images.count(None) - 1
                    continue
                yield record | {"images": images}
            elif usable_text(record.get("image")):
                if (found := locator.find(record["image"])) is not None:
                    yield record | {"image": found}
            else:
                account.leave_out("no path of an image")


def _has_text(caption: object) -> bool:
    texts = caption if isinstance(caption, list) else [caption]
    return bool(texts) and all(usable_words(text) is not None for text in texts)
