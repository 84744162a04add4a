"""Images to pixel values for SIMLA."""

from .image_processing_vicha import ViChaImageProcessor


class SimlaImageProcessor(ViChaImageProcessor):
    """
    Image processor of SIMLA. Both families prepare images as ALBEF does, so it differs from [`ViChaImageProcessor`] in
    its name alone, which is what a folder's `preprocessor_config.json` says and the Auto classes look for.
    """


SimlaImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["SimlaImageProcessor"]
