"""Sections of a page about one evaluation of any task: metrics beside chance, confusion, examples, concepts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image, ImageDraw

from ..data.read_report import RejectedRecord
from ..evaluation.beside_chance import CONSTANT, chance_of
from .gallery import image_tag


# Longer side of an image on the page, pixels.
THUMBNAIL = 160
CONCEPTS_SHOWN = 30
MISTAKES_SHOWN = 10
BOX_COLOURS = {"reference": (20, 160, 60), "chosen": (210, 50, 40)}


@dataclass
class Example:
    """
    One sample with the model's answer.

    Args:
        images: one, or the two of a reasoning statement.
        text: question, sentence or expression.
        answer: the model's.
        reference: the right one; None where it is not known.
        is_right: whether the answer counts; None where that is not known.
    """

    images: list[Image.Image]
    text: str
    answer: str
    reference: str | None
    is_right: bool | None


def metrics_html(metrics: Mapping[str, object]) -> str:
    """A table of every metric of an evaluation, each beside chance where there is one."""
    rows = []
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        if name.startswith(CONSTANT) and not name.startswith("num_"):
            continue
        chance = chance_of(metrics, name)
        counts = isinstance(value, int) and name.startswith("num_")
        shown = f"{value:.1f}" if isinstance(value, float) else f"{value:,}" if counts else str(value)
        beside = f"{chance:.1f}" if chance is not None else ""
        rows.append(f"<tr><td class=row>{escape(name)}</td><td>{escape(shown)}</td><td>{beside}</td></tr>")
    head = "<thead><tr><th class=row>Metric</th><th>Value</th><th>Chance</th></tr></thead>"
    return (
        "<h2>Metrics</h2><p class=note>Shares in %. Chance is what an answer is worth that does not look.</p>"
        f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'
    )


def rejects_html(rejects: Sequence[RejectedRecord], whence: str) -> str:
    """
    A table of the records that were left out, by cause with an example each; nothing where there are none.

    Args:
        rejects: each record once per cause.
        whence: what they were left out of, such as "training".
    """
    examples: dict[str, RejectedRecord] = {}
    for one in rejects:
        examples.setdefault(one.cause, one)
    if not examples:
        return ""
    counts = Counter(one.cause for one in rejects)
    rows = "".join(
        f"<tr><td class=row>{escape(cause)}</td><td>{count:,}</td>"
        f"<td class=row>{escape(examples[cause].record)}: {escape(examples[cause].message)}</td></tr>"
        for cause, count in counts.most_common()
    )
    head = "<thead><tr><th class=row>Cause</th><th>Records</th><th class=row>For example</th></tr></thead>"
    return (
        f"<h2>Records left out of {escape(whence)}</h2><p class=note>{len(rejects):,} in all.</p>"
        f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'
    )


def confusion_html(references: Sequence[str], answers: Sequence[str]) -> str:
    """A table of how often each class was taken for each."""
    classes = sorted({*references, *answers})
    counts = Counter(zip(references, answers, strict=True))
    head = "".join(f"<th>{escape(name)}</th>" for name in classes)
    rows = "".join(
        f"<tr{' class=first' if right == classes[0] else ''}><td class=row>{escape(right)}</td>"
        + "".join(f"<td>{counts[right, answer]:,}</td>" for answer in classes)
        + "</tr>"
        for right in classes
    )
    return (
        "<h2>Confusion</h2><p class=note>Rows: the right class. Columns: the model's.</p>"
        f'<div class="scroll"><table><thead><tr><th class=row></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def frequent_mistakes_html(mistakes: Sequence[tuple[str, str]]) -> str:
    """
    A table of the mistakes that a model makes most, for answers too many for [`confusion_html`]; "" without a mistake.

    Args:
        mistakes: (right answer, the model's) of each sample that is answered wrongly.
    """
    if not mistakes:
        return ""
    most = Counter(mistakes).most_common(MISTAKES_SHOWN)
    rows = "".join(
        f"<tr><td class=row>{escape(right)}</td><td class=row>{escape(answer)}</td><td>{count:,}</td></tr>"
        for (right, answer), count in most
    )
    head = "<thead><tr><th class=row>Right</th><th class=row>The model's</th><th>Times</th></tr></thead>"
    return (
        f"<h2>Confusion</h2><p class=note>The most frequent of {len(mistakes):,} mistakes.</p>"
        f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'
    )


def examples_html(examples: Sequence[Example]) -> str:
    """Samples at even distances, not picked by hand, with the model's answers."""
    cards = "".join(map(_example, examples))
    return (
        "<h2>Examples</h2><p class=note>Samples at even distances through the data, not picked by hand.</p>"
        f'<div class="queries pairs">{cards}</div>'
    )


def concepts_html(concepts: Iterable[Sequence[str]], words_alone: Mapping[str, float] | None) -> str:
    """
    Concepts of the images: how many have any, and the most frequent ones.

    Args:
        concepts: of each image.
        words_alone: from [`~vicha_hf.evaluation.words_alone.words_alone_recall`]; None where there are no captions.
    """
    of_images = [list(one) for one in concepts]
    counts = Counter(word for one in of_images for word in one)
    if not counts:
        return ""
    told = f"{sum(map(bool, of_images)):,} of {len(of_images):,} images have concepts, {len(counts):,} different ones."
    if words_alone is not None:
        told += (
            f" By the words alone, without looking, R@1 is {words_alone['words_r1_i2t']:.1f} % (image to captions) and "
            f"{words_alone['words_r1_t2i']:.1f} % (caption to images)."
        )
    words = "".join(
        f'<span class="word">{escape(word)} <small>{count:,}</small></span>'
        for word, count in counts.most_common(CONCEPTS_SHOWN)
    )
    return f"<h2>Concepts</h2><p class=note>{told}</p><p>{words}</p>"


def with_boxes(image: Image.Image, boxes: Mapping[str, Sequence[float] | None]) -> Image.Image:
    """A copy with boxes [x, y, width, height] drawn in: "reference" green, "chosen" red. Each is drawn inside the one before."""
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    width = max(2, round(max(image.size) / 100))
    for place, (name, box) in enumerate(boxes.items()):
        if box is not None:
            x, y, across, down = box
            # A right answer is the reference's own box: without this its colour would hide the other.
            inset = min(place * width, across / 2, down / 2)
            corners = (x + inset, y + inset, x + across - inset, y + down - inset)
            pen.rectangle(corners, outline=BOX_COLOURS[name], width=width)
    return drawn


def thumbnail(image: Image.Image) -> Image.Image:
    """A copy whose longer side has at most `THUMBNAIL` pixels."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def _example(example: Example) -> str:
    images = "".join(image_tag(thumbnail(image), "sample") for image in example.images)
    known = example.is_right is not None
    badge = (
        f'<span class="badge{" found" if example.is_right else ""}">{"right" if example.is_right else "wrong"}</span>'
    )
    reference = "" if example.reference is None else f"<li class=right>{escape(example.reference)}</li>"
    return (
        f'<article class="query beside"><div>{images}</div><div><q>{escape(example.text)}</q> {badge if known else ""}'
        f"<ul><li>model: {escape(example.answer)}</li>{reference}</ul></div></article>"
    )
