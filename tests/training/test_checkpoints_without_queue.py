"""Checkpoints of a run without a queue, as the recipe for one's own images has it."""

import torch
from accelerate import Accelerator
from tiny_models import tiny_pretraining_model


def test_a_run_without_queue_goes_on(tmp_path):
    """Of the queue's empty buffers accelerate wrote one, and loading missed the others."""
    model = tiny_pretraining_model(queue_size=0)
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(model)
    accelerator.save_state(str(tmp_path))
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    accelerator.load_state(str(tmp_path))
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
