"""Fitting a small visual tokenizer to the pictures of a corpus."""

from torch.utils.data import DataLoader
from transformers.image_processing_backends import PilBackend
from transformers.utils import logging

from ..models.configuration_visual_tokenizer import PatchVisualTokenizerConfig
from ..models.visual_tokenizer_patches import PatchVisualTokenizer
from .annotations import Annotations, ImageTextRecord
from .distinct_pictures import DistinctPictures
from .transforms import EvaluationTransform


logger = logging.get_logger(__name__)


def fit_patch_tokenizer(
    annotations: Annotations[ImageTextRecord],
    image_processor: PilBackend,
    *,
    patch_size: int,
    vocab_size: int = 512,
    code_size: int = 4,
    seed: int = 0,
    max_pictures: int = 2000,
    num_workers: int = 0,
) -> PatchVisualTokenizer:
    """
    A `PatchVisualTokenizer` whose codes are the k-means centres of a corpus's patches.

    Args:
        annotations: of the training pictures.
        image_processor: the model's; its size and normalisation are those of the patches.
        patch_size: the model's, pixels.
        vocab_size, code_size, seed: see `PatchVisualTokenizerConfig`.
        max_pictures: pictures looked at, spread evenly over the annotations.
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
    pictures = DistinctPictures(annotations, EvaluationTransform.from_image_processor(image_processor), max_pictures)
    loader = DataLoader(pictures, batch_size=64, num_workers=num_workers)
    fit = tokenizer.fit((pixel_values for _, pixel_values in loader))
    logger.info(
        "%d codes fitted to %d patches of %d pictures; they keep %.1f %% of the patches' variance.",
        vocab_size,
        fit.num_patches,
        len(pictures),
        100 * fit.explained_variance,
    )
    return tokenizer
