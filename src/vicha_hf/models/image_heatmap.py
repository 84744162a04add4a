"""Showing a heat map on its picture."""

import numpy as np
from PIL import Image


# From no heat to most heat, as (red, green, blue).
_COLOURS = np.array([(30, 0, 120), (200, 0, 80), (255, 140, 0), (255, 255, 160)], dtype=np.float32)


def overlay_heatmap(picture: Image.Image, heatmap, opacity: float = 0.6, max_heat: float | None = None) -> Image.Image:
    """
    Lays a heat map over a picture: the hottest place gets the brightest colour and the given opacity, a place without
    heat stays as it is.

    Args:
        picture: a Pillow image, of any size and mode.
        heatmap: [h, w], array or tensor; brought to the picture's size (bicubic), negative heat counts as none.
        opacity: of the hottest place, between 0 and 1.
        max_heat: heat that counts as hottest, for maps that are to be compared; None takes the map's own largest.

    Returns:
        An RGB picture of the same size.

    Raises:
        ValueError: a map that is not [h, w] or not finite, an impossible opacity, a `max_heat` that is not positive.
    """
    heat = np.asarray(heatmap.detach().float().cpu() if hasattr(heatmap, "detach") else heatmap, dtype=np.float32)
    if heat.ndim != 2 or heat.size == 0:
        raise ValueError(f"`heatmap` has shape {heat.shape}; expected the map of one picture, [h, w].")
    if not np.isfinite(heat).all():
        raise ValueError("`heatmap` holds values that are not finite: look for a NaN in the model's output.")
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity={opacity}` must lie between 0 and 1.")
    if max_heat is not None and not max_heat > 0:
        raise ValueError(f"`max_heat={max_heat}` must be positive.")
    heat = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BICUBIC)).clip(min=0)
    highest = float(heat.max()) if max_heat is None else max_heat
    heat = (heat / max(highest, np.finfo(np.float32).tiny)).clip(max=1)
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(heat, stops, channel) for channel in _COLOURS.T], axis=-1)
    weight = opacity * heat[..., None]
    blended = (1 - weight) * np.asarray(picture.convert("RGB"), dtype=np.float32) + weight * colours
    return Image.fromarray(blended.round().astype(np.uint8))
