"""
Every number of the published code that is in reach: `pytest tests/golden` compares the committed cases,
`VICHA_GOLDEN_DIR=folder pytest tests/golden` every case of another folder in the same format.
"""

from pathlib import Path

import pytest
import torch
from comparison import Comparison, GoldenCase
from grounding_maps import compare_grounding
from head_steps import compare_head_step
from question_steps import compare_question_step
from reference_files import REFERENCE_FILES
from training_steps import compare_step, compare_step_across_processes

from vicha_hf.conversion.checkpoint_config import detect_head


def runner_of(case: GoldenCase):
    """How to run a case, decided by its checkpoint's keys and its inputs, not by its name."""
    tensors = torch.load(case.checkpoint, weights_only=True)["model"]
    heads = detect_head(tensors)
    several_processes = any(name.startswith("rank0.") for name in case.inputs)
    run = compare_step_across_processes if several_processes else compare_step
    if heads == ("pretraining",):
        return lambda: run(case, "pretraining")
    if "retrieval" in heads and any(name in case.inputs for name in ("idx", "rank0.idx")):
        return lambda: run(case, "retrieval")
    if several_processes:
        return None
    if "grounding" in heads and "blocks" in case.description:
        return lambda: compare_grounding(case)
    if heads in (("entailment",), ("reasoning",), ("text-assignment",)):
        return lambda: compare_head_step(case, heads[0])
    if heads == ("vqa",):
        return lambda: compare_question_step(case)
    return None


def compare(golden: Path) -> Comparison:
    if golden.is_file():
        if golden.name not in REFERENCE_FILES:
            pytest.fail(f"{golden.name}: no way to compare this file")
        return REFERENCE_FILES[golden.name](golden)
    case = GoldenCase.load(golden)
    run = runner_of(case)
    if run is None:
        pytest.fail(f"{golden.name}: no way to run this case ({case.description['description']})")
    return run()


def test_golden_numbers(golden, tally):
    comparison = compare(golden)
    tally["cases"] += 1
    tally["tensors"] += comparison.compared
    tally["within_rounding"] += [f"{golden.name}: {name}" for name in comparison.within_rounding]
    comparison.check()
