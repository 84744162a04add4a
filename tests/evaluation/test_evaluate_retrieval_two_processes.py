"""Re-ranking shared by two processes equals one process, also where the shares are unequal or one has nothing to do."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from accelerate import Accelerator
from random_gallery import RandomGallery
from tiny_model_folder import tiny_processor
from tiny_models import tiny_retrieval_model

from vicha_hf.evaluation.retrieval import evaluate_retrieval, score_retrieval


WORLD_SIZE, SIZES = 2, (1, 5, 6)


def score(folder, num_images, accelerator=None):
    processor = tiny_processor(folder)
    arguments = {"k": 2, "batch_size": 2, "progress": False, "accelerator": accelerator}
    model, gallery = tiny_retrieval_model(), RandomGallery(num_images)
    scores = score_retrieval(model, processor, gallery, **arguments)
    return vars(scores) | {"metrics": evaluate_retrieval(model, processor, gallery, **arguments)}


def _rank(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD_SIZE)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    accelerator = Accelerator(cpu=True)
    results = {"num_processes": accelerator.num_processes}
    results |= {num_images: score(f"{folder}/tokenizer_{rank}", num_images, accelerator) for num_images in SIZES}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for rank in range(WORLD_SIZE):
        (folder / f"tokenizer_{rank}").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, str(folder)), nprocs=WORLD_SIZE)
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]
    assert [result["num_processes"] for result in results] == [WORLD_SIZE] * WORLD_SIZE
    return results


@pytest.mark.parametrize("num_images", SIZES)
def test_two_processes_equal_one(num_images, ranks, tmp_path):
    alone = score(tmp_path, num_images)
    metrics = alone.pop("metrics")
    assert alone["rerank_i2t"].shape == (num_images, metrics["num_captions"])
    for result in ranks:
        assert result[num_images].pop("metrics") == metrics
        for name, scores in alone.items():
            torch.testing.assert_close(result[num_images][name], scores, atol=1e-5, rtol=0)
