"""Plan of pretraining at the paper's size: memory, communication and time per step, counted without running it.

    python examples/benchmarks/paper_plan.py --gpus 8 --batch 32
    python examples/benchmarks/paper_plan.py --gpus 64 --nodes 16 --batch 32

The model lives on the meta device, where shapes are computed and nothing else: FLOPs are those of
`torch.utils.flop_counter`, activations the bytes that autograd keeps for the backward pass.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from unittest import mock

import torch
from measuring import add_json_option
from torch.utils.flop_counter import FlopCounterMode

from vicha_hf import ViChaConfig, ViChaForPreTraining
from vicha_hf.command_parser import CommandParser
from vicha_hf.mistakes import run_script
from vicha_hf.models import encoder_concept, encoder_recomputation, encoder_text, encoder_vision


CAPTION_TOKENS, CONCEPT_TOKENS = 25, 15
# Per caption: columns that the last fusion layer computes for MLM, and how many of them are predicted.
MLM_COLUMNS, MLM_PREDICTED = 7, 3.6


class StoredBytes(ExitStack):
    """Bytes of the storages that autograd keeps, each once; without parameters and what is computed again."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self._kept = {}
        self._left_out = {}
        self._leave_out(*((tensor, None) for tensor in [*model.parameters(), *model.buffers()]))

    def __enter__(self) -> "StoredBytes":
        super().__enter__()
        self.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor))
        # Its own hooks would hide from these what is kept beside that.
        for module in (encoder_recomputation, encoder_text):
            self.enter_context(mock.patch.object(module, "recomputed", self._leave_out))
        return self

    def _leave_out(self, *tensors: tuple[torch.Tensor, object], checkpointed: bool = False) -> AbstractContextManager:
        for tensor, _ in tensors:
            storage = tensor.untyped_storage()
            self._left_out[storage._cdata] = storage
        return nullcontext()

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self._kept[storage._cdata] = storage
        return tensor

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for name, storage in self._kept.items() if name not in self._left_out)


def meta_model(**fields) -> ViChaForPreTraining:
    for module in (encoder_concept, encoder_text, encoder_vision):
        # It looks at the values of a mask, which do not exist here; attention to padding costs the same.
        module.create_bidirectional_mask = lambda **kwargs: None
    with torch.device("meta"):
        model = ViChaForPreTraining(ViChaConfig(**fields)).train()
        model.add_training_state()
    return model


def count_step(batch: int) -> dict[str, float]:
    """FLOPs and stored activation bytes of one step, forward and backward, teacher included."""
    # MLM's positions depend on values; its part is counted from its shapes.
    model, language = meta_model(mlm_weight=0), meta_model()
    rows = torch.zeros(batch, dtype=torch.long, device="meta")
    inputs = {
        "pixel_values": torch.empty(batch, 3, 256, 256, device="meta"),
        "input_ids": rows[:, None].expand(-1, CAPTION_TOKENS),
        "concept_input_ids": rows[:, None].expand(-1, CONCEPT_TOKENS),
        "mim_noise": torch.empty(batch, 256, device="meta"),
    }
    negatives = {"negative_image_indices": rows, "negative_text_indices": rows}
    with FlopCounterMode(display=False) as step, StoredBytes(model) as stored:
        output = model(**inputs, **negatives)
        output.loss.backward()
    tokens = 1 + 256 + CONCEPT_TOKENS
    images = torch.empty(batch, tokens, 768, device="meta")
    key_values = language.vicha.text_model.project_keys_values(images)
    with FlopCounterMode(display=False) as words, StoredBytes(language) as stored_words:
        masked_words(language.vicha.text_model, language.mlm_head, inputs["input_ids"], key_values).sum().backward()
        teacher = language.training_state.teacher
        with torch.no_grad():
            projected = teacher["vicha"].text_model.project_keys_values(images)
            masked_words(teacher["vicha"].text_model, teacher["mlm_head"], inputs["input_ids"], projected)
    # The backward pass through the shared keys and values is in the first part already.
    return {
        "flops_per_sample": (step.get_total_flops() + words.get_total_flops()) / batch,
        "activation_bytes_per_sample": (stored.total + stored_words.total) / batch,
        "trained": sum(value.numel() for value in language.parameters() if value.requires_grad),
        "teacher": sum(value.numel() for value in language.training_state.parameters()),
        "queue_bytes": sum(value.numel() * value.element_size() for value in language.training_state.queue.buffers()),
    }


def masked_words(text_model, head, input_ids, key_values):
    batch = len(input_ids)
    positions = torch.zeros(batch, MLM_COLUMNS, dtype=torch.long, device="meta")
    states = text_model(input_ids, encoder_key_values=key_values, output_index=positions).last_hidden_state
    return head(states.flatten(0, 1)[: round(batch * MLM_PREDICTED)])


def plan(counted: dict[str, float], gpus: int, nodes: int, batch: int, peak_tflops: float, utilisation: float) -> dict:
    """One topology in numbers; bytes are sent by one GPU in one step, fp32."""
    trained, teacher = 4 * counted["trained"], 4 * counted["teacher"]
    others = (gpus - 1) / gpus
    activations = counted["activation_bytes_per_sample"] * batch
    fixed = counted["queue_bytes"] + activations
    memory = {
        # Weights, gradients, two moments of AdamW.
        "ddp": 4 * trained + teacher + fixed,
        # Its own copy of the weights for the optimiser is split with the moments.
        "zero1": 2 * trained + teacher + 3 * trained / gpus + fixed,
        "zero2": trained + teacher + 4 * trained / gpus + fixed,
        "zero3": (5 * trained + teacher) / gpus + fixed,
        "fsdp2": (4 * trained + teacher) / gpus + fixed,
    }
    embedding = 4 * batch * 256
    contrast = {
        # Teacher's features for the columns, and again for the queue; ids.
        "itc": 4 * embedding * (gpus - 1),
        # 5 levels, both sides: gathered, and the gradient of the gathered ones summed (ring all-reduce).
        "hierarchical_itc": 10 * embedding * (gpus - 1) + 10 * embedding * gpus * 2 * others,
    }
    gathered = {
        "ddp": 2 * trained * others,
        "zero1": 2 * trained * others,
        "zero2": 2 * trained * others,
        "zero3": (3 * trained + teacher) * others,
        "fsdp2": (3 * trained + teacher) * others,
    }
    negatives = 4 * batch * (272 + CAPTION_TOKENS) * 768 * 2 * others
    seconds = counted["flops_per_sample"] * batch / (peak_tflops * 1e12 * utilisation)
    return {
        "gpus": gpus,
        "nodes": nodes,
        "total_batch": gpus * batch,
        "memory_gib": {name: value / 2**30 for name, value in memory.items()},
        "activation_gib": activations / 2**30,
        "similarity_mib_per_matrix": batch * (gpus * batch + 65536) * 4 / 2**20,
        "sent_mib": {name: (value + sum(contrast.values())) / 2**20 for name, value in gathered.items()},
        "contrast_mib": {name: value / 2**20 for name, value in contrast.items()},
        "cross_process_negatives_mib": negatives / 2**20,
        "compute_seconds_per_step": seconds,
        "samples_per_second": gpus * batch / seconds,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32, help="per GPU")
    parser.add_argument("--peak_tflops", type=float, default=312.0, help="of one GPU; A100, bf16: 312")
    parser.add_argument("--utilisation", type=float, default=0.35, help="assumed share of the peak")
    add_json_option(parser, "paper_plan")
    arguments = parser.parse_args(argv)
    # Large, so that what does not grow with the batch, the queue, is little of it.
    counted = count_step(batch=64)
    result = {
        **counted,
        **plan(
            counted,
            arguments.gpus,
            arguments.nodes,
            arguments.batch,
            arguments.peak_tflops,
            arguments.utilisation,
        ),
    }
    print(json.dumps(result, indent=2))
    arguments.json.write(result)


if __name__ == "__main__":
    sys.exit(run_script(main))
