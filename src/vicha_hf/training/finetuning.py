"""
Common part of the fine-tuning scripts: their arguments, the model and processor of a folder, and the way into the
loop.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch.utils.data import Dataset
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from ..console_log import log_to_console
from ..data.annotations import ImageTextParser
from ..data.datasets_annotated import TaskItems
from ..data.datasets_pretraining import PretrainingItems
from ..data.reading_arguments import ReadingArguments
from ..data.stream_dataset import StreamDataset
from ..data.stream_shards import wants_streaming
from ..data.transforms import FINETUNING_CROP_SCALE, EvaluationTransform, MeanImage, PretrainingTransform
from ..evaluation.task_result import TaskResult
from ..families import (
    HEADS,
    PROCESSORS,
    find_model_folder,
    head_class,
    load_processor,
    read_config,
    read_for_task,
    without_load_report,
)
from ..models.configuration_vision_text import require_known_fields
from ..text_tokenizers import require_fitting_length, require_fitting_vocabulary, special_tokens
from ..weight_files import require_weights_of_folder
from .accelerator import create_accelerator
from .adapters import TrainedPartsArguments, choose_trained_parts
from .argument_checks import check_model_fields, check_training_data
from .arguments import TrainingArguments
from .loop import EvaluationHook, TrainingLoop, TrainingResult
from .own_tokenizer import load_or_make_tokenizer
from .streams import training_stream


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class FinetuningModelArguments(TrainedPartsArguments):
    """Options of the model to fine-tune. The folder's configuration says which family it is.

    Args:
        from_pretrained: Folder or Hub id of a pretrained model, or of one for another task; null starts from random weights.
        image_size: Side of the images in pixels; the positions are interpolated to it. Null keeps the folder's.
        config: Fields of the configuration that differ from the folder's; of random weights all of them (`model_type` names the family, "vicha" by default).
        vision_config: The same for the vision encoder.
        text_config: The same for the text encoder, such as `hidden_dropout_prob`.
        freeze: Parts of the model whose weights stay as they are: vision_model, text_model, concept_model, or parts of these with dots (text_model.embeddings).
        lora: Train low-rank adapters in the encoders instead of their weights (peft); e.g. `--model.lora.r 16`. Encoders that are frozen get none. Saved models have the adapters merged into the weights.
    """

    from_pretrained: str | None = None
    image_size: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    vision_config: dict[str, Any] = field(default_factory=dict)
    text_config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_model_fields(
            self, "random weights have no positions to interpolate; set model.vision_config.image_size."
        )


@dataclass(kw_only=True)
class FinetuningDataArguments(ReadingArguments):
    """Options of the data to fine-tune on. Annotations are JSON lists, JSONL files or datasets ({path:
    organisation/name, split: train}).

    Args:
        train: One source of the task's records, or a list of sources.
        validation: Source of the records that choose the best model; null evaluates nothing.
        image_root: Folder that relative image paths start from, or a list of one for each source; null takes each annotation file's own folder. A source written as {path: ..., image_root: ...} has its own.
        on_bad_record: "raise" refuses annotations with bad records, "skip" leaves such records out and counts them; an image that turns out broken in training is replaced by another draw.
        allow_outside_root: Whether absolute image paths may lead out of the image root.
        shuffle_buffer: Records of a stream that are shuffled together, per loading process.
        tokenizer: Folder or Hub id of a BERT-like tokenizer, for a model without processor; null takes the folder's processor, or makes one from the training texts for random weights.
        max_text_length: Text tokens kept; null keeps the processor's limit.
        max_concept_length: Concept tokens kept; null keeps the processor's limit.
        use_concepts: Whether images come with their visual concepts.
        concept_fraction: Share of an image's concepts that one step sees.
        text_only: Replace every image by the mean image and leave its concepts out, in training and evaluation: what the texts alone give away.
        crop_scale: Smallest and largest share of the image that a random crop keeps; null resizes the whole image.
        hflip: Mirror half of the images, except where the text says left or right.
        randaugment: Augment the images as ALBEF does.
        evaluation_batch_size: Samples at a time in the evaluation.
    """

    train: str | dict[str, Any] | list[str | dict[str, Any]]
    validation: str | dict[str, Any] | list[str | dict[str, Any]] | None = None
    shuffle_buffer: int = 1000
    tokenizer: str | None = None
    max_text_length: int | None = None
    max_concept_length: int | None = None
    use_concepts: bool = True
    concept_fraction: float = 1.0
    text_only: bool = False
    crop_scale: tuple[float, float] | None = FINETUNING_CROP_SCALE
    hflip: bool = True
    randaugment: bool = True
    evaluation_batch_size: int = 64

    def __post_init__(self):
        check_training_data(self)


@dataclass(kw_only=True)
class FinetuningArguments(TrainingArguments):
    """Everything that a fine-tuning script can be told; a task's script may add to `data`.

    Args:
        model: What to fine-tune.
        data: What to fine-tune on.
    """

    model: FinetuningModelArguments
    data: FinetuningDataArguments

    @property
    def tokenizer_source(self) -> str | None:
        """Source of a new processor's tokenizer."""
        return self.data.tokenizer or self.model.from_pretrained


class FinetuningRun:
    """
    One run of a fine-tuning script: it makes accelerator, processor and model; the script adds what differs, the data
    and how to evaluate.

    Args:
        task: one of the family's in [`~vicha_hf.families.HEADS`].
        arguments: of the run.
        resolved_config: the same as YAML.

    Attributes:
        files: content of JSON files that belong beside the weights, by name.

    Raises:
        ValueError: a folder without such a head, or a tokenizer that does not fit the model.
    """

    def __init__(self, task: str, arguments: FinetuningArguments, resolved_config: str | None = None):
        log_to_console()
        self.arguments = arguments
        self.resolved_config = resolved_config
        self.files: dict[str, Any] = {}
        self.accelerator = create_accelerator(arguments)
        # Every process makes the same weights.
        set_seed(arguments.seed)
        self.model, self.processor = build_model_and_processor(task, arguments)
        self.use_concepts = (
            arguments.data.use_concepts
            and not arguments.data.text_only
            and getattr(self.model.config, "use_concepts", False)
        )

    @property
    def train_transform(self) -> Callable:
        """Image and generator to the tensor that training sees."""
        data = self.arguments.data
        if data.text_only:
            return MeanImage.from_image_processor(self.processor.image_processor)
        return PretrainingTransform.from_image_processor(
            self.processor.image_processor, scale=data.crop_scale, hflip=data.hflip, randaugment=data.randaugment
        )

    @property
    def evaluation_transform(self) -> Callable:
        """Image to the tensor that the evaluation sees."""
        kind = MeanImage if self.arguments.data.text_only else EvaluationTransform
        return kind.from_image_processor(self.processor.image_processor)

    @property
    def item_options(self) -> dict[str, Any]:
        """Options of every example in training."""
        return {"concept_fraction": self.arguments.data.concept_fraction, "use_concepts": self.use_concepts}

    @property
    def train_options(self) -> dict[str, Any]:
        """Options of every dataset in training."""
        return {
            "seed": self.arguments.seed,
            "on_bad_record": self.arguments.data.on_bad_record,
            **self.item_options,
        }

    @property
    def streams(self) -> bool:
        """Whether the training records come as a stream."""
        return wants_streaming(self.arguments.data.train)

    def training_stream(
        self, items: PretrainingItems | TaskItems, collator: Callable, parser: Callable = ImageTextParser
    ) -> StreamDataset:
        """The training records as a stream; see [`~vicha_hf.training.streams.training_stream`]."""
        return training_stream(self.arguments, items, collator, parser)

    @property
    def evaluation_options(self) -> dict[str, Any]:
        """Options of every `evaluate_...`."""
        return {
            "batch_size": self.arguments.data.evaluation_batch_size,
            "num_workers": self.arguments.num_workers,
            "progress": self.accelerator.is_main_process,
        }

    def train(
        self,
        dataset: Dataset | StreamDataset,
        collator: Callable,
        evaluate: Callable[[PreTrainedModel], TaskResult] | None = None,
        primary_metric: str | None = None,
    ) -> TrainingResult:
        """
        Trains to the end; see [`TrainingLoop`]. The predictions of the last evaluation stand in `predictions.json`.

        Args:
            dataset, collator: of the training samples.
            evaluate: called with the model on every process; None trains without evaluation.
            primary_metric: the metric that chooses `best_model`.
        """
        loop = TrainingLoop(
            self.model,
            self.arguments,
            dataset,
            collator,
            self.accelerator,
            processor=_BesideTheWeights(self.processor, self.files),
            evaluate=None if evaluate is None else self._hook(evaluate),
            primary_metric=None if evaluate is None else primary_metric,
            resolved_config=self.resolved_config,
        )
        return loop.run()

    def _hook(self, evaluate: Callable[[PreTrainedModel], TaskResult]) -> EvaluationHook:
        def hook(model, accelerator) -> dict[str, float]:
            result = evaluate(model)
            if accelerator.is_main_process:
                result.write_predictions(self.arguments.output_dir)
            return result.metrics

        return hook


def build_model_and_processor(task: str, arguments: FinetuningArguments) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    The head for `task` with its training state, on the CPU, and a processor of the same image size.

    The teacher starts as a copy of the loaded weights, whatever teacher the folder may hold.

    Raises:
        ValueError: a family without such a head, an unknown field or part, or a tokenizer that does not fit the model.
    """
    own = arguments.model
    if own.from_pretrained is not None:
        own.from_pretrained = find_model_folder(own.from_pretrained)
    tokenizer = None
    if arguments.data.tokenizer is not None or own.from_pretrained is None:
        tokenizer = load_or_make_tokenizer(arguments.tokenizer_source, arguments.data.train)
    model = _build_model(task, own, tokenizer)
    processor = _build_processor(task, arguments, model.config, tokenizer)
    require_fitting_vocabulary(model.config, processor.tokenizer)
    require_fitting_length(model.config, processor.max_text_length)
    choose_trained_parts(model, arguments.model)
    model.add_training_state()
    return model, processor


def _build_model(
    task: str, own: FinetuningModelArguments, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedModel:
    if own.from_pretrained is None:
        fields = dict(own.config)
        model_type = fields.pop("model_type", "vicha")
        head = head_class(model_type, task)
        ids = special_tokens(tokenizer, head.config_class.sub_configs["text_config"])
        text_config = {"vocab_size": len(tokenizer)} | ids | own.text_config
        config = AutoConfig.for_model(model_type, vision_config=own.vision_config, text_config=text_config, **fields)
        return head(config)
    config = read_config(own.from_pretrained)
    head = head_class(config.model_type, task)
    _override(config, own.config, "model.config")
    _override(config.vision_config, own.vision_config, "model.vision_config")
    _override(config.text_config, own.text_config, "model.text_config")
    require_weights_of_folder(own.from_pretrained)
    with without_load_report():
        model, info = head.from_pretrained(own.from_pretrained, config=config, output_loading_info=True)
    # A tied weight has no value of its own: the one that it follows counts for its own part.
    missing = info["missing_keys"] - model.all_tied_weights_keys.keys()
    if new := sorted({_part_of(name) for name in missing}):
        logger.info("%s has no %s: fine-tuning for %s starts them.", own.from_pretrained, ", ".join(new), task)
    if own.image_size not in (None, config.vision_config.image_size):
        model.resize_image_size(own.image_size)
    return model


def _part_of(name: str) -> str:
    """`"vicha.concept_model.encoder.layer.0.weight"` -> `"concept_model"`."""
    parts = name.split(".")
    return parts[1] if parts[0] in HEADS else parts[0]


def _override(config: PreTrainedConfig, fields: Mapping[str, Any], name: str) -> None:
    require_known_fields(type(config), fields, f"{name}.")
    for key, value in fields.items():
        setattr(config, key, value)
    config.validate()


def _build_processor(
    task: str, arguments: FinetuningArguments, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None
) -> ProcessorMixin:
    data, size = arguments.data, config.vision_config.image_size
    if tokenizer is not None:
        image_processor, processor_class = PROCESSORS[config.model_type]
        processor = processor_class(image_processor(), tokenizer)
    else:
        folder = arguments.model.from_pretrained
        try:
            processor = load_processor(folder)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{error} Or name the tokenizer that the model was made for with data.tokenizer."
            ) from error
    processor.image_processor.size = {"height": size, "width": size}
    read_for_task(processor, task, config.text_config.max_position_embeddings)
    # A family without concepts has no limit for them.
    for name in processor.length_options:
        setattr(processor, name, getattr(data, name) or getattr(processor, name))
    return processor


class _BesideTheWeights:
    """Content of a model folder besides the weights: the processor, and small JSON files of the task."""

    def __init__(self, processor: ProcessorMixin, files: Mapping[str, Any]):
        self.processor = processor
        self.files = files

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the processor."""
        return self.processor.tokenizer

    @property
    def max_text_length(self) -> int:
        """Tokens that the processor keeps of a text."""
        return self.processor.max_text_length

    def save_pretrained(self, folder) -> None:
        self.processor.save_pretrained(folder)
        for name, content in self.files.items():
            (Path(folder) / name).write_text(
                json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            )
