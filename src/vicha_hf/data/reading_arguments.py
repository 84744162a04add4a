"""Options about the reading of annotations, the same for every command and script."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(kw_only=True)
class ReadingArguments:
    """Options of the reading of annotations.

    Args:
        image_root: Folder that relative image paths start from, or a list of one for each source; null takes each annotation file's own folder. A source written as {path: ..., image_root: ...} has its own.
        on_bad_record: "raise" refuses annotations with bad records, "skip" leaves such records out and counts them; an image that turns out broken in training is replaced by another draw.
        allow_outside_root: Whether absolute image paths may lead out of the image root.
    """

    image_root: str | list[str] | None = None
    on_bad_record: Literal["raise", "skip"] = "raise"
    allow_outside_root: bool = False

    @property
    def reading(self) -> dict[str, Any]:
        """Options of every reader of annotations to train on."""
        return {name: getattr(self, name) for name in ReadingArguments.__dataclass_fields__}

    @property
    def evaluation_reading(self) -> dict[str, Any]:
        """Options of every reader of annotations to evaluate on: what can be used is known beforehand."""
        return self.reading | {"decode_images": self.on_bad_record == "skip"}
