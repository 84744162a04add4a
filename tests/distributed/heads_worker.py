"""Run by a launcher in two processes: two steps of every head under each topology.

heads_worker.py ROOT TOPOLOGIES

Process 0 writes `ROOT/TOPOLOGY.pt`: for each head its log, its complete state dict, and under DDP the gradients' sizes.
"""

import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType


sys.path.insert(0, str(Path(__file__).parents[1]))
from head_checks import step_inputs, tiny_head
from tiny_models import (
    NUM_PATCHES,
    TEXT,
    VISION,
    predict_positions,
    spread_weights,
    tiny_batch,
    tiny_pretraining_model,
    tiny_retrieval_model,
)
from topologies import enter

from vicha_hf import SimlaConfig, SimlaForPreTraining
from vicha_hf.training.accelerator import create_accelerator
from vicha_hf.training.arguments import TrainingArguments
from vicha_hf.training.loop import TrainingLoop
from vicha_hf.training.run_log import MACHINE_FIELDS, read_log


BATCH = 3
HEADS = ("both reconstructions", "single stream", "retrieval", "entailment", "vqa", "reasoning", "text-assignment")


def build(head):
    if head == "single stream":
        torch.manual_seed(0)
        text = {name: value for name, value in TEXT.items() if name != "fusion_layer"} | {"unk_token_id": 1}
        masks = {"mim_max_masked_patches": 8, "mim_min_block_patches": 2}
        fields = {"projection_dim": 16, "visual_vocab_size": 11, "queue_size": 10}
        model = SimlaForPreTraining(SimlaConfig(vision_config=VISION, text_config=text, **fields, **masks))
        spread_weights(model)
    elif head == "both reconstructions":
        model = tiny_pretraining_model(mim_mode="both")
    elif head == "retrieval":
        model = tiny_retrieval_model(cross_process_negatives=True)
    else:
        model = tiny_head(head)
    model.add_training_state()
    return model


def batch_of(head, rank):
    if head in ("both reconstructions", "single stream", "retrieval"):
        batch = tiny_batch(BATCH, seed=rank, concepts=head != "single stream")
        batch["image_ids"] = torch.arange(BATCH) + BATCH * rank
        batch["negative_image_indices"], batch["negative_text_indices"] = torch.tensor([[1, 2, 0], [2, 0, 1]])
        if head != "retrieval":
            batch |= predict_positions(batch, [[1], [1, 2], [2]])
        if head == "both reconstructions":
            batch["mim_noise"] = torch.rand(BATCH, NUM_PATCHES, generator=torch.Generator().manual_seed(rank))
        if head == "single stream":
            batch["visual_token_ids"] = torch.arange(BATCH * NUM_PATCHES).reshape(BATCH, NUM_PATCHES) % 11
            batch["bool_masked_pos"] = torch.arange(BATCH * NUM_PATCHES).reshape(BATCH, NUM_PATCHES) % 3 == rank
        return batch
    return step_inputs(head, batch_size=BATCH, seed=rank)


def to_device(batch, device):
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def train(head, folder):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_batch_size=BATCH,
        learning_rate=1e-3,
        warmup_steps=0,
        max_grad_norm=1.0,
        num_workers=0,
        logging_steps=1,
        trackers=[],
    )
    GradientState._reset_state()
    accelerator = create_accelerator(arguments)
    # What a sample is does not matter: every step has the process's own batch.
    batch = batch_of(head, accelerator.process_index)
    loop = TrainingLoop(build(head), arguments, list(range(4 * BATCH)), lambda samples: batch, accelerator)
    sharded = accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
    smallest = None if sharded else smallest_gradients(loop)
    loop.run()
    state = accelerator.get_state_dict(loop.model) or {}
    accelerator.wait_for_everyone()
    log = [
        {name: value for name, value in record.items() if name not in MACHINE_FIELDS} for record in read_log(folder)
    ]
    AcceleratorState._reset_state(reset_partial_state=True)
    state = {name: value.detach().clone() for name, value in state.items()}
    return {"log": log, "state": state, "smallest gradients": smallest}


def smallest_gradients(loop):
    """For each weight, number by number, the least size that its gradient had in any step; filled as the loop runs."""
    smallest = {}

    def watch(optimizer, args, kwargs):
        for name, parameter in loop.unwrapped_model.named_parameters(remove_duplicate=False):
            if parameter.grad is not None:
                size = parameter.grad.abs()
                smallest[name] = torch.minimum(smallest.get(name, size), size)

    loop.optimizer.optimizer.register_step_pre_hook(watch)
    return smallest


def main(root: Path, topologies: list[str]) -> None:
    for topology in topologies:
        enter(topology)
        results = {}
        for head in HEADS:
            results[head] = train(head, root / topology / head.replace(" ", "_"))
        if torch.distributed.get_rank() == 0:
            torch.save(results | {"world_size": torch.distributed.get_world_size()}, root / f"{topology}.pt")
        torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
