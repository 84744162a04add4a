"""Every head under transformers' Trainer with the package's datasets and collators, on the tiny files of the tasks."""

from collections.abc import Callable
from pathlib import Path

import torch
from tiny_model_folder import tiny_processor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from vicha_hf import SimlaImageProcessor, SimlaProcessor
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.annotations_entailment import read_entailment_records
from vicha_hf.data.annotations_grounding import read_grounding_records
from vicha_hf.data.annotations_reasoning import read_reasoning_records
from vicha_hf.data.annotations_vqa import read_question_records
from vicha_hf.data.collators import (
    EntailmentCollator,
    PretrainingCollator,
    QuestionAnsweringCollator,
    ReasoningCollator,
)
from vicha_hf.data.datasets_entailment import EntailmentDataset
from vicha_hf.data.datasets_pretraining import PretrainingDataset
from vicha_hf.data.datasets_reasoning import ReasoningDataset
from vicha_hf.data.datasets_vqa import QuestionAnsweringDataset
from vicha_hf.data.transforms import PretrainingTransform
from vicha_hf.families import HEADS


def read(folder: Path, task: str):
    """Records of a task; those of retrieval serve pretraining and text assignment too."""
    if task in ("pretraining", "retrieval", "text-assignment"):
        return read_image_text_records(folder / "retrieval.json")
    readers = {
        "vqa": read_question_records,
        "entailment": read_entailment_records,
        "reasoning": read_reasoning_records,
        "grounding": read_grounding_records,
    }
    return readers[task](folder / f"{task}.json")


def data_of(folder: Path, family: str, task: str, tokenizer_folder: Path) -> tuple[Dataset, Callable]:
    """Dataset and collator of a task, as the training scripts make them."""
    processor = tiny_processor(tokenizer_folder)
    if family == "simla":
        image_processor = SimlaImageProcessor(size={"height": 32, "width": 32})
        processor = SimlaProcessor(image_processor, processor.tokenizer, max_text_length=20)
    datasets = {"vqa": QuestionAnsweringDataset, "entailment": EntailmentDataset, "reasoning": ReasoningDataset}
    collators = {"vqa": QuestionAnsweringCollator, "entailment": EntailmentCollator, "reasoning": ReasoningCollator}
    concepts = family == "vicha"
    dataset = datasets.get(task, PretrainingDataset)(
        read(folder, task), PretrainingTransform.from_image_processor(processor.image_processor), use_concepts=concepts
    )
    return dataset, collators.get(task, PretrainingCollator)(processor, with_concepts=concepts)


def trainer_of(
    model: PreTrainedModel, dataset: Dataset, collator: Callable, output_dir: Path, callbacks=(), **arguments
) -> Trainer:
    """A Trainer with defaults but for what keeps it short."""
    settings = TrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        **arguments,
    )
    return Trainer(
        model,
        settings,
        data_collator=collator,
        train_dataset=dataset,
        eval_dataset=dataset,
        callbacks=list(callbacks),
    )


def build(family: str, task: str, config) -> PreTrainedModel:
    """A head with the same weights every time."""
    torch.manual_seed(0)
    return HEADS[family][task](config)
