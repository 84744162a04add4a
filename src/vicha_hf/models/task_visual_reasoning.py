"""Is a statement about two images true? (NLVR2; ALBEF section 5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Unpack

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_vision_text import VisionTextConfig
from .encoder_image_pair import ImagePairEncoder, ImagePairTask
from .encoder_vision import VisionEncoder
from .encodings import ImageEncoding
from .input_checks import check_arguments, check_rows
from .inputs import Concepts, Texts
from .modeling_outputs import ClassificationOutput, Recorded
from .modeling_vision_text import VisionTextModel
from .task_classification import ClassificationTask


PairOfTensors = torch.Tensor | tuple[torch.Tensor | None, torch.Tensor | None] | list[torch.Tensor | None]


@dataclass(frozen=True)
class ImagePairs:
    """B texts about two images each: `pixel_values` [B, 2, 3, H, W]; `concepts` of the left and of the right images."""

    pixel_values: torch.Tensor
    texts: Texts
    concepts: tuple[Concepts | None, Concepts | None]


class VisualReasoningTask(ImagePairTask, ClassificationTask):
    """
    Mixin for visual reasoning, before a family's `PreTrainedModel`. From the family's first doubled layer on, every
    text layer has a twin: the first of a pair reads one image, the second the other; they share keys and values.
    """

    CLASSES = ("False", "True")
    CLASSIFIER = "reasoning_classifier"
    head_modules: ClassVar[tuple[str, ...]] = (*ImagePairTask.head_modules, CLASSIFIER)

    def __init__(self, config: VisionTextConfig):
        super().__init__(config)
        text = config.text_config
        self._add_base_model(add_projections=False)
        self.image_pair_encoder = ImagePairEncoder(text, text.first_doubled_layer)
        self._add_classifier()
        self.post_init()

    def _online_modules(self) -> dict[str, nn.Module]:
        return super()._online_modules() | {"image_pair_encoder": self.image_pair_encoder}

    def vision_model_of(self, base: VisionTextModel) -> VisionEncoder:
        """The vision encoder that reads the images for the online base model or for the teacher's."""
        return base.vision_model

    def _encode_both(self, base: VisionTextModel, inputs: ImagePairs) -> ImageEncoding:
        """The left images, then the right ones: [2B, ...]."""
        sides, vision_model = inputs.pixel_values.unbind(1), self.vision_model_of(base)
        if base.reads_concept_padding:
            # Each side keeps its own.
            both = zip(sides, inputs.concepts, strict=True)
            return ImageEncoding.concatenate([base.embed_images(*side, vision_model=vision_model)[0] for side in both])
        # One pass, whatever the lengths: processes that share the weights must run the encoder equally often.
        return base.embed_images(torch.cat(sides), Concepts.join(inputs.concepts), vision_model=vision_model)[0]

    def fuse_by(
        self, modules: Mapping[str, nn.Module], inputs: ImagePairs, **record: Recorded
    ) -> BaseModelOutputWithCrossAttentions:
        base = modules[self.base_model_prefix]
        images = self._encode_both(base, inputs)
        rows = torch.arange(len(inputs.pixel_values), device=inputs.pixel_values.device)
        image_index = torch.stack([rows, rows + len(rows)], dim=1)
        return modules["image_pair_encoder"](base.text_model, inputs.texts, images, image_index, **record)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: PairOfTensors | None = None,
        concept_attention_mask: PairOfTensors | None = None,
        labels: torch.Tensor | None = None,
        distillation_alpha: float | None = None,
        update_teacher: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ClassificationOutput:
        """
        Args:
            pixel_values: [B, 2, 3, H, W], the left and the right image.
            input_ids, attention_mask: [B, T], 1 = attend.
            concept_input_ids, concept_attention_mask: [B, 2, C], or a pair ([B, C1], [B, C2]) of different lengths,
                either of them possibly `None`; 1 = attend, a zero row = no concepts.
            labels: [B], 1 where the statement is true, 0 where it is false; without them there is no loss. It is
                distilled in training mode, plain cross-entropy in evaluation mode.
            distillation_alpha: share of the teacher's soft labels; the configuration's by default.
            update_teacher: false for all but the first micro-batch of an accumulated step.

        Raises:
            ValueError: not two images per text, or images, texts, concepts and labels that do not belong together.
        """
        record = check_arguments(self, kwargs)
        if pixel_values.dim() != 5 or pixel_values.shape[1] != 2:
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}; expected two images per text, [B, 2, 3, H, W]."
            )
        ids, masks = (
            _pair(concept_input_ids, "concept_input_ids"),
            _pair(concept_attention_mask, "concept_attention_mask"),
        )
        check_rows(
            pixel_values=pixel_values,
            input_ids=input_ids,
            first_concept_input_ids=ids[0],
            second_concept_input_ids=ids[1],
        )
        inputs = ImagePairs(
            pixel_values, Texts.given(input_ids, attention_mask), tuple(map(Concepts.given, ids, masks))
        )
        return self.classify(inputs, labels, distillation_alpha, update_teacher, **record)


def _pair(concepts: PairOfTensors | None, name: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """[B, 2, C] or a pair of tensors -> ([B, C1], [B, C2])."""
    if concepts is None:
        return None, None
    if isinstance(concepts, torch.Tensor):
        if concepts.dim() != 3 or concepts.shape[1] != 2:
            raise ValueError(
                f"`{name}` has shape {tuple(concepts.shape)}; expected [B, 2, C] or a pair ([B, C1], [B, C2])."
            )
        return concepts.unbind(1)
    if len(concepts) != 2:
        raise ValueError(f"`{name}` holds {len(concepts)} tensors; expected one for each of the two images.")
    return tuple(concepts)
