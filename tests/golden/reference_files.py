"""Running the golden files that are not training steps: each function compares one file."""

import inspect
import json
import re
from pathlib import Path

import torch
from block_mask_obvious import PythonDraws, obvious_block_mask
from comparison import Comparison
from safetensors.torch import load_file

from vicha_hf.data import randaugment, transforms
from vicha_hf.evaluation import grounding, vqa, vqa_normalization
from vicha_hf.evaluation.retrieval import retrieval_metrics
from vicha_hf.models.encoder_vision import interpolate_positions
from vicha_hf.models.image_processing_vicha import ViChaImageProcessor
from vicha_hf.models.objective_mim import sincos_positions
from vicha_hf.models.random_draws import draw_block_masks
from vicha_hf.models.task_grounding import rank_boxes
from vicha_hf.models.text_cleaning import clean_caption, clean_question
from vicha_hf.training.schedule import published_learning_rate


def position_embeddings(path: Path) -> Comparison:
    comparison = Comparison()
    golden = load_file(path)
    for name, expected in golden.items():
        if name.startswith("interpolate.") and name.endswith(".out"):
            side = int((expected.shape[1] - 1) ** 0.5)
            positions = golden[name.removesuffix("out") + "in"]
            comparison.tensor(name, expected, interpolate_positions(positions, (side, side)))
        elif name.startswith("sincos."):
            dim, grid = (int(part) for part in name.removeprefix("sincos.dim").split("_grid"))
            comparison.tensor(name, expected, sincos_positions(dim, grid))
        elif not name.endswith(".in"):
            comparison.differences.append(f"{name}: nothing to compare it with")
    return comparison


def text_cleaning(path: Path) -> Comparison:
    comparison = Comparison()
    functions = {"pre_caption": clean_caption, "pre_question": clean_question}
    for case in json.loads(path.read_text())["cases"]:
        for name, expected in case.items():
            if name == "input":
                continue
            function, max_words = name.rsplit("_", 1)
            observed = functions[function](case["input"], int(max_words))
            comparison.equal(f"{name}({case['input']!r})", expected, observed)
    return comparison


def learning_rates(path: Path) -> Comparison:
    comparison = Comparison()
    for run in json.loads(path.read_text())["runs"]:
        schedule = run["schedular"]
        for epoch, encoded in enumerate(run["lr_used_per_epoch"]):
            expected = [rate for rate, repeats in encoded for _ in range(repeats)]
            observed = [
                published_learning_rate(
                    epoch,
                    iteration,
                    num_epochs=schedule["epochs"],
                    learning_rate=schedule["lr"],
                    min_learning_rate=schedule["min_lr"],
                    warmup_learning_rate=schedule["warmup_lr"],
                    warmup_epochs=schedule["warmup_epochs"],
                )
                for iteration in range(len(expected))
            ]
            comparison.tensor(f"{run['name']}.epoch{epoch}", torch.tensor(expected), torch.tensor(observed))
    return comparison


def augmentation(path: Path) -> Comparison:
    """The file describes constants; each is asserted against the code and against the description's own words."""
    comparison = Comparison()
    golden = json.loads(path.read_text())
    comparison.equal("augs", golden["augs"], list(randaugment.OPERATIONS))
    image_processor = ViChaImageProcessor()
    comparison.equal("mean", golden["normalize"]["mean"], list(image_processor.image_mean))
    comparison.equal("std", golden["normalize"]["std"], list(image_processor.image_std))
    scale = ",".join(f"{value:.1f}" for value in transforms.PRETRAINING_CROP_SCALE)
    comparison.equal("crop scale", True, f"scale=({scale})" in golden["pipeline"]["pretrain"])
    scale = ",".join(f"{value:.1f}" for value in transforms.FINETUNING_CROP_SCALE)
    comparison.equal("fine-tuning crop scale", True, f"scale ({scale})" in golden["pipeline"]["train"])
    operations = f"RandomAugment({randaugment.NUM_OPERATIONS},{randaugment.LEVEL},"
    comparison.equal("operations and level", True, operations in golden["pipeline"]["pretrain"])
    comparison.equal("probability", True, f"> {randaugment.APPLY_PROBABILITY})" in golden["sampling"])
    level = randaugment.LEVEL
    for name, value, pattern in (
        ("Brightness", randaugment.enhancement_factor(level), "= {:.2f}"),
        ("Sharpness", randaugment.enhancement_factor(level), "factor {:.2f}"),
        ("ShearX", randaugment.shear_slope(level), "= {:.2f},"),
        ("TranslateX", randaugment.translation_pixels(level), "= {:.0f} PIXELS"),
        ("Rotate", randaugment.rotation_degrees(level), "= {:.0f} degrees"),
    ):
        comparison.equal(name, True, pattern.format(value) in golden["args"][name])
    comparison.equal("fill", True, str(randaugment.FILL).replace(" ", "") in golden["args"]["ShearX"])
    return comparison


def retrieval_recalls(path: Path) -> Comparison:
    comparison = Comparison()
    for index, case in enumerate(json.loads(path.read_text())["cases"]):
        captions = [list(case["img2txt"][str(image)]) for image in range(len(case["img2txt"]))]
        images = [case["txt2img"][str(text)] for text in range(len(case["txt2img"]))]
        observed = retrieval_metrics(
            torch.tensor(case["scores_i2t"]), torch.tensor(case["scores_t2i"]), captions, images
        )
        names = {"txt_r1": "r1_i2t", "txt_r5": "r5_i2t", "txt_r10": "r10_i2t"}
        names |= {"img_r1": "r1_t2i", "img_r5": "r5_t2i", "img_r10": "r10_t2i"}
        names |= {"txt_r_mean": "r_mean_i2t", "img_r_mean": "r_mean_t2i", "r_mean": "r_mean"}
        comparison.equal(f"names in case {index}", sorted(case["result"]), sorted(names))
        if case["tie_sensitive"]:
            # R@10 and the means over it are not defined there: numpy's sort decides ties among unscored pairs.
            names = {golden: ours for golden, ours in names.items() if golden[-2:] in ("r1", "r5")}
        for golden, ours in names.items():
            comparison.tensor(
                f"{index}.{golden}", torch.tensor([case["result"][golden]]), torch.tensor([observed[ours]])
            )
    return comparison


def vqa_metrics(path: Path) -> Comparison:
    comparison = Comparison()
    golden = json.loads(path.read_text())
    for case in golden["normalisation"]:
        text = case["input"]
        comparison.equal(
            f"punctuation({text!r})", case["processPunctuation"], vqa_normalization.normalize_punctuation(text)
        )
        comparison.equal(f"words({text!r})", case["processDigitArticle"], vqa_normalization.normalize_words(text))
        comparison.equal(f"both({text!r})", case["both"], vqa_normalization.normalize_answer(text))
    predictions = {question: result["answer"] for question, result in golden["input"]["results"].items()}
    observed = vqa.vqa_accuracy(predictions, golden["input"]["questions"], rules="2017")
    names = {"overall": "overall", "perQuestionType": "per_question_type", "perAnswerType": "per_answer_type"}
    comparison.equal("names of accuracies", sorted(golden["accuracy"]), sorted(names))
    for name, ours in names.items():
        comparison.equal(name, golden["accuracy"][name], observed[ours])
    comparison.equal("per_question", golden["per_question"], observed["per_question"])
    return comparison


def grounding_metrics(path: Path) -> Comparison:
    comparison = Comparison()
    golden = json.loads(path.read_text())
    for index, pair in enumerate(golden["iou"]):
        overlap = grounding.intersection_over_union(pair["box1"], pair["box2"])
        comparison.tensor(f"iou {index}", torch.tensor([pair["iou"]]), torch.tensor([overlap]))
    cases = golden["cases"]
    ranking = rank_boxes(
        torch.tensor([case["heatmap"] for case in cases]),
        [case["detections"] for case in cases],
        [(case["height"], case["width"]) for case in cases],
        area_exponent=golden["alpha"],
    )
    chosen = []
    for case, best, scores in zip(cases, ranking.best_indices.tolist(), ranking.scores, strict=True):
        chosen.append(case["detections"][best] if best >= 0 else None)
        comparison.tensor(f"{case['ref_id']}.scores", torch.tensor(case["scores"]), scores)
        comparison.equal(f"{case['ref_id']}.chosen_box", case["chosen_box"], chosen[-1])
        overlap = 0.0 if chosen[-1] is None else grounding.intersection_over_union(chosen[-1], case["ref_box"])
        comparison.tensor(f"{case['ref_id']}.iou", torch.tensor([float(case["iou"])]), torch.tensor([overlap]))
    accuracy = grounding.grounding_accuracy(
        chosen, [case["ref_box"] for case in cases], [case["split"] for case in cases]
    )
    comparison.equal("splits", sorted(golden["accuracy"]), sorted(f"{split}_d" for split in accuracy))
    for split, value in accuracy.items():
        comparison.tensor(f"{split}_d", torch.tensor([golden["accuracy"][f"{split}_d"]]), torch.tensor([value]))
    return comparison


def block_masks(path: Path) -> Comparison:
    """
    The published masks come from CPython's generator: the obvious version of the algorithm, fed from it, must give them
    bit by bit. The batched version draws from torch, so it is held against the published counts here (within four
    standard deviations of their sampling), and against the obvious version in `tests/objectives/test_block_mask.py`.
    """
    comparison = Comparison()
    golden = json.loads(path.read_text())
    side = round(len(golden["masks"][0]) ** 0.5)
    numbers = r"num_masking_patches (\d+), min_num_patches (\d+), max None.*aspect (\d+\.\d+)\.\.1/(\d+\.\d+)"
    max_masked, min_block, min_aspect, max_aspect = re.search(numbers, golden["description"]).groups()
    comparison.equal("tallest", min_aspect, max_aspect)
    options = {"max_masked": int(max_masked), "min_block": int(min_block), "min_aspect": float(min_aspect)}
    defaults = inspect.signature(draw_block_masks).parameters
    comparison.equal("constants", options, {name: defaults[name].default for name in options})
    comparison.equal("window", [side**2], list({len(mask) for mask in golden["masks"]}))
    first_seed = int(re.search(r"random\.seed\((\d+)\+i\)", golden["description"]).group(1))
    for index, (expected, count) in enumerate(zip(golden["masks"], golden["counts_first"], strict=True)):
        mask = obvious_block_mask(
            PythonDraws(first_seed + index),
            side,
            side,
            **options,
        )
        comparison.equal(f"mask {index}", expected, "".join(str(hidden) for row in mask for hidden in row))
        comparison.equal(f"count {index}", count, sum(map(sum, mask)))
    statistics = golden["statistics_2000"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        counts = draw_block_masks(20000, side, **options).sum(dim=1)
    comparison.equal("largest count", statistics["max"], int(counts.max()))
    # The smallest of 2,000 is a rare event: a mask that stops earlier than one in 2,000 does must stay as rare.
    earlier = (counts < statistics["min"]).float().mean().item()
    comparison.equal("smallest count", True, earlier < 4 / 2000)
    share = statistics["share_exactly_75"]
    for name, expected, observed, deviation in (
        ("mean count", statistics["mean"], counts.float().mean().item(), counts.float().std().item()),
        (
            "share of full masks",
            share,
            (counts == int(max_masked)).float().mean().item(),
            (share * (1 - share)) ** 0.5,
        ),
    ):
        # 2,000 golden masks against 20,000 of ours.
        allowed = 4 * deviation * (1 / 2000 + 1 / 20000) ** 0.5
        comparison.equal(f"{name} {observed:.4f} near {expected}", True, abs(observed - expected) <= allowed)
    return comparison


REFERENCE_FILES = {
    "pos_embed.safetensors": position_embeddings,
    "text_cleaning.json": text_cleaning,
    "lr_schedule.json": learning_rates,
    "randaugment.json": augmentation,
    "retrieval_metrics.json": retrieval_recalls,
    "vqa_eval.json": vqa_metrics,
    "grounding_eval.json": grounding_metrics,
    "masking_generator.json": block_masks,
}
