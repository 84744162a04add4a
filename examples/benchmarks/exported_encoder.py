"""Time the image encoder in 8 bits by onnxruntime against torch in 32 bits, and measure what it costs in quality.

    python examples/benchmarks/exported_encoder.py --size base --threads 2
    python examples/benchmarks/exported_encoder.py --model outputs/demo/model --data outputs/demo_corpus/test.json \\
        outputs/demo_corpus/validation.json outputs/demo_corpus/test_compositional.json

Both run on the same number of threads, in turns. With `--size` the weights are random, and the cosine is the smallest of
the embeddings by 8 bits with those by torch. With `--model` recall on benchmarks comes from the model and from its export
with `--int8`, all parts of it. Each file is a gallery of its own, and a figure is the mean over the files.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from measuring import add_json_option, now
from transformers import AutoProcessor

from vicha_hf import ViChaConfig, ViChaForRetrieval
from vicha_hf.command_parser import CommandParser
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.datasets_retrieval import RetrievalDataset
from vicha_hf.data.transforms import EvaluationTransform
from vicha_hf.evaluation.retrieval import evaluate_retrieval
from vicha_hf.export.exporting import export_model
from vicha_hf.export.part_inputs import example_inputs
from vicha_hf.export.parts import ImageEncoderPart
from vicha_hf.families import load_finetuned
from vicha_hf.mistakes import run_script
from vicha_hf.onnx_backend.sessions import OnnxPart


IMAGES = 8


def main(argv: Sequence[str] | None = None) -> dict:
    # Which imports this module.
    from inference import SETTINGS, build_config

    parser = CommandParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SETTINGS, help="of an encoder with random weights")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; the shortest counts (%(default)s)")
    parser.add_argument("--model", metavar="MODEL", help="folder of a retrieval or pretrained model")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="annotation files of benchmarks for the model")
    add_json_option(parser, "exported_encoder")
    arguments = parser.parse_args(argv)
    if (arguments.model is None) != (arguments.data is None) or not (arguments.size or arguments.model):
        parser.error("give --size, or --model and --data, or all of them")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    result = {"threads": arguments.threads, "torch": torch.__version__}
    if arguments.size is not None:
        result |= compare_image_encoders(build_config(SETTINGS[arguments.size]), arguments.repeats)
    if arguments.model is not None:
        result |= compare_recall(arguments.model, arguments.data)
    arguments.json.write(result)
    return result


@torch.no_grad()
def compare_image_encoders(config: ViChaConfig, repeats: int) -> dict[str, float]:
    """
    Images per second of both, their ratio, and the cosine of their embeddings.

    Args:
        config: of a model with random weights.
        repeats: runs of each; the shortest counts.
    """
    model = ViChaForRetrieval(config).eval()
    part = ImageEncoderPart(model).eval()
    inputs = example_inputs(model, part, batch_size=IMAGES, length=25)
    with tempfile.TemporaryDirectory() as folder:
        export_model(model, folder, int8=True, parts=["image_encoder"])
        int8 = OnnxPart(Path(folder) / "image_encoder.onnx")
    torch_seconds, int8_seconds = [], []
    # Once before, to warm up.
    wanted, found = part(*inputs.values())[0], int8(**inputs)["image_embeds"]
    for _ in range(repeats):
        times = [now()]
        part(*inputs.values())
        times.append(now())
        int8(**inputs)
        times.append(now())
        torch_seconds.append(times[1] - times[0])
        int8_seconds.append(times[2] - times[1])
    torch_seconds, int8_seconds = min(torch_seconds), min(int8_seconds)
    result = {
        "torch_images_per_second": IMAGES / torch_seconds,
        "onnx_int8_images_per_second": IMAGES / int8_seconds,
        "onnx_int8_over_torch": torch_seconds / int8_seconds,
        "onnx_int8_cosine": torch.cosine_similarity(found, wanted).min().item(),
    }
    print(
        f"image encoder: torch {result['torch_images_per_second']:.1f} images/s, int8 "
        f"{result['onnx_int8_images_per_second']:.1f}; ratio {result['onnx_int8_over_torch']:.2f}, cosine "
        f"{result['onnx_int8_cosine']:.4f}"
    )
    return result


def compare_recall(folder: str, files: Sequence[str]) -> dict[str, float]:
    """R@1 in %, mean over files, of a model and of its export in 8 bits: both directions, with each stage left out."""
    model = load_finetuned("retrieval", folder)
    processor = AutoProcessor.from_pretrained(folder)
    transform = EvaluationTransform.from_image_processor(processor.image_processor)
    datasets = [RetrievalDataset(read_image_text_records(file), transform) for file in files]
    result = {}
    with tempfile.TemporaryDirectory() as exported:
        export_model(model, exported, int8=True, companions=model.config.save_pretrained)
        for name, one in (("torch", model), ("int8", load_finetuned("retrieval", exported, backend="onnx"))):
            found = [evaluate_retrieval(one, processor, data, device="cpu", progress=False) for data in datasets]
            for key in (key for key in found[0] if key.startswith("r1_")):
                result[f"{name}_{key}"] = mean(metrics[key] for metrics in found)
    lost = {
        key.removeprefix("torch_"): value - result[key.replace("torch", "int8", 1)]
        for key, value in result.items()
        if key.startswith("torch_")
    }
    result["onnx_int8_r1_lost"], result["onnx_int8_r1_lost_mean"] = max(lost.values()), mean(lost.values())
    for key, points in lost.items():
        print(
            f"{key}: torch {result[f'torch_{key}']:.2f} %, int8 {result[f'int8_{key}']:.2f} %, lost {points:.2f} points"
        )
    return result


if __name__ == "__main__":
    sys.exit(run_script(main))
