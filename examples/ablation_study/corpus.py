"""The data of a study: parts of the training corpus, and what models need that are made from all of it."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vicha_hf.concepts import ConceptCorpus
from vicha_hf.concepts.annotation_writer import AnnotationRow, write_annotations
from vicha_hf.concepts.corpus import CorpusRecord


def write_random_records(train: str, output: Path, percent: float, seed: int) -> Path:
    """
    A random part of the records of a corpus, in their order; smaller parts of one seed lie within larger ones.

    Args:
        train: annotations.
        output: *.jsonl; kept if it is there.
        percent: of the records, at least one.
        seed: of the choice.
    """
    if output.is_file():
        return output
    records = ConceptCorpus(train).records
    chosen = _random_part(len(records), percent, seed)
    write_annotations(output, lambda: (_row(records[place]) for place in chosen))
    return output


def write_random_pairs(train: str, output: Path, percent: float, seed: int) -> Path:
    """A random part of the pairs of image and caption; images without a caption left are left out. Else as above."""
    if output.is_file():
        return output
    records = ConceptCorpus(train).records
    chosen = set(_random_part(sum(len(record.captions) for record in records), percent, seed))

    def rows() -> Iterator[AnnotationRow]:
        position = 0
        for record in records:
            captions = [text for place, text in enumerate(record.captions, position) if place in chosen]
            position += len(record.captions)
            if captions:
                yield _row(record, caption=captions)

    write_annotations(output, rows)
    return output


def write_best_pairs(train: str, folder: Path, percent: float, encoder: str) -> Path:
    """
    The pairs of image and caption that fit together best, by the commands that a user would call.

    Args:
        train: annotations.
        folder: of embeddings and result; what is there is not made again.
        percent: of the pairs.
        encoder: a dual encoder, such as a model of this package.
    """
    output = folder / f"best_{percent:g}.jsonl"
    images, captions = folder / "images", folder / "captions"
    embed = ["concepts", "embed", "--encoder", encoder]
    run_command(*embed, "--corpus", train, "--output", str(images))
    run_command(*embed, "--captions", train, "--output", str(captions))
    run_command(
        *("concepts", "filter", "--images", str(images), "--captions", str(captions), "--corpus", train),
        *("--keep", f"{percent:g}", "--output", str(output)),
    )
    return output


def write_with_root(source: Path, output: Path, image_root: Path) -> Path:
    """
    A copy of an annotation file that knows where its images are, as every step of a study reads it.

    Args:
        source: annotations.
        output: *.jsonl, written anew.
        image_root: folder that the image paths of `source` start from.
    """
    records = ConceptCorpus(str(source), str(image_root)).records
    write_annotations(output, lambda: map(_row, records))
    return output


def _row(record: CorpusRecord, **changed: object) -> AnnotationRow:
    return AnnotationRow({**record.fields, **changed}, record.image, record.where)


def make_tokenizer(train: str, output: Path) -> Path:
    """The tokenizer of the whole training corpus: that of a part would know fewer words."""
    if not (output / "tokenizer.json").is_file():
        run_command("tokenizer", train, "--output", str(output))
    return output


def make_visual_tokenizer(train: str, output: Path, image_size: int, patch_size: int, vocab_size: int) -> Path:
    """SIMLA's visual tokenizer, fitted to images of the training corpus."""
    if not (output / "config.json").is_file():
        sizes = {"--image-size": image_size, "--patch-size": patch_size, "--vocab-size": vocab_size}
        options = [word for name, value in sizes.items() for word in (name, str(value))]
        run_command("visual-tokenizer", "--data", train, "--output", str(output), *options)
    return output


def run_command(*words: str) -> None:
    """Runs `vicha-hf`; ends this process with its status where it fails."""
    print(f"vicha-hf {shlex.join(words)}", flush=True)
    process = subprocess.run([sys.executable, "-m", "vicha_hf.cli", *words], check=False)
    if process.returncode:
        sys.exit(process.returncode)


def _random_part(number: int, percent: float, seed: int) -> list[int]:
    order = np.random.default_rng(seed).permutation(number)
    return sorted(order[: max(1, round(number * percent / 100))].tolist())
