"""Vocabularies of visual concepts: made from captions, written, and read in every form that people have them in."""

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..data.annotation_fields import read_concepts, require_unicode
from ..data.json_names import RepeatedName
from ..data.json_reading import decode_json, iterate_json_lines, lines_of
from ..data.raw_records import RecordProblem, shorten
from .nouns import NounCounts, count_nouns
from .plurals import IRREGULAR_SINGULARS, singular_of


# Of a visual concept: what is longer is a sentence, or a broken file.
LONGEST_CONCEPT = 100
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
# Control characters, and the ends of lines and paragraphs that Unicode knows.
_NO_TEXT = ("Cc", "Zl", "Zp")


def build_vocabulary(
    captions: Iterable[str],
    *,
    min_count: int = 2,
    language_model: str = "en_core_web_sm",
    compounds: bool = False,
    stop_words: Iterable[str] = (),
    num_processes: int = 1,
    progress: bool = False,
) -> dict[str, int]:
    """
    The nouns of captions with their counts (ViCHA, arXiv 2208.13628, section 3.2).

    Plurals are counted as their singulars where that is safe ("zebras"), and stay where the singular is another thing
    ("glasses", "scissors").

    Args:
        captions: read as they are needed; memory holds the counts alone.
        min_count: nouns that occur less often are left out (paper: more than 1, hence 2; 4 for captions from the web).
        language_model: a model of spaCy that is installed, or its folder.
        compounds: whether neighbouring nouns count as one more concept together, such as "fire hydrant".
        stop_words: nouns that are no concepts, such as "photo".
        num_processes: that tag captions; the result is the same for any number.
        progress: show a progress bar.

    Returns:
        Noun -> count, the most frequent first, equal counts by word.

    Raises:
        ImportError: spaCy is not installed.
        ValueError: an unknown language model, a `min_count` below 1, or no noun that is frequent enough.
    """
    if min_count < 1:
        raise ValueError(f"min_count={min_count} must be at least 1")
    if num_processes < 1:
        raise ValueError(f"num_processes={num_processes} must be at least 1")
    counts = count_nouns(
        captions, language_model=language_model, compounds=compounds, num_processes=num_processes, progress=progress
    )
    left_out = {word.strip().lower() for word in stop_words}
    merged = {
        noun: count for noun, count in merge_plurals(counts).items() if count >= min_count and noun not in left_out
    }
    if not merged:
        raise ValueError(
            f"none of the {sum(counts.values())} nouns of the captions occurs at least min_count={min_count} times: give "
            "more captions, or a smaller min_count"
        )
    return dict(sorted(merged.items(), key=lambda item: (-item[1], item[0])))


def merge_plurals(counts: NounCounts) -> Counter[str]:
    """(noun, whether in the plural) -> count, as noun -> count with plurals counted as their singulars."""
    singular, plural = Counter(), Counter()
    for (noun, is_plural), count in counts.items():
        (plural if is_plural or noun.split(" ")[-1] in IRREGULAR_SINGULARS else singular)[noun] += count
    # A tagger errs now and then; what it takes for a plural more often than not is one.
    plurals = {noun for noun, count in plural.items() if count > singular[noun]}
    singulars = {noun: count for noun, count in singular.items() if noun not in plurals}
    merged = Counter()
    for noun in sorted(singular.keys() | plural.keys()):
        merged[singular_of(noun, singulars) if noun in plurals else noun] += singular[noun] + plural[noun]
    return merged


def read_vocabulary(path: str | os.PathLike) -> dict[str, int]:
    """
    A vocabulary with counts (0 where the file has none), in the file's order.

    Args:
        path: a file of `vicha-hf concepts vocabulary` (JSON or Parquet), a JSON list of words, or a text file with one
            word a line. Of an annotation file with `concepts` or `kwords`, the published form, the distinct concepts are
            taken, the most frequent first.

    Raises:
        ValueError: no vocabulary, a concept that is blank, repeated, too long or no text, with its place and remedy.
        OSError: no such file.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix in _JSON_SUFFIXES:
        return _read_json(path)
    if path.suffix in (".csv", ".tsv"):
        raise ValueError(
            f"{path}: a vocabulary is no table; write one word a line into a *.txt, or words with counts as JSON"
        )
    return _checked(path, ((f"line {number}", word, 0) for number, word in enumerate(_lines(path), start=1)))


def read_stop_words(path: str | os.PathLike) -> tuple[str, ...]:
    """
    The words of a text file, one a line, without blank lines; or those of a vocabulary in JSON or Parquet.

    Raises:
        ValueError: the file is not in UTF-8, or no vocabulary.
        OSError: no such file.
    """
    path = Path(path)
    if path.suffix in _JSON_SUFFIXES or path.suffix == ".parquet":
        return tuple(read_vocabulary(path))
    return tuple(line.strip() for line in _lines(path) if line.strip())


def _lines(path: Path) -> list[str]:
    try:
        return lines_of(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: words stand in a text file in UTF-8, one a line, but {error}") from error


def write_vocabulary(path: str | os.PathLike, vocabulary: Mapping[str, int]) -> None:
    """Writes words and counts, as JSON or (by the suffix .parquet) as Parquet; the file appears when it is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({"concept": list(vocabulary), "count": list(vocabulary.values())})
        pyarrow.parquet.write_table(table, unfinished)
    else:
        text = json.dumps(dict(vocabulary), ensure_ascii=False, indent=0)
        unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _read_parquet(path: Path) -> dict[str, int]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not readable as Parquet ({error})") from error
    if "concept" not in table.column_names:
        raise ValueError(f"{path}: a vocabulary has a column 'concept', but this has {table.column_names}")
    words = table["concept"].to_pylist()
    counts = table["count"].to_pylist() if "count" in table.column_names else [0] * len(words)
    rows = enumerate(zip(words, counts, strict=True))
    return _checked(path, ((f"row {row}", word, count) for row, (word, count) in rows))


def _read_json(path: Path) -> dict[str, int]:
    if path.suffix == ".json":
        try:
            content = decode_json(path.read_text(encoding="utf-8-sig"))
        except RepeatedName as error:
            raise ValueError(f"{path}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: not readable as JSON ({error})") from error
    else:
        content = []
        for line, value, problem in iterate_json_lines(path):
            if problem is not None:
                raise ValueError(f"{path}, line {line}: {problem.message}")
            content.append(value)
    if isinstance(content, Mapping):
        return _checked(path, ((f"entry {row}", word, count) for row, (word, count) in enumerate(content.items())))
    if not isinstance(content, list):
        raise ValueError(f"{path}: a vocabulary is a list of words or words with counts, got {shorten(content)}")
    if content and all(isinstance(entry, Mapping) for entry in content):
        return _of_annotations(path, content)
    return _checked(path, ((f"entry {row}", word, 0) for row, word in enumerate(content)))


def _of_annotations(path: Path, records: list[Mapping]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row, record in enumerate(records):
        try:
            counts.update(read_concepts(record))
        except RecordProblem as problem:
            raise ValueError(f"{path}, record {row}: {problem.message}") from problem
    if not counts:
        raise ValueError(f"{path}: no record has 'concepts' or 'kwords'; make a vocabulary from the captions first")
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return _checked(path, ((f"concept {row}", word, count) for row, (word, count) in enumerate(ordered)))


def _checked(path: Path, entries: Iterable[tuple[str, object, object]]) -> dict[str, int]:
    vocabulary, places = {}, {}
    for place, word, count in entries:
        if not isinstance(word, str):
            raise ValueError(f"{path}, {place}: a concept is a text, got {shorten(word)}; write it in quotes")
        word = word.strip()
        if not word:
            raise ValueError(f"{path}, {place}: a blank concept; remove it")
        if len(word) > LONGEST_CONCEPT:
            raise ValueError(
                f"{path}, {place}: a concept of {len(word)} characters ({shorten(word)}); the longest allowed has "
                f"{LONGEST_CONCEPT}, so this is no vocabulary, or one whose lines are not words"
            )
        if not any(character.isalpha() for character in word):
            raise ValueError(f"{path}, {place}: the concept {word!r} holds no letter; remove it")
        try:
            require_unicode(word, "concept")
        except RecordProblem as problem:
            raise ValueError(f"{path}, {place}: {problem.message}") from problem
        if any(unicodedata.category(character) in _NO_TEXT for character in word):
            raise ValueError(
                f"{path}, {place}: a tab or another control character in the concept {word!r}; write the word alone"
            )
        if word in places:
            raise ValueError(f"{path}, {place}: the concept {word!r} stands already in {places[word]}; keep one")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(
                f"{path}, {place}: the count of {word!r} must be a number from 0 on, got {shorten(count)}"
            )
        vocabulary[word], places[word] = count, place
    if not vocabulary:
        raise ValueError(f"{path}: an empty vocabulary; give at least one concept")
    return vocabulary
