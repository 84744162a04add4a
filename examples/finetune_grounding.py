"""Fine-tune a pretrained model for weakly supervised grounding, on images and expressions alone, without boxes.

Copy this for the demo corpus, after `make demo`:

    accelerate launch --quiet --config_file examples/accelerate_configs/cpu.yaml examples/finetune_grounding.py \
        --config examples/configs/vicha/grounding_tiny.yaml \
        --data.train outputs/demo_corpus/grounding_train.json --data.validation outputs/demo_corpus/grounding_validation.json \
        --output_dir outputs/grounding

It trains as retrieval does; the evaluation turns Grad-CAM heat maps into a choice among proposed boxes.
`grounding_refcoco_plus.yaml` is the paper's recipe and reads RefCOCO+'s own files. Every line of the YAML can be
overridden; `--resume_from_checkpoint latest` continues.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vicha_hf.arguments import parse_arguments, require
from vicha_hf.data.annotations_grounding import GroundingParser, read_grounding_records
from vicha_hf.data.collators import PretrainingCollator
from vicha_hf.data.datasets_grounding import GroundingDataset
from vicha_hf.data.datasets_pretraining import PretrainingDataset, PretrainingItems
from vicha_hf.evaluation.grounding import choose_grounding_method, evaluate_grounding
from vicha_hf.evaluation.task_result import TaskResult
from vicha_hf.mistakes import run_script
from vicha_hf.training.finetuning import FinetuningArguments, FinetuningDataArguments, FinetuningRun
from vicha_hf.training.loop import TrainingResult


@dataclass(kw_only=True)
class GroundingDataArguments(FinetuningDataArguments):
    """Options of the data to fine-tune on.

    Args:
        train_splits: Splits of the training source that are trained on; null takes all.
        validation_splits: Splits of the validation source that are evaluated; null takes all.
        method: Grad-CAM that chooses the best model and that the saved model uses: of the matching head ("itm") or of the similarity ("itc"). Null takes the better one of each evaluation.
        every_layer: Whether each evaluation tries every layer of the methods, and the saved model uses the best. Otherwise it is the configuration's.
    """

    train_splits: list[str] | None = None
    validation_splits: list[str] | None = None
    method: Literal["itm", "itc"] | None = None
    every_layer: bool = True


@dataclass(kw_only=True)
class GroundingArguments(FinetuningArguments):
    """Everything that this script can be told.

    Args:
        data: What to fine-tune on.
    """

    data: GroundingDataArguments


def main(argv: Sequence[str] | None = None) -> TrainingResult:
    arguments, resolved_config = parse_arguments(GroundingArguments, argv, description=__doc__.splitlines()[0])
    data = arguments.data
    require(not data.text_only, "data.text_only", True, "without an image there is nothing to ground in.")
    run = FinetuningRun("grounding", arguments, resolved_config)
    collator = PretrainingCollator(run.processor, with_concepts=run.use_concepts)
    # One process prepares what `datasets` caches; the others find it there.
    with run.accelerator.main_process_first():
        if run.streams:
            require(
                data.train_splits is None,
                "data.train_splits",
                data.train_splits,
                "a stream is trained on as a whole; name the shards of the splits.",
            )
            items = PretrainingItems(run.train_transform, mirror_texts_with_sides=False, **run.item_options)
            train = run.training_stream(items, collator, GroundingParser)
        else:
            records = read_grounding_records(data.train, splits=data.train_splits, **data.reading)
            train = PretrainingDataset(
                records, run.train_transform, captions="all", mirror_texts_with_sides=False, **run.train_options
            )
        validation = data.validation and read_grounding_records(
            data.validation, for_evaluation=True, splits=data.validation_splits, **data.evaluation_reading
        )
    evaluate = None
    if validation:
        expressions = GroundingDataset(validation, run.evaluation_transform, use_concepts=run.use_concepts)
        # Of the start: an evaluation changes the model's configuration, and a resumed run must not depend on that.
        given_method, given_layer = run.model.config.grounding_method, run.model.config.grounding_layer

        def evaluate(model) -> TaskResult:
            result = evaluate_grounding(
                model,
                run.processor,
                expressions,
                layers={given_method: given_layer},
                every_layer=data.every_layer,
                with_concepts=run.use_concepts,
                **run.evaluation_options,
            )
            method = data.method or choose_grounding_method(result.metrics)
            # Without a choice, a layer that was given for the other method is none for this one.
            kept = given_layer if method == given_method else None
            model.config.grounding_layer = result.metrics[f"layer_{method}"] if data.every_layer else kept
            model.config.grounding_method = method
            chosen = result.metrics[f"accuracy_{method}"]
            return TaskResult({"accuracy": chosen, **result.metrics}, result.predictions)

    return run.train(train, collator, evaluate, primary_metric="accuracy")


if __name__ == "__main__":
    sys.exit(run_script(main))
