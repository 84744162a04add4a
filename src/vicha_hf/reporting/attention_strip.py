"""Heat maps of the words of a caption over its image, side by side, as HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from ..models.image_heatmap import overlay_heatmap
from .gallery import image_tag


@dataclass
class AttentionStrip:
    """An image, the words of its caption, and each word's heat map.

    Args:
        image: what the model saw.
        words: of the caption, in order, special tokens left out.
        heatmaps: [number of words, h, w], array or tensor: attention over the patches, 0 = none.
    """

    image: Image.Image
    words: Sequence[str]
    heatmaps: object

    def __post_init__(self):
        maps = self.heatmaps
        maps = np.asarray(maps.detach().float().cpu() if hasattr(maps, "detach") else maps, dtype=np.float32)
        if maps.ndim != 3 or len(maps) != len(self.words):
            raise ValueError(
                f"`heatmaps` has shape {maps.shape}; expected one map for each of the {len(self.words)} words, "
                "[words, h, w]"
            )
        if not np.isfinite(maps).all():
            raise ValueError("`heatmaps` holds values that are not finite: look for a NaN in the model's output")
        self.heatmaps = maps


def attend_words(
    model,
    processor,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    concepts: Sequence[Sequence[str]] | None = None,
) -> list[AttentionStrip]:
    """
    Computes where a model looks for each word of each image's caption.

    Args:
        model: a grounding head, in evaluation mode.
        processor: the model's.
        images, captions: n pairs.
        concepts: for each image the visual concepts that go in with it; None for a model that takes none.
    """
    options = {} if concepts is None else {"concepts": [list(row) for row in concepts]}
    inputs = processor(images=list(images), text=list(captions), return_tensors="pt", **options).to(model.device)
    # Only the matching head's maps have one for each word, whichever way the model grounds expressions.
    heatmaps = model(**inputs, method="itm").word_heatmaps
    return [
        AttentionStrip(image, *processor.decode_word_heatmaps(input_ids, maps))
        for image, input_ids, maps in zip(images, inputs["input_ids"], heatmaps, strict=True)
    ]


def attention_section_html(strips: Sequence[AttentionStrip]) -> str:
    """
    A section of a report: for each caption its image followed by the image under each word's heat map; "" without
    strips. The maps of one caption share their scale, so a word that looks nowhere in particular stays pale.
    """
    if not strips:
        return ""
    body = "".join(
        f'<article class="query"><header><q>{escape(" ".join(strip.words))}</q></header>'
        f'<div class="strip">{_cell(strip.image, "image")}{_word_cells(strip)}</div></article>'
        for strip in strips
    )
    return (
        "<h2>Where words look</h2><p class=note>Attention of each word of a caption to the patches of the image; the "
        f'brightest patch of a caption has the strongest.</p><div class="queries">{body}</div>'
    )


def _word_cells(strip: AttentionStrip) -> str:
    highest = float(strip.heatmaps.max()) if strip.heatmaps.size else 0.0
    return "".join(
        _cell(overlay_heatmap(strip.image, heatmap, max_heat=highest if highest > 0 else None), word)
        for word, heatmap in zip(strip.words, strip.heatmaps, strict=True)
    )


def _cell(image: Image.Image, label: str) -> str:
    return f"<div>{image_tag(image, escape(label))}<span>{escape(label)}</span></div>"
