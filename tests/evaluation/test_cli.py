"""The command line: help, evaluation and conversion as a user types them."""

import json
import logging
from pathlib import Path

import pytest
import torch
from tiny_model_folder import write_gallery, write_model_folder

from vicha_hf.cli import main


@pytest.mark.parametrize("command", [[], ["convert"], ["evaluate"], ["demo-corpus"], ["demo"]])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: vicha-hf" in capsys.readouterr().out


def test_demo_hands_everything_to_its_script(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--output-dri", "x"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("vicha-hf demo: unknown option --output-dri; did you mean --output_dir?")
    assert main(["demo", "--config", "nowhere.yaml", "--output_dir", "/dev/null/demo"]) == 1
    assert capsys.readouterr().err.startswith("vicha-hf demo: --output_dir='/dev/null/demo' cannot be written to")


def test_evaluate_prints_a_table_and_writes_the_metrics(tmp_path, capsys):
    write_model_folder(tmp_path / "model")
    annotations = write_gallery(tmp_path)
    command = ["evaluate", str(tmp_path / "model"), str(annotations), "--k", "3", "--batch-size", "2"]
    assert main([*command, "--device", "cpu", "--json", str(tmp_path / "out" / "metrics.json")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    table = capsys.readouterr().out
    assert f"{metrics['r1_i2t']:7.1f}{metrics['r5_i2t']:7.1f}" in table
    assert metrics["num_captions"] == 8
    assert main([*command, "--no-use-concepts", "--json", str(tmp_path / "without.json")]) == 0
    assert json.loads((tmp_path / "without.json").read_text()) != metrics


def test_loading_a_whole_model_says_nothing(tmp_path, caplog, monkeypatch):
    write_model_folder(tmp_path / "model")
    # transformers' loggers write to a stream of their own.
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [caplog.handler])
    assert main(["evaluate", str(tmp_path / "model"), str(write_gallery(tmp_path)), "--device", "cpu"]) == 0
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_a_mistake_is_one_line_on_stderr(tmp_path, capsys):
    write_model_folder(tmp_path / "model")
    assert main(["evaluate", str(tmp_path / "model"), str(tmp_path / "nowhere.json")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("vicha-hf evaluate: ") and "nowhere.json" in error

    torch.save({"model": {"strange.weight": torch.zeros(1)}}, tmp_path / "strange.pth")
    assert main(["convert", str(tmp_path / "strange.pth"), str(tmp_path / "out")]) == 1
    assert "strange.pth" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    golden = Path(__file__).parents[1] / "golden/data/vicha_ve/original.pth"
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_attention_heads": 5}}))
    command = ["convert", str(golden), str(tmp_path / "out"), "--config", str(tmp_path / "config.json")]
    assert main(command) == 1
    assert "`text_config.num_attention_heads=5`" in capsys.readouterr().err
