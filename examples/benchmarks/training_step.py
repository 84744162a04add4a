"""One training step of each family on random data: what `training.py` measures, each job in a process of its own."""

import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from beyond_papers import NONE, OPTIONS, Option
from measuring import matmul_gflops, now, peak_allocated_gib, peak_rss_gib
from published_training import OPTIMISATIONS
from random_inputs import caption_lengths, random_texts
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vicha_hf import SimlaForPreTraining, ViChaForPreTraining
from vicha_hf.models.inputs import Texts
from vicha_hf.models.objective_mlm import mask_texts
from vicha_hf.models.pair_step import cache_contrast
from vicha_hf.training.optimizer import create_optimizer


RECIPES = Path(__file__).parents[1] / "configs"
FAMILIES = ("vicha", "albef", "simla")
ALBEF = {"use_concepts": False, "hierarchical_itc_weight": 0, "mim_weight": 0}
CONCEPT_TOKENS = 15
TINY_VOCABULARY = 4000
PARTS = ("teacher", "forward", "backward", "optimizer")
PUBLISHED = tuple(OPTIMISATIONS)


@dataclass(frozen=True)
class Variant:
    """A way to do the step: without some optimisations, with checkpointing, or with what only a GPU is good at."""

    without: tuple[str, ...] = ()
    checkpointing: bool = False
    bf16: bool = False
    attention: str = "sdpa"
    compiled: bool = False


CPU_VARIANTS = {
    "ours": Variant(),
    "checkpointed": Variant(checkpointing=True),
    **{f"without_{name}": Variant(without=(name,)) for name in OPTIMISATIONS},
    "published": Variant(without=PUBLISHED),
}
GPU_VARIANTS = {
    "bf16": Variant(bf16=True),
    "bf16_flash_attention": Variant(bf16=True, attention="flash_attention_2"),
    "bf16_compiled": Variant(bf16=True, compiled=True),
}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def build_model(family: str, size: str, dropout: bool = True, option: Option = OPTIONS[NONE]):
    """The family's pretraining head with the recipe's sizes, random weights, a teacher and a full queue."""
    recipe = yaml.safe_load((RECIPES / ("simla" if family == "simla" else "vicha") / f"{size}.yaml").read_text())
    head = SimlaForPreTraining if family == "simla" else ViChaForPreTraining
    text = dict(recipe["model"].get("text_config", {}))
    if size == "tiny":
        # Its recipe takes the size from a tokenizer.
        text["vocab_size"] = TINY_VOCABULARY
    if not dropout:
        text |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    fields = recipe["model"]["config"] | (ALBEF if family == "albef" else {})
    # A recipe for small widths may prefer plain attention on a CPU; here both are compared.
    fields |= {"queue_warmup_batches": 0, "attn_implementation": "sdpa"} | option.fields
    config = head.config_class(vision_config=recipe["model"]["vision_config"], text_config=text, **fields)
    model = head(config)
    option.choose_trained_parts(model)
    model.to(device()).train()
    model.add_training_state()
    queue = model.training_state.queue
    for features in (queue.image_features, queue.text_features):
        features.copy_(torch.nn.functional.normalize(torch.randn_like(features), dim=-1))
    queue.image_ids.copy_(torch.arange(queue.size) + 10**6)
    queue.num_filled.fill_(queue.size)
    return model


def build_batch(model, batch_size: int, lengths: str = "full") -> dict[str, torch.Tensor]:
    """Captions, concepts, and everything that all variants must draw alike; `lengths` of captions: `full` or `real`."""
    config = model.config
    vision, vocab_size = config.vision_config, config.text_config.vocab_size
    batch = {
        "pixel_values": torch.randn(batch_size, vision.num_channels, vision.image_size, vision.image_size),
        "image_ids": torch.arange(batch_size),
        **random_texts(caption_lengths(batch_size, lengths), vocab_size),
    }
    if config.use_concepts:
        concepts = random_texts(torch.full((batch_size,), CONCEPT_TOKENS), vocab_size)
        batch |= {f"concept_{name}": value for name, value in concepts.items()}
    batch["mlm_input_ids"], batch["mlm_labels"] = mask_texts(
        Texts(batch["input_ids"], batch["attention_mask"]), config
    )
    if config.model_type == "simla":
        batch["visual_token_ids"] = torch.randint(config.visual_vocab_size, (batch_size, vision.num_patches))
        batch["bool_masked_pos"] = model.mim.draw_masks(batch["pixel_values"])
    elif model.mim is not None:
        batch["mim_noise"] = torch.rand(batch_size, vision.num_patches)
    return {name: value.to(device()) for name, value in batch.items()}


class TrainingStep:
    """A model, its optimiser and a batch that every step sees again, whole or in the parts that an option cuts it into."""

    def __init__(
        self,
        family: str,
        size: str,
        batch_size: int,
        lengths: str = "full",
        dropout: bool = True,
        option: Option = OPTIONS[NONE],
    ):
        torch.manual_seed(0)
        self.option = option
        self.model = build_model(family, size, dropout, option)
        self.optimizer = create_optimizer(self.model, 1e-5, 0.02, torch.device(device()), kind=option.optimizer)
        self.batch = build_batch(self.model, batch_size, lengths)
        self._compiled = None

    @contextmanager
    def doing(self, variant: Variant) -> Iterator[Callable]:
        """The forward pass as the variant does it."""
        model = self.model
        with ExitStack() as stack:
            for name in variant.without:
                stack.enter_context(OPTIMISATIONS[name][1](model, self.optimizer))
            if variant.checkpointing:
                model.activation_checkpointing_enable()
                stack.callback(model.activation_checkpointing_disable)
            if variant.attention != "sdpa":
                model.set_attn_implementation(variant.attention)
                stack.callback(model.set_attn_implementation, "sdpa")
            if variant.compiled:
                self._compiled = self._compiled or torch.compile(model)
                model = self._compiled
            yield lambda **extra: self._forward(model, variant, extra)

    def _forward(self, model, variant: Variant, extra: dict) -> dict:
        precision = torch.autocast("cuda", torch.bfloat16) if variant.bf16 else nullcontext()
        with precision:
            return model(**(self.batch | extra), update_teacher=False)

    def _inputs(self) -> Iterator[dict]:
        """Inputs that each forward pass of a step is given in the place of the whole batch."""
        parts = self.option.parts
        batches = [
            dict(zip(self.batch, values, strict=True))
            for values in zip(*(value.chunk(parts) for value in self.batch.values()), strict=True)
        ]
        cached = cache_contrast(self.model, batches) if self.option.caching else [None] * parts
        yield from (batch | {"contrast_part": part} for batch, part in zip(batches, cached, strict=True))

    def run(self, variant: Variant) -> dict[str, float]:
        """Seconds by part of one whole step."""
        seconds = dict.fromkeys(PARTS, 0.0)

        def timed(part: str, function: Callable):
            start = now()
            result = function()
            seconds[part] += now() - start
            return result

        with self.doing(variant) as forward:
            timed("teacher", self.model.update_teacher)
            inputs = self._inputs()
            for _ in range(self.option.parts):
                loss = timed("forward", lambda: forward(**next(inputs)).loss)
                timed("backward", (loss / self.option.parts).backward)
            timed("optimizer", self._take_step)
        return seconds

    def _take_step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def count_flops(self, variant: Variant) -> int:
        """Of a whole step, with plain attention: what a fused kernel computes twice counts once. AdamW has no products."""
        with self.doing(variant) as forward, FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            for inputs in self._inputs():
                forward(**inputs).loss.backward()
            self._take_step()
        return counter.get_total_flops()

    def gradients(self, variant: Variant, **given) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """Losses and gradients, from the same random draws every time."""
        torch.manual_seed(1)
        queue = {name: value.clone() for name, value in self.model.training_state.queue.state_dict().items()}
        with self.doing(variant) as forward:
            output = forward(**given)
            output.loss.backward()
        self.model.training_state.queue.load_state_dict(queue)
        losses = {name: value.item() for name, value in output.items() if name.endswith("loss")}
        gradients = {name: value.grad for name, value in self.model.named_parameters() if value.grad is not None}
        self.optimizer.zero_grad()
        return losses, gradients


def measure_time(family: str, size: str, batch_size: int, rounds: int, lengths: str = "full") -> dict:
    """
    Runs every variant once in each round, so that all of them see the same hours of the machine. The first round warms
    up and counts FLOPs instead.
    """
    step = TrainingStep(family, size, batch_size, lengths)
    variants = dict(CPU_VARIANTS)
    unavailable = {}
    if device() == "cuda":
        variants |= GPU_VARIANTS
    flops = {}
    for name, variant in list(variants.items()):
        try:
            if name in CPU_VARIANTS:
                flops[name] = step.count_flops(variant)
            step.run(variant)
        except (ImportError, ValueError, RuntimeError) as error:
            # Kernels that this GPU or installation lacks; the rest is still worth its figures.
            if name in CPU_VARIANTS:
                raise
            unavailable[name] = str(error)
            del variants[name]
            step.optimizer.zero_grad()
    seconds, gflops = {name: [] for name in variants}, []
    for index in range(rounds):
        gflops.append(matmul_gflops(device=device()))
        # There and back: a machine that gets slower by the minute must not slow the same ways every time.
        for name in list(variants) if index % 2 == 0 else reversed(variants):
            seconds[name].append(step.run(variants[name]))
    gflops.append(matmul_gflops(device=device()))
    if device() == "cuda":
        bf16 = matmul_gflops(8192, device="cuda", dtype=torch.bfloat16)
    return {
        "seconds": seconds,
        "flops": flops,
        "matmul_gflops": gflops,
        **({"matmul_gflops_bf16": bf16, "unavailable": unavailable} if device() == "cuda" else {}),
        "threads": torch.get_num_threads(),
        "parameters": sum(value.numel() for value in step.model.parameters() if value.requires_grad),
    }


def measure_option(family: str, size: str, batch_size: int, rounds: int, option: str) -> dict:
    """Steps with an option and without it, in turn, after a first one of each that warms up and counts FLOPs."""
    steps = {name: TrainingStep(family, size, batch_size, option=OPTIONS[name]) for name in (NONE, option)}
    ours = CPU_VARIANTS["ours"]
    flops = {}
    for name, step in steps.items():
        flops[name] = step.count_flops(ours)
        step.run(ours)
    return {
        "rounds": [{name: step.run(ours) for name, step in steps.items()} for _ in range(rounds)],
        "flops": flops,
        "trained_parameters": {
            name: sum(value.numel() for value in step.model.parameters() if value.requires_grad)
            for name, step in steps.items()
        },
    }


def measure_memory(
    family: str, size: str, batch_size: int, variant: str = "ours", option: str = NONE, lengths: str = "full"
) -> dict:
    """
    Peak memory of the process over whole steps, then what a step allocates. It is counted once with the gradients
    cleared before it, as the training loop does. It is counted again with gradients that are there already, as in all
    but the first of accumulated batches.
    """
    before = peak_rss_gib()
    step = TrainingStep(family, size, batch_size, lengths, option=OPTIONS[option])
    way = CPU_VARIANTS[variant]
    for _ in range(2):
        step.run(way)
    peak = peak_rss_gib()
    cleared = peak_allocated_gib(lambda: step.run(way), device())
    kept = step.optimizer.zero_grad
    for parameter in step.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    step.optimizer.zero_grad = lambda: kept(set_to_none=False)
    gc.collect()
    return {
        "peak_rss_gib": peak if device() == "cpu" else torch.cuda.max_memory_allocated() / 2**30,
        "rss_before_gib": before,
        "activation_gib": peak_allocated_gib(lambda: step.run(way), device()),
        "beyond_state_gib": cleared - _gradient_gib(step),
        "state_gib": _state_gib(step),
    }


def _gradient_gib(step: TrainingStep) -> float:
    gradients = [parameter.grad for parameter in step.model.parameters() if parameter.grad is not None]
    return sum(gradient.numel() * gradient.element_size() for gradient in gradients) / 2**30


def _state_gib(step: TrainingStep) -> float:
    """Parameters, gradients, optimiser, teacher and queue."""
    tensors = [*step.model.parameters(), *step.model.buffers()]
    tensors += [parameter.grad for parameter in step.model.parameters() if parameter.grad is not None]
    tensors += [
        value for state in step.optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**30


def measure_agreement(family: str, size: str, batch_size: int, lengths: str = "full") -> dict:
    """Largest difference between losses and gradients of the variants."""
    step = TrainingStep(family, size, batch_size, lengths, dropout=False)
    own = torch.arange(batch_size, device=device())
    given = {"negative_image_indices": own.roll(1), "negative_text_indices": own.roll(-1)}
    losses, gradients = step.gradients(CPU_VARIANTS["ours"], **given)
    result = {"losses": losses}
    for name in ("checkpointed", "published"):
        other_losses, other_gradients = step.gradients(CPU_VARIANTS[name], **given)
        if other_losses.keys() != losses.keys() or other_gradients.keys() != gradients.keys():
            raise RuntimeError(f"{family}: the step {name} has other losses or other gradients than ours.")
        result[f"loss_difference_{name}"] = max(abs(other_losses[key] - losses[key]) for key in losses)
        result[f"gradient_difference_{name}"] = max(
            (other_gradients[key] - value).abs().max().item() for key, value in gradients.items()
        )
    result["largest_gradient"] = max(value.abs().max().item() for value in gradients.values())
    return result


JOBS = {
    "time": measure_time,
    "memory": measure_memory,
    "agreement": measure_agreement,
    "option": measure_option,
}


def run_job(job: str, threads: int | None = None, **arguments) -> dict:
    if threads is not None:
        torch.set_num_threads(threads)
    return JOBS[job](**arguments)


if __name__ == "__main__":
    # The last line of what the process writes is its result.
    print(json.dumps(run_job(**json.loads(sys.argv[1]))))
