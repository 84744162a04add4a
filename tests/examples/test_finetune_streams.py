"""Fine-tuning on streams: the same promises as pretraining, for every task's script."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_finetune_scripts import SCRIPTS, options, reproducible_log

from vicha_hf.data.read_report import RejectsFile
from vicha_hf.training.checkpoints import list_checkpoints


ROOT = Path(__file__).parents[2]
NUM_SHARDS = 3
TASKS = ("retrieval", "vqa", "entailment", "reasoning", "grounding")

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def shards(task_files):
    """Every task's records in shards, and the answers to choose from."""
    for task in TASKS:
        records = json.loads((task_files / f"{task}.json").read_text())
        for shard in range(NUM_SHARDS):
            lines = [json.dumps(record) + "\n" for record in records[shard::NUM_SHARDS]]
            (task_files / f"{task}-{shard}.jsonl").write_text("".join(lines))
    (task_files / "answers.json").write_text('["white tree", "red"]')
    return task_files


def write_cut_shard(path, records, images, keep):
    """A tar shard of records that breaks off within record `keep`."""
    places = []
    with tarfile.open(path, "w") as archive:
        for number, record in enumerate(records):
            places.append(archive.offset)
            image = (images / record["image"]).read_bytes()
            for name, content in ((f"{number}.png", image), (f"{number}.json", json.dumps(record).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    path.write_bytes(path.read_bytes()[: places[keep] + 1000])


def streamed(shards, name, output_dir, *overrides):
    task, data, _ = SCRIPTS[name]
    source = {"path": str(shards / f"{Path(data).stem}-*.jsonl"), "streaming": True}
    answers = [f"--data.answer_list={shards / 'answers.json'}"] if task == "vqa" else []
    given = [*answers, f"--data.train={json.dumps(source)}", "--data.shuffle_buffer=3", *overrides]
    return options(shards, name, output_dir, *given)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_stream_trains_and_resumes_as_if_never_stopped(name, shards, script, tmp_path):
    main = script(name)
    given = streamed(shards, name, tmp_path)
    assert main(given).step == 4
    log, weights = reproducible_log(tmp_path), load_file(tmp_path / "model/model.safetensors")
    main([*given, f"--resume_from_checkpoint={tmp_path / 'checkpoint-00000002'}"])
    assert reproducible_log(tmp_path) == log and len(log) >= 4
    after = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(after[key], value) for key, value in weights.items())


def processes_with(text):
    """Processes that have a text in their command: a launcher's children are in sessions of their own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(text.encode() in part for part in command):
            found.append((int(folder.name), command))
    return found


def test_two_processes_go_on_with_the_very_next_example_after_kill_9(shards, launch_on_two_processes, tmp_path):
    """The launcher and both processes are ended by SIGKILL in the middle of training. One shard is cut off."""
    name = "finetune_vqa"
    records = json.loads((shards / "vqa.json").read_text())
    write_cut_shard(shards / "cut.tar", records, shards, keep=2)
    source = {"path": str(shards / "{vqa-0.jsonl,vqa-1.jsonl,cut.tar,vqa-2.jsonl}"), "streaming": True}
    overrides = ["--max_steps=16", "--per_device_batch_size=2", "--num_workers=1", "--data.validation=null"]
    overrides += [f"--data.train={json.dumps(source)}", "--data.on_bad_record=skip"]
    launch_on_two_processes(name, streamed(shards, name, tmp_path / "whole", *overrides))
    metrics = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert metrics["num_processes"] == 2
    assert metrics["rejected_records"] == {"the shard cannot be read to its end": 1}
    (rejected,) = RejectsFile(tmp_path / "whole/rejected_records.jsonl").records()
    assert rejected.record == f"{shards / 'cut.tar'}, from record 2 on"

    given = streamed(shards, name, tmp_path / "killed", *overrides)
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with subprocess.Popen(
        [sys.executable, "-m", *launcher, str(ROOT / f"examples/{name}.py"), *given],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        until = time.monotonic() + 300
        while not list_checkpoints(tmp_path / "killed") and running.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        alive = processes_with(f"--output_dir={tmp_path / 'killed'}")
        for process, _ in alive:
            os.kill(process, signal.SIGKILL)
    # Launcher, two processes, and a loading process of each.
    assert running.returncode == -signal.SIGKILL and len(alive) == 5
    assert list_checkpoints(tmp_path / "killed") and not (tmp_path / "killed/metrics.json").exists()

    launch_on_two_processes(name, [*given, "--resume_from_checkpoint=latest"])
    assert reproducible_log(tmp_path / "killed") == reproducible_log(tmp_path / "whole")
    whole, killed = (load_file(tmp_path / one / "model/model.safetensors") for one in ("whole", "killed"))
    assert all(torch.equal(killed[key], value) for key, value in whole.items())


def test_what_cannot_be_streamed_says_why_and_what_to_do(shards, script, tmp_path):
    for name, override, message in (
        ("finetune_vqa", "--data.answer_list=null", "built from all training questions.*give a JSON list"),
        ("finetune_grounding", "--data.train_splits=[val]", "name the shards of the splits"),
        ("finetune_retrieval", "--max_steps=null", "a stream has no end"),
        ("finetune_entailment", "--data.tokenizer=null", "vicha-hf tokenizer"),
    ):
        given = streamed(shards, name, tmp_path, override)
        if "tokenizer" in override:
            given.append("--model.from_pretrained=null")
        with pytest.raises(ValueError, match=message):
            script(name)(given)
    source = json.dumps({"path": str(shards / "entailment-*.jsonl"), "streaming": True})
    with pytest.raises(ValueError, match=r"streaming is possible in training only \(data.train"):
        script("finetune_entailment")(streamed(shards, "finetune_entailment", tmp_path, f"--data.validation={source}"))


def test_bad_records_of_a_stream_are_counted(shards, script, tmp_path):
    records = [json.loads(line) for line in (shards / "entailment-0.jsonl").read_text().splitlines()]
    bad = [records[0] | {"label": "perhaps"}, records[1] | {"image": "nowhere.png"}]
    lines = [json.dumps(record) for record in records + bad] + ['{"image": ']
    (shards / "bad.jsonl").write_text("\n".join(lines))
    source = json.dumps({"path": str(shards / "bad.jsonl"), "streaming": True})
    given = streamed(shards, "finetune_entailment", tmp_path, f"--data.train={source}", "--data.validation=null")
    with pytest.raises((ValueError, RuntimeError), match=r"bad.jsonl, record \d"):
        script("finetune_entailment")(given)
    script("finetune_entailment")([*given, "--data.on_bad_record=skip"])
    rejected = json.loads((tmp_path / "metrics.json").read_text())["rejected_records"]
    assert rejected == {
        "field 'label': unknown label": 1,
        "field 'image': file not found": 1,
        "not readable as JSON": 1,
    }
