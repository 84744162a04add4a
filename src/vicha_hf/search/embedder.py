"""A model as a search engine uses it: embeddings of images and texts, and the matching head's scores."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..devices import choose_device
from ..families import find_model_folder, load_finetuned, load_processor
from ..models.concept_selector import ConceptSelector
from ..models.encodings import ImageEncoding, TextEncoding


PROBE_TEXT = "a dog on the grass"


class Embedder:
    """
    A retrieval model with its processor.

    Args:
        model: folder or Hub id of a model that was pretrained, or fine-tuned for retrieval.
        device: where it runs; by default on a GPU where there is one.
        find_concepts: whether images without given concepts get those that the model's concept index finds.
        backend: "torch", or "onnx" for a folder that `vicha-hf export` wrote; by default what the folder is for.

    Raises:
        ValueError, OSError: no such model, or none with a concept index where one is needed.
    """

    def __init__(
        self,
        model: str,
        device: str | torch.device | None = None,
        find_concepts: bool = False,
        backend: str | None = None,
    ):
        self.name = find_model_folder(model)
        if Path(self.name).is_dir():
            self.name = str(Path(self.name).resolve())
        self.device = choose_device(device)
        self.model = load_finetuned("retrieval", self.name, backend=backend).to(self.device)
        self.processor = load_processor(self.name)
        if find_concepts and not self.reads_concepts:
            raise ValueError(f"{self.name} reads no visual concepts: leave them to be given, or none.")
        self.concept_selector = ConceptSelector.from_pretrained(self.name) if find_concepts else None

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.model.config.projection_dim

    @property
    def reads_concepts(self) -> bool:
        """Whether the model takes visual concepts with an image."""
        return self.model.config.use_concepts

    @property
    def reranks(self) -> bool:
        """Whether the model has a matching head."""
        return self.model.itm_head is not None

    def prepare_images(self, images: Sequence, concepts: Sequence[Sequence[str]] | None = None) -> dict:
        """The model's inputs for some images, opened or by path."""
        if self.concept_selector is not None:
            concepts = self.concept_selector.words(images)
        named = {"concepts": [list(row) for row in concepts]} if concepts is not None and any(concepts) else {}
        return dict(self.processor(images=list(images), **named, padding=True, return_tensors="pt"))

    @torch.inference_mode()
    def encode_images(self, prepared: dict) -> ImageEncoding:
        """Encodings of what `prepare_images` gave."""
        return self.model.encode_images(**{name: tensor.to(self.device) for name, tensor in prepared.items()})

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> TextEncoding:
        """Encodings of some texts."""
        return self.model.encode_texts(
            **self.processor(text=list(texts), padding=True, return_tensors="pt").to(self.device)
        )

    @torch.inference_mode()
    def rerank(self, images: ImageEncoding, texts: TextEncoding) -> torch.Tensor:
        """Re-ranked scores [images, texts] of all pairs, as the configuration weighs them, on the CPU."""
        return self.model.rerank(images, texts, k=max(len(images.embeds), len(texts.embeds))).scores_i2t.float().cpu()

    def fingerprint(self) -> list[float]:
        """Embeddings of a fixed image and a fixed text: another model, or the same one trained on, has others."""
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        image = self.encode_images(self.prepare_images([Image.fromarray(noise)])).embeds
        text = self.encode_texts([PROBE_TEXT]).embeds
        return [round(value, 6) for value in torch.cat([image, text]).float().flatten().tolist()]
