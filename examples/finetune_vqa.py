"""Fine-tune a pretrained model to answer questions about images.

Copy this for the demo corpus, after `make demo`:

    accelerate launch --quiet --config_file examples/accelerate_configs/cpu.yaml examples/finetune_vqa.py \
        --config examples/configs/vicha/vqa_tiny.yaml \
        --data.train outputs/demo_corpus/vqa_train.json --data.validation outputs/demo_corpus/vqa_validation.json \
        --output_dir outputs/vqa

`vqa_v2.yaml` is the paper's recipe, `easy_vqa.yaml` a small data set of coloured shapes from the package registry, from
random weights. Without `--data.answer_list` the answers that the model may choose from are those of the training
questions; they are written beside the weights. `--data.text_only true` trains the baseline that sees no image.
Every line of the YAML can be overridden; `--resume_from_checkpoint latest` continues.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from vicha_hf.arguments import parse_arguments, require
from vicha_hf.data.annotations_vqa import QuestionParser, read_question_records, vqa_references
from vicha_hf.data.answer_limit import AnswerLimit
from vicha_hf.data.answer_list import build_answer_list, check_answer_list, read_answer_list
from vicha_hf.data.collators import QuestionAnsweringCollator
from vicha_hf.data.datasets_vqa import QuestionAnsweringDataset, QuestionItems
from vicha_hf.data.stream_shards import wants_streaming
from vicha_hf.evaluation.question_answering import evaluate_question_answering
from vicha_hf.mistakes import run_script
from vicha_hf.models.pipeline_answering import ANSWER_LIST_FILE
from vicha_hf.training.finetuning import FinetuningArguments, FinetuningDataArguments, FinetuningRun
from vicha_hf.training.loop import TrainingResult


@dataclass(kw_only=True)
class QuestionDataArguments(FinetuningDataArguments):
    """Options of the data to fine-tune on.

    Args:
        answer_list: JSON list of the answers that the model may choose from; null builds it from the training questions (not from a stream).
        min_answer_count: Questions that an answer must have been given to, to join a list that is built.
        max_answers: Longest list that is built, the most frequent answers first; null keeps all.
        rerank_k: Answers that are compared by their whole text (paper: 128).
    """

    answer_list: str | None = None
    min_answer_count: int = 1
    max_answers: int | None = None
    rerank_k: int = 128


@dataclass(kw_only=True)
class QuestionArguments(FinetuningArguments):
    """Everything that this script can be told.

    Args:
        data: What to fine-tune on.
    """

    data: QuestionDataArguments


def main(argv: Sequence[str] | None = None) -> TrainingResult:
    arguments, resolved_config = parse_arguments(QuestionArguments, argv, description=__doc__.splitlines()[0])
    data = arguments.data
    require(
        data.answer_list is not None or not wants_streaming(data.train),
        "data.answer_list",
        None,
        "it is built from all training questions, and a stream never holds them all; give a JSON list of the answers to "
        'choose from, such as ["yes", "no", "2"].',
    )
    run = FinetuningRun("vqa", arguments, resolved_config)
    # One process prepares what `datasets` caches; the others find it there.
    limit = AnswerLimit(run.processor.tokenizer, run.model.config.text_config.max_position_embeddings)
    collator = QuestionAnsweringCollator(run.processor, with_concepts=run.use_concepts)
    with run.accelerator.main_process_first():
        if run.streams:
            items = QuestionItems(run.train_transform, **run.item_options)
            train = run.training_stream(items, collator, partial(QuestionParser, answer_limit=limit))
        else:
            records = read_question_records(data.train, answer_limit=limit, **data.reading)
            train = QuestionAnsweringDataset(records, run.train_transform, **run.train_options)
        validation = data.validation and read_question_records(
            data.validation, for_evaluation=True, **data.evaluation_reading
        )
    if data.answer_list is not None:
        answers = read_answer_list(data.answer_list)
        limit.require_fitting_list(answers, data.answer_list)
    else:
        answers = build_answer_list(records, min_count=data.min_answer_count, max_size=data.max_answers)
    run.files[ANSWER_LIST_FILE] = answers
    if not run.streams:
        check_answer_list(answers, records, data.answer_list or "the training answers on the training questions")
    evaluate = None
    if validation:
        references = vqa_references(validation)
        check_answer_list(
            answers, validation, f"{data.answer_list or 'the training answers'} on the validation questions"
        )
        questions = QuestionAnsweringDataset(validation, run.evaluation_transform, use_concepts=run.use_concepts)

        def evaluate(model):
            return evaluate_question_answering(
                model,
                run.processor,
                questions,
                answers,
                references,
                k=data.rerank_k,
                with_concepts=run.use_concepts,
                **run.evaluation_options,
            )

    return run.train(train, collator, evaluate, primary_metric="accuracy")


if __name__ == "__main__":
    sys.exit(run_script(main))
