"""
Own Muon beside the two that libraries have: seconds of an optimizer step and of a whole training step, in one run.

    python examples/benchmarks/muon.py --threads 2 --json muon.json

The model is the demo's, or of another recipe (`--config`). All three move the same matrices, and AdamW moves the rest.
`torch.optim.Muon` and `timm.optim.Muon` (where timm is installed) do five rounds of the original polynomial.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from measuring import add_json_option, now, print_table
from torch import nn

from vicha_hf import ViChaConfig, ViChaForPreTraining
from vicha_hf.command_parser import CommandParser
from vicha_hf.mistakes import run_script
from vicha_hf.training.muon import hidden_matrices
from vicha_hf.training.optimizer import create_optimizer


ROOT = Path(__file__).parents[2]
LEARNING_RATE, MATRIX_RATE = 1e-3, 1e-2


class Together:
    """Muon of a library for the hidden matrices, AdamW for the rest."""

    def __init__(self, model: nn.Module, muon: Callable[..., torch.optim.Optimizer], **options):
        chosen = hidden_matrices(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if id(parameter) in chosen]
        others = [parameter for parameter in trained if id(parameter) not in chosen]
        self.optimizers = [
            muon(matrices, lr=MATRIX_RATE, weight_decay=0.02, **options),
            torch.optim.AdamW(others, lr=LEARNING_RATE, weight_decay=0.02, fused=True),
        ]

    def step(self) -> None:
        """Moves all parameters."""
        for optimizer in self.optimizers:
            optimizer.step()


def optimizers(model: nn.Module) -> dict[str, object]:
    """Each of the compared optimizers over the same model."""
    own = create_optimizer(
        model, LEARNING_RATE, 0.02, torch.device("cpu"), kind="muon", matrix_lr_scale=MATRIX_RATE / LEARNING_RATE
    )
    found = {"vicha_hf": own, "torch": Together(model, torch.optim.Muon)}
    try:
        from timm.optim import Muon
    except ImportError:
        print("timm is not installed, or lacks torchvision: its Muon is left out", file=sys.stderr)
    else:
        found["timm"] = Together(model, Muon)
    return found


def build_model(recipe: Path) -> tuple[ViChaForPreTraining, dict[str, torch.Tensor]]:
    """The model of a recipe in training mode, and a batch of its size with captions of 25 tokens and 15 concept tokens."""
    torch.manual_seed(0)
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    parts = content["model"]
    config = ViChaConfig(
        vision_config=parts["vision_config"],
        text_config=parts["text_config"] | {"vocab_size": 2000},
        **parts["config"],
    )
    model = ViChaForPreTraining(config)
    model.add_training_state()
    size, side = content["per_device_batch_size"], config.vision_config.image_size
    batch = {
        "pixel_values": torch.randn(size, 3, side, side),
        "input_ids": torch.randint(200, 2000, (size, 25)),
        "concept_input_ids": torch.randint(200, 2000, (size, 15)),
        "concept_attention_mask": torch.ones(size, 15, dtype=torch.long),
        "image_ids": torch.arange(size),
    }
    return model.train(), batch


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(description=__doc__.splitlines()[1])
    parser.add_argument("--config", type=Path, default=ROOT / "examples/configs/vicha/tiny.yaml")
    parser.add_argument("--rounds", type=int, default=10, help="steps of each, in turn (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_json_option(parser, "muon")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    model, batch = build_model(arguments.config)
    compared = optimizers(model)
    own, rest = {name: [] for name in compared}, {name: [] for name in compared}
    for number in range(arguments.rounds + 1):
        for name, optimizer in compared.items():
            begin = now()
            model(**batch).loss.backward()
            middle = now()
            optimizer.step()
            end = now()
            model.zero_grad()
            # The first round makes the states.
            if number:
                own[name].append(end - middle)
                rest[name].append(middle - begin)
    optimizer_seconds = {name: sorted(values)[len(values) // 2] for name, values in own.items()}
    passes = [value for values in rest.values() for value in values]
    pass_seconds = sorted(passes)[len(passes) // 2]
    ours = optimizer_seconds["vicha_hf"]
    result = {
        name: {
            "optimizer_seconds": seconds,
            "over_own": seconds / ours,
            "step_seconds": pass_seconds + seconds,
            "step_over_own": (pass_seconds + seconds) / (pass_seconds + ours),
        }
        for name, seconds in optimizer_seconds.items()
    }
    rows = [[name, *(f"{value:.3f}" for value in values.values())] for name, values in result.items()]
    print_table(["Muon of", "s per optimizer step", "over ours", "s per training step", "over ours"], rows)
    arguments.json.write(result)


if __name__ == "__main__":
    sys.exit(run_script(main))
