"""Building of an index: every image is embedded once, shard by shard, so that a stopped run goes on where it was."""

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.annotations import read_image_text_records
from ..data.image_files import ImageReadError, open_image
from ..data.loader_processes import ignore_sigterm
from ..data.source_folders import IMAGE_SUFFIXES, find_caption_file, list_image_files
from ..whole_files import require_writable
from .embedder import Embedder
from .index_files import (
    MANIFEST_FILE,
    IndexedImage,
    Manifest,
    SearchIndexError,
    Shard,
    live_rows,
    read_shards,
    shard_paths,
)


logger = logging.getLogger(__name__)

Concepts = Literal["given", "auto", "none"]
# Images whose embeddings are written at once: what a run that is stopped at any moment does again at most.
SHARD_SIZE = 1024


@dataclass
class IndexReport:
    """
    Account of a run.

    Attributes:
        embedded: images that were embedded now.
        kept: images that had been embedded before.
        removed: images that are no longer there.
        texts: captions of all images.
        left_out: path and cause of the images that could not be read.
    """

    embedded: int = 0
    kept: int = 0
    removed: int = 0
    texts: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)


def build_index(
    images: str | os.PathLike,
    model: str,
    output: str | os.PathLike,
    *,
    image_root: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | None = None,
    backend: str | None = None,
    concepts: Concepts = "given",
    on_bad_image: Literal["skip", "raise"] = "skip",
    shard_size: int = SHARD_SIZE,
    progress: bool = True,
) -> IndexReport:
    """
    Embeds the images that an index lacks. Images that have changed are embedded again, and those of the same source that
    are gone are taken out.

    Args:
        images: a folder of images, searched with all that is in it, or an annotation file. Captions and concepts of the
            file, or of a folder that is a corpus, are indexed too.
        model: folder or Hub id of a model that was pretrained, or fine-tuned for retrieval.
        output: folder of the index; one of the same model is continued.
        image_root: folder that the paths of an annotation file start from.
        batch_size: images at a time.
        num_workers: processes that load images.
        device: where the model runs; by default on a GPU where there is one.
        backend: "torch", or "onnx" for a folder that `vicha-hf export` wrote; by default what the folder is for.
        concepts: "given" embeds images with the concepts of the annotation file, "auto" with those that the model's
            concept index finds, "none" without any.
        on_bad_image: "skip" leaves out an image that cannot be read, or a bad record, and reports it; "raise" ends.
        shard_size: images per file.
        progress: whether to show a progress bar.

    Returns:
        The account.

    Raises:
        SearchIndexError: an index of another model, or one that another process is writing.
        ImageReadError: an image that cannot be read, with `on_bad_image="raise"`.
        AnnotationError, OSError, ValueError: no images, no model, or a folder that cannot be written to.
    """
    folder = Path(output).expanduser()
    wanted = list_images(Path(images).expanduser(), image_root, on_bad_image)
    require_writable(folder, "output")
    embedder = Embedder(model, device, find_concepts=concepts == "auto", backend=backend)
    if not embedder.reads_concepts:
        concepts = "none"
    if concepts != "given":
        wanted = [replace(image, concepts=()) for image in wanted]
    with _only_writer(folder):
        manifest = _manifest(folder, embedder, concepts)
        known = [image for shard in read_shards(folder, manifest.dim) for image in shard.images]
        rows = live_rows(known, manifest.removed)
        missing = _not_indexed(wanted, [known[row] for row in rows.values()])
        report = IndexReport(kept=len(wanted) - len(missing))
        if missing:
            manifest.unfinished = len(missing)
            manifest.write(folder)
        if concepts == "given" and missing and not any(image.concepts for image in missing):
            logger.warning(
                "%s reads visual concepts, and none of the %d images has any: give an annotation file with concepts, or "
                "concepts=auto where the model has a concept index; concepts=none says that it is meant so.",
                embedder.name,
                len(missing),
            )
        builder = _Builder(folder, embedder, on_bad_image, batch_size, num_workers, shard_size)
        builder.run(missing, report, progress)
        paths = {image.path for image in wanted} - {path for path, _ in report.left_out}
        source = wanted[0].source
        gone = {path for path, row in rows.items() if known[row].source == source and path not in paths}
        report.removed = len(gone)
        removed = sorted((set(manifest.removed) | gone) - paths)
        if removed != manifest.removed or manifest.unfinished:
            manifest.removed, manifest.unfinished = removed, 0
            manifest.write(folder)
        report.texts = sum(len(image.captions) for image in wanted if image.path in paths)
    return report


def _not_indexed(wanted: Sequence[IndexedImage], indexed: Sequence[IndexedImage]) -> list[IndexedImage]:
    """The images that an index lacks, or has otherwise than they are now."""
    if Path(wanted[0].source).is_dir():
        # An image without captions says nothing about them: what an annotation file said of it stays.
        files = {(image.path, image.size, image.modified) for image in indexed}
        identities = {image.identity for image in indexed}
        return [
            image
            for image in wanted
            if (image.identity not in identities if image.captions else image.identity[:3] not in files)
        ]
    identities = {image.identity for image in indexed}
    return [image for image in wanted if image.identity not in identities]


def list_images(
    images: Path, image_root: str | None, on_bad_record: Literal["skip", "raise"] = "raise"
) -> list[IndexedImage]:
    """
    The images of a folder, sorted by path, or of an annotation file, in order.

    Raises:
        AnnotationError, OSError, ValueError: nothing to index.
    """
    source = str(images.resolve())
    if images.is_dir() and not (images / "dataset_info.json").is_file():
        # Several links may lead to one file.
        found = dict.fromkeys(str(path.resolve()) for path in list_image_files(images))
        if not found:
            raise ValueError(
                f"{images} holds no image (looked for {', '.join(IMAGE_SUFFIXES)}, in folders inside too)."
            )
        told = _captions_and_concepts(images, list(found), image_root)
        return [_indexed(path, source, *told.get(path, ())) for path in found]
    return _by_path(read_image_text_records(str(images), image_root, on_bad_record=on_bad_record), source)


def _captions_and_concepts(
    folder: Path, paths: Sequence[str], image_root: str | None
) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Captions and concepts by path, where a folder is a corpus; images without any are no mistake here."""
    if find_caption_file(folder) is None and not any(Path(path).with_suffix(".txt").is_file() for path in paths):
        return {}
    records = read_image_text_records(str(folder), image_root, on_bad_record="skip", check_images=False)
    return {image.path: (image.captions, image.concepts) for image in _by_path(records, str(folder))}


def _by_path(records: Iterable, source: str) -> list[IndexedImage]:
    """One entry for each image, with the captions and concepts of all its records."""
    by_path: dict[str, IndexedImage] = {}
    for record in records:
        if not isinstance(record.image, str):
            raise ValueError(f"{record.where}: only images with a path can be indexed, not those inside a dataset.")
        path = str(Path(record.image).resolve())
        before = by_path.get(path)
        captions = (*(before.captions if before else ()), *record.captions)
        concepts = (*(before.concepts if before else ()), *record.concepts)
        by_path[path] = _indexed(path, source, captions, tuple(dict.fromkeys(concepts)))
    return list(by_path.values())


def _indexed(path: str, source: str, captions: tuple[str, ...] = (), concepts: tuple[str, ...] = ()) -> IndexedImage:
    # A link that leads nowhere is left out, and listed, when it is opened.
    state = os.stat(path) if os.path.exists(path) else None
    size, modified = (state.st_size, state.st_mtime_ns) if state else (0, 0)
    return IndexedImage(path, source, size, modified, tuple(captions), concepts)


def _manifest(folder: Path, embedder: Embedder, concepts: Concepts) -> Manifest:
    """The index's own, checked, or a new one."""
    fingerprint = embedder.fingerprint()
    if not (folder / MANIFEST_FILE).is_file():
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others:
            raise SearchIndexError(
                f"{folder} is no index and not empty ({sorted(others)[0]} is there): choose a new folder."
            )
        manifest = Manifest(embedder.name, fingerprint, embedder.dim, concepts)
        manifest.write(folder)
        return manifest
    manifest = Manifest.read(folder)
    # First: with found concepts the same model has another fingerprint.
    if manifest.concepts != concepts:
        raise SearchIndexError(
            f"{folder} was made with concepts={manifest.concepts!r}, not {concepts!r}: go on in the same way, or choose a "
            "new folder."
        )
    manifest.require_same_model(fingerprint, embedder.name, folder)
    return manifest


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Locks the folder while an index is written; the system releases it when the process ends, however it ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SearchIndexError(f"{folder} is being written by another process: wait for it to end.") from error
        yield


class _Builder:
    """Embeds images and writes shards."""

    def __init__(
        self,
        folder: Path,
        embedder: Embedder,
        on_bad_image: str,
        batch_size: int,
        num_workers: int,
        shard_size: int,
    ):
        self.folder, self.embedder, self.on_bad_image = folder, embedder, on_bad_image
        self.batch_size, self.num_workers, self.shard_size = batch_size, num_workers, shard_size

    def run(self, images: Sequence[IndexedImage], report: IndexReport, progress: bool) -> None:
        numbers = [int(path.stem.removeprefix("shard-")) for path in shard_paths(self.folder)]
        number = max(numbers, default=-1) + 1
        with tqdm(total=len(images), desc="Embedding images", unit="image", disable=not progress) as bar:
            for start in range(0, len(images), self.shard_size):
                shard = self._embed(images[start : start + self.shard_size], report, bar)
                if shard is not None:
                    shard.write(self.folder, number)
                    report.embedded += len(shard.images)
                    number += 1

    def _embed(self, images: Sequence[IndexedImage], report: IndexReport, bar: tqdm) -> Shard | None:
        done, embeds = [], []
        for read, left_out, opened in self._batches(images):
            if left_out and self.on_bad_image == "raise":
                raise ImageReadError(left_out[0][1])
            report.left_out += left_out
            if read:
                prepared = opened if isinstance(opened, dict) else self.embedder.prepare_images(opened)
                embeds.append(self._finite(self.embedder.encode_images(prepared).embeds, read))
                done += read
            bar.update(len(read) + len(left_out))
        if not done:
            return None
        captions = [caption for image in done for caption in image.captions]
        texts = [torch.zeros(0, self.embedder.dim)]
        for start in range(0, len(captions), self.batch_size):
            texts.append(self.embedder.encode_texts(captions[start : start + self.batch_size]).embeds.float().cpu())
        return Shard(tuple(done), torch.cat(embeds), torch.cat(texts))

    def _batches(self, images: Sequence[IndexedImage]) -> Iterator[tuple]:
        loader = DataLoader(
            _OpenedImages(images),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self._prepare,
            worker_init_fn=ignore_sigterm,
        )
        yield from loader

    def _prepare(
        self, opened: Sequence[tuple]
    ) -> tuple[list[IndexedImage], list[tuple[str, str]], dict | list | None]:
        left_out = [(image.path, content) for image, content in opened if isinstance(content, str)]
        usable = [(image, content) for image, content in opened if not isinstance(content, str)]
        if not usable:
            return [], left_out, None
        images, pixels = map(list, zip(*usable, strict=True))
        if self.embedder.concept_selector is not None:
            # Finding concepts runs a model, which is no work for the processes that load images.
            return images, left_out, pixels
        concepts = [image.concepts for image in images] if self.embedder.reads_concepts else None
        return images, left_out, self.embedder.prepare_images(pixels, concepts)

    @staticmethod
    def _finite(embeds: torch.Tensor, images: Sequence[IndexedImage]) -> torch.Tensor:
        embeds = embeds.float().cpu()
        broken = (~embeds.isfinite().all(dim=1)).nonzero()
        if len(broken):
            raise ValueError(
                f"{images[int(broken[0])].path} has an embedding that is not finite: the model is broken."
            )
        return embeds


class _OpenedImages(Dataset):
    """An image with its pixels, or with the cause why it has none."""

    def __init__(self, images: Sequence[IndexedImage]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        image = self.images[index]
        try:
            return image, open_image(image.path, image.source)
        except ImageReadError as error:
            return image, str(error)
