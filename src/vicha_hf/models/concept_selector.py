"""Visual concepts of any image: a dual encoder ranks a vocabulary that travels with the model."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers import AutoModel, AutoProcessor
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, cached_file, logging

from .concept_ranking import select_concepts
from .image_processing_vicha import to_upright_rgb


logger = logging.get_logger(__name__)

CONCEPT_INDEX_FOLDER = "concept_index"
# Stands for the model whose folder holds the index.
OWN_ENCODER = "."
_FORMAT = "vicha_hf concept index 1"
_DESCRIPTION, _VOCABULARY, _EMBEDDINGS = "concept_index.json", "vocabulary.json", "embeddings.safetensors"
_FILES = (_DESCRIPTION, _VOCABULARY, _EMBEDDINGS)
_REMEDY = "make it anew with `vicha-hf concepts index MODEL --vocabulary FILE`"
_HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")
# Trained on texts padded to full length, and other texts give other embeddings.
_PADDED_TEXTS = ("siglip", "siglip2")
_TEXTS_AT_A_TIME = 256


class DualEncoder:
    """
    A model with `get_image_features` and `get_text_features`, and its processor: CLIP, SigLIP, SigLIP 2, MetaCLIP,
    AltCLIP, Chinese-CLIP and others of transformers, and the models of this package.

    Args:
        model: the model, where it is to run; a head's base model is taken.
        processor: makes its inputs of `images` and `text`.
        name: where it came from: a folder, or a name on the Hub.
        revision: of the Hub repository.

    Raises:
        ValueError: a model without a joint space.
    """

    def __init__(self, model, processor, name: str = "", revision: str | None = None):
        model = getattr(model, "base_model", model)
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
            OSError, ValueError: nothing that can be loaded, or no encoder of images and texts, or one without some of its
                weights.
        """
        if __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
            # This code came with a model folder that the user trusts; its model needs the same trust.
            hub_options.setdefault("trust_remote_code", True)
        model, info = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True, **hub_options)
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"{name} is no encoder of images and texts: it has no {missing[0]} ({len(missing)} weights are missing), so "
                "its embeddings would be random. Give a model for retrieval or of a pretraining, or one such as CLIP"
            )
        processor = AutoProcessor.from_pretrained(name, revision=revision, **hub_options)
        name, revision = _lasting_name(name, getattr(model.config, "_commit_hash", None) or revision)
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), processor, name, revision)

    @property
    def device(self) -> torch.device:
        """The device that it runs on."""
        return self.model.device

    def digest(self) -> str:
        """A hash of the weights: other weights give other embeddings, whatever the name."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def encode_prepared(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The unit embeddings [n, E], float32, of what [`prepare_images`] returned."""
        moved = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        try:
            features = self.model.get_image_features(**moved)
        except ValueError as error:
            raise ValueError(
                f"{self.name}: what its processor makes of an image does not fit its model ({error}); mend the size in its "
                "processor_config.json or preprocessor_config.json"
            ) from error
        return _unit(features)

    def encode_images(self, images: Sequence) -> torch.Tensor:
        """The unit embeddings [n, E], float32, of images as [`prepare_images`] takes them."""
        return self.encode_prepared(prepare_images(self.processor.image_processor, images))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """The unit embeddings [n, E], float32."""
        padding = "max_length" if self.model.config.model_type in _PADDED_TEXTS else True
        inputs = self.processor(
            text=list(texts), padding=padding, truncation=True, max_length=self._text_length(), return_tensors="pt"
        )
        return _unit(self.model.get_text_features(**inputs.to(self.device)))

    def _text_length(self) -> int:
        """Tokens of a text at most. The tokenizers of some models name no limit, SigLIP 2's among them."""
        own = getattr(self.processor, "max_text_length", None)
        if own is not None:
            return own
        known = self.processor.tokenizer.model_max_length
        return min(known, getattr(self.model.config.get_text_config(), "max_position_embeddings", known))

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


@dataclass(frozen=True)
class ConceptIndex:
    """
    A vocabulary of visual concepts with its embeddings.

    Attributes:
        concepts: the words; equal scores go by this order.
        embeds: [V, E], float16 unit vectors.
        encoder: folder or Hub name of the model that made them; "." for the model whose folder holds the index.
        encoder_revision: of the Hub repository.
        encoder_digest: of the encoder's weights.
        prompts: texts with {} that were averaged.
        k: concepts per image.
    """

    concepts: tuple[str, ...]
    embeds: torch.Tensor
    encoder: str
    encoder_revision: str | None
    encoder_digest: str
    prompts: tuple[str, ...]
    k: int = 15

    def __post_init__(self):
        if len(self.concepts) != len(self.embeds):
            raise ValueError(f"a concept index of {len(self.concepts)} words has {len(self.embeds)} embeddings")
        if not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"a concept index with k={self.k!r}: it must be a whole number, at least 1")

    @classmethod
    def build(
        cls, concepts: Sequence[str], encoder: DualEncoder, prompts: Sequence[str], k: int = 15, own: bool = False
    ) -> "ConceptIndex":
        """
        Embeds a vocabulary.

        Args:
            own: whether the encoder is the model that the index goes with.
        """
        embeds = encoder.encode_concepts(concepts, prompts).half().cpu()
        name, revision = (OWN_ENCODER, None) if own else (encoder.name, encoder.revision)
        return cls(tuple(concepts), embeds, name, revision, encoder.digest(), tuple(prompts), k)

    def save_pretrained(self, folder) -> None:
        """Writes the index's files into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Not by `save_file`, whose files nobody else on the machine may read, whatever the user's umask says.
        (folder / _EMBEDDINGS).write_bytes(save({"embeddings": self.embeds.contiguous()}))
        _write_json(folder / _VOCABULARY, list(self.concepts))
        description = {
            "format": _FORMAT,
            "encoder": self.encoder,
            "encoder_revision": self.encoder_revision,
            "encoder_digest": self.encoder_digest,
            "prompts": list(self.prompts),
            "k": self.k,
        }
        _write_json(folder / _DESCRIPTION, description)

    def for_another_folder(self, home, revision: str | None = None) -> "ConceptIndex":
        """
        The index for a folder that cannot be its encoder: one that was its own is named by where it lies.

        Args:
            home: folder or Hub name of the model that the index came with.
            revision: of the Hub repository.
        """
        if self.encoder != OWN_ENCODER:
            return self
        name, revision = _lasting_name(home, revision)
        return replace(self, encoder=name, encoder_revision=revision)

    def warn_of_local_encoder(self) -> None:
        """Warns where the index names a folder, before others get it: they do not have that folder."""
        if os.path.isabs(self.encoder):
            logger.warning(
                "The concept index names %s, which is on this machine alone: push that model too, then "
                "`vicha-hf concepts index MODEL --encoder ORG/NAME` names it for everybody.",
                self.encoder,
            )

    @classmethod
    def from_pretrained(cls, folder, **hub_options) -> "ConceptIndex":
        """
        Reads an index.

        Args:
            folder: a model folder with `concept_index/`, the index's own folder, or a model's name on the Hub.
            hub_options: `revision`, `token`, `cache_dir`, ... as for `from_pretrained`.

        Raises:
            FileNotFoundError: no index there.
            ValueError: an index that is not whole.
        """
        paths = _find_files(folder, hub_options)
        if paths is None:
            raise FileNotFoundError(
                f"{folder} holds no {CONCEPT_INDEX_FOLDER}/: make one with `vicha-hf concepts build` and train with it, or "
                "`vicha-hf concepts index` for a model that is its own encoder"
            )
        missing = [name for name, path in paths.items() if not path.is_file()]
        if missing:
            raise ValueError(
                f"{paths[_DESCRIPTION].parent} is no whole concept index: {', '.join(missing)} is missing; {_REMEDY}"
            )
        try:
            description = json.loads(paths[_DESCRIPTION].read_text(encoding="utf-8"))
            concepts = json.loads(paths[_VOCABULARY].read_text(encoding="utf-8"))
            embeds = load_file(paths[_EMBEDDINGS])["embeddings"]
            if description["format"] != _FORMAT:
                raise ValueError(f"its format is {description['format']!r}, not {_FORMAT!r}")
            if embeds.ndim != 2:
                raise ValueError(f"its embeddings have shape {tuple(embeds.shape)}")
            return cls(
                tuple(concepts),
                embeds,
                description["encoder"],
                description["encoder_revision"],
                description["encoder_digest"],
                tuple(description["prompts"]),
                description["k"],
            )
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{paths[_DESCRIPTION].parent} is no whole concept index: {error}; {_REMEDY}") from error


class ConceptSelector:
    """
    Finds the visual concepts of images.

    Args:
        index: vocabulary and embeddings.
        encoder: the model that made them.
        batch_size: images encoded at a time.

    Raises:
        ValueError: an encoder with other weights than the index was made with.

    Example:

    ```python
    >>> selector = ConceptSelector.from_pretrained("outputs/demo/model")
    >>> selector.select(image, k=3)
    [[('dog', 0.31), ('grass', 0.28), ('ball', 0.22)]]
    ```
    """

    def __init__(self, index: ConceptIndex, encoder: DualEncoder, batch_size: int = 32):
        if encoder.digest() != index.encoder_digest:
            if index.encoder != OWN_ENCODER:
                raise ValueError(
                    f"the concept index was made by {index.encoder} (revision {index.encoder_revision}), whose weights are "
                    f"not those of {encoder.name}: make the index anew with this encoder"
                )
            # Its own model has been trained further: the words keep, their embeddings do not.
            logger.info("The model changed since its concept index was made: its vocabulary is embedded again.")
            index = ConceptIndex.build(index.concepts, encoder, index.prompts, index.k, own=True)
        self.index, self.encoder, self.batch_size = index, encoder, batch_size

    @classmethod
    def from_pretrained(
        cls, folder, *, encoder: str | None = None, device: str | None = None, batch_size: int = 32, **hub_options
    ) -> "ConceptSelector":
        """
        Loads the index of a model folder and the encoder that it names, which may be the model itself.

        Args:
            folder: a model folder with `concept_index/`, the index's own folder, or a model's name on the Hub.
            encoder: folder or Hub name of the encoder, where it is no longer where the index says.
            device: of the encoder (default: cuda where there is one).
            batch_size: images encoded at a time.
            hub_options: `revision`, `token`, `cache_dir`, ... as for `from_pretrained`.

        Raises:
            FileNotFoundError: no index there, or its encoder is gone.
            ValueError: a broken index, or one of another encoder.
        """
        index = ConceptIndex.from_pretrained(folder, **_known(hub_options))
        options = {name: value for name, value in _known(hub_options).items() if name != "revision"}
        if encoder is not None:
            name, revision = encoder, None
        elif index.encoder == OWN_ENCODER:
            home = Path(folder).parent if (Path(folder) / _DESCRIPTION).is_file() else folder
            name, revision = str(home), hub_options.get("revision")
        else:
            name, revision = index.encoder, index.encoder_revision
            if os.path.isabs(name) and not os.path.isdir(name):
                raise FileNotFoundError(
                    f"the concept index of {folder} was made by {name}, a folder that is not on this machine: name the same "
                    "model as `ConceptSelector.from_pretrained(..., encoder=FOLDER_OR_HUB_NAME)`, or for good with "
                    f"`vicha-hf concepts index {folder} --encoder FOLDER_OR_HUB_NAME`"
                )
        loaded = DualEncoder.from_pretrained(name, revision=revision, device=device, **options)
        return cls(index, loaded, batch_size)

    def select(self, images, k: int | None = None) -> list[list[tuple[str, float]]]:
        """
        The concepts of each image with their cosines, the best first.

        Args:
            images: one image or a list, Pillow images, paths, arrays or tensors; or a batch in one array.
            k: concepts per image; the index's by default.
        """
        if not isinstance(images, list | tuple):
            images = list(images) if getattr(images, "ndim", 3) == 4 else [images]
        k, found = self.index.k if k is None else k, []
        for start in range(0, len(images), self.batch_size):
            found += self._rank(self.encoder.encode_images(images[start : start + self.batch_size]), k)
        return found

    def words_of_embeds(self, image_embeds: torch.Tensor) -> list[list[str]]:
        """The concepts of images [n, E] that the encoder has embedded already, without their cosines."""
        return [[word for word, _ in row] for row in self._rank(image_embeds, self.index.k)]

    def _rank(self, image_embeds: torch.Tensor, k: int) -> list[list[tuple[str, float]]]:
        # Rounded as stored embeddings are, so that an image has the same concepts here and in a corpus.
        indices, scores = select_concepts(image_embeds.cpu().half(), self.index.embeds, k)
        return [
            [(self.index.concepts[index], score) for index, score in zip(*row, strict=True)]
            for row in zip(indices.tolist(), scores.tolist(), strict=True)
        ]

    def __deepcopy__(self, memo) -> "ConceptSelector":
        """Returns itself: a processor is copied to be written, and its encoder need not be."""
        return self

    def words(self, images, k: int | None = None) -> list[list[str]]:
        """The concepts of each image without their cosines, as a processor takes them."""
        return [[word for word, _ in row] for row in self.select(images, k)]


class ConceptIndexMixin:
    """
    Keeps the concept index of a model's folder: loaded, saved and pushed with it. To be mixed in before
    `PreTrainedModel`.

    Attributes:
        concept_index: vocabulary and embeddings that find the concepts of images; None without.
    """

    concept_index: ConceptIndex | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Loads as [`~transformers.PreTrainedModel.from_pretrained`] does, with the folder's concept index."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Without a folder the weights were given as a state dict.
        if (
            pretrained_model_name_or_path is not None
            and _find_files(pretrained_model_name_or_path, kwargs) is not None
        ):
            model.concept_index = ConceptIndex.from_pretrained(pretrained_model_name_or_path, **_known(kwargs))
            model._name_encoder(pretrained_model_name_or_path)
        return loaded

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs):
        """Saves as [`~transformers.PreTrainedModel.save_pretrained`] does; the index of an earlier save goes."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if self.should_save_on_this_rank(is_main_process):
            self._write_concept_index(save_directory)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        """Uploads with the index: `push_to_hub` is part of what transformers does to save."""
        self._write_concept_index(working_dir)
        self.warn_before_upload()
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def warn_before_upload(self) -> None:
        """Warns of an index that names a folder of this machine."""
        super().warn_before_upload()
        if self.concept_index is not None:
            self.concept_index.warn_of_local_encoder()

    def _write_concept_index(self, folder) -> None:
        target = Path(folder) / CONCEPT_INDEX_FOLDER
        if self.concept_index is not None:
            self.concept_index.save_pretrained(target)
        elif (target / _DESCRIPTION).is_file():
            shutil.rmtree(target)

    def _name_encoder(self, home) -> None:
        """Names the folder that a head without joint space came from: it cannot be its own encoder."""
        if self.base_model.vision_projection is None:
            self.concept_index = self.concept_index.for_another_folder(
                home, getattr(self.config, "_commit_hash", None)
            )


def _lasting_name(name, revision: str | None) -> tuple[str, str | None]:
    """Name and revision of a model that hold in other folders, and on other machines for what came from the Hub."""
    if not os.path.isdir(name):
        return str(name), revision
    path = Path(os.path.abspath(name))
    repository, snapshots, commit = path.parts[-3:] if len(path.parts) > 3 else ("", "", "")
    if snapshots == "snapshots" and repository.startswith("models--"):
        # A folder of the Hub's cache.
        return repository.removeprefix("models--").replace("--", "/"), commit
    return str(path), revision


def _find_files(folder, hub_options: dict) -> dict[str, Path] | None:
    if (Path(folder) / _DESCRIPTION).is_file():
        return {name: Path(folder) / name for name in _FILES}
    found = {
        name: cached_file(
            str(folder),
            f"{CONCEPT_INDEX_FOLDER}/{name}",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **_known(hub_options),
        )
        for name in _FILES
    }
    return None if found[_DESCRIPTION] is None else {name: Path(path or "") for name, path in found.items()}


def _known(hub_options: dict) -> dict:
    return {name: value for name, value in hub_options.items() if name in _HUB_OPTIONS and value is not None}


def _write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


__all__ = [
    "CONCEPT_INDEX_FOLDER",
    "OWN_ENCODER",
    "ConceptIndex",
    "ConceptIndexMixin",
    "ConceptSelector",
    "DualEncoder",
    "check_prompts",
    "prepare_images",
]
