"""The image encoder in 8 bits by onnxruntime against torch in 32 bits, on the same number of threads."""

import tempfile
from pathlib import Path

import onnxruntime
import torch
from measuring import timed

from vicha_hf import ViChaConfig, ViChaForRetrieval
from vicha_hf.export.onnx_files import example_inputs, export_onnx
from vicha_hf.export.parts import ImageEncoderPart


IMAGES = 8


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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, folder, int8=True, parts=["image_encoder"])
        session = onnxruntime.InferenceSession(Path(folder) / "image_encoder.onnx", options)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    part(*inputs.values()), session.run(None, arrays)
    torch_seconds, wanted = timed(lambda: part(*inputs.values())[0], repeats)
    int8_seconds, found = timed(lambda: session.run(None, arrays)[0], repeats)
    result = {
        "torch_images_per_second": IMAGES / torch_seconds,
        "onnx_int8_images_per_second": IMAGES / int8_seconds,
        "onnx_int8_over_torch": torch_seconds / int8_seconds,
        "onnx_int8_cosine": torch.cosine_similarity(torch.from_numpy(found), wanted).min().item(),
    }
    print(
        f"image encoder: torch {result['torch_images_per_second']:.1f} images/s, int8 "
        f"{result['onnx_int8_images_per_second']:.1f}; ratio {result['onnx_int8_over_torch']:.2f}, cosine "
        f"{result['onnx_int8_cosine']:.4f}"
    )
    return result
