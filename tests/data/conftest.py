"""The fixtures of a tiny corpus of images."""

from tiny_corpus import image_folder, image_records, tiny_processor, write_json  # noqa: F401
