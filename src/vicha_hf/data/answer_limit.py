"""Answers that are longer than the decoder's positions, found when the questions are read and not in mid-training."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from .raw_records import AnnotationError, RecordProblem, shorten


class AnswerLimit:
    """
    Measures answers in tokens.

    Args:
        tokenizer: of the model.
        max_tokens: positions of the answer decoder, for [CLS], the answer and [SEP].
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int):
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens
        # Annotators give the same answers again and again.
        self._lengths: dict[str, int] = {}

    def length(self, answer: str) -> int:
        """Tokens of an answer, [CLS] and [SEP] included."""
        if answer not in self._lengths:
            self._lengths[answer] = len(self._tokenizer(answer, truncation=False, verbose=False)["input_ids"])
        return self._lengths[answer]

    def check(self, answers: Iterable[str]) -> None:
        """Raises `RecordProblem` for an answer that is too long."""
        for answer in answers:
            if self.length(answer) > self.max_tokens:
                detail = (
                    f"{self.length(answer)} tokens, and the decoder has {self.max_tokens} positions: {shorten(answer)}"
                )
                raise RecordProblem("answer", "too long for the decoder", "shorten it, or remove the record", detail)

    def require_fitting_list(self, answers: Iterable[str], name: str) -> None:
        """Raises `AnnotationError` for a list of answers with one that is too long."""
        for position, answer in enumerate(answers):
            if self.length(answer) > self.max_tokens:
                raise AnnotationError(
                    f"{name}, entry {position}: {self.length(answer)} tokens, and the decoder has {self.max_tokens} "
                    f"positions ({shorten(answer)}); shorten the answer, or remove it"
                )
