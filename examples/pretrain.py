"""Pretrain ViCHA, ALBEF or SIMLA on image-text pairs.

Copy this to pretrain the tiny model on the demo corpus, on a laptop:

    accelerate launch --quiet --config_file examples/accelerate_configs/cpu.yaml examples/pretrain.py \
        --config examples/configs/vicha/tiny.yaml \
        --data.train outputs/demo_corpus/train.json --data.validation outputs/demo_corpus/validation.json \
        --output_dir outputs/tiny

and this for the paper's model on the GPUs of one machine (annotations, DeiT-B and BERT-base: see the YAML):

    accelerate launch --config_file examples/accelerate_configs/multi_gpu.yaml examples/pretrain.py \
        --config examples/configs/vicha/base.yaml --data.train annotations.json --output_dir outputs/base

SIMLA predicts visual tokens, and so needs a visual tokenizer (`vicha-hf visual-tokenizer` makes one within seconds):

    accelerate launch --quiet --config_file examples/accelerate_configs/cpu.yaml examples/pretrain.py \
        --config examples/configs/simla/tiny.yaml \
        --data.train outputs/demo_corpus/train.json --data.validation outputs/demo_corpus/validation.json \
        --data.visual_tokenizer outputs/demo_corpus/visual_tokenizer \
        --output_dir outputs/simla_tiny

Every line of the YAML can be overridden (`--learning_rate 2e-4 --model.config.queue_size 4096`); `--help` lists them.
An interrupted run goes on with `--resume_from_checkpoint latest`. The output folder then holds `model/` for
`from_pretrained`, `metrics.json`, `log.jsonl`, `config.yaml` and the last checkpoints.
"""

import sys
from collections.abc import Sequence

from accelerate.utils import set_seed

from vicha_hf.arguments import parse_arguments, require
from vicha_hf.concepts import ConceptIndex
from vicha_hf.console_log import log_to_console
from vicha_hf.data.annotations import read_image_text_records
from vicha_hf.data.collators import PretrainingCollator
from vicha_hf.data.datasets_pretraining import PretrainingDataset, PretrainingItems
from vicha_hf.data.datasets_retrieval import RetrievalDataset
from vicha_hf.data.stream_dataset import StreamDataset
from vicha_hf.data.stream_shards import wants_streaming
from vicha_hf.data.transforms import EvaluationTransform, PretrainingTransform
from vicha_hf.evaluation.retrieval import choose_similarity_weight, score_retrieval
from vicha_hf.families import find_model_folder
from vicha_hf.mistakes import run_script
from vicha_hf.training.accelerator import create_accelerator
from vicha_hf.training.loop import EvaluationHook, TrainingLoop, TrainingResult
from vicha_hf.training.own_tokenizer import load_or_make_tokenizer
from vicha_hf.training.pretraining import (
    PretrainingArguments,
    build_pretraining_model,
    build_processor,
    load_visual_tokens,
    require_streamable,
    use_visual_tokens,
)
from vicha_hf.training.streams import training_stream
from vicha_hf.visual_tokens.storage import VisualTokenStore


def build_train_dataset(
    arguments: PretrainingArguments, processor, collator: PretrainingCollator, visual_tokens=None
) -> PretrainingDataset | StreamDataset:
    data = arguments.data
    transform = PretrainingTransform.from_image_processor(
        processor.image_processor, scale=data.crop_scale, hflip=data.hflip, randaugment=data.randaugment
    )
    item_options = {
        "concept_fraction": data.concept_fraction,
        "concept_dropout": data.concept_dropout,
        "use_concepts": collator.with_concepts,
    }
    if wants_streaming(data.train):
        require_streamable(data)
        return training_stream(arguments, PretrainingItems(transform, **item_options), collator)
    return PretrainingDataset(
        read_image_text_records(data.train, **data.reading),
        transform,
        seed=arguments.seed,
        captions=data.captions,
        on_bad_record=data.on_bad_record,
        stored_visual_tokens=visual_tokens if isinstance(visual_tokens, VisualTokenStore) else None,
        **item_options,
    )


def build_evaluation(arguments: PretrainingArguments, processor, use_concepts: bool) -> EvaluationHook:
    data = arguments.data
    dataset = RetrievalDataset(
        read_image_text_records(data.validation, for_evaluation=True, **data.evaluation_reading),
        EvaluationTransform.from_image_processor(processor.image_processor),
        use_concepts=use_concepts,
    )

    def evaluate(model, accelerator) -> dict[str, float]:
        scores = score_retrieval(
            model,
            processor,
            dataset,
            k=data.rerank_k,
            batch_size=data.evaluation_batch_size,
            accelerator=accelerator,
            with_concepts=use_concepts,
            progress=accelerator.is_main_process,
            num_workers=arguments.num_workers,
        )
        scores = choose_similarity_weight(scores, dataset.captions_of_image, dataset.image_of_caption)
        model.config.rerank_similarity_weight = scores.similarity_weight
        return scores.metrics(dataset.captions_of_image, dataset.image_of_caption)

    return evaluate


def main(argv: Sequence[str] | None = None) -> TrainingResult:
    arguments, resolved_config = parse_arguments(PretrainingArguments, argv, description=__doc__.splitlines()[0])
    log_to_console()
    accelerator = create_accelerator(arguments)
    # Every process makes the same weights.
    set_seed(arguments.seed)
    if arguments.model.from_pretrained is not None:
        arguments.model.from_pretrained = find_model_folder(arguments.model.from_pretrained)
    tokenizer = load_or_make_tokenizer(arguments.tokenizer_source, arguments.data.train, arguments.tokenizer_option)
    visual_tokens = load_visual_tokens(arguments.data)
    model = build_pretraining_model(arguments.model, tokenizer, visual_tokens)
    require(
        arguments.data.validation is None or model.config.itm_weight > 0,
        "model.config.itm_weight",
        model.config.itm_weight,
        "without matching there is no head to re-rank with, and the evaluation re-ranks; leave data.validation out.",
    )
    processor = build_processor(model, tokenizer, arguments.data)
    use_visual_tokens(model, visual_tokens, processor)
    use_concepts = model.config.use_concepts
    if arguments.data.concept_index is not None:
        model.concept_index = ConceptIndex.from_pretrained(arguments.data.concept_index)

    # One process prepares what `datasets` caches; the others find it there.
    collator = PretrainingCollator(processor, with_concepts=use_concepts)
    with accelerator.main_process_first():
        train_dataset = build_train_dataset(arguments, processor, collator, visual_tokens)
        evaluate = None
        if arguments.data.validation is not None:
            evaluate = build_evaluation(arguments, processor, use_concepts)
    loop = TrainingLoop(
        model,
        arguments,
        train_dataset,
        collator,
        accelerator,
        processor=processor,
        evaluate=evaluate,
        primary_metric=None if evaluate is None else "r_mean",
        resolved_config=resolved_config,
    )
    return loop.run()


if __name__ == "__main__":
    sys.exit(run_script(main))
