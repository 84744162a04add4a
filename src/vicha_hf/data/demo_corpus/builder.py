"""Writes the demo corpus to disk: pictures, annotation files, tokenizer and a description of how it was made."""

import hashlib
import json
import logging
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from tqdm.auto import tqdm

from .captions import CaptionParameters, CaptionWriter
from .concepts import ConceptParameters, extract_concepts, measured_noise, retrieval_by_concepts_alone
from .facts import relations_of
from .layout import SceneParameters, SceneSampler
from .rendering import render_scene
from .splits import CaptionedScene, SplitMaker, choose_held_out_pairs
from .sprites import NOUNS, SPRITES, SpriteLibrary
from .tokenizer import build_tokenizer, save_tokenizer


logger = logging.getLogger(__name__)

# Raise it with every change that makes other pictures or words of the same parameters.
GENERATOR_VERSION = 1
SPLITS = ("train", "validation", "test", "test_compositional")
_DESCRIPTION_FILE = "corpus.json"


@dataclass(frozen=True)
class DemoCorpusParameters:
    """Everything that determines a demo corpus; equal parameters give byte-identical files.

    Attributes:
        seed: of all random choices.
        num_train, num_validation, num_test, num_compositional_test: scenes per split. The evaluation splits do not
            depend on `num_train`.
        captions_per_training_scene: different captions per training picture; evaluation pictures have one.
        held_out_pair_fraction: share of all pairs of nouns that only the compositional split shows together.
        scene, caption, concept: see their classes.
    """

    seed: int = 0
    num_train: int = 4000
    num_validation: int = 200
    num_test: int = 200
    num_compositional_test: int = 200
    captions_per_training_scene: int = 3
    held_out_pair_fraction: float = 0.1
    scene: SceneParameters = field(default_factory=SceneParameters)
    caption: CaptionParameters = field(default_factory=CaptionParameters)
    concept: ConceptParameters = field(default_factory=ConceptParameters)

    @classmethod
    def from_flat(cls, **values) -> "DemoCorpusParameters":
        """From keyword arguments of any of the four classes: `from_flat(seed=1, image_size=64, miss_rate=.2)`.

        Raises:
            TypeError: for an unknown name.
        """
        groups = {"scene": SceneParameters, "caption": CaptionParameters, "concept": ConceptParameters}
        arguments = {}
        for group, kind in groups.items():
            names = {f.name for f in fields(kind)}
            arguments[group] = kind(**{name: values.pop(name) for name in sorted(names & values.keys())})
        known = {f.name for f in fields(cls)} - groups.keys()
        if unknown := sorted(values.keys() - known):
            raise TypeError(f"Unknown demo corpus parameters: {', '.join(unknown)}.")
        return cls(**values, **arguments)


@dataclass(frozen=True)
class DemoCorpus:
    """A corpus on disk.

    Attributes:
        root: its folder.
        metadata: content of `corpus.json`: parameters, noise rates asked for and measured, counts, attribution.
    """

    root: Path
    metadata: dict

    def annotations(self, split: str) -> Path:
        """The annotation file of `"train"`, `"validation"`, `"test"` or `"test_compositional"`."""
        if split not in SPLITS:
            raise ValueError(f"The demo corpus has no split {split!r}; it has {', '.join(SPLITS)}.")
        return self.root / f"{split}.json"

    @property
    def tokenizer(self) -> Path:
        """Folder for `AutoTokenizer.from_pretrained`."""
        return self.root / "tokenizer"


def build_demo_corpus(output_dir: str | Path, *, progress: bool = True, **parameters) -> DemoCorpus:
    """Makes the demo corpus in `output_dir`, or returns the one that is there if it was made the same way."""
    wanted = DemoCorpusParameters.from_flat(**parameters)
    root = Path(output_dir)
    library = SpriteLibrary(raster_size=max(128, wanted.scene.image_size))
    fingerprint = _fingerprint(wanted, library.version)
    if (root / _DESCRIPTION_FILE).is_file():
        metadata = json.loads((root / _DESCRIPTION_FILE).read_text(encoding="utf-8"))
        if metadata.get("fingerprint") == fingerprint:
            return DemoCorpus(root, metadata)
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        metadata = _write_corpus(temporary, wanted, library, fingerprint, progress)
        if root.exists():
            shutil.rmtree(root)
        temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return DemoCorpus(root, metadata)


def _fingerprint(parameters: DemoCorpusParameters, drawings_version: str) -> str:
    made_from = {
        "generator_version": GENERATOR_VERSION,
        "drawings_version": drawings_version,
        "parameters": asdict(parameters),
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _write_corpus(
    root: Path, parameters: DemoCorpusParameters, library: SpriteLibrary, fingerprint: str, progress: bool
) -> dict:
    numbers = dict(
        zip(
            SPLITS,
            (
                parameters.num_train,
                parameters.num_validation,
                parameters.num_test,
                parameters.num_compositional_test,
            ),
            strict=True,
        )
    )
    with tqdm(total=2 * sum(numbers.values()), desc="demo corpus", unit="step", disable=not progress) as bar:
        splits = _make_splits(parameters, library, bar.update)
        statistics = {}
        first_id = 0
        for name in SPLITS:
            records = _make_records(name, splits[name], parameters, first_id)
            first_id += len(records)
            _write_pictures(root, records, splits[name], library, bar.update)
            _write_json(root / f"{name}.json", records)
            statistics[name] = _describe_split(splits[name], records, parameters)
    train_captions = [caption.text for item in splits["train"] for caption in item.captions]
    tokenizer = build_tokenizer(train_captions, NOUNS)
    save_tokenizer(tokenizer, root / "tokenizer")
    metadata = {
        "fingerprint": fingerprint,
        "generator_version": GENERATOR_VERSION,
        "parameters": asdict(parameters),
        "splits": statistics,
        "vocabulary_size": len(tokenizer),
        "concept_vocabulary": list(NOUNS),
        "sprites": {s.name: {"code_points": s.code_points, "unicode_name": s.unicode_name} for s in SPRITES},
        "attribution": library.attribution,
    }
    _write_json(root / _DESCRIPTION_FILE, metadata, indent=2)
    return metadata


def _make_splits(
    parameters: DemoCorpusParameters, library: SpriteLibrary, advance: Callable[[], None]
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


def _write_pictures(
    root: Path,
    records: list[dict],
    items: list[CaptionedScene],
    library: SpriteLibrary,
    advance: Callable[[], None],
) -> None:
    for record, item in zip(records, items, strict=True):
        path = root / record["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        render_scene(item.scene, library).save(path, compress_level=4)
        advance()


def _write_json(path: Path, content: list | dict, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def _describe_split(items: list[CaptionedScene], records: list[dict], parameters: DemoCorpusParameters) -> dict:
    scenes = [item.scene for item in items]
    concepts = [record["concepts"] for record in records]
    description = {
        "scenes": len(items),
        "captions": sum(len(item.captions) for item in items),
        "objects": sum(len(scene.objects) for scene in scenes),
        "concept_noise": measured_noise(scenes, concepts),
    }
    if len(items) <= 1000:
        description["retrieval_by_concepts_alone"] = retrieval_by_concepts_alone(scenes, concepts, parameters.concept)
    return description
