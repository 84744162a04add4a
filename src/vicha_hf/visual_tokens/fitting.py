"""Fitting a small visual tokenizer to the images of a corpus."""

from torch.utils.data import DataLoader
from transformers.image_processing_backends import PilBackend
from transformers.utils import logging

from ..data.annotations import Annotations, ImageTextRecord
from ..data.transforms import EvaluationTransform
from .configuration import PatchVisualTokenizerConfig
from .distinct_images import DistinctImages
from .patches import PatchVisualTokenizer


logger = logging.get_logger(__name__)


def fit_patch_tokenizer(
    annotations: Annotations[ImageTextRecord],
    image_processor: PilBackend,
    *,
    patch_size: int,
    vocab_size: int = 512,
    code_size: int = 4,
    seed: int = 0,
    max_images: int = 2000,
    num_workers: int = 0,
) -> PatchVisualTokenizer:
    """
    A `PatchVisualTokenizer` whose codes are the k-means centres of a corpus's patches.

    Args:
        annotations: of the training images.
        image_processor: the model's; its size and normalisation are those of the patches.
        patch_size: the model's, pixels.
        vocab_size, code_size, seed: see `PatchVisualTokenizerConfig`.
        max_images: images looked at, spread evenly over the annotations.
        num_workers: processes that load them.

    Raises:
        ValueError: fewer different patches than codes, an impossible size.
    """
    config = PatchVisualTokenizerConfig(
        patch_size=patch_size,
        vocab_size=vocab_size,
        code_size=code_size,
        seed=seed,
        image_mean=tuple(image_processor.image_mean),
        image_std=tuple(image_processor.image_std),
    )
    tokenizer = PatchVisualTokenizer(config)
    images = DistinctImages(annotations, EvaluationTransform.from_image_processor(image_processor), max_images)
    loader = DataLoader(images, batch_size=64, num_workers=num_workers)
    fit = tokenizer.fit((pixel_values for _, pixel_values in loader))
    logger.info(
        "%d codes fitted to %d patches of %d images; they keep %.1f %% of the patches' variance.",
        vocab_size,
        fit.num_patches,
        len(images),
        100 * fit.explained_variance,
    )
    return tokenizer
