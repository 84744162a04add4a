"""Hostile and mistaken files: one clear line with file and record, in bounded time and memory."""

import json
import os
import tracemalloc

import pytest

from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.json_reading import iterate_json_list
from vicha_hf.data.raw_records import AnnotationError


GOOD = {"image": "images/0.png", "caption": "a dog"}


@pytest.mark.parametrize("whitespace", ["", " ", "\n\t"])
def test_lists_longer_than_the_window(tmp_path, whitespace):
    values = [{"text": "ü🦓" * 1000, "number": number} for number in range(1500)] + [1, 12.5, "x", None, [[]], {}]
    path = tmp_path / "a.json"
    separator = f",{whitespace}"
    content = f"{whitespace}[{separator.join(json.dumps(value, ensure_ascii=False) for value in values)}{whitespace}]"
    path.write_text(content + whitespace, encoding="utf-8")
    assert path.stat().st_size > 8 * 2**20
    tracemalloc.start()
    assert sum(found == (value, None) for found, value in zip(iterate_json_list(path), values, strict=True)) == len(
        values
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 2**20


def test_a_mark_at_the_beginning_is_no_content(write_json, image_folder):
    for name, content in (("a.json", json.dumps([GOOD])), ("a.jsonl", json.dumps(GOOD))):
        path = image_folder / name
        path.write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert len(read_image_text_records(path)) == 1


@pytest.mark.parametrize("mode", ["raise", "skip"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{"image": "a.png", "caption": ', "line 1 column"),
        (b'[{"image": "a.png"}\n{"image": 1}]', r"expected ',' or '\]' after a record: line 2 column 1"),
        (b"[1] 2", "extra data after the list: line 1 column 5"),
        (b'[{"a": 1},\n]', r"a comma before the closing \]: line 2 column 1\); correct the file there"),
        (b'[\n{"a": 1, }, {"a": 2}]', r"a comma before the closing \}: line 2 column"),
        (b'[{"a": [1,]}]', r"a comma before the closing \]: line 1 column"),
        (b'[{"a": "]" 1}]', "Expecting ',' delimiter: line 1 column 12"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b'{"a":' * 100_000, "nested too deeply"),
        (b"[" + b"9" * 10_000 + b"]", "a number of thousands of digits"),
        (json.dumps([GOOD]).encode("utf-16"), "encoded as UTF-16; save the file as UTF-8"),
        (json.dumps([GOOD]).encode("utf-16-le"), "encoded as UTF-16 or UTF-32"),
        (b'[{"image": "caf\xe9.png"}]', "byte 0xe9 in line 1 is not UTF-8"),
        (b"", "the file is empty"),
        (b"<html></html>", "not readable as JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b'{"images": []}', "converted by `vicha-hf data import`"),
    ],
)
def test_files_that_are_no_list_of_records(image_folder, mode, content, expected):
    path = image_folder / "a.json"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=rf"a\.json: .*{expected}") as error:
        read_image_text_records(path, on_bad_record=mode)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b"[" * 100_000, "not readable as JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not readable as JSON"),
        (b'{"image": "caf\xe9.png"}', "not encoded as UTF-8"),
        (b'{"image": "images/0.png", "caption": "\\ud83e"}', "field 'caption': a lone surrogate, half a character"),
        (b'{"image": "images/0.png", "caption": "a\\u0000b"}', "field 'caption': a NUL character"),
        (b'{"image": "a\\u0000b", "caption": "a"}', "field 'image': a NUL character"),
        (b'{"image": "\\udcff", "caption": "a"}', "field 'image': a lone surrogate, half a character"),
        (b'{"image": "images/0.png", "caption": "a", "image_id": NaN}', "field 'image_id': no identifier"),
        (
            b'{"image": "images/0.png", "caption": "a", "concepts": ["\\ud83e"]}',
            "field 'concepts': a lone surrogate, half a character",
        ),
        (b'{"image": "https://x.org/a.jpg", "caption": "a"}', "field 'image': an address"),
    ],
)
def test_bad_lines_are_named_or_skipped(image_folder, line, cause):
    path = image_folder / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n" + json.dumps(GOOD).encode())
    with pytest.raises(AnnotationError) as error:
        read_image_text_records(path)
    # What is printed and written to a log must be able to be.
    assert f"a.jsonl, record 1 (line 2): {cause}" in str(error.value).encode().decode()
    annotations = read_image_text_records(path, on_bad_record="skip")
    assert len(annotations) == 2 and annotations.report.causes == {cause: 1}
    assert annotations.report.rejects_as_jsonl().encode()


def test_a_line_without_end_is_not_kept_in_memory(image_folder, monkeypatch):
    from vicha_hf.data import json_reading

    monkeypatch.setattr(json_reading, "MAX_RECORD_LENGTH", 1000)
    path = image_folder / "a.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + "x" * 5000 + "\n" + json.dumps(GOOD))
    annotations = read_image_text_records(path, on_bad_record="skip")
    assert annotations.report.causes == {"a line that is too long": 1} and len(annotations) == 2


def test_pipes_and_folders_are_no_files(image_folder):
    os.mkfifo(image_folder / "pipe.json")
    with pytest.raises(AnnotationError, match=r"pipe.json: no file but a pipe, socket or device"):
        read_image_text_records(image_folder / "pipe.json")
    with pytest.raises(AnnotationError, match=r"null: no file but a pipe, socket or device"):
        read_image_text_records("/dev/null")
    # Training would wait for ever.
    os.mkfifo(image_folder / "images" / "pipe.png")
    (image_folder / "a.json").write_text(json.dumps([GOOD | {"image": "images/pipe.png"}]))
    with pytest.raises(AnnotationError, match="file not found"):
        read_image_text_records(image_folder / "a.json")


def test_long_captions_are_captions(image_folder):
    (image_folder / "a.json").write_text(
        json.dumps([GOOD | {"caption": "x" * 100_000}, GOOD | {"concepts": ["a"] * 500}])
    )
    read = read_image_text_records(image_folder / "a.json")
    assert len(read[0].captions[0]) == 100_000 and read[1].concepts == ("a",)


def test_many_records_at_once_are_those_one_by_one(tmp_path):
    """Whatever stands at any byte of a list: the values of Python's own decoder, or one clear line."""
    values = [
        {"a": "}, {", "b": [{"c": 1}, {"d": '\\"},'}]},
        {"e": {"f": {}}, "g": 1e5},
        {"h": "ü\u2028"},
        {"i": None, "j": [True]},
    ]
    path, whole = tmp_path / "a.json", json.dumps(values, ensure_ascii=False).encode()
    # As files have it that were written record by record.
    whole = whole.replace(b', {"h"', b'\n,{"h"')
    changed = [whole[:cut] for cut in range(len(whole))]
    for byte in (b'"', b"}", b",", b"\0", b"\xff", b"NaN"):
        changed += [whole[:place] + byte + whole[place + 1 :] for place in range(len(whole))]
    agreed = 0
    for content in [whole, whole.replace(b"1e5", b"NaN"), *changed]:
        path.write_bytes(content)
        try:
            expected = json.loads(content.decode())
        except ValueError:
            expected = None
        try:
            found = [value for value, _ in iterate_json_list(path)]
        except AnnotationError as error:
            assert expected is None or not isinstance(expected, list), content
            assert str(error).startswith(str(path)) and "\n" not in str(error)
        else:
            # NaN is not equal to itself.
            assert repr(found) == repr(expected), content
            agreed += 1
    assert agreed > 50


def test_numbers_of_more_than_64_bits_are_no_identifiers(image_folder):
    """A fast decoder rounds them: two images would become one."""
    records = ", ".join(
        f'{{"image": "images/{number}.png", "caption": "a", "image_id": {2**64 + number}}}' for number in range(2)
    )
    (image_folder / "a.json").write_text(f"[{records}]")
    with pytest.raises(AnnotationError, match=r"field 'image_id': a number of more than 64 bits.*write it as a text"):
        read_image_text_records(image_folder / "a.json")
