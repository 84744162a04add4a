"""Accuracy of answering without looking, which a model must beat to have used the images."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable

from ..data.annotations_entailment import EntailmentRecord
from ..data.annotations_reasoning import ReasoningRecord
from ..data.annotations_vqa import QuestionRecord


def text_only_accuracy(train: Iterable[tuple[str, Hashable]], test: Iterable[tuple[str, Hashable]]) -> float:
    """
    Accuracy, in percent, of giving to every text the answer that it had most often in training. A text that training
    does not have gets the most frequent answer of all.

    Args:
        train, test: pairs of text and answer, as `text_answer_pairs` gives them.

    Raises:
        ValueError: no pairs.
    """
    of_text: dict[str, Counter] = defaultdict(Counter)
    overall = Counter()
    for text, answer in train:
        of_text[text][answer] += 1
        overall[answer] += 1
    test = list(test)
    if not overall or not test:
        raise ValueError("the accuracy of guessing from the text needs training and test records with answers")
    correct = sum(answer == of_text.get(text, overall).most_common(1)[0][0] for text, answer in test)
    return 100 * correct / len(test)


def text_answer_pairs(
    records: Iterable[QuestionRecord | EntailmentRecord | ReasoningRecord],
) -> list[tuple[str, Hashable]]:
    """Question and the annotators' most frequent answer, or sentence and label, of every record that has one."""
    pairs = []
    for record in records:
        if isinstance(record, QuestionRecord):
            if record.answers:
                pairs.append((record.question, Counter(record.answers).most_common(1)[0][0]))
        elif record.label is not None:
            pairs.append((record.sentence, record.label))
    return pairs
