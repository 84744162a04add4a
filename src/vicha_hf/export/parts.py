"""The parts of a model that are exported: tensors in, tensors out, and nothing that depends on their values."""

import torch
from torch import Tensor, nn

from ..models.encodings import ImageEncoding
from ..models.inputs import Concepts, Texts, mask_with_a_token
from ..models.modeling_vision_text import VisionTextPreTrainedModel
from ..models.objective_itm import MATCH


class ExportError(ValueError):
    """A model that cannot be exported, or a file that does not compute what the model does."""


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
        states, mask, embeds = self.encode(pixel_values, concept_input_ids, concept_attention_mask)
        return self.base.project_image(states, embeds), states, mask

    def encode(
        self,
        pixel_values: Tensor,
        concept_input_ids: Tensor | None = None,
        concept_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """States, mask, and what the concepts add to the embedding."""
        concepts = Concepts(concept_input_ids, concept_attention_mask) if self.reads_concepts else None
        # How many images there are matters in training alone.
        joined = self.base.concept_tokens(concepts, num_images=0)
        output = self.base.vision_model(pixel_values, joined.tokens, joined.mask)
        states, mask = output.last_hidden_state, output.attention_mask
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.int64)
        return states, mask, joined.embeds


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


class QuestionEncoderPart(nn.Module):
    """
    An image and its question. The inputs of the image encoder, `input_ids`, `attention_mask` [B, T] ->
    `question_hidden_states` [B, T, d_t], `question_attention_mask` [B, T].
    """

    outputs = ("question_hidden_states", "question_attention_mask")

    def __init__(self, model: VisionTextPreTrainedModel):
        super().__init__()
        self.images = ImageEncoderPart(model)
        self.inputs = (*self.images.inputs, "input_ids", "attention_mask")

    def forward(self, pixel_values: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        *concepts, input_ids, attention_mask = others
        states, mask, _ = self.images.encode(pixel_values, *concepts)
        texts = Texts(input_ids, mask_with_a_token(attention_mask))
        images = ImageEncoding(hidden_states=states, attention_mask=mask)
        fused = self.images.base.fuse_tokens(images, texts).last_hidden_state
        return fused, texts.attention_mask


class AnswerDecoderPart(nn.Module):
    """
    Answers that begin with [CLS], each to the question of its row. `answer_input_ids`, `answer_attention_mask` [n, A],
    `question_hidden_states` [n, T, d_t], `question_attention_mask` [n, T] -> `logits` [n, A, vocabulary].
    """

    inputs = ("answer_input_ids", "answer_attention_mask", "question_hidden_states", "question_attention_mask")
    outputs = ("logits",)

    def __init__(self, model: VisionTextPreTrainedModel):
        super().__init__()
        self.decoder, self.head = model.answer_decoder, model.mlm_head

    def forward(
        self,
        answer_input_ids: Tensor,
        answer_attention_mask: Tensor,
        question_hidden_states: Tensor,
        question_attention_mask: Tensor,
    ) -> Tensor:
        question = self.decoder.project_question(question_hidden_states, question_attention_mask)
        states = self.decoder(answer_input_ids, answer_attention_mask, question=question).last_hidden_state
        return self.head(states)


PARTS: dict[str, type[nn.Module]] = {
    "image_encoder": ImageEncoderPart,
    "text_encoder": TextEncoderPart,
    "pair_scorer": PairScorerPart,
    "question_encoder": QuestionEncoderPart,
    "answer_decoder": AnswerDecoderPart,
}


def parts_of(model: VisionTextPreTrainedModel) -> tuple[str, list[str]]:
    """
    The task that a model's parts serve together, "retrieval" or "vqa", and their names.

    Raises:
        ExportError: a model that has neither a joint space nor an answer decoder.
    """
    if hasattr(model, "answer_decoder"):
        return "vqa", ["question_encoder", "answer_decoder"]
    if model.base_model.vision_projection is None:
        raise ExportError(
            f"{type(model).__name__} has no projections and no answer decoder; export a model for retrieval, "
            "pretraining, grounding or question answering."
        )
    scored = getattr(model, "itm_head", None) is not None
    return "retrieval", ["image_encoder", "text_encoder", *(["pair_scorer"] if scored else [])]
