"""Fine-tune a pretrained model for visual reasoning: is the statement about the two images true?

Copy this for the demo corpus, after `make demo` and, for a better start, `pretrain_text_assignment.py`:

    accelerate launch --quiet --config_file examples/accelerate_configs/cpu.yaml examples/finetune_reasoning.py \
        --config examples/configs/vicha/reasoning_tiny.yaml \
        --data.train outputs/demo_corpus/reasoning_train.json --data.validation outputs/demo_corpus/reasoning_validation.json \
        --output_dir outputs/reasoning

`--model.from_pretrained` takes a folder of either: the doubled layers start from the single ones, or are taken over from
text assignment. `reasoning_nlvr2.yaml` is the paper's recipe. `--data.text_only true` trains the baseline that sees no
image. Every line of the YAML can be overridden; `--resume_from_checkpoint latest` continues.
"""

import sys
from collections.abc import Sequence

from vicha_hf.arguments import parse_arguments
from vicha_hf.data.annotations_reasoning import ReasoningParser, read_reasoning_records
from vicha_hf.data.collators import ReasoningCollator
from vicha_hf.data.datasets_reasoning import ReasoningDataset, ReasoningItems
from vicha_hf.evaluation.classification import evaluate_classification
from vicha_hf.mistakes import run_script
from vicha_hf.training.finetuning import FinetuningArguments, FinetuningRun
from vicha_hf.training.loop import TrainingResult


def main(argv: Sequence[str] | None = None) -> TrainingResult:
    arguments, resolved_config = parse_arguments(FinetuningArguments, argv, description=__doc__.splitlines()[0])
    run = FinetuningRun("reasoning", arguments, resolved_config)
    data = arguments.data
    collator = ReasoningCollator(run.processor, with_concepts=run.use_concepts)
    # One process prepares what `datasets` caches; the others find it there.
    with run.accelerator.main_process_first():
        if run.streams:
            items = ReasoningItems(run.train_transform, **run.item_options)
            train = run.training_stream(items, collator, ReasoningParser)
        else:
            records = read_reasoning_records(data.train, **data.reading)
            train = ReasoningDataset(records, run.train_transform, **run.train_options)
        validation = data.validation and read_reasoning_records(data.validation, **data.evaluation_reading)
    evaluate = None
    if validation:
        statements = ReasoningDataset(validation, run.evaluation_transform, use_concepts=run.use_concepts)

        def evaluate(model):
            return evaluate_classification(model, statements, collator, **run.evaluation_options)

    return run.train(train, collator, evaluate, primary_metric="accuracy")


if __name__ == "__main__":
    sys.exit(run_script(main))
