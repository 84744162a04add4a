"""Results of evaluations in a model's card: entries of the metadata that the Hub reads, and a table for people."""

import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from yaml import YAMLError

from ..arguments import one_line
from ..families import find_model_folder
from ..hub_upload import upload_folder
from ..whole_files import require_writable_file, write_whole_files
from .beside_chance import CONSTANT, OF_ONE_LAYER, SETTINGS
from .metric_table import TEXTS_ALONE, metric_table


CARD_FILE = "README.md"
# task -> its name for readers, and the type of its metric.
TASK_METRICS = {
    "pretraining": ("Image-text retrieval", "recall"),
    "retrieval": ("Image-text retrieval", "recall"),
    "grounding": ("Visual grounding", "accuracy"),
    "vqa": ("Visual question answering", "accuracy"),
    "entailment": ("Visual entailment", "accuracy"),
    "reasoning": ("Visual reasoning", "accuracy"),
    "text-assignment": ("Text assignment", "accuracy"),
}
# Not what a model reaches: chance, sizes, settings, and what the texts alone give away.
_NO_RESULT = (*CONSTANT, *SETTINGS, TEXTS_ALONE)
_END = "<!-- end of the evaluation -->"
_HEADING = "## Results"
_NOT_EVALUATED = "Not evaluated.\n"


class CardError(ValueError):
    """A card that results cannot be added to; the message says why."""


def evaluation_results(
    task: str, dataset_name: str, metrics: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> list[EvalResult]:
    """
    Entries of the metadata for what a model reaches; chance and sizes are left out.

    Args:
        task: a key of `TASK_METRICS`.
        dataset_name: what was evaluated on, for readers.
        metrics: by name, shares in %.
        settings: of the evaluation, where they are not the usual ones.
    """
    name, metric = TASK_METRICS[task]
    return [
        EvalResult(
            task_type=name.lower().replace(" ", "-"),
            task_name=name,
            dataset_type=_as_identifier(dataset_name),
            dataset_name=dataset_name,
            # The metadata keep results apart by configuration, not by arguments.
            dataset_config=_told(settings) if settings else None,
            metric_type=metric,
            metric_name=key,
            metric_value=round(value, 2),
        )
        for key, value in metrics.items()
        if isinstance(value, float) and not key.startswith(_NO_RESULT) and not OF_ONE_LAYER.fullmatch(key)
    ]


@dataclass
class ResultCard:
    """
    The card of a model that an evaluation adds its results to. Making it reads the card and finds out whether it can be
    written, before the evaluation. What others wrote into it stays; an evaluation of the same data with the same settings
    replaces its own results.

    Args:
        model: a model folder, or the id of a repository on the Hub.

    Raises:
        CardError: a card whose metadata cannot be read, or no card on the Hub.
        OutputFolderError, HubUploadError: a card that cannot be written.
    """

    model: str
    _card: ModelCard = field(init=False, repr=False)

    def __post_init__(self):
        self.model = find_model_folder(self.model)
        if self.file is not None:
            require_writable_file(self.file)
        try:
            self._card = self._read()
        except (ValueError, HfHubHTTPError, YAMLError) as error:
            raise CardError(f"{self.file or self.model}: the card cannot be read: {one_line(error)}") from error

    @property
    def file(self) -> Path | None:
        """The card of a folder; None for a repository."""
        return Path(self.model) / CARD_FILE if Path(self.model).is_dir() else None

    @property
    def _title(self) -> str:
        return Path(self.model).resolve().name if self.file is not None else self.model.split("/")[-1]

    def _read(self) -> ModelCard:
        new = f"---\nlibrary_name: transformers\n---\n\n# {self._title}\n"
        if self.file is not None:
            text = self.file.read_text(encoding="utf-8") if self.file.is_file() else new
            return ModelCard(text)
        try:
            return ModelCard.load(self.model)
        except EntryNotFoundError:
            return ModelCard(new)

    def add(
        self,
        task: str,
        dataset_name: str,
        metrics: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        command: str = "",
    ) -> None:
        """
        Adds the results of one evaluation.

        Args:
            task, dataset_name, metrics, settings: as in [`evaluation_results`].
            command: that evaluates again.
        """
        data = self._card.data
        added = evaluation_results(task, dataset_name, metrics, settings)
        kept = [entry for entry in data.eval_results or [] if not any(map(entry.is_equal_except_value, added))]
        data.eval_results = kept + added
        if data.model_name is None:
            data.model_name = self._title
        metric = TASK_METRICS[task][1]
        data.metrics = [*(data.metrics or []), *([metric] if metric not in (data.metrics or []) else [])]
        self._card.text = _with_block(self._card.text, _block(task, dataset_name, metrics, settings or {}, command))

    def write(self) -> str:
        """
        Writes the card back, whole, and returns where it is.

        Raises:
            OutputFolderError, HubUploadError: writing failed; the card is as it was.
        """
        if self.file is not None:
            write_whole_files({self.file: str(self._card)})
            return str(self.file)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CARD_FILE).write_text(str(self._card), encoding="utf-8")
            return upload_folder(folder, self.model, "Results of an evaluation")


def _block(task: str, dataset_name: str, metrics: Mapping, settings: Mapping, command: str) -> str:
    lines = [
        _opening(task, dataset_name, settings),
        f"### {TASK_METRICS[task][0]} on {dataset_name}{', ' + _told(settings) if settings else ''}",
        "",
        "Shares in %.",
        "",
        metric_table(metrics),
        *(["", "```bash", command, "```"] if command else []),
        _END,
    ]
    return "\n".join(lines) + "\n"


def _opening(task: str, dataset_name: str, settings: Mapping) -> str:
    key = ", ".join([task, dataset_name, *([_told(settings)] if settings else [])])
    return f"<!-- evaluation: {key.replace('--', '-')} -->"


def _with_block(text: str, block: str) -> str:
    """A card's text with an evaluation's block: in the place of its earlier one, or at the end of the results."""
    opening = block.split("\n", 1)[0]
    earlier = re.compile(re.escape(opening) + r"\n.*?" + re.escape(_END) + r"\n?", re.DOTALL)
    if earlier.search(text):
        return earlier.sub(lambda _: block, text, count=1)
    heading = re.search(rf"^{_HEADING}[ \t]*\n", text, re.MULTILINE)
    if heading is None:
        return f"{text.rstrip()}\n\n{_HEADING}\n\n{block}"
    following = re.compile(r"^#{1,2} ", re.MULTILINE).search(text, heading.end())
    end = following.start() if following else len(text)
    section = text[heading.end() : end].replace(_NOT_EVALUATED, "").strip("\n")
    before, after = text[: heading.end()], text[end:]
    return "\n".join([before, *([section, ""] if section else []), f"{block}{chr(10) if after else ''}{after}"])


def _as_identifier(name: str) -> str:
    kept = "".join(character if character.isalnum() or character in "._-/" else "-" for character in name.lower())
    return kept.strip("-./") or "own-data"


def evaluation_command(model: str, data: list[str], task: str, settings: Mapping[str, Any]) -> str:
    """The command that evaluates again. On the Hub, a file has its name alone: the folders are this machine's."""
    if not Path(model).is_dir():
        data = [Path(source).name if Path(source).exists() else source for source in data]
    return shlex.join(evaluation_words(model, data, task, settings))


def evaluation_words(model: str, data: Sequence[str], task: str, settings: Mapping[str, Any]) -> list[str]:
    """The words of `vicha-hf evaluate` with some options."""
    options = [word for name, value in settings.items() for word in (f"--{name}", *_words(value))]
    return ["vicha-hf", "evaluate", model, *data, "--task", task, *options]


def _told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {' '.join(_words(value))}" for name, value in settings.items())


def _words(value) -> list[str]:
    """An option's value as a command line has it."""
    if isinstance(value, list | tuple):
        return list(map(str, value))
    return [str(value).lower() if isinstance(value, bool) else str(value)]
