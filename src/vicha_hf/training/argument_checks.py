"""Checks of the arguments that pretraining and fine-tuning have in common."""

from typing import Any

from ..arguments import require


def check_model_fields(options: Any, no_size: str) -> None:
    """
    Looks at the fields that change a configuration.

    Args:
        options: of the model, with `from_pretrained`, `image_size` and `config`.
        no_size: remedy for an image size without a model whose size it changes.

    Raises:
        ValueError: a value that cannot be right; the message names its field.
    """
    for name in ("vision_config", "text_config"):
        require(name not in options.config, "model.config", options.config, f"give these fields as model.{name}.")
    size = options.image_size
    require(size is None or size >= 1, "model.image_size", size, "it must be positive.")
    require(size is None or options.from_pretrained is not None, "model.image_size", size, no_size)


def check_training_data(options: Any) -> None:
    """
    Looks at what every script is told of the data to train on.

    Args:
        options: of the data.

    Raises:
        ValueError: a value that cannot be right; the message names its field.
    """
    require(bool(options.train), "data.train", options.train, "name at least one annotation file or dataset.")
    for name in ("max_text_length", "max_concept_length"):
        value = getattr(options, name)
        require(
            value is None or value >= 3,
            f"data.{name}",
            value,
            "it must hold [CLS], one token and [SEP]: at least 3.",
        )
    fraction = options.concept_fraction
    require(0 < fraction <= 1, "data.concept_fraction", fraction, "choose it within (0, 1].")
    if options.crop_scale is not None:
        smallest, largest = options.crop_scale
        require(
            0 < smallest <= largest <= 1,
            "data.crop_scale",
            options.crop_scale,
            "give [smallest, largest] within (0, 1], or null for no crop.",
        )
    for name in ("evaluation_batch_size", "shuffle_buffer"):
        require(getattr(options, name) >= 1, f"data.{name}", getattr(options, name), "it must be at least 1.")
