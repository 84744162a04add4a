"""Reading a golden case and comparing every number of it."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file


RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-5
# Sums that nearly cancel (gradients of key projections where the keys are almost alike) leave little but rounding, in the
# golden float32 numbers as in ours. How much is measured: by how far our float32 result is from our float64 result. In the
# published order of operations (scores divided by the root of the heads' width, states repeated for each answer, hard and
# soft loss apart, the teacher's average as a sum of two products) our float32 numbers were those of the golden cases bit
# for bit on an AVX2 machine; other instruction sets alone move them by more than the tolerance.
ROUNDING_FACTOR = 4
CANCELLING_GRADIENTS = re.compile(r"grad\..*\.key\.weight")

# `hyper` of case.json -> field of the configuration; alpha is an argument of the step, the temperature a tensor.
HYPERPARAMETERS = {
    "momentum": "momentum",
    "mask_ratio": "mim_mask_ratio",
    "num_concepts_per_head": "psl_votes_per_head",
    "kept_positions": "psl_num_keywords",
}


@dataclass
class GoldenCase:
    """A folder of inputs, weights and expected numbers, in the format that the golden README describes."""

    folder: Path
    description: dict
    inputs: dict[str, torch.Tensor]
    expected: dict[str, torch.Tensor]

    @classmethod
    def load(cls, folder: Path) -> "GoldenCase":
        return cls(
            folder=folder,
            description=json.loads((folder / "case.json").read_text()),
            inputs=load_file(folder / "inputs.safetensors"),
            expected=load_file(folder / "expected.safetensors"),
        )

    @property
    def checkpoint(self) -> Path:
        return self.folder / "original.pth"

    @property
    def config_overrides(self) -> dict:
        """What tensors cannot tell: heads, token ids, dropout, and the hyper-parameters of the step."""
        sizes, tokenizer = self.description["sizes"], self.description["tokenizer"]
        tokens = ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
        overrides = {
            "vision_config": {
                "num_attention_heads": sizes["vision_heads"],
                "layer_norm_eps": sizes["vision_layer_norm_eps"],
            },
            "text_config": {
                "num_attention_heads": sizes["text_heads"],
                "layer_norm_eps": sizes["text_layer_norm_eps"],
                "hidden_dropout_prob": sizes["dropout"],
                "attention_probs_dropout_prob": sizes["dropout"],
                **{name: tokenizer[name] for name in tokens},
            },
        }
        if sizes.get("decoder_heads"):
            overrides["mim_decoder_heads"] = sizes["decoder_heads"]
        hyper = self.description.get("hyper", {})
        for golden, ours in HYPERPARAMETERS.items():
            if hyper.get(golden) is not None:
                overrides[ours] = hyper[golden]
        return overrides

    @property
    def alpha(self) -> float:
        return self.inputs["alpha"].item() if "alpha" in self.inputs else self.description["hyper"]["alpha"]


@dataclass
class Comparison:
    """Collects what was compared; [`~Comparison.check`] raises with every difference at once."""

    # Patterns of expected keys that have no counterpart, each with its reason.
    without_counterpart: dict[str, str] = field(default_factory=dict)
    compared: int = 0
    differences: list[str] = field(default_factory=list)
    # What the tolerance alone would not have let pass, but float64 did.
    within_rounding: list[str] = field(default_factory=list)

    def tensors(
        self,
        expected: dict[str, torch.Tensor],
        observed: dict[str, torch.Tensor],
        in_float64: Callable[[], dict[str, torch.Tensor]] | None = None,
    ) -> None:
        """Every expected tensor; `in_float64` computes the gradients again if one that nearly cancels is outside."""
        exact = None
        for name, value in expected.items():
            if any(re.fullmatch(pattern, name) for pattern in self.without_counterpart):
                continue
            if name not in observed:
                self.differences.append(f"{name}: nothing to compare it with")
                continue
            if self._may_be_rounding(name, in_float64) and self._is_outside(value, observed[name]):
                exact = in_float64() if exact is None else exact
                if name in exact and self._rounding_explains(value, observed[name], exact[name]):
                    self.compared += 1
                    self.within_rounding.append(name)
                    continue
            self.tensor(name, value, observed[name])

    @staticmethod
    def _may_be_rounding(name: str, in_float64: Callable | None) -> bool:
        return in_float64 is not None and CANCELLING_GRADIENTS.fullmatch(name) is not None

    def _is_outside(self, expected: torch.Tensor, observed: torch.Tensor) -> bool:
        return expected.shape == observed.shape and bool(self._outside(expected, observed)[0].any())

    @staticmethod
    def _rounding_explains(expected: torch.Tensor, observed: torch.Tensor, exact: torch.Tensor) -> bool:
        """Whether a golden tensor is as near to the float64 result as float32 comes."""
        rounding = (observed.detach().double() - exact.detach().double()).abs().max()
        return bool((expected.double() - exact.detach().double()).abs().max() <= ROUNDING_FACTOR * rounding)

    def tensor(self, name: str, expected: torch.Tensor, observed: torch.Tensor) -> None:
        self.compared += 1
        if expected.numel() == 1 and observed.numel() == 1:
            observed = observed.reshape(expected.shape)
        if expected.shape != observed.shape:
            self.differences.append(f"{name}: shape {tuple(observed.shape)}, expected {tuple(expected.shape)}")
            return
        outside, worst = self._outside(expected, observed)
        if outside.any():
            self.differences.append(
                f"{name}: {observed.flatten()[worst]:.8g}, expected {expected.flatten()[worst]:.8g} "
                f"({int(outside.sum())} of {outside.numel()} differ)"
            )

    def vector(self, names: list[str], expected: torch.Tensor, observed: torch.Tensor) -> None:
        """Named numbers [n] that are compared as one tensor."""
        self.compared += len(names)
        outside, _ = self._outside(expected, observed)
        for index in outside.nonzero().flatten().tolist():
            self.differences.append(f"{names[index]}: {observed[index]:.8g}, expected {expected[index]:.8g}")

    @staticmethod
    def _outside(expected: torch.Tensor, observed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the two differ by more than the tolerance, and the flat index of the worst place."""
        expected, observed = expected.double(), observed.detach().double()
        allowed = ABSOLUTE_TOLERANCE * min(1.0, expected.abs().max().item()) + RELATIVE_TOLERANCE * expected.abs()
        excess = (observed - expected).abs() - allowed
        # Not `excess > 0`: a nan is outside as well.
        return ~(excess <= 0), excess.argmax()

    def equal(self, name: str, expected, observed) -> None:
        self.compared += 1
        if expected != observed:
            self.differences.append(f"{name}: {observed!r}, expected {expected!r}")

    def check(self) -> None:
        assert not self.differences, "\n".join(self.differences)
        assert self.compared > 0, "nothing was compared"
