"""Shards of grey images that bear their number as their brightness, and the numbers that a stream of them gives."""

import io
import tarfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from vicha_hf.data.stream_dataset import StreamDataset


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), number, dtype=np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes members, (name, content) each, in their order."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def numbers(dataset: StreamDataset, count: int, **loader) -> list[list[int]]:
    """The first `count` batches as lists of numbers, noted as used."""
    found = []
    for batch in islice(DataLoader(dataset, batch_size=None, **loader), count):
        dataset.saw(batch)
        found.append(batch.batch["numbers"].tolist())
    return found
