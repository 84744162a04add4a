"""A page on which a person can judge selected concepts: images with captions, concepts and scores, and how often each occurs."""

import base64
import html
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from PIL import Image

from ..data.annotation_fields import read_concepts
from ..data.image_files import ImageReadError, open_image
from ..data.raw_records import AnnotationError, RecordProblem, shorten
from .corpus import ConceptCorpus, CorpusRecord
from .manifests import OutputFile, digest_of_items


_THUMBNAIL = 224
_MOST_NAMED = 300
_SCORES_REMEDY = "write one number for each concept, or leave the field out"
_TEMPLATE = Path(__file__).with_name("inspection.html")


@dataclass(frozen=True)
class ConceptUse:
    """
    The use that a corpus makes of a vocabulary.

    Attributes:
        num_records: records with concepts.
        counts: concept -> records that have it, the most frequent first.
        unused: concepts of the vocabulary that no record has.
    """

    num_records: int
    counts: Mapping[str, int]
    unused: tuple[str, ...]


def count_use(corpus: ConceptCorpus, vocabulary: Iterable[str] = ()) -> ConceptUse:
    """Counts how often each concept occurs, and names those that never do."""
    counts: Counter[str] = Counter()
    number = 0
    for record in corpus.records:
        words = {word for word, _ in _scored_concepts(record)}
        counts.update(words)
        number += bool(words)
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return ConceptUse(number, ordered, tuple(word for word in vocabulary if word not in counts))


def inspect_concepts(
    corpus: ConceptCorpus,
    output: str | os.PathLike,
    *,
    vocabulary: Sequence[str] = (),
    num_images: int = 48,
    overwrite: bool = False,
) -> ConceptUse:
    """
    Writes an HTML page that needs no other file.

    Args:
        corpus: annotations with `concepts`, and `concept_scores` where there are some.
        output: the page.
        vocabulary: what the concepts were chosen from, to list those that never were.
        num_images: images shown, spread evenly over the corpus.
        overwrite: replace a page that this step did not make.

    Raises:
        ValueError: no record has concepts, or a `num_images` below 0.
        AnnotationError: concepts that are no list of words, or scores that are not one number for each.
        FileExistsError: `output` is another file.
    """
    if num_images < 0:
        raise ValueError(f"num_images={num_images} must be at least 0")
    use = count_use(corpus, vocabulary)
    if not use.num_records:
        raise ValueError("no record of the annotations has concepts; give the output of `vicha-hf concepts select`")
    made_from = digest_of_items([record.fields, record.where] for record in corpus.records)
    file = OutputFile(
        output, "inspect", {"corpus": made_from, "vocabulary": digest_of_items(vocabulary), "num_images": num_images}
    )
    if file.is_current(overwrite):
        return use
    step = max(len(corpus.records) / max(num_images, 1), 1)
    shown = [int(number * step) for number in range(min(num_images, len(corpus.records)))]
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        summary=f"{use.num_records:,} records with concepts, {len(use.counts):,} different ones",
        cards="\n".join(_card(corpus.records[row]) for row in shown),
        frequencies=_frequency_rows(use),
        num_unused=f"{len(use.unused):,}",
        unused=_named(use.unused),
    )
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(output).with_name(f".{Path(output).name}.{os.getpid()}.unfinished")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, output)
    file.finish(records=use.num_records)
    return use


def _scored_concepts(record: CorpusRecord) -> list[tuple[str, float | None]]:
    """The concepts of a record, each with its score where there are some. Raises `AnnotationError` for what is neither."""
    words, scores = record.fields.get("concepts"), record.fields.get("concept_scores")
    if words is None:
        words = record.fields.get("kwords")
    try:
        read_concepts(record.fields)
        if scores is None:
            return [(word, None) for word in words or ()]
        if not isinstance(scores, list | tuple) or not all(isinstance(score, int | float) for score in scores):
            raise RecordProblem("concept_scores", "wrong type", _SCORES_REMEDY, f"got {shorten(scores)}")
        if len(scores) != len(words or ()):
            raise RecordProblem("concept_scores", "not one for each concept", _SCORES_REMEDY, f"got {len(scores)}")
    except RecordProblem as problem:
        raise AnnotationError(f"{record.where}: {problem.message}") from problem
    return list(zip(words or (), scores, strict=True))


def _card(record: CorpusRecord) -> str:
    captions = "".join(f"<p>{html.escape(caption)}</p>" for caption in record.captions[:5])
    chips = "".join(_chip(word, score) for word, score in _scored_concepts(record))
    return f'<article>{_thumbnail(record)}<div class="captions">{captions}</div><ul>{chips}</ul></article>'


def _chip(word: str, score: float | None) -> str:
    shown = "" if score is None else f" <span>{score:.3f}</span>"
    return f"<li>{html.escape(str(word))}{shown}</li>"


def _thumbnail(record: CorpusRecord) -> str:
    try:
        image = open_image(record.image, record.where)
    except ImageReadError:
        return '<p class="missing">unreadable image</p>'
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" width="{image.width}" height="{image.height}" src="data:image/jpeg;base64,{content}">'


def _frequency_rows(use: ConceptUse) -> str:
    rows = []
    for word, count in list(use.counts.items())[:_MOST_NAMED]:
        share = 100 * count / use.num_records
        rows.append(
            f'<tr><td>{html.escape(word)}</td><td>{count:,}</td><td><div style="width:{share:.2f}%"></div></td>'
            f"<td>{share:.1f} %</td></tr>"
        )
    left = len(use.counts) - len(rows)
    return "\n".join(rows) + (f'<tr><td colspan="4">and {left:,} rarer ones</td></tr>' if left else "")


def _named(words: Sequence[str]) -> str:
    if not words:
        return "none"
    more = f" and {len(words) - _MOST_NAMED:,} more" if len(words) > _MOST_NAMED else ""
    return html.escape(", ".join(words[:_MOST_NAMED])) + more
