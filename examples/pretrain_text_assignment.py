"""Pretrain for visual reasoning by text assignment: which of two images does a text belong to, if any?

Copy this for the demo corpus, after `make demo`; then fine-tune from its folder:

    accelerate launch --quiet --config_file examples/accelerate_configs/cpu.yaml examples/pretrain_text_assignment.py \
        --config examples/configs/vicha/text_assignment_tiny.yaml \
        --data.train outputs/demo_corpus/train.json \
        --output_dir outputs/text_assignment
    accelerate launch --quiet --config_file examples/accelerate_configs/cpu.yaml examples/finetune_reasoning.py \
        --config examples/configs/vicha/reasoning_tiny.yaml \
        --data.train outputs/demo_corpus/reasoning_train.json --data.validation outputs/demo_corpus/reasoning_validation.json \
        --model.from_pretrained outputs/text_assignment/model \
        --output_dir outputs/reasoning

It reads the pretraining corpus; the other images are drawn from the batch by their similarity. `text_assignment.yaml`
is the paper's recipe. There is nothing to evaluate: what counts is reasoning afterwards.
"""

import sys
from collections.abc import Sequence

from vicha_hf.arguments import parse_arguments, require
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.collators import PretrainingCollator
from vicha_hf.data.datasets_pretraining import PretrainingDataset, PretrainingItems
from vicha_hf.mistakes import run_script
from vicha_hf.training.finetuning import FinetuningArguments, FinetuningRun
from vicha_hf.training.loop import TrainingResult


def main(argv: Sequence[str] | None = None) -> TrainingResult:
    arguments, resolved_config = parse_arguments(FinetuningArguments, argv, description=__doc__.splitlines()[0])
    data = arguments.data
    require(data.validation is None, "data.validation", data.validation, "text assignment has no evaluation.")
    run = FinetuningRun("text-assignment", arguments, resolved_config)
    collator = PretrainingCollator(run.processor, with_concepts=run.use_concepts)
    # One process prepares what `datasets` caches; the others find it there.
    with run.accelerator.main_process_first():
        if run.streams:
            items = PretrainingItems(run.train_transform, mirror_texts_with_sides=False, **run.item_options)
            train = run.training_stream(items, collator)
        else:
            records = read_image_text_records(data.train, **data.reading)
            train = PretrainingDataset(
                records, run.train_transform, mirror_texts_with_sides=False, **run.train_options
            )
    return run.train(train, collator)


if __name__ == "__main__":
    sys.exit(run_script(main))
