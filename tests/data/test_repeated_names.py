"""A name that stands twice in one object: the last value won, and the first was lost without a word."""

import json

import pytest
from numbered_shards import jpeg, write_tar

from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.annotations_refcoco import RefCocoSource
from vicha_hf.data.annotations_vqa import read_question_records
from vicha_hf.data.answer_list import read_answer_list
from vicha_hf.data.json_names import may_repeat_names
from vicha_hf.data.json_reading import decode_json, iterate_json_lines, iterate_json_list
from vicha_hf.data.raw_records import AnnotationError
from vicha_hf.data.stream_shards import stream_shards


GOOD = '{"image": "images/0.png", "caption": ":) a \\"dog\\": {1}", "concepts": []}'
TWICE = '{"image": "images/0.png", "caption": "a dog", "caption" : "a cat"}'
PROBLEM = r"field 'caption': given twice \(str 'a dog', then str 'a cat'\); keep one of the two"


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.json", f"[{GOOD}, {TWICE}, {GOOD}]", "record 1"),
        ("a.json", f"[{GOOD}, {GOOD}, {TWICE}]", "record 2"),
        ("a.jsonl", f"{GOOD}\n{TWICE}\n{GOOD}\n", r"record 1 \(line 2\)"),
    ],
)
def test_a_record_in_a_file(image_folder, name, content, place):
    path = image_folder / name
    path.write_text(content)
    with pytest.raises(AnnotationError, match=rf"{name}, {place}: {PROBLEM}"):
        read_image_text_records(path)
    found = read_image_text_records(path, on_bad_record="skip")
    assert len(found) == 2 and found.report.causes == {"field 'caption': given twice": 1}


def test_an_object_within_a_record(image_folder):
    path = image_folder / "a.jsonl"
    record = (
        '{"question_id": 1, "image": "images/0.png", "question": "what", "answers": [{"answer": "a", "answer": "b"}]}'
    )
    path.write_text(record)
    with pytest.raises(AnnotationError, match=r"record 0 \(line 1\): field 'answer': given twice"):
        read_question_records(path)


def test_a_cell_of_a_table(image_folder):
    path = image_folder / "a.csv"
    cell = '[{"answer": "a", "answer": "b"}]'.replace('"', '""')
    path.write_text(f'question_id,image,question,answers\n1,images/0.png,what,"{cell}"\n')
    with pytest.raises(AnnotationError, match=r"record 0 \(line 2\): field 'answer': given twice"):
        read_question_records(path)


def test_shards_and_streams(tmp_path):
    texts = [(f"{n}.json", json.dumps({"caption": "a tree"}).encode()) for n in range(2)]
    broken = ("2.json", b'{"caption": "a dog", "caption": "a cat"}')
    write_tar(tmp_path / "a.tar", sorted([*((f"{n}.jpg", jpeg(n)) for n in range(3)), *texts, broken]))
    with pytest.raises(AnnotationError, match=rf"a\.tar, record 2: {PROBLEM}"):
        read_image_text_records(tmp_path / "a.tar")
    (tmp_path / "a.jsonl").write_text(f"{GOOD}\n{GOOD}\n{TWICE}\n")
    for name in ("a.tar", "a.jsonl"):
        (shard,) = stream_shards({"path": str(tmp_path / name), "streaming": True})
        problems = [record.problem for record in shard.records()]
        assert problems[:2] == [None, None] and problems[2].label == "field 'caption': given twice"


def test_columns_of_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = [pyarrow.array([text]) for text in ("a.png", "a dog", "a cat")]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["image", "caption", "caption"]), path)
    message = r"a\.parquet: the column 'caption' stands there twice; give each its own name"
    with pytest.raises(AnnotationError, match=message):
        read_image_text_records(path)
    (shard,) = stream_shards({"path": str(path), "streaming": True})
    with pytest.raises(AnnotationError, match=message):
        list(shard.records())


def test_whole_files(tmp_path):
    """Where a second list of boxes for an image replaced the first."""
    boxes = tmp_path / "dets.json"
    boxes.write_text('{"7": [{"box": [0, 0, 1, 1]}], "7": []}')
    for name, content in (("refs.json", "[]"), ("instances.json", '{"images": [], "annotations": []}')):
        (tmp_path / name).write_text(content)
    source = RefCocoSource(
        str(tmp_path / "refs.json"), str(tmp_path / "instances.json"), str(tmp_path), detections=str(boxes)
    )
    with pytest.raises(AnnotationError, match=r"dets\.json: field '7': given twice"):
        list(source.iterate_records())
    (tmp_path / "answers.json").write_text('[{"a": 1, "a": 2}]')
    with pytest.raises(AnnotationError, match=r"answers\.json: .*field 'a': given twice"):
        read_answer_list(tmp_path / "answers.json")


@pytest.mark.parametrize("value", [GOOD, "5", '"a: b"', "[]", '[1, {"a": {"b": 1}}]', '{"a\\\\": 1}', '{"a": "\\\\"}'])
def test_what_has_every_name_once_is_taken(tmp_path, value):
    """Texts with colons, quotation marks and braces look like names."""
    expected = json.loads(value)
    assert decode_json(value) == expected
    (tmp_path / "a.jsonl").write_text(value)
    assert list(iterate_json_lines(tmp_path / "a.jsonl")) == [(1, expected, None)]
    (tmp_path / "a.json").write_text(f"[{value}, {value}]")
    assert list(iterate_json_list(tmp_path / "a.json")) == [(expected, None)] * 2


def test_usual_records_are_decoded_once():
    """The check alone, without a second decoding, tells them from those that may repeat a name."""
    for text in ('{"image": "a", "caption": "b"}', '{"image": "http://a", "answers": [{"answer": "at 12:30"}]}'):
        assert not may_repeat_names(text, json.loads(text))
        assert not may_repeat_names(text.encode(), json.loads(text))
        assert not may_repeat_names(f"[{text},{text}]", [json.loads(text)] * 2)
    assert may_repeat_names(TWICE, json.loads(TWICE))
