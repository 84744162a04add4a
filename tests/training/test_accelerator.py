"""What accelerate would leave out without a word is an error."""

import pytest
from accelerate import tracking
from stand_in import stand_in_arguments

from vicha_hf.training.accelerator import create_accelerator


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.TENSORBOARD])
    arguments = stand_in_arguments(tmp_path, trackers=["tensorboard", "wandb"])
    with pytest.raises(ValueError, match=r"trackers=.*the package of 'wandb' is not installed.*are tensorboard"):
        create_accelerator(arguments)


def test_a_tracker_that_nobody_knows(tmp_path):
    with pytest.raises(ValueError, match=r"trackers=\['tensorbord'\] .*'tensorbord' is none of .*tensorboard"):
        create_accelerator(stand_in_arguments(tmp_path, trackers=["tensorbord"]))


def test_every_tracker_that_is_there(tmp_path):
    trackers = create_accelerator(stand_in_arguments(tmp_path, trackers=["all"])).log_with
    assert "tensorboard" in [str(tracker) for tracker in trackers]


@pytest.mark.parametrize(("has_bfloat16", "precision"), [(True, "bf16"), (False, "no")])
def test_auto_is_bf16_where_the_cpu_multiplies_in_it(tmp_path, monkeypatch, has_bfloat16, precision):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    accelerator = create_accelerator(stand_in_arguments(tmp_path, mixed_precision="auto"))
    assert accelerator.mixed_precision == precision


@pytest.mark.parametrize("from_launcher", [False, True])
def test_fp16_on_a_cpu(tmp_path, monkeypatch, from_launcher):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    if from_launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    arguments = stand_in_arguments(tmp_path, mixed_precision=None if from_launcher else "fp16")
    with pytest.raises(ValueError, match=r"mixed_precision='fp16' .*use bf16"):
        create_accelerator(arguments)
