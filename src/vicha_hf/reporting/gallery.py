"""Single retrieval queries with what they found, as HTML."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image
from torch import Tensor

from ..evaluation.recall import best_ranks


@dataclass
class CaptionQuery:
    """A caption and the images it retrieved.

    Args:
        caption: the query.
        images: the best first.
        is_right: for each image whether it is the caption's own.
        rank: place of the right image, 1 = first; None when it did not reach the second stage.
    """

    caption: str
    images: list[Image.Image]
    is_right: list[bool]
    rank: int | None


@dataclass
class ImageQuery:
    """An image and the captions it retrieved.

    Args:
        image: the query.
        concepts: the words that came with it.
        captions: the best first.
        is_right: for each caption whether it is one of the image's own.
        rank: place of its best placed right caption, 1 = first; None when none reached the second stage.
    """

    image: Image.Image
    concepts: list[str]
    captions: list[str]
    is_right: list[bool]
    rank: int | None


def evenly_spaced(total: int, count: int) -> list[int]:
    """`count` positions spread over `range(total)`, so that nobody chooses which queries are shown."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


def best_candidates(
    scores: Tensor, relevant: Sequence[int], num_shown: int, num_ranked: int
) -> tuple[list[int], list[bool], int | None]:
    """The best candidates of one query.

    Args:
        scores: `[num_candidates]`, higher = better.
        relevant: indices of the right ones.
        num_shown: how many to return.
        num_ranked: how many candidates the second stage scored; places beyond are not a ranking.

    Returns:
        Their indices, for each whether it is right, and the place (1 = first) of the best placed right candidate in
        the whole ranking, or None when it lies beyond `num_ranked`.
    """
    shown = scores.argsort(descending=True, stable=True)[:num_shown].tolist()
    rank = 1 + int(best_ranks(scores[None], [relevant])[0])
    return shown, [candidate in set(relevant) for candidate in shown], rank if rank <= num_ranked else None


def caption_query_html(query: CaptionQuery) -> str:
    cells = "".join(
        f"<div{' class=right' if right else ''}>{image_tag(image, 'retrieved image')}"
        f"<span>{place}{' &#10003;' if right else ''}</span></div>"
        for place, (image, right) in enumerate(zip(query.images, query.is_right, strict=True), start=1)
    )
    return (
        f'<article class="query"><header><q>{escape(query.caption)}</q>{_badge(query.rank)}</header>'
        f'<div class="images">{cells}</div></article>'
    )


def image_query_html(query: ImageQuery) -> str:
    items = "".join(
        f"<li{' class=right' if right else ''}>{escape(caption)}</li>"
        for caption, right in zip(query.captions, query.is_right, strict=True)
    )
    words = f'<div class="words">concepts: {escape(", ".join(query.concepts))}</div>' if query.concepts else ""
    return (
        f'<article class="query beside"><div>{image_tag(query.image, "query image")}{words}</div>'
        f"<div>{_badge(query.rank)}<ol>{items}</ol></div></article>"
    )


def _badge(rank: int | None) -> str:
    css_class = "badge found" if rank == 1 else "badge"
    place = "the right one was not re-ranked" if rank is None else f"right one at rank {rank}"
    return f'<span class="{css_class}">{place}</span>'


def image_tag(image: Image.Image, alt: str) -> str:
    """An image inside the page itself; `alt` is text that is safe in an attribute."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = image.size
    return f'<img alt="{alt}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
