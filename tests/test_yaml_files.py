"""Configuration files that are none: one line with the file's name, at once, instead of a trace or a full memory."""

import os

import pytest

from vicha_hf.yaml_files import MAX_BYTES, read_yaml_mapping


BILLION = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{chr(ord(name) - 1)}'] * 10)}]\n" for name in "bcdefghi"
)


def test_a_configuration_is_read_with_a_mark_before_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: &a {b: 1}\nc: *a\nd:\n  <<: *a\n  e: caf\xc3\xa9\n")
    assert read_yaml_mapping(path) == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": "caf\u00e9"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no mapping"),
        (b"- a\n- b\n", "no mapping"),
        (b"a: [1\n", r"is not YAML.*line 2"),
        (b"a: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        (b"a: caf\xe9\n", "not UTF-8"),
        ("a: 1\n".encode("utf-16"), "not UTF-8"),
        (BILLION.encode(), "100,000 values"),
        (b"a: &a [*a]\n", "inside itself"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"a: " + b"1" * 5000, "is not YAML"),
        (b"a: 1\nb:\n  c: 1\n  c: 2\n", "gives c twice, on lines 3 and 4"),
        (b"a: " + b"x" * MAX_BYTES, "more than 1 MiB"),
    ],
)
def test_what_is_none_is_named(content, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)config\.yaml .*{message}"):
        read_yaml_mapping(path)


def test_pipes_devices_and_nothing_are_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", "/dev/zero", tmp_path):
        with pytest.raises(ValueError, match="not a regular file"):
            read_yaml_mapping(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_yaml_mapping(tmp_path / "nowhere.yaml")
