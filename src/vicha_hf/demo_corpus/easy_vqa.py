"""easy-VQA (Victor Zhou, MIT licence): questions about simple shapes, from its package to this library's files."""

import json
import logging
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tqdm.auto import tqdm

from ..data.answer_list import write_answer_list
from ..whole_files import explained_writing, require_writable
from .tokenizer import build_tokenizer, save_tokenizer


logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
# The package has no validation split: the questions about every tenth training image are one.
_VALIDATION_STRIDE = 10
# Evaluation counts agreement among ten annotators, as for VQA v2; here there is one truth.
_NUM_ANNOTATORS = 10
_SHAPES = ("rectangle", "circle", "triangle")
_DESCRIPTION_FILE = "easy_vqa.json"


@dataclass(frozen=True)
class EasyVqa:
    """The files in a folder: `train.json`, `validation.json`, `test.json`, `answer_list.json`, `tokenizer/`, `images/`."""

    root: Path

    def annotations(self, split: str) -> Path:
        """The questions of `"train"`, `"validation"` or `"test"`."""
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: easy-VQA has {', '.join(SPLITS)}")
        return self.root / f"{split}.json"

    @property
    def answer_list(self) -> Path:
        return self.root / "answer_list.json"

    @property
    def tokenizer(self) -> Path:
        """Folder for `AutoTokenizer.from_pretrained`."""
        return self.root / "tokenizer"

    @property
    def metadata(self) -> dict:
        """The package's version, and the number of questions and images of each split."""
        return json.loads((self.root / _DESCRIPTION_FILE).read_text(encoding="utf-8"))


def build_easy_vqa(output_dir: str | Path, *, progress: bool = True) -> EasyVqa:
    """
    Writes the data of the installed package `easy-vqa` in `output_dir`, or returns what an earlier call wrote there.

    The folder appears under its name only when it is complete.

    Args:
        output_dir: a new or empty folder, or one that this function wrote.
        progress: show a progress bar.

    Raises:
        ImportError: the package is missing.
        FileExistsError: `output_dir` holds something else.
    """
    package = _import_package()
    root = Path(output_dir)
    if (root / _DESCRIPTION_FILE).is_file():
        logger.info("Reusing easy-VQA in %s", root)
        return EasyVqa(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} is not empty and holds no easy-VQA: choose a new folder")
    require_writable(root.parent, "output")
    unfinished = root.parent / f".{root.name}.{os.getpid()}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with explained_writing(root):
            _write(package, unfinished, progress)
            if root.exists():
                root.rmdir()
            unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return EasyVqa(root)


def _import_package():
    try:
        import easy_vqa
    except ImportError as error:
        raise ImportError(
            "easy-VQA's data comes with the package `easy-vqa`: install it with `pip install vicha_hf[easy-vqa]`."
        ) from error
    return easy_vqa


def _write(package, root: Path, progress: bool) -> None:
    sources = {
        "train": (package.get_train_questions(), package.get_train_image_paths()),
        "test": (package.get_test_questions(), package.get_test_image_paths()),
    }
    records: dict[str, list[dict]] = {split: [] for split in SPLITS}
    with tqdm(total=sum(len(paths) for _, paths in sources.values()), desc="easy-VQA", disable=not progress) as bar:
        for source, (questions, paths) in sources.items():
            (root / "images" / source).mkdir(parents=True)
            for number, path in sorted(paths.items()):
                shutil.copyfile(path, root / "images" / source / f"{number}.png")
                bar.update()
            for question, answer, number in zip(*questions, strict=True):
                is_held_out = source == "train" and number % _VALIDATION_STRIDE == _VALIDATION_STRIDE - 1
                split = "validation" if is_held_out else source
                question_id = sum(map(len, records.values()))
                records[split].append(_record(question_id, question, answer, f"images/{source}/{number}.png", split))
    answers = package.get_answers()
    for split, questions in records.items():
        (root / f"{split}.json").write_text(json.dumps(questions) + "\n", encoding="utf-8")
    write_answer_list(root / "answer_list.json", answers)
    save_tokenizer(build_tokenizer([record["question"] for record in records["train"]], answers), root / "tokenizer")
    description = {
        "package": "easy-vqa",
        "version": version("easy-vqa"),
        "questions": {split: len(questions) for split, questions in records.items()},
        "pictures": {split: len({record["image"] for record in questions}) for split, questions in records.items()},
        "answers": dict(Counter(_answer_kind(answer) for answer in answers)),
    }
    (root / _DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _record(question_id: int, question: str, answer: str, image: str, split: str) -> dict:
    kind = _answer_kind(answer)
    return {
        "question_id": question_id,
        "question": question,
        "image": image,
        "answer": answer if split == "train" else [answer] * _NUM_ANNOTATORS,
        "dataset": "vqa",
        "question_type": kind,
        "answer_type": kind if kind == "yes/no" else "other",
    }


def _answer_kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in _SHAPES else "colour"
