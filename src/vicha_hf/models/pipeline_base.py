"""Common ground of the pipelines of every task: images in any form, whole batches at a time, and the head that the task needs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.pipelines.base import Pipeline

from .pretrained_encoders import require_loaded_encoders


class VisionTextPipeline(Pipeline):
    """
    A pipeline over queries, each a mapping such as `{"image": ..., "text": ...}`. A subclass says what a batch of them
    becomes (`preprocess`), what the model makes of it (`_forward`), and what the user gets (`postprocess`).

    Args:
        model: a head for the task. The bare model is exchanged for the head of the same folder: that is what
            `AutoModel` loads from a folder whose code comes with it.
        processor: the model's.
        backend: "torch" or "onnx", what runs the model; by default whatever does. A folder that `vicha-hf export` wrote is
            for "onnx".
        options: of [`~transformers.Pipeline`].
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    # Attribute of every head that can do the task.
    required: str
    # What a query holds besides the image, and how else callers may call it.
    text_field = "text"
    text_aliases: tuple[str, ...] = ()
    # Whether a query is about two images.
    reads_pairs = False

    def __init__(self, model, processor=None, task: str = "", backend: str | None = None, **options):
        require_backend(model, backend)
        model = _exchanged(model, type(self).__name__, task, self.required)
        super().__init__(model, processor=processor, task=task, **options)
        self.model.eval()

    def __call__(self, inputs=None, text=None, **options):
        """
        Args:
            inputs: an image, a list of images, a query, or a list, a dataset or a generator of queries. An image is a
                Pillow image, a path, a URL, the bytes of a file, an array or a tensor.
            text: one text for every image, a text for each, or several texts for one image.
            options: of the task, and `batch_size` and `num_workers` as for every pipeline.

        Returns:
            The result of one query, or a list with one result for each; an iterator for a dataset or a generator.

        Raises:
            ValueError: images and texts that cannot be paired, or a query without one of its fields.
        """
        for name in ("image", "images"):
            inputs = options.pop(name, None) if inputs is None else inputs
        for name in (self.text_field, *self.text_aliases):
            text = options.pop(name, None) if text is None else text
        if inputs is None:
            raise ValueError(f"{type(self).__name__}: give an image, or queries with an image each.")
        if text is not None:
            inputs = self._pair(inputs, text)
        elif self._is_image(inputs) or (isinstance(inputs, list) and any(map(self._is_image, inputs))):
            raise ValueError(f"{type(self).__name__}: give a {self.text_field} for the image.")
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, **options)

    def save_pretrained(self, save_directory, **options) -> None:
        """Saves the model, whose folder carries the code of the pipelines, and its processor."""
        self.model.save_pretrained(save_directory, **options)
        self.processor.save_pretrained(save_directory, **options)

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        queries = self.preprocess([inputs], **preprocess_params)
        return self.postprocess(self.forward(queries, **forward_params), **postprocess_params)[0]

    def get_iterator(
        self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params
    ) -> Iterator:
        """The results of all queries in order, `batch_size` of them through the model at a time."""
        if not hasattr(inputs, "__getitem__"):
            inputs, num_workers = _Stream(inputs), min(num_workers, 1)
        collate = partial(self.preprocess, **preprocess_params)
        for batch in DataLoader(inputs, batch_size=batch_size, num_workers=num_workers, collate_fn=collate):
            yield from self.postprocess(self.forward(batch, **forward_params), **postprocess_params)

    def _pair(self, images, text) -> Mapping | list[Mapping]:
        many_images = isinstance(images, list | tuple) and not self._is_image(images)
        many_texts = isinstance(text, list | tuple)
        if many_images and many_texts and len(images) != len(text):
            raise ValueError(
                f"{type(self).__name__}: {len(images)} images and {len(text)} texts cannot be paired; give as many of "
                "each, or one of either."
            )
        count = len(images) if many_images else len(text) if many_texts else 1
        queries = [
            {"image": image, self.text_field: one}
            for image, one in zip(
                images if many_images else [images] * count, text if many_texts else [text] * count, strict=True
            )
        ]
        return queries if many_images or many_texts else queries[0]

    def _is_image(self, value) -> bool:
        """Whether a value is what one query is about: an image, or a pair of images."""
        if not self.reads_pairs:
            return not isinstance(value, list | tuple | Mapping | Iterator) and not _is_dataset(value)
        return (
            isinstance(value, list | tuple)
            and len(value) == 2
            and not any(isinstance(entry, list | tuple | Mapping) for entry in value)
        )

    def _field(self, query: Mapping, name: str, aliases: Sequence[str] = ()):
        """Value that a query holds under a name. Raises a `ValueError` that says what it holds instead."""
        for key in (name, *aliases):
            if isinstance(query, Mapping) and query.get(key) is not None:
                return query[key]
        found = sorted(query) if isinstance(query, Mapping) else type(query).__name__
        raise ValueError(f"{type(self).__name__}: a query needs {name!r}; this one is {found}.")

    def _text(self, query: Mapping) -> str:
        text = self._field(query, self.text_field, self.text_aliases)
        if not isinstance(text, str):
            raise ValueError(f"{type(self).__name__}: {self.text_field!r} must be a text, got {type(text).__name__}.")
        if not text.strip():
            raise ValueError(f"{type(self).__name__}: {self.text_field!r} is empty; write something.")
        return text

    def _encode_images(self, images: Sequence, concepts: Sequence) -> dict[str, torch.Tensor]:
        """Pixel values, and concepts where there are any, for one image per entry."""
        images, named = self.processor.image_processor.fetch_images(list(images)), {}
        if any(entry for entry in concepts):
            require_reading_concepts(self)
            named["concepts"] = self._concept_words(images, concepts)
        encoded = dict(self.processor(images=images, **named, padding=True, return_tensors="pt"))
        encoded["pixel_values"] = encoded["pixel_values"].to(self.model.dtype)
        return encoded

    def _concept_words(self, images: Sequence, concepts: Sequence) -> list[list[str]]:
        """The words of each image; where "auto" stands in their place, those that the concept index finds."""
        for entry in concepts:
            require_words(type(self).__name__, entry)
        rows = [[] if entry is None or entry == "auto" else list(entry) for entry in concepts]
        places = [place for place, entry in enumerate(concepts) if entry == "auto"]
        if places:
            found = self.processor.concept_selector.words([images[place] for place in places])
            for place, words in zip(places, found, strict=True):
                rows[place] = words
        return rows

    def _encode_texts(self, texts: Sequence[str], truncation: bool = True) -> dict[str, torch.Tensor]:
        return dict(self.processor(text=list(texts), padding=True, truncation=truncation, return_tensors="pt"))


def require_backend(model, backend: str | None) -> None:
    """Raises a `ValueError` where another backend than the one asked for runs a model."""
    found = getattr(model, "backend", "torch")
    if backend not in (None, found):
        raise ValueError(
            f"backend={backend!r} is not what runs {model.name_or_path}, which is {found!r}: give the folder "
            + ("that `vicha-hf export MODEL DIR` wrote." if backend == "onnx" else "of the torch model.")
        )


def require_words(pipeline: str, concepts) -> None:
    """Raises a `ValueError` for one word in the place of a list: its letters would be taken for words."""
    if isinstance(concepts, str) and concepts != "auto":
        raise ValueError(f'{pipeline}: concepts={concepts!r} must be a list of words, or "auto".')


def require_reading_concepts(pipeline: Pipeline) -> None:
    """Raises a `ValueError` for a model that reads no visual concepts."""
    if not getattr(pipeline.model.config, "use_concepts", False):
        raise ValueError(f"{type(pipeline).__name__}: this model reads no visual concepts; leave `concepts` out.")


class _Stream(IterableDataset):
    """Queries that can only be gone through."""

    def __init__(self, queries: Iterable):
        self.queries = queries

    def __iter__(self) -> Iterator:
        return iter(self.queries)


def _is_dataset(value) -> bool:
    # Arrays and tensors are images; what else can be indexed and counted holds queries.
    return hasattr(value, "__getitem__") and not isinstance(value, str | bytes) and not hasattr(value, "shape")


def _exchanged(model, pipeline: str, task: str, required: str):
    """The model itself, or in its place the head that its folder names for the task."""
    if hasattr(model, required):
        return model
    named = (getattr(model.config, "custom_pipelines", None) or {}).get(task, {})
    if "head" not in named:
        raise ValueError(f"{pipeline} cannot use a {type(model).__name__}, which has no `{required}`.")
    head_class = get_class_from_dynamic_module(named["head"], model.name_or_path)
    head, report = head_class.from_pretrained(
        model.name_or_path, config=model.config, dtype=model.dtype, output_loading_info=True
    )
    require_loaded_encoders(head, report, model.name_or_path)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{model.name_or_path} is not fine-tuned for {task}: it has no {missing[0]} ({len(missing)} weights are "
            "missing)."
        )
    return head.to(model.device)


__all__ = ["VisionTextPipeline", "require_backend", "require_reading_concepts", "require_words"]
