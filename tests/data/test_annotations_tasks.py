"""Records of question answering, entailment and reasoning: what is read, and what is refused before training."""

import datasets
import pytest
from PIL import Image

from vicha_hf.data.annotations_entailment import read_entailment_records
from vicha_hf.data.annotations_reasoning import read_reasoning_records
from vicha_hf.data.annotations_vqa import read_question_records, vqa_references
from vicha_hf.data.answer_limit import AnswerLimit
from vicha_hf.data.image_files import EmbeddedImage
from vicha_hf.data.raw_records import AnnotationError
from vicha_hf.models.task_classification import VisualEntailmentTask
from vicha_hf.models.task_visual_reasoning import VisualReasoningTask


READERS = {
    "vqa": read_question_records,
    "entailment": read_entailment_records,
    "reasoning": read_reasoning_records,
}
GOOD = {
    "vqa": {"question_id": 1, "question": "is it red?", "image": "images/0.png", "answer": ["yes", "no", "yes"]},
    "entailment": {"image": "images/0.png", "sentence": "it is red", "label": "neutral"},
    "reasoning": {"images": ["images/0.png", "images/1.png"], "sentence": "both are red", "label": "True"},
}


def good(task, **changes):
    return {name: value for name, value in (GOOD[task] | changes).items() if value is not ...}


def test_questions_are_read_with_all_their_fields(write_json, image_folder):
    path = write_json(
        [
            good("vqa", dataset="vqa", question_type="is it", answer_type="yes/no", kwords=["dog", "dog"]),
            good("vqa", question_id="vg-7", answer="a dog", dataset="vg"),
            good("vqa", question_id=3, answer=..., answers=[{"answer": "red", "answer_confidence": "yes"}]),
        ]
    )
    first, second, third = read_question_records(path)
    assert first.image == str(image_folder / "images" / "0.png")
    assert (first.question, first.question_id, first.answers) == ("is it red?", 1, ("yes", "no", "yes"))
    assert (first.question_type, first.answer_type, first.concepts) == ("is it", "yes/no", ("dog",))
    assert (second.question_id, second.dataset, third.answers) == ("vg-7", "vg", ("red",))
    assert first.load_image().size == (50, 40)


def test_answers_weigh_their_share_and_half_in_visual_genome(write_json):
    path = write_json([good("vqa"), good("vqa", answer=["a", "b", "a", "a"], dataset="vg"), good("vqa", answer="c")])
    weights = [record.answer_weights() for record in read_question_records(path)]
    assert weights[0] == pytest.approx({"yes": 2 / 3, "no": 1 / 3})
    assert weights[1] == pytest.approx({"a": 0.375, "b": 0.125})
    assert weights[2] == {"c": 1.0}
    assert list(weights[0]) == ["yes", "no"]


def test_training_needs_answers_and_evaluation_names_questions(write_json):
    no_answer = write_json([good("vqa", answer=...)], "no_answer.json")
    assert read_question_records(no_answer, for_evaluation=True)[0].answers == ()
    with pytest.raises(AnnotationError, match=r"no_answer.json, record 0: field 'answer': missing"):
        read_question_records(no_answer)
    with pytest.raises(
        AnnotationError, match=r"no_answer.json, record 0: field 'answer': missing; add the annotators'"
    ):
        vqa_references(read_question_records(no_answer, for_evaluation=True))
    no_id = write_json([good("vqa", question_id=...)], "no_id.json")
    assert read_question_records(no_id)[0].question_id is None
    assert read_question_records(no_id, for_evaluation=True)[0].question_id == "0.png"
    twice = write_json([good("vqa"), good("vqa", question="is it green?")], "twice.json")
    assert len(read_question_records(twice)) == 2
    with pytest.raises(
        AnnotationError, match=r"record 1: field 'question_id': repeated \(1 is also that of .*record 0"
    ):
        read_question_records(twice, for_evaluation=True)


def test_questions_without_ids_are_named_by_their_images(write_json):
    """As VizWiz has them: {"image", "question", "answers": [{"answer", "answer_confidence"}], "answerable"}."""
    unnamed = [good("vqa", question_id=..., answer=..., answers=[{"answer": "red"}], answerable=1) for _ in range(2)]
    read = read_question_records(write_json([*unnamed, good("vqa", question_id=5)]), for_evaluation=True)
    assert [record.question_id for record in read] == ["0.png", "0.png#2", 5]


def test_one_empty_answer_among_ten_is_left_out(write_json):
    annotations = read_question_records(write_json([good("vqa", answer=["yes"] * 9 + [" "])]))
    assert annotations[0].answers == ("yes",) * 9
    assert annotations.report.notes == {"field 'answer': empty answers left out": 1}


def test_answers_longer_than_the_decoder_are_found_while_reading(write_json, tiny_processor):
    limit = AnswerLimit(tiny_processor.tokenizer, max_tokens=5)
    path = write_json([good("vqa", answer="red dog"), good("vqa", answer="a red dog on the grass")])
    with pytest.raises(AnnotationError, match=r"record 1: field 'answer': too long for the decoder \(8 tokens, .* 5"):
        read_question_records(path, answer_limit=limit)
    assert len(read_question_records(path, answer_limit=limit, on_bad_record="skip")) == 1
    with pytest.raises(AnnotationError, match=r"answers.json, entry 1: 8 tokens"):
        limit.require_fitting_list(["red", "a red dog on the grass"], "answers.json")


def test_references_are_what_the_accuracy_takes(write_json):
    path = write_json([good("vqa", question_type="is it"), good("vqa", question_id="b", answer="red")])
    references = vqa_references(read_question_records(path, for_evaluation=True))
    assert references == {
        1: {"answers": ["yes", "no", "yes"], "question_type": "is it"},
        "b": {"answers": ["red"]},
    }


def test_labels_are_the_classes_of_the_heads(write_json):
    names = ("entailment", "neutral", "contradiction")
    path = write_json([good("entailment", label=name) for name in names])
    assert [VisualEntailmentTask.CLASSES[record.label] for record in read_entailment_records(path)] == [*names]
    path = write_json([good("reasoning", label=label) for label in ("True", "False", True, False)])
    assert [record.label for record in read_reasoning_records(path)] == [1, 0, 1, 0]
    assert VisualReasoningTask.CLASSES == ("False", "True")


@pytest.mark.parametrize("task", ["entailment", "reasoning"])
def test_labels_may_be_left_out_where_that_is_said(write_json, task):
    path = write_json([good(task, label=...), good(task)])
    assert [record.label is None for record in READERS[task](path, require_labels=False)] == [True, False]
    with pytest.raises(AnnotationError, match="record 0: field 'label': missing"):
        READERS[task](path)
    wrong = write_json([good(task, label="maybe")])
    with pytest.raises(AnnotationError, match="unknown label"):
        READERS[task](wrong, require_labels=False)


def test_pairs_of_images_and_of_concepts(write_json, image_folder):
    path = write_json(
        [
            good("reasoning", concepts=[["dog"], []]),
            good("reasoning", kwords1=["dog", "dog"], kwords2=["cat"]),
            good("reasoning"),
        ]
    )
    records = list(read_reasoning_records(path))
    assert records[0].images == tuple(str(image_folder / "images" / f"{n}.png") for n in (0, 1))
    assert [record.concepts for record in records] == [(("dog",), ()), (("dog",), ("cat",)), ((), ())]
    assert [image.size for image in records[0].load_images()] == [(50, 40), (49, 41)]


@pytest.mark.parametrize(
    ("task", "changes", "expected"),
    [
        ("vqa", {"image": ...}, r"field 'image': missing"),
        ("vqa", {"image": "images/none.png"}, r"field 'image': file not found \(.*none.png\); add the file"),
        ("vqa", {"question": ...}, r"field 'question': missing"),
        ("vqa", {"question": " ?"}, r"field 'question': empty \(' \?' holds no word\)"),
        ("vqa", {"question": ["a"]}, r"field 'question': wrong type"),
        ("vqa", {"answer": []}, r"field 'answer': empty \(an empty list\); write an answer"),
        ("vqa", {"answer": ["", " "]}, r"field 'answer': empty \('' is the only one\)"),
        ("vqa", {"answer": ["yes", 2]}, r"field 'answer': wrong type \(got int 2\)"),
        ("vqa", {"answer": {"a": 1}}, r"field 'answer': wrong type \(got dict"),
        ("vqa", {"answer": ..., "answers": [{"text": "a"}]}, r"field 'answers': wrong type \(got dict"),
        ("vqa", {"question_id": [1]}, r"field 'question_id': wrong type \(got list"),
        ("vqa", {"dataset": "gqa"}, r"field 'dataset': unknown corpus \(got str 'gqa'\); write \"vqa\""),
        ("vqa", {"question_type": 3}, r"field 'question_type': wrong type"),
        ("entailment", {"image": None}, r"field 'image': missing \(its value is null\)"),
        ("entailment", {"sentence": ""}, r"field 'sentence': empty"),
        ("entailment", {"label": "-"}, r"field 'label': unknown label \(got '-'\); write one of 'contradiction'"),
        ("entailment", {"label": "Entailment"}, r"field 'label': unknown label"),
        ("entailment", {"label": 2}, r"field 'label': wrong type \(got int 2\); write one of"),
        ("entailment", {"label": True}, r"field 'label': unknown label \(got 'True'\)"),
        ("reasoning", {"label": "true"}, r"field 'label': unknown label \(got 'true'\); write one of 'False', 'True'"),
        ("reasoning", {"label": 1}, r"field 'label': wrong type"),
        ("reasoning", {"images": ["images/0.png"]}, r"field 'images': not two images \(got 1: .*left and the right"),
        ("reasoning", {"images": ["images/0.png"] * 3}, r"field 'images': not two images \(got 3"),
        ("reasoning", {"images": "images/0.png"}, r"field 'images': wrong type"),
        ("reasoning", {"images": ["images/0.png", None]}, r"field 'images': wrong type \(got NoneType None\)"),
        ("reasoning", {"images": ["images/0.png", "no.png"]}, r"field 'images': file not found"),
        ("reasoning", {"concepts": ["dog", "cat"]}, r"field 'concepts': wrong type \(got str 'dog'\)"),
        ("reasoning", {"concepts": [["dog"]]}, r"field 'concepts': not two lists"),
        ("reasoning", {"kwords2": "cat"}, r"field 'kwords2': wrong type"),
    ],
)
def test_bad_record_is_named_and_can_be_left_out(write_json, task, changes, expected):
    path = write_json([good(task), good(task, **({"question_id": 2} if task == "vqa" else {}) | changes)])
    with pytest.raises(AnnotationError, match=rf"train.json, record 1: {expected}"):
        READERS[task](path)
    annotations = READERS[task](path, on_bad_record="skip")
    assert (annotations.report.num_read, annotations.report.num_kept, annotations.report.num_skipped) == (2, 1, 1)


def test_missing_file_of_annotations(tmp_path):
    for read in READERS.values():
        with pytest.raises(AnnotationError, match="annotation file not found"):
            read(tmp_path / "none.json", on_bad_record="skip")


@pytest.fixture
def left_and_right():
    return [Image.new("RGB", (8 + row, 9), (row, 0, side)) for row in range(3) for side in (1, 2)]


def test_datasets_with_two_columns_of_images(left_and_right, tmp_path):
    features = {
        "left": datasets.Image(),
        "right": datasets.Image(),
        "depth": datasets.Image(),
        "sentence": datasets.Value("string"),
        "label": datasets.Value("bool"),
    }
    columns = {
        "left": left_and_right[::2],
        "right": left_and_right[1::2],
        "depth": left_and_right[::2],
        "sentence": ["a", "b", "c"],
        "label": [True, False, True],
    }
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(tmp_path / "pairs")
    source = {"path": str(tmp_path / "pairs"), "columns": {"images": ["left", "right"]}}
    records = list(read_reasoning_records(source))
    assert [record.label for record in records] == [1, 0, 1]
    assert all(isinstance(image, EmbeddedImage) for image in records[2].images)
    assert [image.getpixel((0, 0)) for image in records[2].load_images()] == [(2, 0, 1), (2, 0, 2)]
    with pytest.raises(AnnotationError, match="no column 'middle' for the field 'images'"):
        read_reasoning_records(source | {"columns": {"images": ["left", "middle"]}})


def test_dataset_with_a_column_of_lists_of_images(left_and_right):
    rows = [left_and_right[0:2], left_and_right[2:4], left_and_right[4:5]]
    features = datasets.Features({"images": datasets.List(datasets.Image()), "sentence": datasets.Value("string")})
    dataset = datasets.Dataset.from_dict({"images": rows, "sentence": ["a", "b", "c"]}, features=features)
    annotations = read_reasoning_records(dataset, require_labels=False, on_bad_record="skip")
    assert (len(annotations), annotations.report.num_skipped) == (2, 1)
    assert [image.getpixel((0, 0)) for image in annotations[1].load_images()] == [(1, 0, 1), (1, 0, 2)]
    assert "row 1, image 0" in str(annotations[1].images[0])


def test_class_labels_of_a_dataset_are_read_by_name(left_and_right):
    # SNLI's order on the Hub is not this library's.
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
        }
    )
    columns = {"image": left_and_right[:3], "sentence": ["a", "b", "c"], "label": [0, 2, -1]}
    dataset = datasets.Dataset.from_dict(columns, features=features)
    annotations = read_entailment_records(dataset, on_bad_record="skip")
    assert [VisualEntailmentTask.CLASSES[record.label] for record in annotations] == ["entailment", "contradiction"]
    assert annotations.report.causes == {"field 'label': missing": 1}


def test_question_without_an_image_in_a_dataset(left_and_right):
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string")} | {"answer": datasets.Value("string")}
    )
    columns = {"image": [left_and_right[0], None], "question": ["a", "b"], "answer": ["c", "d"]}
    with pytest.raises(AnnotationError, match=r"record 1: field 'image': missing \(its value is null\)"):
        read_question_records(datasets.Dataset.from_dict(columns, features=features))
