"""A cluster's SIGTERM reaches the processes that load data too: the evaluation that is running must come to its end."""

import os
import signal

import torch
from random_gallery import RandomGallery
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


def test_predictions():
    answers = predict_all(
        Terminated(3),
        lambda items: {"pixel_values": torch.stack([item["pixel_values"] for item in items])},
        lambda batch, indices: list(batch["pixel_values"]),
        device=torch.device("cpu"),
        batch_size=2,
        num_workers=1,
        progress=False,
    )
    assert torch.equal(torch.stack(answers), torch.stack([RandomGallery(3)[row]["pixel_values"] for row in range(3)]))


def test_retrieval(tmp_path):
    processor, model = tiny_processor(tmp_path), tiny_retrieval_model()
    observed, expected = (
        evaluate_retrieval(model, processor, gallery(3), k=2, progress=False, num_workers=workers)
        for gallery, workers in ((Terminated, 1), (RandomGallery, 0))
    )
    assert observed == expected
