"""What would train wrongly is refused, with the way out in the message."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_models import tiny_batch, tiny_config, tiny_retrieval_model

from vicha_hf.training.optimizer import create_optimizer


def test_a_teacher_too_coarse_for_its_momentum():
    model = tiny_retrieval_model().to(torch.bfloat16)
    model.add_training_state()
    with pytest.raises(RuntimeError, match=r"torch.bfloat16, too coarse to follow at momentum=0.995"):
        model.update_teacher()
    model.config.momentum = 0.9
    model.update_teacher()


def test_a_teacher_made_of_parts(tmp_path):
    model = tiny_retrieval_model()
    # As DeepSpeed's ZeRO-3 marks a parameter whose part this process keeps.
    model.itm_head.weight.ds_tensor = torch.zeros(1)
    with pytest.raises(RuntimeError, match="zero3_init_flag: false"):
        model.add_training_state()


def test_a_training_state_of_which_this_process_has_a_part(tmp_path):
    model = tiny_retrieval_model()
    model.add_training_state()
    next(model.training_state.parameters()).ds_tensor = torch.zeros(1)
    with pytest.raises(RuntimeError, match="each would write its part"):
        model.save_pretrained(tmp_path, training_state=True)


def test_an_update_inside_forward_under_fsdp2():
    model = tiny_retrieval_model().train()
    model.add_training_state()
    model.__class__ = type("FSDPViChaForRetrieval", (type(model),), {})
    with pytest.raises(RuntimeError, match=r"call `model.update_teacher\(\)` before"):
        model(**tiny_batch())


def test_negatives_of_other_processes_without_their_similarities():
    with pytest.raises(StrictDataclassError, match="cross_process_negatives"):
        tiny_config(cross_process_negatives=True, reference_quirks=["itc_local_columns"])


@pytest.mark.parametrize("quirks", [[], ["temperature_unclamped"]])
def test_the_optimiser_keeps_the_temperature_within_its_bounds(quirks):
    model = tiny_retrieval_model(reference_quirks=quirks)
    optimizer = create_optimizer(model, 10.0, 0.02, torch.device("cpu"))
    model.vicha.temperature.grad = -torch.ones(1)
    optimizer.step()
    assert (model.vicha.temperature.item() == 0.5) == (not quirks)
    assert (model.vicha.temperature.item() > 5) == bool(quirks)
