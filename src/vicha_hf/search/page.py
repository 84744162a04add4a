"""A page of results with thumbnails, in one file that opens anywhere."""

import base64
import io
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from PIL import Image

from ..data.image_files import ImageReadError, open_image
from ..whole_files import MADE_BY_TAG
from .image_index import Hit, looks_like_image


THUMBNAIL_SIDE = 320


def results_page(query: str | Path | Image.Image, hits: Sequence[Hit], note: str = "") -> str:
    """
    Results as HTML.

    Args:
        query: as it was asked, a text or an image.
        hits: of [`ImageIndex.search`].
        note: a line about the index.
    """
    css = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    asked = _image(query) if looks_like_image(query) else escape(str(query))
    title = "Image" if looks_like_image(query) else escape(str(query))
    items = "".join(map(_card, hits))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{MADE_BY_TAG}<title>{title}</title><style>{css}</style></head><body><main>"
        f"<h1>{asked}</h1><p class=soft>{escape(note)}</p><ol>{items}</ol></main></body></html>\n"
    )


def _card(hit: Hit) -> str:
    score = "" if hit.score is None else f"score {hit.score:.2f} &middot; "
    caption = "" if hit.text is None else f"<p class=caption>{escape(hit.text)}</p>"
    return (
        f"<li><div class=frame>{_image(hit.image)}</div><div class=body><span class=rank>{hit.rank}</span>"
        f"<span class=figures>{score}cosine {hit.similarity:.3f}</span>{caption}"
        f"<p class=path>{escape(hit.image)}</p></div></li>"
    )


def _image(image: str | Path | Image.Image) -> str:
    try:
        opened = image if isinstance(image, Image.Image) else open_image(str(image), "search results")
    except ImageReadError:
        # Of another machine, or gone since: the page says where it was.
        return f"<span class=soft>{escape(str(image))}</span>"
    thumbnail = opened.convert("RGB")
    thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
