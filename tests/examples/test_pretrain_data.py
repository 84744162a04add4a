"""Pretraining on shards that are streamed, and on corpora with broken images, through the script."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_pretrain_script import corpus, launch, options, pretrain, reproducible_log  # noqa: F401 -- fixtures

from vicha_hf.data.image_files import ImageReadError
from vicha_hf.data.packing import PackOptions, pack_corpus
from vicha_hf.training.checkpoints import PROGRESS_FILE, list_checkpoints
from vicha_hf.training.run_log import read_log


@pytest.fixture(scope="module")
def shards(corpus, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack_corpus(str(corpus / "train.json"), folder, PackOptions(records_per_shard=5, num_workers=1))
    assert len(list(folder.glob("*.tar"))) == 3
    return folder


def stream_options(corpus, output_dir, shards, *overrides):  # noqa: F811
    source = json.dumps({"path": str(shards), "streaming": True})
    fast = ["--data.validation=null", "--trackers=[]", "--data.shuffle_buffer=4"]
    return options(corpus, output_dir, f"--data.train={source}", *fast, *overrides)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_resumes_as_if_never_stopped(corpus, pretrain, tmp_path, shards, num_workers):  # noqa: F811
    given = stream_options(corpus, tmp_path, shards, f"--num_workers={num_workers}", "--max_steps=6")
    pretrain(given)
    log, weights = reproducible_log(tmp_path), load_file(tmp_path / "model/model.safetensors")
    assert [record["step"] for record in log] == [1, 2, 3, 4, 5, 6]
    shutil.rmtree(list_checkpoints(tmp_path)[-1])
    assert list_checkpoints(tmp_path)[-1].name == "checkpoint-00000004"
    pretrain([*given, "--resume_from_checkpoint=latest"])
    assert reproducible_log(tmp_path) == log
    after = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    for changed, message in (
        ("--data.shuffle_buffer=3", "fingerprint of the training data was"),
        (
            f"--num_workers={num_workers + 2}",
            f"sharing of the stream was '1 processes x {max(1, num_workers)} workers'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain([*given, changed, "--resume_from_checkpoint=latest"])
    with pytest.raises(ValueError, match="continue with as many workers, or start anew"):
        pretrain([*given, "--num_workers=3", "--allow_changed_settings", "--resume_from_checkpoint=latest"])


def test_two_processes_share_a_stream_and_resume(corpus, pretrain, tmp_path, shards):  # noqa: F811
    given = stream_options(corpus, tmp_path, shards, "--per_device_batch_size=2", "--num_workers=1")
    launcher = ["--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    launch(given, *launcher, ACCELERATE_USE_CPU="true")
    log = reproducible_log(tmp_path)
    progress = json.loads((list_checkpoints(tmp_path)[-1] / PROGRESS_FILE).read_text())
    assert progress["data_order"]["num_processes"] == 2 and len(progress["progress"]["stream_places"]) == 2
    shutil.rmtree(list_checkpoints(tmp_path)[-1])
    launch([*given, "--resume_from_checkpoint=latest"], *launcher, ACCELERATE_USE_CPU="true")
    assert reproducible_log(tmp_path) == log
    with pytest.raises(ValueError, match="sharing of the stream was '2 processes x 1 workers' and is '1 processes"):
        pretrain([*given, "--per_device_batch_size=4", "--resume_from_checkpoint=latest"])


def test_a_stream_needs_a_number_of_steps(corpus, pretrain, tmp_path, shards):  # noqa: F811
    with pytest.raises(ValueError, match="max_steps=None is not possible: a stream has no end"):
        pretrain(stream_options(corpus, tmp_path, shards, "--max_steps=null"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_is_an_error_or_a_counted_skip(corpus, pretrain, tmp_path, num_workers):  # noqa: F811
    records = json.loads((corpus / "train.json").read_text())
    (corpus / "broken.png").write_bytes((corpus / "0.png").read_bytes()[:200])
    records[5]["image"] = "broken.png"
    records.append({"image": "0.png", "caption": ""})
    (corpus / "with_broken.json").write_text(json.dumps(records))
    common = [f"--data.train={corpus / 'with_broken.json'}", f"--num_workers={num_workers}", "--trackers=[]"]
    common += ["--data.validation=null"]
    skipping = options(corpus, tmp_path / "skip", *common, "--data.on_bad_record=skip")
    pretrain(skipping)
    metrics = json.loads((tmp_path / "skip" / "metrics.json").read_text())
    expected = {"field 'image': truncated": 1, "field 'caption': empty": 1}
    assert metrics["rejected_records"] == expected
    rejected = (tmp_path / "skip" / "rejected_records.jsonl").read_text()
    assert {json.loads(line)["record"].rpartition(", ")[2] for line in rejected.splitlines()} == {
        "record 5",
        "record 12",
    }
    assert read_log(tmp_path / "skip")[-1]["rejected_records"] == 2
    log = reproducible_log(tmp_path / "skip")
    shutil.rmtree(list_checkpoints(tmp_path / "skip")[-1])
    pretrain([*skipping, "--resume_from_checkpoint=latest"])
    again = reproducible_log(tmp_path / "skip")
    # When the broken image is come to depends on how far loading is ahead.
    for record in (*log, *again):
        record.pop("rejected_records", None)
    assert again == log
    (corpus / "only_broken.json").write_text(json.dumps(records[:-1]))
    raising = [f"--data.train={corpus / 'only_broken.json'}"]
    with pytest.raises(ImageReadError, match=r"only_broken.json, record 5: cannot read the image .*broken.png"):
        pretrain(options(corpus, tmp_path / "raise", *common, *raising))
