"""Every command of `vicha-hf`: it explains itself, and it names a folder that is not there."""

import shutil

import pytest
from tiny_model_folder import tiny_processor, write_gallery, write_model_folder
from tiny_models import tiny_config

from vicha_hf import ViChaForVQA, __version__
from vicha_hf.cli import build_parser, main
from vicha_hf.command_parser import CommandParser
from vicha_hf.concepts import ConceptIndex, DualEncoder
from vicha_hf.models.concept_selector import CONCEPT_INDEX_FOLDER


MISSING = "nowhere/at/all"


def commands(parser, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every subcommand, those below others included."""
    found = []
    for action in parser._actions:
        if isinstance(getattr(action, "choices", None), dict):
            for name, below in action.choices.items():
                found += [(*prefix, name), *commands(below, (*prefix, name))]
    return found


@pytest.mark.parametrize("command", commands(build_parser()), ids=" ".join)
def test_every_command_explains_itself(command, capfd):
    try:
        status = main([*command, "--help"])
    except SystemExit as stop:
        status = stop.code
    assert not status
    assert "usage:" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["index", "--outptu", "x"], "vicha-hf index: unknown option --outptu; did you mean --output?"),
        (["index", "--batch_sise=2"], "vicha-hf index: unknown option --batch_sise; did you mean --batch-size?"),
        (["concepts", "build", "c.json", "--encodr", "x"], "unknown option --encodr; did you mean --encoder?"),
        (["evaluate", "model", "--tsak", "vqa"], "unknown option --tsak; did you mean --task?"),
        (["tokenizer", "c.json", "--vocab_size", "9"], "are required: --output"),
        (["index", "images", "--", "--outptu"], "are required: --output"),
        (["data", "chek", "c.json"], "did you mean check?"),
        (["exprt"], "did you mean export?"),
        (["export", "-z"], "vicha-hf export: unknown option -z"),
        (["--hepl"], "vicha-hf: unknown option --hepl; did you mean --help?"),
        (["data", "--hepl"], "vicha-hf data: unknown option --hepl; did you mean --help?"),
        (["search", "index", "-dog"], "vicha-hf search: unknown option -dog"),
        (
            ["evaluate", "m", "d", "--task", "retreival"],
            "task='retreival' is not possible: give one of retrieval, vqa",
        ),
        (["evaluate", "m", "d", "--task", "retreival"], "did you mean retrieval?"),
        (["evaluate", "m", "d", "--batch_size", "x"], "batch_size='x' is not possible: give a whole number"),
        (["evaluate", "m", "d", "--layer_itm", "1.5"], "layer_itm='1.5' is not possible: give a whole number or null"),
        (["evaluate", "m", "{path: a, path: b}"], "--data={path: a, path: b} gives path twice; leave one out"),
        (["evaluate", "m", "--data", "[{path: a, path: b}]"], "gives path twice; leave one out"),
        (["evaluate", "m", "--data+", "{path: a, path: b}"], "{path: a, path: b} gives path twice; leave one out"),
        (["evaluate", "m", "d", "--splits"], "--splits takes one value or several; [] is none"),
    ],
)
def test_a_misspelt_option_is_named_before_what_it_should_have_given(command, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2, command
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code
    assert capsys.readouterr().out == f"vicha_hf {__version__}\n"


def test_scripts_take_both_spellings_of_an_option(capsys):
    parser = CommandParser(prog="script.py")
    parser.add_argument("--output_dir")
    parser.add_argument("--min-count", type=int)
    found = parser.parse_args(["--output-dir", "a_b-c", "--min_count=3"])
    assert (found.output_dir, found.min_count) == ("a_b-c", 3)
    with pytest.raises(SystemExit):
        parser.parse_args(["--outptu_dir", "x"])
    assert "script.py: unknown option --outptu_dir; did you mean --output_dir?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", MISSING, "ANNOTATIONS"],
        ["report", MISSING],
        ["index", "FOLDER", MISSING, "--output", "index"],
        ["ask", MISSING, "IMAGE", "how many"],
        ["ground", MISSING, "IMAGE", "a dog", "--output", "out.png"],
        ["concepts", "build", "ANNOTATIONS", "--encoder", MISSING, "--output", "concepts"],
        ["visual-tokens", "--tokenizer", MISSING, "--data", "ANNOTATIONS", "--output", "tokens.safetensors"],
    ],
    ids=lambda command: command[0],
)
def test_a_model_that_is_not_there_is_named_in_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"ANNOTATIONS": str(write_gallery(tmp_path)), "FOLDER": str(tmp_path), "IMAGE": str(tmp_path / "0.png")}
    assert main([places.get(word, word) for word in command]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vicha-hf")]
    assert f"{MISSING} is not there" in line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate", "IMAGE", "ANNOTATIONS"], "0.png is a file: give the folder of a model"),
        (["export", "ANNOTATIONS", "out"], "annotations.json is a file: give the folder of a model"),
        (
            ["concepts", "embed", "--encoder", "VQA", "--corpus", "ANNOTATIONS", "--output", "e"],
            "embeddings would be random",
        ),
        (["concepts", "build", "ANNOTATIONS", "--encoder", "VQA", "--output", "b"], "embeddings would be random"),
        (["concepts", "index", "VQA", "--vocabulary", "WORDS"], "embeddings would be random"),
        (["concepts", "show", "VQA", "nope.png"], "cannot read the image nope.png (file not found"),
        (["ask", "MODEL", "IMAGE", "how many"], "It is a model for retrieval"),
        (["ask", "VQA", "nope.png", "how many"], "image file not found: nope.png"),
        (["convert", "WORDS", "out"], "or it is cut off or damaged"),
        (["convert", "WORDS", "out", "--verify", "nope.safetensors"], "nope.safetensors is not there"),
        (
            ["tokenizer", "ANNOTATIONS", "--output", "WORDS"],
            "--output='WORDS' cannot be written to: it is a file; name a folder",
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_file_or_model_of_another_kind_is_one_line(command, message, folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    places = {"ANNOTATIONS": "annotations.json", "IMAGE": "0.png"}
    assert main([places.get(word, word) for word in command]) == 1
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    (line,) = [line for line in lines if line and "Loading weights" not in line]
    assert line.startswith("vicha-hf") and message in line


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "COPY", "annotations.json"],
        ["index", "annotations.json", "COPY", "--output", "index"],
        ["ground", "COPY", "0.png", "a dog", "--output", "out.png"],
        ["export", "COPY", "exported", "--format", "torch_export"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "processor_config.json"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_model_that_was_copied_half_is_named_with_the_remedy(
    command, name, share, folders, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_gallery(tmp_path)
    shutil.copytree(folders / "MODEL", tmp_path / "COPY")
    file = tmp_path / "COPY" / name
    content = file.read_bytes()
    file.unlink()
    if share:
        file.write_bytes(content[: int(share * len(content))])
    assert main(command) == 1
    line = capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    assert line.startswith("vicha-hf") and "COPY" in line and "again" in line


def test_an_encoder_whose_weights_were_copied_half_is_named(folders, tmp_path, capsys):
    shutil.copytree(folders / "MODEL", tmp_path / "COPY")
    weights = tmp_path / "COPY/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    command = ["concepts", "embed", "--encoder", str(tmp_path / "COPY"), "--corpus", str(folders / "annotations.json")]
    assert main([*command, "--output", str(tmp_path / "out")]) == 1
    assert f"{weights} is cut off" in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_part_of_split_weights_is_named(folders, tmp_path, capsys):
    model = ViChaForVQA.from_pretrained(folders / "VQA")
    shutil.copytree(folders / "VQA", tmp_path / "split", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "split", max_shard_size="100KB")
    part = sorted((tmp_path / "split").glob("*.safetensors"))[1]
    part.unlink()
    assert main(["ask", str(tmp_path / "split"), str(folders / "0.png"), "how many"]) == 1
    assert f"{part} is not there, or is no file: copy or download it again" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A gallery, words, a model for retrieval and one for questions."""
    root = tmp_path_factory.mktemp("folders")
    write_gallery(root)
    (root / "WORDS").write_text("dog\ncat\n")
    write_model_folder(root / "MODEL")
    tiny_processor(root).save_pretrained(root / "VQA")
    ViChaForVQA(tiny_config()).save_pretrained(root / "VQA")
    ConceptIndex.build(["dog"], DualEncoder.from_pretrained(str(root / "MODEL")), ("{}",), 1).save_pretrained(
        root / "VQA" / CONCEPT_INDEX_FOLDER
    )
    return root
