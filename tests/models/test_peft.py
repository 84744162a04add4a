"""Every head with the adapters of peft: trained, saved, loaded, merged, saved and loaded again."""

import pytest
import torch
from head_checks import head_config, step_inputs
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from simla_models import simla_batch, simla_config
from tiny_models import spread_weights, tiny_batch

from vicha_hf.families import HEADS


CASES = [(family, task) for family, heads in HEADS.items() for task in heads]
# The temperature is no module: peft keeps it as it is.
CLASSIFIERS = {
    "entailment": "entailment_classifier",
    "reasoning": "reasoning_classifier",
    "text-assignment": "assignment_head",
}


def build(family, task):
    torch.manual_seed(0)
    config = head_config(momentum=0.8) if family == "vicha" else simla_config(momentum=0.8)
    model = HEADS[family][task](config)
    spread_weights(model)
    return model


def batch_of(family, task):
    if family == "simla" and task == "pretraining":
        return simla_batch(4)
    concepts = family == "vicha"
    return (
        tiny_batch(4, concepts=concepts) if task in ("pretraining", "retrieval") else step_inputs(task, 3, 0, concepts)
    )


@torch.no_grad()
def answer_of(model, batch):
    """Loss, or heat maps of grounding, without teacher and queue."""
    torch.manual_seed(3)
    output = model.eval()(**batch)
    return output.loss if hasattr(output, "loss") else output.heatmaps


def train(model, batch, steps=3):
    model.train()
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], 0.05)
    for step in range(steps):
        torch.manual_seed(step)
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("family", "task", "teacher_first"), [*((*case, True) for case in CASES), ("vicha", "vqa", False)]
)
def test_the_way_of_adapters(tmp_path, family, task, teacher_first):
    model, batch = build(family, task), batch_of(family, task)
    if teacher_first:
        model.add_training_state()
    classifier = CLASSIFIERS.get(task)
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=[classifier] if classifier else None)
    adapted = get_peft_model(model, config)
    train(adapted, batch)
    assert model.training_state is not None or task == "text-assignment"
    trained = [name for name, value in adapted.named_parameters() if value.requires_grad]
    assert trained and not any("training_state" in name for name in trained)

    adapted.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert len(saved) == len(trained) and not any("training_state" in name for name in saved)
    model.training_state = None
    expected = answer_of(adapted, batch)
    with adapted.disable_adapter():
        assert (expected - answer_of(adapted, batch)).abs().max() > 1e-4
    again = PeftModel.from_pretrained(build(family, task), tmp_path / "adapter")
    torch.testing.assert_close(answer_of(again, batch), expected, rtol=1e-5, atol=1e-5)

    merged = again.merge_and_unload()
    torch.testing.assert_close(answer_of(merged, batch), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    loaded, info = HEADS[family][task].from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(answer_of(loaded, batch), expected, rtol=1e-4, atol=1e-4)
    plain = build(family, task).state_dict()
    assert loaded.state_dict().keys() == plain.keys()
