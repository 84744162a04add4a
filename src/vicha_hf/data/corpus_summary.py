"""The texts of a corpus in numbers: records, captions, words, what the length cuts, and how a tokenizer splits words."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..models.text_cleaning import clean_caption
from .annotations import Annotations


# Records that are read for a summary; of a larger corpus as many, at even distances.
MAX_RECORDS = 5000
# Fields with a record's text, in the order of looking.
TEXT_FIELDS = ("captions", "question", "sentence", "text")
# [CLS] and [SEP].
NUM_ENDS = 2
# Above this share of words in pieces a tokenizer was made for other texts.
MOST_SPLIT_WORDS = 0.5


@dataclass(frozen=True)
class CorpusSummary:
    """
    Numbers of a corpus, counted on `num_counted` of its records.

    Attributes:
        num_records: of the corpus.
        num_counted: records that the other numbers come from.
        num_with_concepts: of these, records with visual concepts.
        num_texts: captions, questions, sentences or expressions.
        num_words: in all texts, after cleaning.
        num_cut_words: of these, words behind the length that is kept.
        num_split_words: of these, words that the tokenizer writes in several pieces, or does not know.
    """

    num_records: int
    num_counted: int
    num_with_concepts: int
    num_texts: int
    num_words: int
    num_cut_words: int
    num_split_words: int

    @property
    def splits_most_words(self) -> bool:
        """Whether the tokenizer was made for other texts."""
        return self.num_split_words > MOST_SPLIT_WORDS * self.num_words

    def __str__(self) -> str:
        of = "" if self.num_counted == self.num_records else f" (counted on {self.num_counted:,})"
        return (
            f"{self.num_records:,} records{of}, {self.num_with_concepts:,} with concepts; {self.num_texts:,} texts of "
            f"{self.num_words:,} words, {self.num_cut_words:,} cut by the length, {self.num_split_words:,} in pieces"
        )


def summarize_corpus(
    annotations: Annotations, tokenizer: PreTrainedTokenizerBase, max_text_length: int
) -> CorpusSummary:
    """
    Counts the records and texts of a corpus.

    Args:
        annotations: of any task.
        tokenizer: of the model.
        max_text_length: tokens of a text that the model reads, its ends included.
    """
    num_records = len(annotations)
    counted = np.unique(np.linspace(0, num_records - 1, min(num_records, MAX_RECORDS)).round().astype(int))
    pieces: dict[str, int] = {}
    with_concepts = num_texts = num_words = cut = split = 0
    for index in counted.tolist():
        record = annotations[index]
        with_concepts += bool(getattr(record, "concepts", ()))
        for text in texts_of(record):
            num_texts += 1
            words = clean_caption(text, max_words=None).split()
            lengths = [pieces[word] if word in pieces else _count(word, tokenizer, pieces) for word in words]
            ends = np.cumsum(np.abs(lengths)) if lengths else np.zeros(0)
            num_words += len(words)
            cut += int((ends > max_text_length - NUM_ENDS).sum())
            split += sum(length != 1 for length in lengths)
    return CorpusSummary(num_records, len(counted), with_concepts, num_texts, num_words, cut, split)


def texts_of(record: object) -> tuple[str, ...]:
    """The texts of a record of any task."""
    value = next((getattr(record, name) for name in TEXT_FIELDS if hasattr(record, name)), ())
    return (value,) if isinstance(value, str) else tuple(value)


def _count(word: str, tokenizer: PreTrainedTokenizerBase, pieces: dict[str, int]) -> int:
    """Tokens of a word; negative where the tokenizer does not know it."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids
    pieces[word] = -len(ids) if unknown else max(len(ids), 1)
    return pieces[word]
