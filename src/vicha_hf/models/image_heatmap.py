"""Showing heat maps on their image: one, or one for each word of a caption."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw


# From no heat to most heat, as (red, green, blue).
_COLOURS = np.array([(30, 0, 120), (200, 0, 80), (255, 140, 0), (255, 255, 160)], dtype=np.float32)

# Of a strip: pixels between two images, and below an image for its word.
GAP, LINE = 6, 16


def overlay_heatmap(image: Image.Image, heatmap, opacity: float = 0.6, max_heat: float | None = None) -> Image.Image:
    """
    Lays a heat map over an image: the hottest place gets the brightest colour and the given opacity, a place without
    heat stays as it is.

    Args:
        image: a Pillow image, of any size and mode.
        heatmap: [h, w], array or tensor; brought to the image's size (bicubic), negative heat counts as none.
        opacity: of the hottest place, between 0 and 1.
        max_heat: heat that counts as hottest, for maps that are to be compared; None takes the map's own largest.

    Returns:
        An RGB image of the same size.

    Raises:
        ValueError: a map that is not [h, w] or not finite, an impossible opacity, a `max_heat` that is not positive.
    """
    heat = np.asarray(heatmap.detach().float().cpu() if hasattr(heatmap, "detach") else heatmap, dtype=np.float32)
    if heat.ndim != 2 or heat.size == 0:
        raise ValueError(f"`heatmap` has shape {heat.shape}; expected the map of one image, [h, w].")
    if not np.isfinite(heat).all():
        raise ValueError("`heatmap` holds values that are not finite: look for a NaN in the model's output.")
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity={opacity}` must lie between 0 and 1.")
    if max_heat is not None and not max_heat > 0:
        raise ValueError(f"`max_heat={max_heat}` must be positive.")
    heat = np.asarray(Image.fromarray(heat).resize(image.size, Image.Resampling.BICUBIC)).clip(min=0)
    highest = float(heat.max()) if max_heat is None else max_heat
    heat = (heat / max(highest, np.finfo(np.float32).tiny)).clip(max=1)
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(heat, stops, channel) for channel in _COLOURS.T], axis=-1)
    weight = opacity * heat[..., None]
    blended = (1 - weight) * np.asarray(image.convert("RGB"), dtype=np.float32) + weight * colours
    return Image.fromarray(blended.round().astype(np.uint8))


def hottest_box(
    heatmap, image_size: tuple[int, int], area_exponent: float = 0.5
) -> tuple[float, float, float, float] | None:
    """
    Rectangle of patches with the highest heat / area^0.5, the score that ranks proposed boxes too.

    Args:
        heatmap: [h, w], array or tensor.
        image_size: (height, width) of the image, pixels.
        area_exponent: 0 favours large boxes, 1 small ones.

    Returns:
        (x, y, width, height) in pixels of the image; None for a map without heat.
    """
    heat = np.asarray(heatmap.detach().float().cpu() if hasattr(heatmap, "detach") else heatmap, dtype=np.float64)
    rows, columns = heat.shape
    summed = np.zeros((rows + 1, columns + 1))
    summed[1:, 1:] = heat.clip(min=0).cumsum(axis=0).cumsum(axis=1)
    if summed[-1, -1] <= 0:
        return None
    best, found = -1.0, None
    for top in range(rows):
        for bottom in range(top + 1, rows + 1):
            strip = summed[bottom] - summed[top]
            widths = np.arange(columns + 1) - np.arange(columns + 1)[:, None]
            area = (bottom - top) * widths.clip(min=1)
            scores = np.where(widths > 0, (strip - strip[:, None]) / area**area_exponent, -1.0)
            at = int(scores.argmax())
            if scores.flat[at] > best:
                best, found = scores.flat[at], (top, bottom, *divmod(at, columns + 1))
    top, bottom, left, right = found
    height, width = image_size[0] / rows, image_size[1] / columns
    return left * width, top * height, (right - left) * width, (bottom - top) * height


def merge_word_pieces(tokens: Sequence[str], heatmaps) -> tuple[list[str], np.ndarray]:
    """
    WordPiece tokens and their maps [T, h, w] as whole words: the maps of a word's pieces ("play", "##ing") are added.
    Returns the words and their maps [W, h, w].

    Raises:
        ValueError: not one map per token.
    """
    maps = np.asarray(heatmaps.detach().float().cpu() if hasattr(heatmaps, "detach") else heatmaps, dtype=np.float32)
    if maps.ndim != 3 or len(maps) != len(tokens):
        raise ValueError(f"`heatmaps` has shape {maps.shape}; expected one map for each of the {len(tokens)} tokens.")
    words, merged = [], []
    for token, heat in zip(tokens, maps, strict=True):
        if token.startswith("##") and words:
            words[-1] += token[2:]
            merged[-1] = merged[-1] + heat
        else:
            words.append(token)
            merged.append(heat)
    return words, np.stack(merged) if merged else maps


def draw_word_heatmaps(image: Image.Image, words: Sequence[str], heatmaps, opacity: float = 0.7) -> Image.Image:
    """
    A strip: the image, then once for each word with that word's heat map over it. All maps have one scale, so that a
    word that looks nowhere stays pale.

    Args:
        image: a Pillow image.
        words: W words, written below.
        heatmaps: [W, h, w], array or tensor.
        opacity: of the hottest place of all maps.

    Raises:
        ValueError: not one map per word.
    """
    if not words or len(words) != len(heatmaps):
        raise ValueError(f"{len(words)} `words` and {len(heatmaps)} `heatmaps`: give one map per word, at least one.")
    highest = float(max(heat.max() for heat in heatmaps))
    shared = highest if highest > 0 else None
    panels = [image.convert("RGB"), *(overlay_heatmap(image, heat, opacity, shared) for heat in heatmaps)]
    width, height = image.size
    strip = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + LINE), "white")
    pen = ImageDraw.Draw(strip)
    for column, (panel, word) in enumerate(zip(panels, ["", *words], strict=True)):
        left = column * (width + GAP)
        strip.paste(panel, (left, 0))
        pen.text((left + width // 2, height + LINE // 2), word, fill="black", anchor="mm")
    return strip
