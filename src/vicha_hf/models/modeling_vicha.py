"""ViCHA: vision-language model with visual concepts, hierarchical alignment and masked image modelling (arXiv 2208.13628)."""

import torch
from torch import nn
from transformers.utils import can_return_tuple

from .concept_selector import ConceptIndexMixin
from .configuration_vicha import ViChaConfig
from .contrast_parts import CachedLoss, ContrastPart, RandomState
from .encoder_concept import ConceptEncoder
from .encodings import ImageEncoding
from .input_checks import check_rows
from .modeling_outputs import PreTrainingOutput
from .modeling_vision_text import VisionTextModel, VisionTextPreTrainedModel
from .objective_hierarchical_itc import HierarchicalContrast, HierarchicalContrastiveOutput
from .objective_itm import MatchingOutput
from .objective_mim import MaskedImageModeling
from .task_classification import VisualEntailmentTask
from .task_contrast_and_match import encoded_inputs
from .task_grounding import GroundingTask
from .task_pretraining import EncodedStep, PretrainingTask
from .task_question_answering import QuestionAnsweringTask
from .task_retrieval import RetrievalTask
from .task_text_assignment import TextAssignmentTask
from .task_visual_reasoning import VisualReasoningTask


class ViChaPreTrainedModel(ConceptIndexMixin, VisionTextPreTrainedModel):
    """Base of all ViCHA models."""

    config: ViChaConfig
    base_model_prefix = "vicha"

    def _new_base_model(self, add_projections: bool = True) -> "ViChaModel":
        return ViChaModel(self.config, add_projections)

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        """Resizes the text encoder's and the concept encoder's word embeddings together: they share the tokenizer."""
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        concept_model = self.base_model.concept_model
        if concept_model is not None:
            # Its configuration is the text encoder's, which knows the new size already.
            size = embeddings.num_embeddings
            resized = self._get_resized_embeddings(concept_model.get_input_embeddings(), size, None, mean_resizing)
            concept_model.set_input_embeddings(resized)
        return embeddings

    def resize_image_size(self, image_size: int) -> None:
        """Interpolates the learned positions to another input size (pixels), e.g. 384 for fine-tuning."""
        super().resize_image_size(image_size)
        mim = getattr(self, "mim", None)
        if mim is not None and mim.decoder is not None:
            mim.decoder.resize_positions(self.config.vision_config.grid_size)


class ViChaModel(VisionTextModel, ViChaPreTrainedModel):
    """
    The bare ViCHA model: vision, concept and text encoders, projections to a joint space, and fusion.

    Args:
        config: its configuration.
        add_projections: whether images and texts are embedded in the joint space; heads that only fuse have no use
            for it, and their encodings have no `embeds`.
    """

    def _add_concepts(self) -> None:
        config, vision, text = self.config, self.config.vision_config, self.config.text_config
        self.concept_model = ConceptEncoder(text, config.num_concept_layers) if config.use_concepts else None
        self.concept_projection = nn.Linear(text.hidden_size, vision.hidden_size) if config.use_concepts else None

    @property
    def reads_concept_padding(self) -> bool:
        """Whether padded concept tokens are attended to, so that an encoding depends on how far it is padded."""
        return "unmasked_concepts" in self.config.reference_quirks

    def embed_concepts(
        self, concept_input_ids: torch.Tensor | None, concept_attention_mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Concepts [B, C] -> tokens for the vision encoder [B, C, d_v]; `None` without concepts."""
        if concept_input_ids is None:
            if concept_attention_mask is not None:
                raise ValueError("`concept_attention_mask` was given without `concept_input_ids`.")
            return None
        if self.concept_model is None:
            raise ValueError("`concept_input_ids` was given to a model with `use_concepts=False`; leave it out.")
        states = self.concept_model(concept_input_ids, concept_attention_mask).last_hidden_state
        return self.concept_projection(states)

    def _concept_tokens(self, pixel_values, concept_input_ids, concept_attention_mask):
        concepts = self.embed_concepts(concept_input_ids, concept_attention_mask)
        if concepts is None or self.reads_concept_padding:
            concept_attention_mask = None
        if concepts is None and self.concept_model is not None and self.training:
            concepts, concept_attention_mask = self._unread_concepts(pixel_values)
        return concepts, concept_attention_mask

    def _unread_concepts(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        One concept token per image that nothing attends to. Data-parallel training waits for the gradient of every
        parameter on every process, also where a whole batch happens to have no concepts.
        """
        ids = torch.zeros(pixel_values.shape[0], 1, dtype=torch.long, device=pixel_values.device)
        return self.embed_concepts(ids, ids), ids


class ViChaForPreTraining(PretrainingTask, ViChaPreTrainedModel):
    """
    ViCHA with its pretraining objectives: ITC with queue and momentum distillation, hierarchical ITC, ITM with hard
    negatives, MLM with distillation, MIM. Objectives whose weight is 0 have no parameters.
    """

    def __init__(self, config: ViChaConfig):
        super().__init__(config)
        self.hierarchical_itc = None
        if config.hierarchical_itc_weight > 0:
            self.hierarchical_itc = HierarchicalContrast(
                config.vision_config.hidden_size,
                config.text_config.hidden_size,
                config.projection_dim,
                config.hierarchical_itc_levels,
                config.hierarchical_itc_level_weights,
                local_diagonal="hitc_local_diagonal" in config.reference_quirks,
            )
        self.mim = MaskedImageModeling(config) if config.mim_weight > 0 else None
        self._freeze_untrained()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        mlm_input_ids: torch.Tensor | None = None,
        mlm_labels: torch.Tensor | None = None,
        mim_noise: torch.Tensor | None = None,
        negative_image_indices: torch.Tensor | None = None,
        negative_text_indices: torch.Tensor | None = None,
        patch_indices: torch.Tensor | None = None,
        distillation_alpha: float | None = None,
        update_teacher: bool = True,
        contrast_part: ContrastPart | None = None,
        **kwargs,
    ) -> PreTrainingOutput:
        """
        Computes the pretraining losses; arguments that are not given are drawn inside. In training mode the teacher is
        updated first and its features join the queue. In evaluation mode nothing changes.

        Args:
            pixel_values: [B, 3, H, W]; row b of images and texts is a pair.
            input_ids, attention_mask: [B, T], 1 = attend.
            concept_input_ids, concept_attention_mask: [B, C], 1 = attend.
            image_ids: [B], equal for the same image; other pairs of an image are then nobody's negatives.
            mlm_input_ids, mlm_labels: [B, T], masked ids and labels (-100 = not predicted).
            mim_noise: [B, P]; the patches with the smallest values stay.
            negative_image_indices: [B], for each text the row of its negative image.
            negative_text_indices: [B], for each image the row of its negative text.
            patch_indices: [B, K], the patches of each image that contrast and fusion see; by default drawn as
                `patch_dropout` says in training mode, and otherwise all.
            distillation_alpha: share of the teacher's soft targets; the configuration's by default.
            update_teacher: false for all but the first micro-batch of an accumulated step.
            contrast_part: the batch is a part of a larger one; from `cache_contrast`.
        """
        check_rows(pixel_values=pixel_values, mim_noise=mim_noise)
        step = self._encode_step(
            pixel_values,
            input_ids,
            attention_mask,
            image_ids,
            distillation_alpha,
            update_teacher,
            concept_input_ids,
            concept_attention_mask,
            patch_indices,
            contrast_part,
            **({} if self.hierarchical_itc is None else {"output_hidden_states": True}),
        )
        contrast, match = self._contrast_step(step), MatchingOutput()
        losses = {"itc": contrast.loss}
        if self.hierarchical_itc is not None:
            losses["hierarchical_itc"] = self._align_levels(step).loss
        if self.itm_head is not None:
            match = self._match_step(step, contrast, negative_image_indices, negative_text_indices)
            losses["itm"] = match.loss
        if self.mlm_head is not None:
            losses["mlm"] = self._language_step(step, mlm_input_ids, mlm_labels).loss
        if self.mim is not None:
            model = self.vicha
            losses["mim"] = self.mim(
                pixel_values,
                model.vision_model,
                model.text_model,
                step.texts.hidden_states,
                step.attention_mask,
                mim_noise,
            ).loss
        return self._weigh(losses, step, match)

    def _align_levels(self, step: EncodedStep) -> HierarchicalContrastiveOutput:
        levels, temperature = self._levels(step.vision_output, step.text_output), self.vicha.temperature
        if step.part is None:
            return self.hierarchical_itc(*levels, temperature, step.image_ids)
        image_embeds, text_embeds = self.hierarchical_itc.embed(*levels)
        return HierarchicalContrastiveOutput(loss=step.part.levels.through([*image_embeds, *text_embeds, temperature]))

    def _levels(self, vision_output, text_output) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """[CLS] of images [B, d_v] and texts [B, d_t] at each level below the top, the lowest first."""
        levels = slice(-(self.config.hierarchical_itc_levels + 1), -1)
        norm = self.vicha.vision_model.layernorm
        image_levels = [norm(states[:, 0]) for states in vision_output.hidden_states[levels]]
        return image_levels, [states[:, 0] for states in text_output.hidden_states[levels]]

    def _cache_levels(self, batches, image_ids) -> list[tuple[CachedLoss | None, RandomState | None]]:
        if self.hierarchical_itc is None:
            return super()._cache_levels(batches, image_ids)
        random_states, embeds = [], []
        for batch in batches:
            random_states.append(RandomState(batch["pixel_values"].device))
            _, vision_output, _, text_output = self._encode_online(
                **encoded_inputs(batch), patch_indices=batch.get("patch_indices"), output_hidden_states=True
            )
            images, texts = self.hierarchical_itc.embed(*self._levels(vision_output, text_output))
            embeds.append([*images, *texts])
        leaves = [torch.cat(parts).requires_grad_() for parts in zip(*embeds, strict=True)]
        temperature = self.vicha.temperature.detach().clone().requires_grad_()
        levels = len(leaves) // 2
        with torch.enable_grad():
            loss = self.hierarchical_itc.contrast(leaves[:levels], leaves[levels:], temperature, image_ids).loss
            *gradients, of_temperature = torch.autograd.grad(loss, [*leaves, temperature])
        parts = zip(*(gradient.chunk(len(batches)) for gradient in gradients), strict=True)
        return [
            (CachedLoss(loss.detach(), [*part, of_temperature / len(batches)], len(batches)), state)
            for part, state in zip(parts, random_states, strict=True)
        ]


class ViChaForRetrieval(RetrievalTask, ViChaPreTrainedModel):
    """
    Image-text retrieval: fine-tuned with contrast and matching, answers in two stages ([`~ViChaForRetrieval.rerank`]).
    """


class ViChaForVQA(QuestionAnsweringTask, ViChaPreTrainedModel):
    """
    Answers questions about images with a decoder that has as many layers as the text encoder has fusion layers.

    Example:

    ```python
    >>> inputs = processor(images=image, text="what is on the grass?", concepts=[["dog"]], return_tensors="pt")
    >>> processor.tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    >>> answers = processor.tokenizer(["a dog", "a cat", "2"], padding=True, return_tensors="pt")
    >>> ranking = model.rank_answers(**inputs, answers=answers, top_k=2)
    >>> ranking.answer_indices, ranking.probabilities  # [1, 2] each, best first
    ```
    """


class ViChaForGrounding(GroundingTask, ViChaForRetrieval):
    """
    Finds what an expression names, from training on (image, expression) pairs alone: trains as `ViChaForRetrieval`,
    answers with a Grad-CAM heat map.

    Example:

    ```python
    >>> inputs = processor(images=image, text="the dog on the left", concepts=[["dog"]], return_tensors="pt")
    >>> heatmaps = model.eval()(**inputs).heatmaps  # [1, h, w]
    >>> ranking = model.rank_boxes(heatmaps, boxes=[proposals], image_sizes=[(image.height, image.width)])
    >>> proposals[ranking.best_indices[0]]
    ```
    """


class ViChaForVisualEntailment(VisualEntailmentTask, ViChaPreTrainedModel):
    """
    Whether an image contradicts a sentence, leaves it open or entails it.

    Example:

    ```python
    >>> inputs = processor(images=image, text="two dogs are asleep", concepts=[["dog"]], return_tensors="pt")
    >>> logits = model(**inputs).logits  # [1, 3]
    >>> model.CLASSES[logits.argmax()]
    ```
    """


class ViChaForVisualReasoning(VisualReasoningTask, ViChaPreTrainedModel):
    """
    Whether a statement about two images is true. The fusion layers are doubled: the first of a pair reads the left
    image, the second the right one; they share keys and values.
    """

    def _encode_images(self, base, *inputs) -> ImageEncoding:
        if base is self.vicha or "nlvr_online_teacher" not in self.config.reference_quirks:
            return super()._encode_images(base, *inputs)
        return base._encode_images(*inputs, vision_model=self.vicha.vision_model)[0]


class ViChaForTextAssignment(TextAssignmentTask, ViChaPreTrainedModel):
    """
    The pretraining step before visual reasoning: of two images, which one does the text belong to, if any? The joint
    space only finds similar images and is not trained.
    """


__all__ = [
    "ViChaForGrounding",
    "ViChaForPreTraining",
    "ViChaForRetrieval",
    "ViChaForTextAssignment",
    "ViChaForVQA",
    "ViChaForVisualEntailment",
    "ViChaForVisualReasoning",
    "ViChaModel",
    "ViChaPreTrainedModel",
]
