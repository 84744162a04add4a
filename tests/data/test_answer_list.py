import pytest

from vicha_hf.data.annotations_vqa import QuestionRecord
from vicha_hf.data.answer_list import build_answer_list, read_answer_list, write_answer_list
from vicha_hf.data.raw_records import AnnotationError


def question(*answers):
    return QuestionRecord("a.png", "what?", 1, answers, "vqa", None, None, (), "here")


def test_most_frequent_first_then_alphabetical():
    records = [question("no"), question("yes"), question("yes", "two"), question("2", "2", "2"), question("apple")]
    assert build_answer_list(records) == ["yes", "2", "apple", "no", "two"]
    assert build_answer_list(records, max_size=2) == ["yes", "2"]
    assert build_answer_list(records, min_count=2) == ["yes"]
    assert build_answer_list(reversed(records)) == build_answer_list(records)


def test_a_question_counts_once_however_many_annotators_agree():
    assert build_answer_list([question("b", "b", "b"), question("a"), question("a ")]) == ["a", "b"]


def test_impossible_requests():
    with pytest.raises(AnnotationError, match=r"given to 3 questions \(1 different answers\); lower min_count"):
        build_answer_list([question("a")], min_count=3)
    with pytest.raises(ValueError, match="max_size=0"):
        build_answer_list([question("a")], max_size=0)


def test_written_and_read(tmp_path):
    write_answer_list(tmp_path / "answers.json", ["yes", "café"])
    assert read_answer_list(tmp_path / "answers.json") == ["yes", "café"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not readable as JSON"),
        ("[]", r"not a list of answers, or empty \(got list \[\]\)"),
        ('{"yes": 1}', "not a list of answers"),
        ('["yes", 2]', r"entry 1: no text \(got int 2\)"),
        ('["yes", " "]', "entry 1: no text"),
        ('["yes", "no", "yes"]', r"entry 2: 'yes' again \(first as entry 0\)"),
    ],
)
def test_unusable_lists_are_named(tmp_path, content, expected):
    path = tmp_path / "answers.json"
    path.write_text(content)
    with pytest.raises(AnnotationError, match=rf"answers.json.*{expected}.*; write a list"):
        read_answer_list(path)
    with pytest.raises(AnnotationError, match="answer list not found"):
        read_answer_list(tmp_path / "none.json")
