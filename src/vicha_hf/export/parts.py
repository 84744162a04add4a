"""The parts of a model that are exported: tensors in, tensors out, and nothing that depends on their values."""

import torch
from torch import Tensor, nn

from ..models.inputs import Concepts, mask_with_a_token
from ..models.modeling_vision_text import VisionTextPreTrainedModel
from ..models.objective_itm import MATCH


class ImageEncoderPart(nn.Module):
    """
    `pixel_values` [N, 3, H, W], and in models with visual concepts `concept_input_ids` and `concept_attention_mask`
    [N, C] -> `image_embeds` [N, E], `image_hidden_states` [N, S, d_v], `image_attention_mask` [N, S].
    """

    outputs = ("image_embeds", "image_hidden_states", "image_attention_mask")

    def __init__(self, model: VisionTextPreTrainedModel):
        super().__init__()
        self.base = model.base_model
        self.reads_concepts = bool(getattr(model.config, "use_concepts", False))
        self.inputs = ("pixel_values",)
        if self.reads_concepts:
            self.inputs += ("concept_input_ids", "concept_attention_mask")

    def forward(
        self,
        pixel_values: Tensor,
        concept_input_ids: Tensor | None = None,
        concept_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        concepts = Concepts(concept_input_ids, concept_attention_mask) if self.reads_concepts else None
        # How many images there are matters in training alone.
        joined = self.base.concept_tokens(concepts, num_images=0)
        output = self.base.vision_model(pixel_values, joined.tokens, joined.mask)
        states, mask = output.last_hidden_state, output.attention_mask
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.int64)
        return self.base.project_image(states, joined.embeds), states, mask


class TextEncoderPart(nn.Module):
    """`input_ids`, `attention_mask` [M, T] -> `text_embeds` [M, E], `text_hidden_states` [M, T, d_t]."""

    inputs = ("input_ids", "attention_mask")
    outputs = ("text_embeds", "text_hidden_states")

    def __init__(self, model: VisionTextPreTrainedModel):
        super().__init__()
        self.base = model.base_model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        attention_mask = mask_with_a_token(attention_mask)
        states = self.base.text_model(input_ids, attention_mask, mode="text").last_hidden_state
        return self.base.project_text(states, attention_mask), states


class PairScorerPart(nn.Module):
    """
    Image i with text i: `image_hidden_states` [n, S, d_v], `image_attention_mask` [n, S], `attention_mask` [n, T] and the
    text -> `match_logits` [n]. The text is `text_hidden_states` [n, T, d_t] of the text encoder, or `input_ids` [n, T]
    where the model fuses a text from its ids (single-stream).
    """

    outputs = ("match_logits",)

    def __init__(self, model: VisionTextPreTrainedModel):
        super().__init__()
        self.text_model, self.itm_head = model.base_model.text_model, model.itm_head
        self.single_stream = self.text_model.config.fusion_mode == "multimodal"
        text = "input_ids" if self.single_stream else "text_hidden_states"
        self.inputs = ("image_hidden_states", "image_attention_mask", text, "attention_mask")

    def forward(
        self, image_hidden_states: Tensor, image_attention_mask: Tensor, text: Tensor, attention_mask: Tensor
    ) -> Tensor:
        texts = (
            {"input_ids": text, "mode": "multimodal"}
            if self.single_stream
            else {"inputs_embeds": text, "mode": "fusion"}
        )
        fused = self.text_model(
            **texts,
            attention_mask=mask_with_a_token(attention_mask),
            encoder_hidden_states=image_hidden_states,
            encoder_attention_mask=image_attention_mask,
        ).last_hidden_state
        return self.itm_head(fused[:, 0])[:, MATCH]


PARTS: dict[str, type[nn.Module]] = {
    "image_encoder": ImageEncoderPart,
    "text_encoder": TextEncoderPart,
    "pair_scorer": PairScorerPart,
}
