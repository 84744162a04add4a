"""Mistakes in the input of a script: one line on stderr and an exit status, under the launcher too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from script_modules import load_script
from tiny_tokenizer import build_tiny_tokenizer


ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples/pretrain.py"
SCRIPTS = [
    file
    for folder in ("examples", "examples/benchmarks")
    for file in sorted((ROOT / folder).glob("*.py"))
    if "def main(" in file.read_text(encoding="utf-8")
]


@pytest.fixture
def options(tmp_path):
    build_tiny_tokenizer(tmp_path).save_pretrained(tmp_path / "tokenizer")
    return [
        f"--config={ROOT / 'examples/configs/vicha/tiny.yaml'}",
        f"--output_dir={tmp_path / 'out'}",
        f"--data.tokenizer={tmp_path / 'tokenizer'}",
        f"--data.train={tmp_path / 'nowhere.json'}",
        "--trackers=[]",
    ]


def run(command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)


def test_bad_data_is_one_line_and_status_1(options):
    process = run([SCRIPT, *options])
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("pretrain.py: ") and "nowhere.json" in line
    assert "Traceback" in run([SCRIPT, *options, "--debug"]).stderr


def test_wrong_usage_is_one_line_and_status_2(options):
    process = run([SCRIPT, *options, "--learning_rat=1"])
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert "did you mean --learning_rate?" in line


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_script_names_the_option_that_was_meant(script, capsys):
    module = load_script(script)
    with pytest.raises(SystemExit) as stop:
        module.main(["--hepl"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "unknown option --hepl; did you mean --help?" in line
    assert "sys.exit(run_script(main))" in script.read_text(encoding="utf-8")


def test_the_launcher_leaves_our_line_last(options):
    launcher = ["-m", "accelerate.commands.launch", "--quiet"]
    launcher += ["--config_file", ROOT / "examples/accelerate_configs/cpu.yaml"]
    process = run([*launcher, SCRIPT, *options])
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith("pretrain.py: ") and "nowhere.json" in last


def test_of_two_processes_the_cause_is_named_last(options):
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    process = run([*launcher, SCRIPT, *options])
    assert process.returncode == 1
    # The other process may have been stopped before it could say a word.
    assert "[rank1]" not in process.stderr
    reported = [line for line in process.stderr.splitlines() if line.strip("= ")][-1]
    assert "traceback : pretrain.py: " in reported and "nowhere.json" in reported
