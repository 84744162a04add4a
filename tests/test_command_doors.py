"""Every command of `vicha-hf`: it explains itself, and it names a folder that is not there."""

import pytest
from tiny_model_folder import write_gallery

from vicha_hf.cli import build_parser, main
from vicha_hf.command_parser import CommandParser


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
    ],
)
def test_a_misspelt_option_is_named_before_what_it_should_have_given(command, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


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
