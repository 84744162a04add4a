import pytest

from vicha_hf.data.annotations_entailment import EntailmentRecord
from vicha_hf.data.annotations_vqa import QuestionRecord
from vicha_hf.demo_corpus.text_only_baseline import text_answer_pairs, text_only_accuracy


def test_the_most_frequent_answer_of_the_text_or_of_all():
    train = [("is it red", "yes"), ("is it red", "no"), ("is it red", "no"), ("colour", "red")] + [("what", "red")] * 2
    test = [("is it red", "no"), ("is it red", "yes"), ("colour", "red"), ("unseen", "red"), ("unseen", "no")]
    assert text_only_accuracy(train, test) == pytest.approx(60.0)
    with pytest.raises(ValueError, match="needs training and test records"):
        text_only_accuracy([], test)
    with pytest.raises(ValueError, match="needs training and test records"):
        text_only_accuracy(train, [])


def test_pairs_of_records():
    question = QuestionRecord("a.png", "what?", 1, ("dog", "cat", "cat"), "vqa", None, None, (), "here")
    unanswered = QuestionRecord("a.png", "what?", 2, (), "vqa", None, None, (), "here")
    sentences = [EntailmentRecord("a.png", "a dog", label, (), "here") for label in (2, None, 0)]
    assert text_answer_pairs([question, unanswered, *sentences]) == [("what?", "cat"), ("a dog", 2), ("a dog", 0)]
