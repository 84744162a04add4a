"""Streams to train on, of any task: what the arguments of a script say about them."""

from collections.abc import Callable

from accelerate import PartialState

from ..arguments import require
from ..data.annotations import ImageTextParser
from ..data.datasets_annotated import TaskItems
from ..data.datasets_pretraining import PretrainingItems
from ..data.stream_dataset import StreamDataset, StreamOptions
from .arguments import TrainingArguments


def training_stream(
    arguments: TrainingArguments,
    items: PretrainingItems | TaskItems,
    collator: Callable,
    parser: Callable = ImageTextParser,
) -> StreamDataset:
    """
    The stream of a run's training sources; every process makes its own, with its share.

    Args:
        arguments: of the run, with `data`.
        items, collator, parser: as in `StreamDataset`.

    Raises:
        ValueError: a run without a number of steps.
        AnnotationError: a source that cannot be streamed.
    """
    data = arguments.data
    require(
        arguments.max_steps is not None, "max_steps", None, "a stream has no end; say after how many steps to stop."
    )
    state = PartialState()
    options = StreamOptions(
        batch_size=arguments.per_device_batch_size,
        seed=arguments.seed,
        buffer_size=data.shuffle_buffer,
        on_bad_record=data.on_bad_record,
        num_processes=state.num_processes,
        process_index=state.process_index,
        num_workers=arguments.num_workers,
        allow_outside_root=data.allow_outside_root,
    )
    return StreamDataset(data.train, items, collator, options, data.image_root, parser)
