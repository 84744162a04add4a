"""Evaluates retrieval on 1,000 images and 5,000 captions in a process of its own, whose memory is measured.

large_gallery_worker.py FOLDER
"""

import json
import resource
import sys
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from random_gallery import RandomGallery
from tiny_model_folder import tiny_processor
from tiny_models import tiny_retrieval_model

from vicha_hf.evaluation.retrieval import evaluate_retrieval


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    model, processor = tiny_retrieval_model(), tiny_processor(folder)
    arguments = {"k": 16, "batch_size": 50, "kept_states_gib": 0.001, "progress": False}
    evaluate_retrieval(model, processor, RandomGallery(50, captions=5), **arguments)
    before, start = peak_mib(), time.perf_counter()
    metrics = evaluate_retrieval(model, processor, RandomGallery(1000, captions=5), **arguments)
    report = {"mib": peak_mib() - before, "seconds": time.perf_counter() - start, "metrics": metrics}
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
