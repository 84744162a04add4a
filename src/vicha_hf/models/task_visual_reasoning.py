"""Is a statement about two images true? (NLVR2; ALBEF section 5)."""

import torch
from torch import nn
from transformers.utils import can_return_tuple

from .encoder_image_pair import ImagePairEncoder, ImagePairTask
from .encodings import ImageEncoding
from .input_checks import check_rows
from .modeling_outputs import ClassificationOutput
from .task_classification import ClassificationTask


PairOfTensors = torch.Tensor | tuple[torch.Tensor | None, torch.Tensor | None] | list[torch.Tensor | None]


class VisualReasoningTask(ImagePairTask, ClassificationTask):
    """
    Mixin for visual reasoning, before a family's `PreTrainedModel`. From the family's first doubled layer on, every
    text layer has a twin: the first of a pair reads one image, the second the other; they share keys and values.
    """

    CLASSES = ("False", "True")
    CLASSIFIER = "reasoning_classifier"

    def __init__(self, config):
        super().__init__(config)
        text = config.text_config
        self._add_base_model(add_projections=False)
        self.image_pair_encoder = ImagePairEncoder(text, text.first_doubled_layer)
        self._add_classifier()
        self.post_init()

    def _online_modules(self) -> dict[str, nn.Module]:
        return super()._online_modules() | {"image_pair_encoder": self.image_pair_encoder}

    def _encode_images(self, base: nn.Module, *inputs) -> ImageEncoding:
        """Images encoded by the online base model or the teacher's."""
        return base.encode_images(*inputs)

    def _encode_both(self, base, pixel_values, concept_input_ids, concept_attention_mask) -> ImageEncoding:
        """The left images, then the right ones: [2B, ...]."""
        images = pixel_values.unbind(1)
        ids, masks = _pair(concept_input_ids), _pair(concept_attention_mask)
        if base.reads_concept_padding:
            # Each side keeps its own.
            sides = zip(images, ids, masks, strict=True)
            return ImageEncoding.concatenate([self._encode_images(base, *side) for side in sides])
        # One pass, whatever the lengths: processes that share the weights must run the encoder equally often.
        return self._encode_images(base, torch.cat(images), *_one_batch(ids, masks))

    def _fuse(
        self, modules, pixel_values, input_ids, attention_mask, concept_input_ids, concept_attention_mask
    ) -> torch.Tensor:
        base = modules[self.base_model_prefix]
        images = self._encode_both(base, pixel_values, concept_input_ids, concept_attention_mask)
        rows = torch.arange(len(pixel_values), device=pixel_values.device)
        image_index = torch.stack([rows, rows + len(rows)], dim=1)
        return modules["image_pair_encoder"](base.text_model, input_ids, attention_mask, images, image_index)

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
        **kwargs,
    ) -> ClassificationOutput:
        """
        Args:
            pixel_values: [B, 2, 3, H, W], the left and the right image.
            input_ids, attention_mask: [B, T], 1 = attend.
            concept_input_ids, concept_attention_mask: [B, 2, C], or a pair ([B, C1], [B, C2]) of different lengths,
                either of them possibly `None`; 1 = attend, a zero row = no concepts.
            labels: [B], 1 where the statement is true, 0 where it is false; needed in training mode. The loss is
                distilled in training mode, plain cross-entropy in evaluation mode.
            distillation_alpha: share of the teacher's soft labels; the configuration's by default.
            update_teacher: false for all but the first micro-batch of an accumulated step.

        Raises:
            ValueError: not two images per text, or images, texts, concepts and labels that do not belong together.
        """
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
        for ids_of_one, mask_of_one in zip(ids, masks, strict=True):
            if mask_of_one is not None and (ids_of_one is None or ids_of_one.shape != mask_of_one.shape):
                raise ValueError(
                    "`concept_attention_mask` must have the shapes of `concept_input_ids`; got "
                    f"{tuple(mask_of_one.shape)} for {None if ids_of_one is None else tuple(ids_of_one.shape)}."
                )
        inputs = {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "concept_input_ids": concept_input_ids,
            "concept_attention_mask": concept_attention_mask,
        }
        return self._classify(inputs, labels, distillation_alpha, update_teacher)


def _pair(concepts: PairOfTensors | None, name: str = "concepts") -> tuple[torch.Tensor | None, torch.Tensor | None]:
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


def _one_batch(
    ids: tuple[torch.Tensor | None, torch.Tensor | None], masks: tuple[torch.Tensor | None, torch.Tensor | None]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """([B, C1], [B, C2]), either of them possibly `None`, and their masks -> [2B, C] and its mask, 0 where padded."""
    given = [side for side in ids if side is not None]
    if not given:
        return None, None
    longest = max(side.shape[1] for side in given)
    padded = []
    for side, mask in zip(ids, masks, strict=True):
        if side is None:
            side, mask = torch.zeros_like(given[0]), torch.zeros_like(given[0])
        elif mask is None:
            mask = torch.ones_like(side)
        missing = (0, longest - side.shape[1])
        padded.append((nn.functional.pad(side, missing), nn.functional.pad(mask, missing)))
    return tuple(map(torch.cat, zip(*padded, strict=True)))
