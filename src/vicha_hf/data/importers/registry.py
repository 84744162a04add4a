"""All importers by name, and the writing of what one of them reads."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from ...whole_files import require_new, write_whole_lines
from ..annotation_fields import is_whole_text
from ..declared_roots import DeclaredRoot
from ..json_reading import require_regular_file
from ..raw_records import AnnotationError
from ..source_license import write_license
from . import captions, questions, sentences
from .importing import Account, Importer, ImportOptions


IMPORTERS = {
    importer.name: importer
    for importer in (
        Importer(
            "coco-captions",
            "captions_*.json",
            captions.coco_captions,
            license="captions of COCO: CC BY 4.0; images under Flickr's terms of use",
        ),
        Importer(
            "karpathy",
            "dataset_coco.json or dataset_flickr30k.json",
            captions.karpathy,
            has_splits=True,
            license="captions of COCO: CC BY 4.0; of Flickr30k: non-commercial research and education; images under Flickr's terms of use",
        ),
        Importer(
            "flickr30k",
            "results_20130124.token",
            captions.flickr30k,
            license="Flickr30k: non-commercial research and education; images under Flickr's terms of use",
        ),
        Importer(
            "visual-genome",
            "region_descriptions.json and perhaps image_data.json",
            captions.visual_genome,
            max_files=2,
            license="Visual Genome: CC BY 4.0",
        ),
        Importer(
            "sbu",
            "the JSON of SBU, or its text files of addresses and captions",
            captions.sbu,
            max_files=2,
            license="SBU captions: not stated by their owners; images under Flickr's terms of use",
        ),
        Importer(
            "cc3m",
            "the TSV files of CC3M or CC12M",
            captions.conceptual_captions,
            license="Conceptual Captions: free for any purpose, Google LLC asks to be acknowledged; images of their own owners",
        ),
        Importer(
            "vqa-v2",
            "files of questions and of annotations",
            questions.vqa_v2,
            license="questions and answers of VQA v2: CC BY 4.0; images under Flickr's terms of use",
        ),
        Importer(
            "vg-qa",
            "question_answers.json and perhaps image_data.json",
            questions.visual_genome_qa,
            max_files=2,
            license="Visual Genome: CC BY 4.0",
        ),
        Importer(
            "nlvr2",
            "train.json, dev.json, test1.json",
            sentences.nlvr2,
            license="sentences of NLVR2: CC BY 4.0; images of their own owners",
        ),
        Importer(
            "snli-ve",
            "snli_ve_*.jsonl",
            sentences.snli_ve,
            license="sentences of SNLI: CC BY-SA 4.0; images of Flickr30k: non-commercial research and education",
        ),
        Importer(
            "refcoco",
            "refs(...).p, instances.json and perhaps a detector's boxes",
            sentences.refcoco,
            min_files=2,
            max_files=3,
            has_splits=True,
            license="expressions of RefCOCO: not stated by their owners; images under Flickr's terms of use",
        ),
        Importer(
            "albef",
            "the JSON files of ALBEF or ViCHA",
            sentences.albef,
            license="of the corpora that the file names, each its own",
        ),
    )
}


def import_annotations(
    name: str,
    sources: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    images: str | os.PathLike | None = None,
    splits: Sequence[str] | None = None,
    progress: bool = False,
    overwrite: bool = False,
) -> Account:
    """
    Converts published files into a JSONL file of annotations, which is written whole or not at all.

    Args:
        name: of the importer.
        sources: the published files.
        output: the JSONL file. Below the folder of `images` paths are relative to it; elsewhere they are absolute.
        images: folder of the images, below which each is looked for; None takes the published names.
        splits: only records of these.
        progress: whether to show a progress bar.
        overwrite: whether a file that is there is replaced.

    Returns:
        The account of the records that were taken and left out.

    Raises:
        AnnotationError: an unknown importer, files that are not what it takes, no record left.
        OutputFolderError: the output is there already, or cannot be written.
    """
    if name not in IMPORTERS:
        raise AnnotationError(f"no importer {name!r}; choose among {', '.join(IMPORTERS)}")
    importer, output = IMPORTERS[name], Path(os.path.expanduser(output))
    paths = [Path(os.path.expanduser(source)) for source in sources]
    folder = None if images is None else Path(os.path.expanduser(images))
    if folder is not None and not folder.is_dir():
        raise AnnotationError(f"--images {folder} is no folder; name the one that the images lie in")
    options = ImportOptions(folder, None if splits is None else frozenset(splits))
    importer.check(paths, options)
    for path in paths:
        require_regular_file(path, "file")
        if path.resolve() == output.resolve():
            raise AnnotationError(f"--output {output} is one of the files to read; choose another")
    if output.suffix not in (".jsonl", ".ndjson"):
        raise AnnotationError(f"--output {output} is written with one record per line: name it *.jsonl")
    require_new(output, overwrite)
    account = Account()
    prefix, root = _prefix(folder, output), DeclaredRoot(output)
    image_of_id: dict[str, object] = {}

    def lines():
        for record in tqdm(importer.read(paths, options, account), unit=" records", delay=1, disable=not progress):
            if not _is_whole(record):
                account.leave_out("a text with half a character or a NUL character")
                continue
            account.taken += 1
            image, image_id = record.get("image"), record.get("image_id")
            # Files of different corpora number their images alike; the path tells them apart.
            if image_id is not None and image_of_id.setdefault(str(image_id), image) != image:
                record["image_id"] = image
            for field in ("image", "images"):
                if field in record:
                    record[field] = _with_prefix(prefix, record[field])
                    for image in [record[field]] if field == "image" else record[field]:
                        root.add(os.path.join(output.parent, image))
            yield json.dumps(record, ensure_ascii=False) + "\n"
        if not account.taken:
            raise AnnotationError(f"nothing to import from {', '.join(map(str, paths))}: {account.summary()}")

    write_whole_lines(output, lines())
    if folder is not None:
        root.write()
    write_license(output, importer.license)
    return account


def _is_whole(value: object) -> bool:
    """Whether every text within a value can be written to a file and read again."""
    if isinstance(value, str):
        return is_whole_text(value)
    if isinstance(value, dict):
        return all(_is_whole(one) for pair in value.items() for one in pair)
    return not isinstance(value, list) or all(map(_is_whole, value))


def _prefix(images: Path | None, output: Path) -> str:
    if images is None:
        return ""
    folder, root = images.resolve(), output.resolve().parent
    # Paths that lead out of the annotation file's folder would be refused when they are read.
    return os.path.relpath(folder, root) if folder.is_relative_to(root) else str(folder)


def _with_prefix(prefix: str, image: str | list[str]) -> str | list[str]:
    if isinstance(image, list):
        return [_with_prefix(prefix, one) for one in image]
    return os.path.normpath(os.path.join(prefix, image)) if prefix else image
