"""From images with captions to a corpus with concepts in one go."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from ..models.concept_selector import OWN_ENCODER, ConceptIndex, DualEncoder
from .corpus import ConceptCorpus, iterate_captions
from .embedding import DEFAULT_BATCH_SIZE, DEFAULT_PROMPTS, embed_concepts, embed_images, new_accelerator
from .embedding_store import EmbeddingStore, require_words_of
from .inspection import inspect_concepts
from .manifests import OutputFile, digest_of_items
from .selection import DEFAULT_K, SelectionResult, select_for_corpus
from .vocabulary import build_vocabulary, read_vocabulary, write_vocabulary


@dataclass(frozen=True)
class ConceptFiles:
    """
    The files of `build_concepts` in one folder.

    Attributes:
        root: the folder.
        holds_images: whether the annotations hold the images themselves, as their corpus does, and are Parquet then.
    """

    root: Path
    holds_images: bool = False

    @property
    def vocabulary(self) -> Path:
        """Words and counts."""
        return self.root / "vocabulary.json"

    @property
    def concepts(self) -> Path:
        """Embeddings of the vocabulary."""
        return self.root / "concepts"

    @property
    def images(self) -> Path:
        """Embeddings of the images."""
        return self.root / "images"

    @property
    def annotations(self) -> Path:
        """The corpus with concepts."""
        return self.root / f"annotations.{'parquet' if self.holds_images else 'jsonl'}"

    @property
    def page(self) -> Path:
        """The page to judge them by."""
        return self.root / "inspect.html"

    @property
    def index(self) -> Path:
        """The index that goes into a model folder."""
        return self.root / "concept_index"


def make_vocabulary(
    sources,
    output: str | os.PathLike,
    *,
    on_bad_record: Literal["raise", "skip"] = "raise",
    overwrite: bool = False,
    num_processes: int = 1,
    progress: bool = False,
    min_count: int = 2,
    language_model: str = "en_core_web_sm",
    compounds: bool = False,
    stop_words: Iterable[str] = (),
    embedded: Path | None = None,
) -> tuple[dict[str, int], bool]:
    """
    Writes the vocabulary of a corpus's captions, unless it is there already.

    Args:
        sources: as `read_image_text_records` takes them; read one caption at a time.
        output: *.json or *.parquet.
        on_bad_record: whether a record without caption ends the reading or is left out.
        overwrite: replace a file that this step did not make.
        num_processes, progress, min_count, language_model, compounds, stop_words: as for `build_vocabulary`.
        embedded: folder of the vocabulary's embeddings, if it has any; both change together or not at all.

    Returns:
        The vocabulary, and whether it was there already.

    Raises:
        FileExistsError: `output` is another file.
        StoreError: `embedded` holds other words.
        AnnotationError, ValueError, ImportError: as `iterate_captions` and `build_vocabulary` raise them.
    """
    options = {
        "min_count": min_count,
        "language_model": language_model,
        "compounds": compounds,
        "stop_words": sorted(stop_words),
    }
    if Path(output).suffix not in (".json", ".parquet"):
        raise ValueError(f"{output}: a vocabulary is written as *.json or *.parquet; choose such a name")
    file = OutputFile(
        output, "vocabulary", {"captions": digest_of_items(iterate_captions(sources, on_bad_record)), **options}
    )
    if file.is_current(overwrite):
        return read_vocabulary(output), True
    vocabulary = build_vocabulary(
        iterate_captions(sources, on_bad_record), num_processes=num_processes, progress=progress, **options
    )
    if embedded is not None:
        require_words_of(embedded, vocabulary)
    write_vocabulary(output, vocabulary)
    file.finish(concepts=len(vocabulary))
    return vocabulary, False


def build_concepts(
    sources,
    encoder: DualEncoder,
    output: str | os.PathLike,
    *,
    vocabulary: str | os.PathLike | None = None,
    image_root: str | os.PathLike | None = None,
    on_bad_record: Literal["raise", "skip"] = "raise",
    allow_outside_root: bool = False,
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    k: int = DEFAULT_K,
    batch_size: int = DEFAULT_BATCH_SIZE,
    num_workers: int = 0,
    num_processes: int = 1,
    min_count: int = 2,
    language_model: str = "en_core_web_sm",
    compounds: bool = False,
    own_index: bool = False,
    accelerator: Accelerator | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> tuple[ConceptFiles, SelectionResult]:
    """
    Vocabulary, embeddings, selection, page and index; a step whose inputs have not changed is not done again.

    Args:
        sources, image_root, on_bad_record, allow_outside_root: the corpus, as `read_image_text_records` takes it.
        encoder: what looks at images and words.
        output: a folder, see [`ConceptFiles`].
        vocabulary: a file of one's own, as `read_vocabulary` takes it, instead of the captions' nouns.
        prompts, batch_size, num_workers: as for `embed_concepts` and `embed_images`.
        k: concepts per image.
        num_processes: that tag captions.
        min_count, language_model, compounds: as for `build_vocabulary`.
        own_index: whether the index is for the encoder's own model folder.
        accelerator: of a run of several processes; each embeds its share.
        overwrite: replace files that these steps did not make.
        progress: show progress bars.

    Raises:
        ValueError, OSError: from a step; nothing is overwritten unless asked for.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    accelerator = accelerator or new_accelerator()
    corpus = ConceptCorpus(sources, image_root, on_bad_record, allow_outside_root)
    files = ConceptFiles(Path(output), corpus.holds_images)
    if accelerator.is_main_process and not overwrite:
        _require_own_folder(files)
    accelerator.wait_for_everyone()
    if vocabulary is None:
        vocabulary = files.vocabulary
        # The main process makes what all of them read.
        if accelerator.is_main_process:
            make_vocabulary(
                sources,
                vocabulary,
                on_bad_record=on_bad_record,
                overwrite=overwrite,
                num_processes=num_processes,
                progress=progress,
                min_count=min_count,
                language_model=language_model,
                compounds=compounds,
                embedded=files.concepts,
            )
    accelerator.wait_for_everyone()
    words = read_vocabulary(vocabulary)
    shared = {"batch_size": batch_size, "accelerator": accelerator, "progress": progress}
    concepts = embed_concepts(words, encoder, files.concepts, prompts=prompts, **shared)
    images = embed_images(corpus, encoder, files.images, num_workers=num_workers, **shared)
    result = SelectionResult(0, 0)
    if accelerator.is_main_process:
        result = select_for_corpus(
            images, concepts, corpus, files.annotations, k=k, overwrite=overwrite, progress=progress
        )
        selected = ConceptCorpus(str(files.annotations))
        inspect_concepts(selected, files.page, vocabulary=list(words), overwrite=overwrite)
        index_of_store(concepts, k, own=own_index).save_pretrained(files.index)
    accelerator.wait_for_everyone()
    return files, result


def _require_own_folder(files: ConceptFiles) -> None:
    """Raises a `FileExistsError` for a folder of other things: an annotation file among images changes what they mean."""
    ours = (files.vocabulary, files.concepts, files.images, files.annotations, files.page, files.index)
    if any(path.exists() for path in (files.vocabulary, files.concepts)) or not files.vocabulary.parent.is_dir():
        return
    folder, names = files.vocabulary.parent, {path.name for path in ours}
    others = sorted(path.name for path in folder.iterdir() if path.name not in names and not path.name.startswith("."))
    if others:
        raise FileExistsError(
            f"{folder} is there and no earlier build ({others[0]} is in it): choose a new --output, or give --overwrite"
        )


def index_of_store(concepts: EmbeddingStore, k: int = DEFAULT_K, own: bool = False) -> ConceptIndex:
    """
    The index that a model folder carries, of an embedded vocabulary.

    Args:
        k: concepts per image.
        own: whether the model that carries it made the embeddings itself.
    """
    encoder = concepts.encoder
    return ConceptIndex(
        tuple(concepts.vocabulary()),
        torch.from_numpy(concepts.read_all()),
        OWN_ENCODER if own else encoder["name"],
        None if own else encoder["revision"],
        encoder["digest"],
        tuple(concepts.manifest["options"]["prompts"]),
        k,
    )
