"""
Visual tokens computed beforehand and stored with the corpus.

A store is one safetensors file: `tokens` uint16 [N, P], sorted by `keys` uint64 [N], and what they were made from in its
metadata. A key is a digest of the image's path relative to the folder of the store, so a corpus that holds its store
may move as a whole. For an image inside a Hugging Face dataset, it is a digest of the image's bytes.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.image_processing_backends import PilBackend

from ..data.annotations import Annotations, ImageTextRecord
from ..data.stored_images import EmbeddedImage
from ..data.transforms import EvaluationTransform
from ..models.objective_image_token_reconstruction import require_fitting_tokenizer
from .code_usage import CodeUsage
from .configuration import VisualTokenizerConfig
from .distinct_images import DistinctImages
from .tokenizer import VisualTokenizer


FORMAT = "vicha_hf visual tokens 1"
MAX_CODES = 1 << 16


class VisualTokenStore:
    """
    Stored visual tokens, read from the disk as they are asked for; shared by worker processes without copies.

    They are tokens of whole images, resized without a crop. They fit a dataset only if its transform draws nothing: no
    random crop, no mirroring, no augmentation.

    Args:
        path: a file of `write_visual_tokens`.

    Attributes:
        image_size: (height, width) of the images when they were tokenized.
        vocab_size: number of codes.
        patch_size: pixels per token.
        config: the tokenizer's `patch_size` and normalisation.

    Raises:
        ValueError: a file that is no such store.
        FileNotFoundError: no file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"stored visual tokens not found: {self.path}; make them with `vicha-hf visual-tokens`"
            )
        self._root = _root(self.path)
        self._open()
        metadata = self._file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{self.path} holds no visual tokens (its format is {metadata.get('format')!r})")
        description = json.loads(metadata["description"])
        self.image_size = tuple(description["image_size"])
        self.vocab_size = description["vocab_size"]
        self.config = VisualTokenizerConfig(
            patch_size=description["patch_size"],
            image_mean=description["image_mean"],
            image_std=description["image_std"],
        )
        self._keys = self._file.get_tensor("keys")

    @property
    def patch_size(self) -> int:
        return self.config.patch_size

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image of height x width pixels."""
        return height // self.patch_size, width // self.patch_size

    def __len__(self) -> int:
        """Images that have tokens."""
        return len(self._keys)

    def tokens_of(self, record: ImageTextRecord) -> torch.Tensor:
        """
        The tokens [P] of a record's image, int64.

        Raises:
            KeyError: the store has none for this image; the message names record, image and remedy.
        """
        row = self._row(record)
        if row is None:
            raise KeyError(self._missing(record))
        return torch.from_numpy(self._tokens[row].astype(np.int64))

    def require_fitting(self, annotations: Annotations[ImageTextRecord], transform) -> None:
        """
        Checks that a dataset may take its tokens from here, before it takes the first.

        Args:
            annotations: every image given by its path must have tokens (images inside datasets are looked for when
                they are read).
            transform: must draw nothing (`random_operations` empty) and give images of the store's size.

        Raises:
            ValueError: naming what does not fit.
        """
        drawn = getattr(transform, "random_operations", None)
        if drawn is None:
            raise ValueError(
                f"{self.path}: stored visual tokens show whole images, and {type(transform).__name__} does not say "
                "whether it draws crops or augmentations; give it an attribute `random_operations` (empty: it draws none)"
            )
        if drawn:
            raise ValueError(
                f"{self.path}: stored visual tokens show whole images, but the images are changed at random "
                f"({', '.join(drawn)}): turn that off, or compute the tokens on the fly from the same crop"
            )
        if (transform.height, transform.width) != self.image_size:
            raise ValueError(
                f"{self.path}: the stored visual tokens were made from images of {self.image_size[0]} x "
                f"{self.image_size[1]} pixels, but the dataset gives {transform.height} x {transform.width}"
            )
        for record in annotations:
            if not isinstance(record.image, EmbeddedImage) and self._row(record) is None:
                raise ValueError(self._missing(record))

    def _row(self, record: ImageTextRecord) -> int | None:
        key = np.uint64(_key(record.image, self._root))
        row = int(np.searchsorted(self._keys, key))
        return row if row < len(self._keys) and self._keys[row] == key else None

    def _missing(self, record: ImageTextRecord) -> str:
        return (
            f"{record.where}: {self.path} holds no visual tokens of the image {record.image}; run `vicha-hf "
            "visual-tokens` on these annotations, and keep the file where it stood relative to the images"
        )

    def _open(self) -> None:
        try:
            self._file = safe_open(self.path, framework="numpy")
            self._tokens = self._file.get_slice("tokens")
        except SafetensorError as error:
            raise ValueError(f"{self.path} holds no visual tokens: {error}") from error

    # Workers that are started anew open the file for themselves.
    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_file", "_tokens")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()


def write_visual_tokens(
    path: str | os.PathLike,
    tokenizer: VisualTokenizer,
    annotations: Annotations[ImageTextRecord],
    image_processor: PilBackend,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> CodeUsage:
    """
    Tokenizes every image of a corpus once and writes a store.

    The tokens are held in memory until all are there (2 bytes each: 2 GB for 4 million images of 256 tokens). A file
    that was at `path` before is replaced only then.

    Args:
        path: the store; keep it with the corpus.
        tokenizer: runs where it is (`tokenizer.to("cuda")` first for a large one).
        annotations: whose images.
        image_processor: size and normalisation of the images: the model's.
        batch_size: images tokenized at a time.
        num_workers: processes that load images.
        progress: show a progress bar.

    Returns:
        How the corpus uses the codes.

    Raises:
        ValueError: a tokenizer that was made for another normalisation, or with more than 65536 codes.
        ImageReadError: an image that cannot be decoded.
    """
    path, transform = Path(path), EvaluationTransform.from_image_processor(image_processor)
    if tokenizer.vocab_size > MAX_CODES:
        raise ValueError(f"the store has room for {MAX_CODES} codes; the visual tokenizer has {tokenizer.vocab_size}")
    size = (transform.height, transform.width)
    require_fitting_tokenizer(
        tokenizer, image_size=size, patch_size=tokenizer.patch_size, image_processor=image_processor
    )
    images, root = DistinctImages(annotations, transform), _root(path)
    rows, columns = tokenizer.grid_size(*size)
    tokens = np.empty((len(images), rows * columns), dtype=np.uint16)
    keys, usage = np.empty(len(images), dtype=np.uint64), CodeUsage.empty(tokenizer.vocab_size)
    loader = DataLoader(images, batch_size=batch_size, num_workers=num_workers)
    done = 0
    with tqdm(total=len(images), desc="Visual tokens", unit="image", disable=not progress) as bar:
        for places, pixel_values in loader:
            ids = tokenizer(pixel_values.to(tokenizer.device)).cpu()
            usage.add(ids)
            tokens[done : done + len(ids)] = ids.numpy()
            keys[done : done + len(ids)] = [_key(annotations[place].image, root) for place in places.tolist()]
            done += len(ids)
            bar.update(len(ids))
    # The same bytes twice inside datasets are one image.
    keys, first = np.unique(keys, return_index=True)
    description = {
        "image_size": size,
        "vocab_size": tokenizer.vocab_size,
        "patch_size": tokenizer.patch_size,
        "image_mean": list(tokenizer.config.image_mean),
        "image_std": list(tokenizer.config.image_std),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    # Not by `save_file`, whose files nobody else on the machine may read, whatever the user's umask says.
    metadata = {"format": FORMAT, "description": json.dumps(description)}
    unfinished.write_bytes(save({"keys": keys, "tokens": tokens[first]}, metadata))
    os.replace(unfinished, path)
    return usage


def _root(path: Path) -> str:
    return os.path.dirname(os.path.abspath(path))


def _key(image: str | EmbeddedImage, root: str) -> int:
    """A digest of 8 bytes: two of 4 million images coincide with a probability of less than one in a million."""
    if isinstance(image, EmbeddedImage):
        name = b"bytes:" + image.read_bytes()
    else:
        name = b"path:" + Path(os.path.relpath(image, root)).as_posix().encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
