"""
A cluster's SIGTERM reaches the processes that load data too: the evaluation that is running must come to its end.

It runs in a process of its own: if its loading process died, torch would raise an error wherever the tests are by then.
"""

import multiprocessing
import os
import signal
from pathlib import Path

import torch
from random_gallery import RandomGallery
from real_processes import run_in_processes
from tiny_model_folder import tiny_processor
from tiny_models import tiny_retrieval_model

from vicha_hf.evaluation.retrieval import evaluate_retrieval
from vicha_hf.evaluation.sharded_prediction import predict_all


class Terminated(RandomGallery):
    """The process that loads an image gets the signal."""

    def __getitem__(self, index):
        assert torch.utils.data.get_worker_info() is not None, "this would end the tests"
        os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


def predictions(rank):
    # A process that was spawned would spawn its own.
    multiprocessing.set_start_method("fork", force=True)
    answers = predict_all(
        Terminated(3),
        lambda items: {"pixel_values": torch.stack([item["pixel_values"] for item in items])},
        lambda batch, indices: list(batch["pixel_values"]),
        device=torch.device("cpu"),
        batch_size=2,
        num_workers=1,
        progress=False,
    )
    return {"answers": torch.stack(answers)}


def test_predictions(tmp_path):
    (record,) = run_in_processes(predictions, tmp_path, 1)
    assert torch.equal(record["answers"], torch.stack([RandomGallery(3)[row]["pixel_values"] for row in range(3)]))


def recall(gallery, num_workers, folder):
    processor, model = tiny_processor(Path(folder)), tiny_retrieval_model()
    return evaluate_retrieval(model, processor, gallery(3), k=2, progress=False, num_workers=num_workers)


def interrupted_recall(rank, folder):
    multiprocessing.set_start_method("fork", force=True)
    return recall(Terminated, 1, folder)


def test_retrieval(tmp_path):
    (observed,) = run_in_processes(interrupted_recall, tmp_path, 1, str(tmp_path))
    assert observed == recall(RandomGallery, 0, str(tmp_path))
