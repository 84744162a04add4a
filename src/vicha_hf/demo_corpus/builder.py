"""Writes the demo corpus to disk: images, annotation files, tokenizer and a description of how it was made."""

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ..whole_files import explained_writing, require_writable
from .captions import CaptionWriter
from .concepts import extract_concepts, measured_noise, retrieval_by_concepts_alone
from .facts import relations_of
from .layout import SceneSampler
from .parameters import DemoCorpusParameters
from .rendering import render_scene
from .splits import CaptionedScene, SplitMaker, choose_held_out_pairs
from .sprites import NOUNS, SPRITES, SpriteLibrary
from .tasks import ANSWER_LIST, TASK_FILES, TASK_SPLITS, TASKS, TASKS_VERSION, write_task_files
from .tokenizer import build_tokenizer, save_tokenizer


logger = logging.getLogger(__name__)

# Raise it with every change that makes other images or words of the same parameters.
GENERATOR_VERSION = 2
SPLITS = ("train", "validation", "test", "test_compositional")
_DESCRIPTION_FILE = "corpus.json"
_ATTRIBUTION_FILE = "ATTRIBUTION.txt"
# Put there by whoever fits one to these images; it goes when they do.
_VISUAL_TOKENIZER = "visual_tokenizer"
_ENTRIES = {
    _DESCRIPTION_FILE,
    _ATTRIBUTION_FILE,
    "images",
    "tokenizer",
    _VISUAL_TOKENIZER,
    *(f"{split}.json" for split in SPLITS),
    *TASK_FILES,
}


@dataclass(frozen=True)
class DemoCorpus:
    """A corpus on disk.

    Attributes:
        root: its folder.
        metadata: content of `corpus.json`: parameters, counts (of the tasks' records too), noise of the concepts as asked
            for and as measured, what concepts alone retrieve, sprites, attribution.
    """

    root: Path
    metadata: dict

    @classmethod
    def load(cls, root: str | Path) -> "DemoCorpus":
        """The corpus that was built in `root`.

        Raises:
            FileNotFoundError: when there is none.
        """
        path = Path(root) / _DESCRIPTION_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: build the corpus with `build_demo_corpus({str(root)!r})`")
        return cls(Path(root), json.loads(path.read_text(encoding="utf-8")))

    def annotations(self, split: str, task: str = "retrieval") -> Path:
        """
        An annotation file.

        Args:
            split: `"train"`, `"validation"`, `"test"`, or, of retrieval only, `"test_compositional"`.
            task: `"retrieval"` (pretraining too), `"vqa"`, `"entailment"`, `"reasoning"` or `"grounding"`.
        """
        if task not in ("retrieval", *TASKS):
            raise ValueError(f"task={task!r}: the demo corpus has retrieval, {', '.join(TASKS)}")
        splits = SPLITS if task == "retrieval" else TASK_SPLITS
        if split not in splits:
            raise ValueError(f"split={split!r}: the demo corpus has {', '.join(splits)} for {task}")
        return self.root / (f"{split}.json" if task == "retrieval" else f"{task}_{split}.json")

    @property
    def answer_list(self) -> Path:
        """The answers of the training questions, for `read_answer_list`."""
        return self.root / ANSWER_LIST

    @property
    def tokenizer(self) -> Path:
        """Folder for `AutoTokenizer.from_pretrained`."""
        return self.root / "tokenizer"

    @property
    def visual_tokenizer(self) -> Path:
        """Folder for a visual tokenizer fitted to this corpus; the corpus comes without one."""
        return self.root / _VISUAL_TOKENIZER

    def is_complete(self) -> bool:
        """Whether every file is there, and every one but the images has the content that it was written with."""
        digests_agree = all(
            (self.root / name).is_file() and _digest(self.root / name) == digest
            for name, digest in self.metadata["digests"].items()
        )
        return digests_agree and all(
            len(list((self.root / "images" / split).glob("*.png"))) == description["scenes"]
            for split, description in self.metadata["splits"].items()
        )


def build_demo_corpus(output_dir: str | Path, *, progress: bool = True, **parameters: int | float) -> DemoCorpus:
    """Makes the demo corpus in `output_dir`, or returns the one that is there if it was made in the same way.

    Layout: `images/SPLIT/NNNNN.png`, `train.json`, `validation.json`, `test.json`, `test_compositional.json` (lists of
    `{"image", "image_id", "caption": [str], "concepts": [str], "objects": [{"noun", "colour", "category", "box":
    [x, y, width, height], "mirrored"}], "scene": {...}}`), `TASK_SPLIT.json` for the downstream tasks, `answer_list.json`,
    `tokenizer/`, `corpus.json`, `ATTRIBUTION.txt`. The folder appears under its name only when it is complete. The same
    parameters give the same bytes.

    Args:
        output_dir: the corpus's folder. A corpus made otherwise is replaced; any other content is never touched.
        progress: show a progress bar.
        parameters: see `DemoCorpusParameters` and its groups, e.g. `seed=0, num_train=4000, image_size=96`.

    Raises:
        ImportError: when the packages of the `demo` extra are missing.
        FileExistsError: when `output_dir` holds something that is not a demo corpus.
        TypeError, ValueError: for unknown or impossible parameters.
    """
    wanted = DemoCorpusParameters.from_options(**parameters)
    root = Path(output_dir)
    library = SpriteLibrary(raster_size=max(128, wanted.scene.image_size))
    fingerprint = _fingerprint(wanted, library.version)
    corpus = _reusable_corpus(root, fingerprint)
    if corpus is not None:
        logger.info("Reusing the demo corpus in %s", root)
        if corpus.metadata.get("tasks_version") != TASKS_VERSION:
            logger.info("Its task files were made by another version and are written again")
            _add_tasks(root, wanted)
        return DemoCorpus.load(root)
    _check_replaceable(root)
    require_writable(root.parent, "output")
    unfinished = root.parent / f".{root.name}.{os.getpid()}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        with explained_writing(root):
            _write_corpus(unfinished, wanted, library, fingerprint, progress)
            _move_into_place(unfinished, root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return DemoCorpus.load(root)


def _fingerprint(parameters: DemoCorpusParameters, drawings_version: str) -> str:
    made_from = {
        "generator_version": GENERATOR_VERSION,
        "drawings_version": drawings_version,
        "parameters": asdict(parameters),
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _reusable_corpus(root: Path, fingerprint: str) -> DemoCorpus | None:
    if not (root / _DESCRIPTION_FILE).is_file():
        return None
    try:
        corpus = DemoCorpus.load(root)
        if corpus.metadata["fingerprint"] != fingerprint:
            logger.info("The demo corpus in %s was made with other parameters and is replaced", root)
            return None
        if corpus.is_complete():
            return corpus
    except (json.JSONDecodeError, KeyError, TypeError):
        logger.warning("%s is damaged", root / _DESCRIPTION_FILE)
    logger.warning("The demo corpus in %s is damaged or incomplete and is made again", root)
    return None


def _check_replaceable(root: Path) -> None:
    """Only an empty folder or a demo corpus may be replaced: nobody's own files are ever deleted."""
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"{root} is a file: choose another output folder")
    foreign = sorted(path.name for path in root.iterdir() if path.name not in _ENTRIES) if root.exists() else []
    if foreign:
        raise FileExistsError(
            f"{root} holds {foreign[0]!r}, which is no part of a demo corpus: choose an empty or new output folder"
        )


def _move_into_place(unfinished: Path, root: Path) -> None:
    replaced = unfinished.with_suffix(".replaced")
    if root.exists():
        root.rename(replaced)
    unfinished.rename(root)
    shutil.rmtree(replaced, ignore_errors=True)


def _write_corpus(
    root: Path, parameters: DemoCorpusParameters, library: SpriteLibrary, fingerprint: str, progress: bool
) -> None:
    number_of_scenes = (
        parameters.num_train + parameters.num_validation + parameters.num_test + parameters.num_compositional_test
    )
    with tqdm(total=2 * number_of_scenes, desc="Demo corpus", unit="step", disable=not progress) as bar:
        splits = _make_splits(parameters, library, bar.update)
        descriptions = {}
        first_id = 0
        for name in SPLITS:
            records = _make_records(name, splits[name], parameters, first_id)
            first_id += len(records)
            _write_images(root, name, records, splits[name], library, bar.update)
            _write_json(root / f"{name}.json", records)
            descriptions[name] = _describe_split(name, splits[name], records, parameters)
    tokenizer = build_tokenizer([caption.text for item in splits["train"] for caption in item.captions], NOUNS)
    save_tokenizer(tokenizer, root / "tokenizer")
    (root / _ATTRIBUTION_FILE).write_text(f"{library.attribution}\n", encoding="utf-8")
    written = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".png"]
    description = {
        "fingerprint": fingerprint,
        "generator_version": GENERATOR_VERSION,
        "drawings_version": library.version,
        "attribution": library.attribution,
        "parameters": asdict(parameters),
        "splits": descriptions,
        "vocabulary_size": len(tokenizer),
        "concept_vocabulary": list(NOUNS),
        "sprites": {s.name: {"code_points": s.code_points, "unicode_name": s.unicode_name} for s in SPRITES},
        "digests": {path.relative_to(root).as_posix(): _digest(path) for path in written},
    }
    _write_json(root / _DESCRIPTION_FILE, description, indent=2)
    _add_tasks(root, parameters)


def _add_tasks(root: Path, parameters: DemoCorpusParameters) -> None:
    """Makes the records of the downstream tasks from the annotation files in `root`, and tells of them in `corpus.json`."""
    corpus = DemoCorpus.load(root)
    counts = write_task_files(root, parameters.seed)
    digests = corpus.metadata["digests"] | {name: _digest(root / name) for name in TASK_FILES}
    description = corpus.metadata | {"tasks_version": TASKS_VERSION, "tasks": counts, "digests": digests}
    finished = root / f".{_DESCRIPTION_FILE}.unfinished"
    _write_json(finished, description, indent=2)
    finished.replace(root / _DESCRIPTION_FILE)


def _make_splits(
    parameters: DemoCorpusParameters, library: SpriteLibrary, advance: Callable[[], object]
) -> dict[str, list[CaptionedScene]]:
    def rng(name: str) -> random.Random:
        return random.Random(f"{parameters.seed}/{name}")

    held_out = choose_held_out_pairs(parameters.held_out_pair_fraction, rng("held-out pairs"))
    maker = SplitMaker(SceneSampler(parameters.scene, library, held_out), CaptionWriter(parameters.caption))
    splits = {
        "test": maker.make_evaluation(parameters.num_test, rng("test"), advance),
        "validation": maker.make_evaluation(parameters.num_validation, rng("validation"), advance),
        "test_compositional": maker.make_evaluation(
            parameters.num_compositional_test, rng("test_compositional"), advance, with_held_out_pair=True
        ),
    }
    splits["train"] = maker.make_training(
        parameters.num_train, parameters.captions_per_training_scene, rng("train"), advance
    )
    return splits


def _make_records(
    split: str, items: list[CaptionedScene], parameters: DemoCorpusParameters, first_id: int
) -> list[dict]:
    rng = random.Random(f"{parameters.seed}/{split}/concepts")
    records = []
    for index, item in enumerate(items):
        record = {
            "image": f"images/{split}/{index:05d}.png",
            "image_id": first_id + index,
            "caption": [caption.text for caption in item.captions],
            "concepts": extract_concepts(item.scene, parameters.concept, rng),
            **item.scene.to_record(),
        }
        record["scene"]["relations"] = [list(relation) for relation in relations_of(item.scene)]
        records.append(record)
    return records


def _write_images(
    root: Path,
    split: str,
    records: list[dict],
    items: list[CaptionedScene],
    library: SpriteLibrary,
    advance: Callable[[], object],
) -> None:
    (root / "images" / split).mkdir(parents=True)
    for record, item in zip(records, items, strict=True):
        render_scene(item.scene, library).save(root / record["image"], compress_level=4)
        advance()


def _write_json(path: Path, content: list | dict, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def _describe_split(
    split: str, items: list[CaptionedScene], records: list[dict], parameters: DemoCorpusParameters
) -> dict:
    scenes = [item.scene for item in items]
    concepts = [record["concepts"] for record in records]
    description = {
        "scenes": len(items),
        "captions": sum(len(item.captions) for item in items),
        "objects": sum(len(scene.objects) for scene in scenes),
        "concept_noise": measured_noise(scenes, concepts),
    }
    if split != "train":
        description["retrieval_by_concepts_alone"] = retrieval_by_concepts_alone(scenes, concepts, parameters.concept)
    return description
