"""What scripts and commands upload: a private repository with a card that the Hub can read, tried again when it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_task_files import write_task_files
from tiny_tokenizer import build_tiny_tokenizer
from tools.local_hub import HubError, LocalHub


ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/data"
LOOK = """
import json, sys
from huggingface_hub import HfApi, ModelCard
info, card = HfApi().model_info(sys.argv[1]), ModelCard.load(sys.argv[1])
print(json.dumps([info.private, [file.rfilename for file in info.siblings], card.data.to_dict(), card.text], default=str))
"""


@pytest.fixture
def user(tmp_path):
    """`user(hub, command...)` runs a command as a user of a local Hub and returns the process."""

    def run(hub, *command):
        environment = os.environ | hub.env(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *map(str, command)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
        )

    return run


def look(user, hub, repository):
    return json.loads(user(hub, "-c", LOOK, repository).stdout.splitlines()[-1])


REVISIONS = """
import json, sys
from huggingface_hub import HfApi
from safetensors import safe_open
from transformers.utils import cached_file
import vicha_hf
from transformers import AutoModel
seen = {}
for branch in HfApi().list_repo_refs(sys.argv[1]).branches:
    model, report = AutoModel.from_pretrained(sys.argv[1], revision=branch.name, output_loading_info=True)
    seen[branch.name] = [len(report["missing_keys"]), float(model.text_projection.weight.double().sum())]
print(json.dumps(seen))
"""


def fail_first(hub, requests: dict[str, int], status: int = 503):
    """Lets the first requests to paths that end so fail."""
    handler = hub.server.RequestHandlerClass
    answer = handler.answer

    def failing(self, path):
        for end, left in requests.items():
            if path.endswith(end) and left and self.command == "POST":
                requests[end] -= 1
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                raise HubError(status, "not now")
        return answer(self, path)

    handler.answer = failing


def test_a_script_pushes_its_model_at_the_end_and_tries_again(tmp_path, user):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    files = write_task_files(tasks)
    failures, refusals = {"/repos/create": 1, "/commit/main": 1}, {"/commit/step-1": 1}
    hub = LocalHub(tmp_path / "hub", lfs=True)
    fail_first(hub, failures)
    # Nobody tries again where the Hub says no.
    fail_first(hub, refusals, status=403)
    command = [
        "examples/finetune_retrieval.py",
        "--config=examples/configs/vicha/retrieval_tiny.yaml",
        f"--output_dir={tmp_path / 'out'}",
        f"--data.train={files / 'retrieval.json'}",
        f"--data.validation={files / 'retrieval.json'}",
        f"--model.from_pretrained={files / 'pretrained'}",
        *("--per_device_batch_size=4", "--warmup_steps=0", "--max_steps=3", "--logging_steps=1", "--trackers=[]"),
        *("--checkpoint_steps=1", "--push_checkpoints"),
        *("--push_to_hub=org/mine", "--license=mit"),
    ]
    with hub:
        process = user(hub, *command)
        assert process.returncode == 0, process.stderr[-3000:]
        assert failures == {"/repos/create": 0, "/commit/main": 0} and "trying again" in process.stderr
        assert refusals == {"/commit/step-1": 0} and "It is sent with the next checkpoint" in process.stderr
        revisions = json.loads(user(hub, "-c", REVISIONS, "org/mine").stdout.splitlines()[-1])
        private, names, data, text = look(user, hub, "org/mine")
        evaluated = user(
            hub, "-m", "vicha_hf.cli", "evaluate", "org/mine", files / "retrieval.json", "--add-to-card", "--k=2"
        )
        assert evaluated.returncode == 0, evaluated.stderr[-3000:]
        results = look(user, hub, "org/mine")
        refused = user(hub, *command[:2], f"--output_dir={tmp_path / 'new'}", *command[3:-4], "--push_to_hub=a b")
    assert private and {"README.md", "model.safetensors", "tokenizer.json", "training_loss.svg"} <= set(names)
    assert (data["license"], data["library_name"], data["metrics"]) == ("mit", "transformers", ["recall"])
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    shown = {
        entry["name"]: entry["value"] for result in data["model-index"][0]["results"] for entry in result["metrics"]
    }
    assert shown["r1_i2t"] == round(metrics["r1_i2t"], 2)
    assert not any(name.startswith(("chance", "num_")) for name in shown)
    for fact in ("| steps | 3 |", "trained for image-text retrieval", "vicha-hf evaluate org/mine", "shukor2022vicha"):
        assert fact in text
    # Every checkpoint is a revision, what was refused at first too; the last is the model that the run ends with.
    assert set(revisions) == {"main", "step-1", "step-2", "step-3"}
    assert {missing for missing, _ in revisions.values()} == {0}
    assert len({total for _, total in revisions.values()}) == 3 and revisions["main"] == revisions["step-3"]
    assert not (tmp_path / "out/unsent_revisions").exists()
    # An evaluation adds to the card on the Hub.
    entries = results[2]["model-index"][0]["results"]
    assert {entry["dataset"].get("config") for entry in entries} == {None, "k 2"}
    assert "### Image-text retrieval on retrieval.json, k 2" in results[3] and "| steps | 3 |" in results[3]
    assert set(results[1]) == set(names)
    # Folders of this machine are nobody's business on the Hub.
    assert str(tmp_path) not in text and str(tmp_path) not in results[3]
    # Nothing is trained for a repository that cannot be made.
    assert refused.returncode == 1 and refused.stderr.splitlines()[-1].startswith(
        "finetune_retrieval.py: push_to_hub='a b'"
    )
    assert not (tmp_path / "new/log.jsonl").exists()


def test_convert_verifies_and_pushes(tmp_path, user):
    build_tiny_tokenizer(tmp_path).save_pretrained(tmp_path / "tokenizer")
    hub = LocalHub(tmp_path / "hub", lfs=True)
    with hub:
        process = user(
            hub,
            *("-m", "vicha_hf.cli", "convert", GOLDEN / "simla_ve/original.pth", tmp_path / "converted"),
            *(
                "--verify",
                "--tokenizer",
                tmp_path / "tokenizer",
                "--push_to_hub",
                "org/simla-ve",
                "--license",
                "bsd-3-clause",
            ),
        )
        assert process.returncode == 0, process.stderr[-3000:]
        private, names, data, text = look(user, hub, "org/simla-ve")
    assert "Verified: weights are equal" in process.stdout
    assert private and {"README.md", "model.safetensors", "processor_config.json"} <= set(names)
    assert data["license"] == "bsd-3-clause" and "model-index" not in data
    assert (
        "Not evaluated." in text
        and "the paper's" in text
        and "arxiv.org/abs/2203.14395" in text
        and "khan2022simla" in text
    )
