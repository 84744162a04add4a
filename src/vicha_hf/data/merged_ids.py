"""Image ids of several sources in one file."""

from collections.abc import Iterable


class MergedImageIds:
    """
    Tells apart the image ids of sources whose records are written into one file.

    Readers compare an `image_id` within one source, since numbers of different corpora clash. One file is one source:
    image 17 of COCO would be taken for image 17 of Visual Genome.

    Args:
        ids: the source and the `image_id` (None where there is none) of every record.
    """

    def __init__(self, ids: Iterable[tuple[object, object]]):
        self._numbers: dict[object, int] = {}
        self._clash = False
        first_of: dict[str, int] = {}
        for source, image_id in ids:
            number = self._numbers.setdefault(source, len(self._numbers) + 1)
            if image_id is not None and first_of.setdefault(str(image_id), number) != number:
                self._clash = True

    def of(self, source: object, image_id: object) -> object:
        """The id as it is; where sources have ids in common, behind the number of its source, such as "2:17"."""
        if image_id is None or not self._clash:
            return image_id
        return f"{self._numbers[source]}:{image_id}"
