"""Fine-tune a pretrained model for image-text retrieval with contrast and matching.

Copy this for the demo corpus, after `make demo`:

    accelerate launch --quiet --config_file examples/accelerate_configs/cpu.yaml examples/finetune_retrieval.py \
        --config examples/configs/vicha/retrieval_tiny.yaml \
        --data.train outputs/demo_corpus/train.json --data.validation outputs/demo_corpus/validation.json \
        --output_dir outputs/retrieval

and `retrieval_flickr30k.yaml` or `retrieval_coco.yaml` with your annotations for the paper's recipes. Captions of one
image are told by their `image_id` (or path): they are positives of each other. Every line of the YAML can be
overridden; `--resume_from_checkpoint latest` continues. The folder then holds what docs/finetuning.md lists.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from vicha_hf.arguments import parse_arguments
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.collators import PretrainingCollator
from vicha_hf.data.datasets_pretraining import PretrainingDataset, PretrainingItems
from vicha_hf.data.datasets_retrieval import RetrievalDataset
from vicha_hf.evaluation.retrieval import choose_similarity_weight, score_retrieval
from vicha_hf.evaluation.task_evaluation import best_of_each_query
from vicha_hf.evaluation.task_result import TaskResult
from vicha_hf.mistakes import run_script
from vicha_hf.training.finetuning import FinetuningArguments, FinetuningDataArguments, FinetuningRun
from vicha_hf.training.loop import TrainingResult


@dataclass(kw_only=True)
class RetrievalDataArguments(FinetuningDataArguments):
    """Options of the data to fine-tune on.

    Args:
        rerank_k: Candidates that the evaluation re-ranks with the matching head (paper: 128, COCO 256).
        top: How many of the best the predictions hold per query.
    """

    rerank_k: int = 128
    top: int = 10


@dataclass(kw_only=True)
class RetrievalArguments(FinetuningArguments):
    """Everything that this script can be told.

    Args:
        data: What to fine-tune on.
    """

    data: RetrievalDataArguments


def main(argv: Sequence[str] | None = None) -> TrainingResult:
    arguments, resolved_config = parse_arguments(RetrievalArguments, argv, description=__doc__.splitlines()[0])
    run = FinetuningRun("retrieval", arguments, resolved_config)
    data = arguments.data
    collator = PretrainingCollator(run.processor, with_concepts=run.use_concepts)
    # One process prepares what `datasets` caches; the others find it there.
    with run.accelerator.main_process_first():
        if run.streams:
            # Of a record's captions each visit draws one.
            items = PretrainingItems(run.train_transform, mirror_texts_with_sides=False, **run.item_options)
            train = run.training_stream(items, collator)
        else:
            records = read_image_text_records(data.train, **data.reading)
            train = PretrainingDataset(
                records, run.train_transform, captions="all", mirror_texts_with_sides=False, **run.train_options
            )
        validation = data.validation and read_image_text_records(
            data.validation, for_evaluation=True, **data.evaluation_reading
        )
    evaluate = None
    if validation:
        gallery = RetrievalDataset(validation, run.evaluation_transform, use_concepts=run.use_concepts)

        def evaluate(model) -> TaskResult:
            scores = score_retrieval(
                model,
                run.processor,
                gallery,
                k=data.rerank_k,
                with_concepts=run.use_concepts,
                accelerator=run.accelerator,
                **run.evaluation_options,
            )
            scores = choose_similarity_weight(scores, gallery.captions_of_image, gallery.image_of_caption)
            model.config.rerank_similarity_weight = scores.similarity_weight
            metrics = scores.metrics(gallery.captions_of_image, gallery.image_of_caption)
            return TaskResult(metrics, best_of_each_query(scores, validation, gallery, data.top))

    return run.train(train, collator, evaluate, primary_metric="r_mean")


if __name__ == "__main__":
    sys.exit(run_script(main))
