"""Fine-tune a pretrained model for visual entailment: does the image entail, leave open or contradict the sentence?

Copy this for the demo corpus, after `make demo`:

    accelerate launch --quiet --config_file examples/accelerate_configs/cpu.yaml examples/finetune_entailment.py \
        --config examples/configs/vicha/entailment_tiny.yaml \
        --data.train outputs/demo_corpus/entailment_train.json --data.validation outputs/demo_corpus/entailment_validation.json \
        --output_dir outputs/entailment

`entailment_snli_ve.yaml` is the paper's recipe. `--data.text_only true` trains the baseline that sees no image. Every
line of the YAML can be overridden; `--resume_from_checkpoint latest` continues.
"""

import sys
from collections.abc import Sequence

from vicha_hf.arguments import parse_arguments
from vicha_hf.data.annotations_entailment import EntailmentParser, read_entailment_records
from vicha_hf.data.collators import EntailmentCollator
from vicha_hf.data.datasets_entailment import EntailmentDataset, EntailmentItems
from vicha_hf.evaluation.classification import evaluate_classification
from vicha_hf.mistakes import run_script
from vicha_hf.training.finetuning import FinetuningArguments, FinetuningRun
from vicha_hf.training.loop import TrainingResult


def main(argv: Sequence[str] | None = None) -> TrainingResult:
    arguments, resolved_config = parse_arguments(FinetuningArguments, argv, description=__doc__.splitlines()[0])
    run = FinetuningRun("entailment", arguments, resolved_config)
    data = arguments.data
    collator = EntailmentCollator(run.processor, with_concepts=run.use_concepts)
    # One process prepares what `datasets` caches; the others find it there.
    with run.accelerator.main_process_first():
        if run.streams:
            items = EntailmentItems(run.train_transform, **run.item_options)
            train = run.training_stream(items, collator, EntailmentParser)
        else:
            records = read_entailment_records(data.train, **data.reading)
            train = EntailmentDataset(records, run.train_transform, **run.train_options)
        validation = data.validation and read_entailment_records(data.validation, **data.evaluation_reading)
    evaluate = None
    if validation:
        sentences = EntailmentDataset(validation, run.evaluation_transform, use_concepts=run.use_concepts)

        def evaluate(model):
            return evaluate_classification(model, sentences, collator, **run.evaluation_options)

    return run.train(train, collator, evaluate, primary_metric="accuracy")


if __name__ == "__main__":
    sys.exit(run_script(main))
