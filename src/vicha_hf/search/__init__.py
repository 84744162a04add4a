"""Search in one's own images: an index on disk, and queries by text or by image."""

from .building import IndexReport, build_index
from .image_index import Hit, ImageIndex


__all__ = ["Hit", "ImageIndex", "IndexReport", "build_index"]
