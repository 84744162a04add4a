"""An image with what grounding found in it: the heat map over it, and the box."""

import io
from collections.abc import Mapping

from PIL import ExifTags, Image, ImageDraw

from ..models.image_heatmap import overlay_heatmap
from ..models.image_processing_vicha import to_upright_rgb
from ..whole_files import MADE_BY


BOX_COLOUR = (0, 230, 118)


def draw_grounding(image: Image.Image, found: Mapping) -> Image.Image:
    """
    The upright image with a result of the pipeline `visual-grounding` over it.

    Args:
        image: as it was asked about.
        found: with `heatmap` [h, w] and `box` (`xmin`, `ymin`, `xmax`, `ymax`, pixels of the upright image) or None.
    """
    drawn = overlay_heatmap(to_upright_rgb(image), found["heatmap"])
    if found["box"] is not None:
        box, width = found["box"], max(2, min(drawn.size) // 150)
        edges = (box["xmin"], box["ymin"], max(box["xmax"] - 1, box["xmin"]), max(box["ymax"] - 1, box["ymin"]))
        ImageDraw.Draw(drawn).rectangle(edges, outline=BOX_COLOUR, width=width)
    return drawn


def encode_result(drawn: Image.Image, suffix: str) -> bytes:
    """
    A file of the image that says who made it, where its format can: a later result may take its place.

    Args:
        drawn: the image.
        suffix: of the file's name, such as ".png".
    """
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Software] = MADE_BY
    drawn.save(buffer, Image.registered_extensions()[suffix.lower()], exif=exif)
    return buffer.getvalue()
