"""ViCHA: vision-language model with visual concepts, hierarchical alignment and masked image modelling (arXiv 2208.13628)."""

from typing import Unpack

import torch
from torch import nn
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from .concept_selector import ConceptIndexMixin
from .configuration_vicha import ViChaConfig
from .encoder_concept import ConceptEncoder
from .encoder_vision import VisionEncoder
from .input_checks import check_arguments
from .inputs import Concepts, ConceptTokens, Pairs
from .modeling_outputs import PreTrainingOutput
from .modeling_vision_text import VisionTextModel, VisionTextPreTrainedModel, draws_its_labels
from .objective_hierarchical_itc import HierarchicalContrast
from .objective_itm import MatchingOutput
from .objective_mim import PixelReconstruction
from .pair_step import ContrastPart, PairStep
from .task_classification import VisualEntailmentTask
from .task_grounding import GroundingTask
from .task_pretraining import PretrainingTask
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

    def _resize_other_vocabularies(self, num_tokens: int, mean_resizing: bool) -> None:
        super()._resize_other_vocabularies(num_tokens, mean_resizing)
        concept_model = self.base_model.concept_model
        if concept_model is not None and self.config.share_word_embeddings:
            concept_model.set_input_embeddings(self.get_input_embeddings())
        elif concept_model is not None:
            concept_model.resize_token_embeddings(num_tokens, mean_resizing=mean_resizing)

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
        if config.use_concepts and config.share_word_embeddings:
            self.concept_model.set_input_embeddings(self.text_model.get_input_embeddings())
            words = "embeddings.word_embeddings.weight"
            self._tied_weights_keys = {f"concept_model.{words}": f"text_model.{words}"}

    @property
    def reads_concept_padding(self) -> bool:
        """Whether padded concept tokens are attended to, so that an encoding depends on how far it is padded."""
        return self.config.quirks.unmasked_concepts

    def concept_tokens(self, concepts: Concepts | None, num_images: int) -> ConceptTokens:
        """
        Embeds the concepts of B images.

        Raises:
            TypeError: concepts for a model that reads none.
        """
        given = concepts is not None
        if given and self.concept_model is None:
            raise TypeError("`concept_input_ids` was given to a model with `use_concepts=False`; leave it out.")
        if not given and self.concept_model is not None and self.training:
            # Data-parallel training waits for the gradient of every parameter on every process, also where a whole
            # batch happens to have no concepts.
            concepts = Concepts.none(num_images, self.device)
        if concepts is None:
            return ConceptTokens()
        states = self.concept_model(concepts.input_ids, concepts.self_attention_mask).last_hidden_state
        read_all = given and self.reads_concept_padding
        return ConceptTokens(
            tokens=self.concept_projection(states),
            mask=None if read_all else concepts.attention_mask,
            embeds=self._concept_embeds(states, concepts.attention_mask) if self.config.concept_shortcut else None,
        )

    def _concept_embeds(self, states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """The concepts in the joint space [B, E], read as a text is; zero for an image without concepts."""
        embeds = self.project_text(states, attention_mask)
        if embeds is None or attention_mask is None:
            return embeds
        return embeds * attention_mask.any(dim=1, keepdim=True).to(embeds.dtype)


class ViChaForPreTraining(PretrainingTask, ViChaPreTrainedModel):
    """
    ViCHA with its pretraining objectives: ITC with queue and momentum distillation, hierarchical ITC, ITM with hard
    negatives, MLM with distillation, MIM. Objectives whose weight is 0 have no parameters.
    """

    head_modules = (*PretrainingTask.head_modules, "hierarchical_itc", "mim")

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
                local_diagonal=config.quirks.hitc_local_diagonal,
            )
            # At the first call transformers would do it behind a lock, which a compiled graph cannot take.
            for encoder in (self.vicha.vision_model, self.vicha.text_model):
                maybe_install_capturing_hooks(encoder)
        self.mim = PixelReconstruction(config) if config.mim_weight > 0 else None
        self._freeze_untrained()
        self.post_init()

    @draws_its_labels
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
        use_teacher: bool = True,
        contrast_part: ContrastPart | None = None,
        negative_hardness: float = 1.0,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
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
            use_teacher: false for a step without the teacher's features and targets: the contrast compares the batch
                with itself, with gradient on both sides, and nothing joins the queue.
            contrast_part: the batch is a part of a larger one; from `cache_contrast`.
            negative_hardness: of the negatives of matching, from 0 (any is as likely) to 1 (as the paper draws them).
            return_loss: tells transformers' Trainer that the loss needs no labels; there is always one.
        """
        record = check_arguments(self, kwargs)
        pairs = Pairs.given(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            concept_input_ids=concept_input_ids,
            concept_attention_mask=concept_attention_mask,
            image_ids=image_ids,
            patch_indices=patch_indices,
            mim_noise=mim_noise,
        )
        step = PairStep.encode(
            self,
            pairs,
            distillation_alpha=distillation_alpha,
            update_teacher=update_teacher,
            use_teacher=use_teacher,
            part=contrast_part,
            patch_dropout=self.config.patch_dropout,
            record_layers=self.hierarchical_itc is not None,
            **record,
        )
        contrast, match = self.itc.on_pairs(step), MatchingOutput()
        losses = {"itc": contrast.loss}
        if self.hierarchical_itc is not None:
            losses["hierarchical_itc"] = self.hierarchical_itc.on_pairs(step).loss
        if self.itm_head is not None:
            match = self.itm.on_pairs(
                step,
                contrast,
                self.negative_sampler,
                self.itm_head,
                negative_image_indices,
                negative_text_indices,
                negative_hardness,
                **record,
            )
            losses["itm"] = match.loss
        if self.mlm_head is not None:
            losses["mlm"] = self.mlm.on_pairs(step, self.mlm_head, mlm_input_ids, mlm_labels).loss
        if self.mim is not None:
            losses["mim"] = self.mim.on_pairs(step, mim_noise).loss
        return self._weigh(losses, step, match)


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

    def vision_model_of(self, base: ViChaModel) -> VisionEncoder:
        is_teacher = base is not self.vicha
        online = self.config.quirks.nlvr_online_teacher and is_teacher
        return self.vicha.vision_model if online else base.vision_model


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
