"""Whichever of SIMLA's heads was saved, its folder loads without this package, with the code that travels in it."""

import numpy as np
import pytest
from hub_client import similarities
from simla_models import SimlaForPreTraining, SimlaForRetrieval, simla_model
from tiny_model_folder import write_simla_folder

from vicha_hf import SimlaForVisualReasoning, SimlaForVQA, SimlaProcessor


AUTO_CLASSES = {
    "AutoConfig": "SimlaConfig",
    "AutoModel": "SimlaModel",
    "AutoModelForPreTraining": "SimlaForPreTraining",
    "AutoModelForVisualQuestionAnswering": "SimlaForVQA",
    "AutoModelForZeroShotImageClassification": "SimlaModel",
    "AutoProcessor": "SimlaProcessor",
    "AutoImageProcessor": "SimlaImageProcessor",
}


@pytest.mark.parametrize("model_class", [SimlaForPreTraining, SimlaForRetrieval])
def test_a_folder_loads_without_the_package(model_class, tmp_path, run_client):
    write_simla_folder(tmp_path)
    model = simla_model(model_class)
    model.save_pretrained(tmp_path)
    pulled = run_client("pull", tmp_path, "remote-code")
    assert pulled["module"].startswith("transformers_modules.")
    assert pulled["classes"] == AUTO_CLASSES
    assert set(pulled["auto_map"]) == {name for name in AUTO_CLASSES if "Processor" not in name}
    assert pulled["missing_keys"] == []
    expected = similarities(model.simla, SimlaProcessor.from_pretrained(tmp_path))
    np.testing.assert_allclose(pulled["logits"], expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(pulled["logits"]) > 0.1
    assert sum(pulled["pipeline"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize("model_class", [SimlaForVQA, SimlaForVisualReasoning])
def test_every_head_carries_the_code_of_every_head(model_class, tmp_path):
    simla_model(model_class).save_pretrained(tmp_path)
    carried = {path.name for path in tmp_path.glob("*.py")}
    tasks = {f"task_{task}.py" for task in ("question_answering", "grounding", "classification", "visual_reasoning")}
    assert {"modeling_simla.py", "configuration_simla.py", "random_draws.py"} | tasks <= carried
    assert not any("modeling_vicha" in name for name in carried)
