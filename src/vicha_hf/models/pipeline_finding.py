"""Pipelines that find: labels, texts and features of an image, images for a text, the place that an expression names."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoProcessor
from transformers.image_utils import load_image
from transformers.pipelines.feature_extraction import FeatureExtractionPipeline
from transformers.pipelines.image_feature_extraction import ImageFeatureExtractionPipeline
from transformers.pipelines.zero_shot_image_classification import ZeroShotImageClassificationPipeline
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .hub_export import AUTO_CLASSES
from .image_heatmap import hottest_box
from .objective_itm import MATCH
from .pipeline_base import VisionTextPipeline, require_backend, require_reading_concepts, require_words


# Heads whose folders hold no projections.
_WITHOUT_JOINT_SPACE = ("ForVQA", "ForVisualEntailment", "ForVisualReasoning")


class _OwnBackend:
    """
    Exports in transformers' own pipelines. Models of other families get what transformers' own
    pipeline gives them. To be mixed in before such a pipeline.

    Args:
        backend: see [`VisionTextPipeline`].
        options: of transformers' pipeline.
    """

    def __init__(self, *arguments, backend: str | None = None, **options):
        super().__init__(*arguments, **options)
        require_backend(self.model, backend)

    def check_model_type(self, supported_models) -> None:
        """Warns of other families alone: transformers does not know what runs an export."""
        if not self._is_own:
            super().check_model_type(supported_models)

    @property
    def _is_own(self) -> bool:
        return self.model.config.model_type in AUTO_CLASSES


class _OwnImages(_OwnBackend):
    """Images in every form, and visual concepts, in transformers' own pipelines."""

    def _require_joint_space(self) -> None:
        """Raises a `ValueError` for a folder without projections: random ones stand in their place."""
        head = (self.model.config.architectures or [""])[0]
        if self._is_own and head.endswith(_WITHOUT_JOINT_SPACE):
            raise ValueError(
                f"{type(self).__name__}: a {head} compares no images with texts, so its answers would be random; give a model "
                "for retrieval or of a pretraining."
            )

    def _require_concepts(self, images, concepts: Sequence[str] | str | None) -> None:
        """Raises a `ValueError` for concepts that the model does not read, or that are not those of one image."""
        if concepts is None:
            return
        require_words(type(self).__name__, concepts)
        require_reading_concepts(self)
        # What can be gone through holds images; one image alone is a path, a file's bytes, or has pixels.
        if concepts != "auto" and not isinstance(
            images, str | bytes | PathLike | Image.Image | np.ndarray | torch.Tensor
        ):
            raise ValueError(
                f'{type(self).__name__}: `concepts` are those of one image; give "auto" for several, or ask for each.'
            )

    def _opened(self, image, timeout: float | None):
        """Paths, URLs and bytes of these models' images as Pillow images; of other models as they are."""
        if not self._is_own:
            return image
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            return load_image(image, timeout=timeout)
        return self.image_processor.fetch_images(image)

    def _encoded_concepts(self, image, concepts: Sequence[str] | str) -> Mapping[str, torch.Tensor]:
        words = self._concept_processor.concept_selector.words([image]) if concepts == "auto" else [list(concepts)]
        return self._concept_processor(concepts=words, return_tensors="pt")

    @cached_property
    def _concept_processor(self):
        """The processor of the model's folder: transformers loads its parts alone for these tasks."""
        if self.processor is not None:
            return self.processor
        # Where this code came with a folder that the user trusts, its processor needs the same trust.
        trusted = __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")
        revision = getattr(self.model.config, "_commit_hash", None)
        return AutoProcessor.from_pretrained(self.model.name_or_path, revision=revision, trust_remote_code=trusted)


class ZeroShotPipeline(_OwnImages, ZeroShotImageClassificationPipeline):
    """
    Chooses among labels by similarity, as transformers' pipeline does, with texts as the processor reads them.

    The labels are the texts: `hypothesis_template` is "{}" by default, since the models are trained on whole captions.
    Texts are cut at the model's length. Models of other families get what transformers' own pipeline gives them.

    ```python
    >>> classify = pipeline("zero-shot-image-classification", model=folder)
    >>> classify("photo.jpg", candidate_labels=["a dog in the snow", "a red car"])
    [{'score': 0.93, 'label': 'a dog in the snow'}, ...]
    ```

    Args:
        concepts: the visual concepts of the image, where it is only one; "auto" finds those of every image.
        backend: see [`VisionTextPipeline`].
        options: of transformers' pipeline.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._require_joint_space()

    def __call__(self, image=None, candidate_labels=None, concepts: Sequence[str] | str | None = None, **options):
        if candidate_labels is not None and (isinstance(candidate_labels, str) or not len(candidate_labels)):
            raise ValueError(
                f"{type(self).__name__}: `candidate_labels` must be a list of texts, got {candidate_labels!r}."
            )
        self._require_concepts(options.get("images", image), concepts)
        return super().__call__(image, candidate_labels, concepts=concepts, **options)

    def _sanitize_parameters(self, **options):
        preprocessing, *others = super()._sanitize_parameters(**options)
        for name in ("tokenizer_kwargs", "concepts"):
            if options.get(name) is not None:
                preprocessing[name] = options[name]
        return preprocessing, *others

    def preprocess(self, image, candidate_labels=None, tokenizer_kwargs=None, concepts=None, **options):
        if self._is_own:
            options = {"hypothesis_template": "{}"} | options
            tokenizer_kwargs = {"truncation": True} | (tokenizer_kwargs or {})
        image = self._opened(image, options.get("timeout"))
        inputs = super().preprocess(image, candidate_labels, tokenizer_kwargs=tokenizer_kwargs, **options)
        if concepts is not None:
            inputs.update(self._encoded_concepts(image, concepts))
        return inputs


class ImageFeaturePipeline(_OwnImages, ImageFeatureExtractionPipeline):
    """
    Gives the states of an image, or its embedding, as transformers' pipeline does.

    ```python
    >>> extract = pipeline("image-feature-extraction", model=folder)
    >>> extract("photo.jpg", pool=True, return_tensors=True, concepts=["dog", "snow"]).shape
    torch.Size([1, 256])
    ```

    Args:
        concepts: the visual concepts of the image, where it is only one; "auto" finds those of every image. Their tokens
            come behind those of the patches.
        backend: see [`VisionTextPipeline`].
        options: of transformers' pipeline. `pool=True` gives the embedding [1, E], L2-normalised, in place of the states
            [1, S, d_v].
    """

    def __call__(self, images=None, concepts: Sequence[str] | str | None = None, **options):
        if images is None:
            raise ValueError(f"{type(self).__name__}: give an image.")
        self._require_concepts(images, concepts)
        if options.get("pool"):
            self._require_joint_space()
        return super().__call__(images, concepts=concepts, **options)

    def _sanitize_parameters(self, concepts=None, **options):
        preprocessing, *others = super()._sanitize_parameters(**options)
        return preprocessing if concepts is None else preprocessing | {"concepts": concepts}, *others

    def preprocess(self, image, timeout=None, concepts=None, **image_processor_kwargs):
        image = self._opened(image, timeout)
        inputs = super().preprocess(image, timeout=timeout, **image_processor_kwargs)
        if concepts is not None:
            inputs.update(self._encoded_concepts(image, concepts))
        return inputs


class TextFeaturePipeline(_OwnBackend, FeatureExtractionPipeline):
    """
    Gives the states of a text, as transformers' pipeline does, also by an export.

    Args:
        backend: see [`VisionTextPipeline`].
        options: of transformers' pipeline.
    """


class ImageTextRetrievalPipeline(VisionTextPipeline):
    """
    Ranks candidates in two stages: similarity finds the `k` best, the matching head orders them.

    ```python
    >>> retrieve = pipeline("image-text-retrieval", model=folder)
    >>> retrieve("photo.jpg", ["a dog in the snow", "a red car"])
    [{'score': 4.1, 'label': 'a dog in the snow', 'index': 0, 'similarity': 0.53}, ...]
    >>> retrieve(["1.jpg", "2.jpg"], "a dog in the snow")
    [{'score': 4.1, 'label': '2.jpg', 'index': 1, 'similarity': 0.53}, ...]
    ```

    Args:
        inputs: an image, with a list of candidate texts; a list of candidate images, with one text; or a list of images
            that each rank the list of texts. Also `{"image": ..., "text": [...]}`, `{"image": [...], "text": ...}`, and
            lists of these.
        text: see `inputs`.
        k: candidates that the matching head orders (128).
        similarity_weight: what the similarity adds to the match logit; the configuration's by default.
        top_k: how many to return, best first; by default all that the matching head ordered.
        concepts: the visual concepts of the images, `[str]` for each; of a single image also just its words. "auto" finds them.

    Returns:
        For each query `[{"score", "label", "index", "similarity"}]`, best first. The label is the text, or the image's
        path (its index where it has none). The index says where the candidate stands in the list, and the similarity is the
        cosine of the projections.
    """

    required = "rerank"
    text_aliases = ("texts", "candidate_labels", "candidate_texts", "captions")

    def _sanitize_parameters(
        self,
        k: int | None = None,
        similarity_weight: float | None = None,
        top_k: int | None = None,
        concepts: Sequence | None = None,
    ):
        for name, value in (("k", k), ("top_k", top_k)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}={value}` must be at least 1.")
        forward = {"k": k, "similarity_weight": similarity_weight}
        return (
            {} if concepts is None else {"concepts": concepts},
            {name: value for name, value in forward.items() if value is not None},
            {} if top_k is None else {"top_k": top_k},
        )

    def _pair(self, images, text) -> Mapping | list[Mapping]:
        if self._is_image(images) or isinstance(text, str):
            return {"image": images, "text": text}
        return [{"image": image, "text": text} for image in images]

    def preprocess(self, queries: Sequence[Mapping], concepts: Sequence | None = None) -> list[dict]:
        prepared: list[dict] = []
        texts_before, encoded_texts = None, None
        for query in queries:
            images = self._field(query, "image", ("images",))
            text = self._field(query, self.text_field, self.text_aliases)
            several = not self._is_image(images)
            images, texts = list(images) if several else [images], [text] if isinstance(text, str) else list(text)
            if several and len(texts) > 1:
                raise ValueError(
                    f"{type(self).__name__}: a query is about one image or one text; make it several queries."
                )
            if any(not isinstance(one, str) or not one.strip() for one in texts):
                raise ValueError(f"{type(self).__name__}: a candidate text is empty, or no text: {texts}.")
            if not images or not texts:
                raise ValueError(f"{type(self).__name__}: a query needs at least one candidate.")
            given = query.get("concepts", concepts)
            if given is None or given == "auto" or (not several and all(isinstance(word, str) for word in given)):
                given = [given] * len(images)
            if len(given) != len(images):
                raise ValueError(
                    f"{type(self).__name__}: {len(given)} lists of concepts for {len(images)} images; give one for each."
                )
            if texts != texts_before:
                texts_before, encoded_texts = texts, self._encode_texts(texts)
            labels = [_label(image, index) for index, image in enumerate(images)] if several else texts
            prepared.append(
                {
                    "images": self._encode_images(images, given),
                    # The same object where several queries rank the same texts, so that these are encoded once.
                    "texts": encoded_texts,
                    "labels": labels,
                    "ranks_images": several,
                }
            )
        return prepared

    def _forward(self, inputs: list[dict], k: int = 128, similarity_weight: float | None = None) -> list[dict]:
        outputs, texts, texts_of = [], None, None
        for query in inputs:
            if texts_of is None or not _same_rows(texts_of, query["texts"]):
                texts_of, texts = query["texts"], self.model.encode_texts(**query["texts"])
            images = self.model.encode_images(**query["images"])
            ranked = self.model.rerank(images, texts, k, similarity_weight=similarity_weight)
            similarity = images.embeds @ texts.embeds.T
            outputs.append(
                {
                    "scores": (ranked.scores_t2i if query["ranks_images"] else ranked.scores_i2t)[0].float(),
                    "similarity": (similarity[:, 0] if query["ranks_images"] else similarity[0]).float(),
                    "labels": query["labels"],
                    "k": k,
                }
            )
        return outputs

    def postprocess(self, outputs: list[dict], top_k: int | None = None) -> list[list[dict]]:
        results = []
        for ranked in outputs:
            number = min(ranked["k"], len(ranked["labels"]))
            order = ranked["scores"].argsort(descending=True, stable=True)[:number][:top_k]
            results.append(
                [
                    {
                        "score": ranked["scores"][index].item(),
                        "label": ranked["labels"][index],
                        "index": index,
                        "similarity": ranked["similarity"][index].item(),
                    }
                    for index in order.tolist()
                ]
            )
        return results


def _label(image, index: int) -> str | int:
    return str(image) if isinstance(image, str | PathLike) else index


def _same_rows(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    # Moving the queries to the model's device has made copies: what is compared is what they hold.
    return all(torch.equal(one[name], other[name]) for name in one)


class VisualGroundingPipeline(VisionTextPipeline):
    """
    Finds the place that an expression names, by Grad-CAM.

    ```python
    >>> ground = pipeline("visual-grounding", model=folder)
    >>> ground("photo.jpg", "the dog on the left")
    {'score': 0.94, 'label': 'the dog on the left', 'box': {'xmin': 12, 'ymin': 40, 'xmax': 96, 'ymax': 120}, 'heatmap': ...}
    ```

    Args:
        inputs: an image, or `{"image": ..., "text": ..., "boxes": optional, "concepts": optional [str]}`, or many.
        text: the expression.
        boxes: proposals to choose from, `[x, y, width, height]` in pixels of the upright image; by default every
            rectangle of patches.
        method: `"itm"` or `"itc"`, see [`GroundingTask.forward`]; the configuration's by default.
        layer: see [`GroundingTask.forward`].
        concepts: the visual concepts of the image, where it is only one; "auto" finds those of every image.

    Returns:
        For each query `score`, `label` (the expression), `box` (pixels of the upright image; None without any heat) and
        `heatmap`, an array [h, w] over the patches. The score is the probability that image and expression match
        (`"itm"`), or the cosine of the projections (`"itc"`).
    """

    required = "rank_boxes"
    text_aliases = ("texts", "phrase", "phrases", "expression")

    def _sanitize_parameters(
        self,
        boxes: Sequence | None = None,
        method: str | None = None,
        layer: int | None = None,
        concepts: Sequence | None = None,
    ):
        preprocess = {"boxes": boxes, "concepts": concepts}
        forward = {"method": method, "layer": layer}
        return (
            {name: value for name, value in preprocess.items() if value is not None},
            {name: value for name, value in forward.items() if value is not None},
            {},
        )

    def preprocess(
        self, queries: Sequence[Mapping], boxes: Sequence | None = None, concepts: Sequence | None = None
    ) -> dict:
        images = [self._opened_image(self._field(query, "image", ("images",))) for query in queries]
        texts = [self._text(query) for query in queries]
        given = [query.get("concepts", concepts) for query in queries]
        return {
            "inputs": self._encode_images(images, given) | self._encode_texts(texts),
            "texts": texts,
            "boxes": [query.get("boxes", boxes) for query in queries],
            "sizes": [_upright_size(image) for image in images],
        }

    def _forward(self, query: dict, method: str | None = None, layer: int | None = None) -> dict:
        method = self.model.config.grounding_method if method is None else method
        grounded = self.model(**query["inputs"], method=method, layer=layer, return_loss=False)
        if method == "itm":
            scores = grounded.match_logits.float().softmax(dim=-1)[:, MATCH]
        else:
            scores = (grounded.similarity * self.model.base_model.temperature).diagonal().float()
        chosen = []
        for heatmap, boxes, size in zip(grounded.heatmaps, query["boxes"], query["sizes"], strict=True):
            if boxes is None:
                chosen.append(hottest_box(heatmap, size))
                continue
            best = int(self.model.rank_boxes(heatmap[None], [boxes], [size]).best_indices)
            chosen.append(None if best < 0 else tuple(boxes[best]))
        return {"heatmaps": grounded.heatmaps, "scores": scores, "boxes": chosen, "texts": query["texts"]}

    def postprocess(self, outputs: dict) -> list[dict]:
        return [
            {"score": score, "label": text, "box": _named(box), "heatmap": heatmap.numpy()}
            for score, text, box, heatmap in zip(
                outputs["scores"].tolist(),
                outputs["texts"],
                outputs["boxes"],
                outputs["heatmaps"].detach(),
                strict=True,
            )
        ]

    def _opened_image(self, image):
        """Paths, URLs and bytes as Pillow images: the size in pixels is needed, too."""
        return image if hasattr(image, "shape") else self.processor.image_processor.fetch_images(image)


def _upright_size(image) -> tuple[int, int]:
    """(height, width), pixels, as a person sees the image."""
    if isinstance(image, Image.Image):
        width, height = ImageOps.exif_transpose(image).size
        return height, width
    channels_first = len(image.shape) == 3 and image.shape[0] in (1, 3, 4) and image.shape[-1] not in (1, 3, 4)
    return tuple(image.shape[-2:]) if channels_first or len(image.shape) == 2 else tuple(image.shape[:2])


def _named(box: Sequence[float] | None) -> dict[str, int] | None:
    if box is None:
        return None
    x, y, width, height = box
    return {"xmin": round(x), "ymin": round(y), "xmax": round(x + width), "ymax": round(y + height)}


__all__ = [
    "ImageFeaturePipeline",
    "ImageTextRetrievalPipeline",
    "TextFeaturePipeline",
    "VisualGroundingPipeline",
    "ZeroShotPipeline",
]
