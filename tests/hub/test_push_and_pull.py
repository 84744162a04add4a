"""The real Hub client against a local Hub: what is pushed can be used, with and without this package."""

import numpy as np
import pytest


AUTO_CLASSES = {
    "AutoConfig": "ViChaConfig",
    "AutoModel": "ViChaModel",
    "AutoModelForPreTraining": "ViChaForPreTraining",
    "AutoModelForVisualQuestionAnswering": "ViChaForVQA",
    "AutoModelForZeroShotImageClassification": "ViChaModel",
    "AutoProcessor": "ViChaProcessor",
    "AutoImageProcessor": "ViChaImageProcessor",
}


def check(pulled: dict, pushed: dict) -> None:
    np.testing.assert_allclose(pulled["logits"], pushed["logits"], rtol=1e-5, atol=1e-5)
    assert np.ptp(pulled["logits"]) > 0.1  # a model that gives one number to everything would prove nothing
    assert pulled["concepts"] == pushed["concepts"]
    assert pulled["missing_keys"] == []
    assert not any("training_state" in name or "queue" in name for name in pulled["weights"])
    assert set(pulled["auto_map"]) == {name for name in AUTO_CLASSES if "Processor" not in name}
    assert pulled["classes"] == AUTO_CLASSES
    assert sum(pulled["pipeline"].values()) == pytest.approx(1.0)
    assert len(set(pulled["pipeline"].values())) == 3


def test_the_package_loads_what_was_pushed(pushed, run_client, repositories):
    pulled = run_client("pull", repositories.public, "package")
    check(pulled, pushed)
    assert pulled["module"] == "vicha_hf.models.modeling_vicha"


def test_trust_remote_code_gives_the_same_numbers_without_the_package(pushed, run_client, repositories):
    pulled = run_client("pull", repositories.public, "remote-code", token=None)
    check(pulled, pushed)
    assert pulled["module"].startswith("transformers_modules.")


def test_another_head_loads_as_bare_model_and_what_remote_code_saves_is_whole(
    pushed, run_client, repositories, tmp_path
):
    results = run_client("save-again", repositories.private, tmp_path / "copy", token="hf_local_read")
    check(results["first"], pushed)
    check(results["again"], pushed)
    # The bare model has no heads to save; the pretraining folder had them.
    assert any(name.startswith("mlm_head.") for name in results["first"]["weights"])
    assert not any("head" in name for name in results["again"]["weights"])


def test_the_training_state_is_pushed_with_the_model(run_client, model_folder, tmp_path):
    pulled = run_client("push-training-state", model_folder, "org/vicha-tiny-training", tmp_path / "new")
    assert pulled == {"num_filled": 3, "teacher_temperature": pytest.approx(0.4)}
