"""Any model with a joint space of images and texts, used as the one that looks for visual concepts."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .image_processing_vicha import to_upright_rgb


# Trained on texts padded to full length, and other texts give other embeddings.
_PADDED_TEXTS = ("siglip", "siglip2")
_TEXTS_AT_A_TIME = 256


class DualEncoder:
    """
    A model with `get_image_features` and `get_text_features`, and its processor: CLIP, SigLIP, SigLIP 2, MetaCLIP,
    AltCLIP, Chinese-CLIP and others of transformers, and the models of this package.

    Args:
        model: the model, where it is to run.
        processor: makes its inputs of `images` and `text`.
        name: where it came from: a folder, or a name on the Hub.
        revision: of the Hub repository.

    Raises:
        ValueError: a model without a joint space.
    """

    def __init__(self, model, processor, name: str = "", revision: str | None = None):
        missing = [method for method in ("get_image_features", "get_text_features") if not hasattr(model, method)]
        if missing:
            raise ValueError(
                f"{name or type(model).__name__} is a {type(model).__name__}, which has no {' and no '.join(missing)}: "
                "concepts need an encoder of images and texts, such as openai/clip-vit-base-patch16"
            )
        self.model, self.processor = model.eval(), processor
        self.name, self.revision = name, revision

    @classmethod
    def from_pretrained(
        cls, name: str, *, revision: str | None = None, device: str | None = None, **hub_options
    ) -> "DualEncoder":
        """
        Loads model and processor.

        Args:
            name: a folder, or a name on the Hub.
            revision: of the Hub repository.
            device: "cpu", "cuda", ... (default: cuda where there is one).
            hub_options: `token`, `cache_dir`, ... as for `from_pretrained`.

        Raises:
            OSError, ValueError: nothing that can be loaded, or no encoder of images and texts.
        """
        if __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
            # This code came with a model folder that the user trusts; its model needs the same trust.
            hub_options.setdefault("trust_remote_code", True)
        model = AutoModel.from_pretrained(name, revision=revision, **hub_options)
        processor = AutoProcessor.from_pretrained(name, revision=revision, **hub_options)
        revision = getattr(model.config, "_commit_hash", None) or revision
        return cls(
            model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), processor, str(name), revision
        )

    @property
    def device(self) -> torch.device:
        """The device that it runs on."""
        return self.model.device

    def digest(self) -> str:
        """A hash of the weights: other weights give other embeddings, whatever the name."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(getattr(self.model, "base_model", self.model).state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def encode_prepared(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The unit embeddings [n, E], float32, of what [`prepare_images`] returned."""
        moved = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        return _unit(self.model.get_image_features(**moved))

    def encode_images(self, images: Sequence) -> torch.Tensor:
        """The unit embeddings [n, E], float32, of images as [`prepare_images`] takes them."""
        return self.encode_prepared(prepare_images(self.processor.image_processor, images))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """The unit embeddings [n, E], float32."""
        padding = "max_length" if self.model.config.model_type in _PADDED_TEXTS else True
        inputs = self.processor(text=list(texts), padding=padding, truncation=True, return_tensors="pt")
        return _unit(self.model.get_text_features(**inputs.to(self.device)))

    def encode_concepts(self, concepts: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        """
        The unit embeddings [n, E], float32, of words: the mean over prompts.

        Args:
            concepts: the words.
            prompts: texts with {} where the word goes.
        """
        check_prompts(prompts)
        texts = [prompt.replace("{}", concept) for concept in concepts for prompt in prompts]
        embeds = torch.cat(
            [
                self.encode_texts(texts[start : start + _TEXTS_AT_A_TIME])
                for start in range(0, len(texts), _TEXTS_AT_A_TIME)
            ]
        )
        return torch.nn.functional.normalize(embeds.view(len(concepts), len(prompts), -1).mean(dim=1), dim=-1)


def prepare_images(image_processor, images: Sequence) -> dict[str, torch.Tensor]:
    """Makes the inputs of an image encoder of Pillow images in any mode, paths, arrays or tensors."""
    return dict(image_processor(images=[_upright(image) for image in images], return_tensors="pt"))


def _upright(image):
    if isinstance(image, Image.Image):
        return to_upright_rgb(image)
    if isinstance(image, str | Path) and os.path.isfile(image):
        with Image.open(image) as opened:
            opened.load()
            return to_upright_rgb(opened)
    return str(image) if isinstance(image, Path) else image


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises `ValueError` unless each prompt has one place for a word."""
    if not prompts:
        raise ValueError("no prompt given; give at least one, such as 'a photo of a {}'")
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise ValueError(f"the prompt {prompt!r} must hold {{}} once, where the concept goes")


def _unit(features) -> torch.Tensor:
    embeds = features if isinstance(features, torch.Tensor) else features.pooler_output
    if embeds is None:
        raise ValueError("the encoder has no joint space of images and texts: its projections are missing")
    return torch.nn.functional.normalize(embeds.float(), dim=-1)


__all__ = ["DualEncoder", "check_prompts", "prepare_images"]
