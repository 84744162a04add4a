"""Files of figures: whose they are stands in them, and no other file is replaced."""

import argparse

import pytest
from script_modules import ROOT, load_script

from vicha_hf.whole_files import OutputFolderError


@pytest.fixture(scope="module")
def measuring():
    return load_script("examples/benchmarks/measuring.py")


def parsed(measuring, path, benchmark="loader"):
    parser = argparse.ArgumentParser()
    measuring.add_json_option(parser, benchmark)
    return parser.parse_args([] if path is None else ["--json", str(path)]).json


def test_earlier_figures_of_the_same_benchmark_are_replaced(measuring, tmp_path):
    path = tmp_path / "made" / "figures.json"
    path.parent.mkdir()
    path.touch()
    for rate in (1.0, 2.0):
        parsed(measuring, path).write({"rate": rate})
    assert path.read_text() == '{\n  "benchmark": "loader",\n  "rate": 2.0\n}\n'
    parsed(measuring, None).write({"rate": 3.0})


@pytest.mark.parametrize("content", ['{"benchmark": "concepts"}', '{"rate": 1}', "[1]", "notes"])
def test_nothing_else_is_replaced(measuring, tmp_path, content):
    path = tmp_path / "figures.json"
    path.write_text(content)
    with pytest.raises(OutputFolderError, match="is there already and no earlier result of loader: name another file"):
        parsed(measuring, path)
    assert path.read_text() == content


def test_every_benchmark_names_itself():
    scripts = [path for path in (ROOT / "examples/benchmarks").glob("*.py") if path.stem != "measuring"]
    with_json = [path for path in scripts if "json_option(" in path.read_text()]
    assert len(with_json) == 17
    assert all(f'add_json_option(parser, "{path.stem}")' in path.read_text() for path in with_json)
    assert not [path.stem for path in scripts if '"--json"' in path.read_text() and path not in with_json]
