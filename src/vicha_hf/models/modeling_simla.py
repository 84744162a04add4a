"""SIMLA: single-stream vision-language model with cross-modality reconstruction and pseudo-labelled keywords (arXiv 2203.14395)."""

from typing import Unpack

import torch
from torch import nn
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_simla import SimlaConfig
from .input_checks import check_arguments
from .inputs import Pairs
from .modeling_outputs import KeywordPredictionOutput, PreTrainingOutput
from .modeling_vision_text import VisionTextModel, VisionTextPreTrainedModel, draws_its_labels
from .objective_image_token_reconstruction import ImageTokenizer, ImageTokenReconstruction, require_fitting_tokenizer
from .objective_itm import MatchingOutput
from .objective_pseudo_label_keywords import PseudoLabelKeywords
from .pair_step import ContrastPart, PairStep
from .task_classification import VisualEntailmentTask
from .task_grounding import GroundingTask
from .task_pretraining import PretrainingTask
from .task_question_answering import QuestionAnsweringTask
from .task_retrieval import RetrievalTask
from .task_text_assignment import TextAssignmentTask
from .task_visual_reasoning import VisualReasoningTask


class SimlaPreTrainedModel(VisionTextPreTrainedModel):
    """Base of all SIMLA models."""

    config: SimlaConfig
    base_model_prefix = "simla"

    def _new_base_model(self, add_projections: bool = True) -> "SimlaModel":
        return SimlaModel(self.config, add_projections)

    def resize_image_size(self, image_size: int) -> None:
        """
        Interpolates the learned positions to another input size (pixels), e.g. 384 for fine-tuning. A model that
        reconstructs no patches itself then says so in its configuration (`mim_weight=0`). The paper's text encoder has
        positions for the 257 image tokens of 256 pixels, and none for the 577 of 384.
        """
        if getattr(self, "mim", None) is None:
            self.config.mim_weight = 0.0
        super().resize_image_size(image_size)


class SimlaModel(VisionTextModel, SimlaPreTrainedModel):
    """
    The bare SIMLA model: vision encoder, single-stream text encoder, projections to a joint space. Every text layer can
    attend to the image; texts are embedded without it and fused anew from their ids.

    Args:
        config: its configuration.
        add_projections: whether images and texts are embedded in the joint space; heads that only fuse have no use
            for it, and their encodings have no `embeds`.
    """


class SimlaForPreTraining(PretrainingTask, SimlaPreTrainedModel):
    """
    SIMLA with its pretraining objectives: ITC with queue and momentum distillation, ITM with hard negatives, symmetric
    cross-modality reconstruction (MLM, and MIM on visual tokens) with distillation, pseudo-labelled keywords. Objectives
    whose weight is 0 have no parameters.

    Example:

    ```python
    >>> words = model.eval().predict_keywords(**processor(images=image, return_tensors="pt"))
    >>> processor.decode_keywords(words)[0]  # [("dog", 0.91), ("grass", 0.74), ...]
    ```
    """

    head_modules = (*PretrainingTask.head_modules, "mim", "psl")

    def __init__(self, config: SimlaConfig):
        super().__init__(config)
        self.mim = ImageTokenReconstruction(config) if config.mim_weight > 0 else None
        self.psl = PseudoLabelKeywords(config) if config.psl_weight > 0 else None
        self._freeze_untrained()
        self.post_init()

    def set_visual_tokenizer(self, tokenizer: ImageTokenizer | None) -> None:
        """
        Batches without `visual_token_ids` then get them from this tokenizer, made of the very pixel values that the
        vision encoder reads, on the model's device. It is no part of the model: it is neither trained nor saved.

        Raises:
            ValueError: a grid or a vocabulary that is not the model's.
        """
        vision = self.config.vision_config
        if tokenizer is not None:
            require_fitting_tokenizer(
                tokenizer,
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                vocab_size=self.config.visual_vocab_size,
            )
        # Not an attribute that torch would register.
        self.__dict__["visual_tokenizer"] = tokenizer

    def _visual_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        tokenizer = self.__dict__.get("visual_tokenizer")
        if tokenizer is None:
            return None
        # Codes are compared in full precision, whatever the training's is.
        with torch.autocast(pixel_values.device.type, enabled=False):
            return tokenizer.to(pixel_values.device)(pixel_values)

    def _resize_other_vocabularies(self, num_tokens: int, mean_resizing: bool) -> None:
        super()._resize_other_vocabularies(num_tokens, mean_resizing)
        if self.psl is not None:
            self.psl.head = self._get_resized_lm_head(self.psl.head, num_tokens, mean_resizing=mean_resizing)

    def _online_modules(self) -> dict[str, nn.Module]:
        heads = {"mim": self.mim, "psl": self.psl}
        return super()._online_modules() | {name: head for name, head in heads.items() if head is not None}

    @draws_its_labels
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        visual_token_ids: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        mlm_input_ids: torch.Tensor | None = None,
        mlm_labels: torch.Tensor | None = None,
        negative_image_indices: torch.Tensor | None = None,
        negative_text_indices: torch.Tensor | None = None,
        patch_indices: torch.Tensor | None = None,
        distillation_alpha: float | None = None,
        update_teacher: bool = True,
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
            image_ids: [B], equal for the same image; other pairs of an image are then nobody's negatives.
            visual_token_ids: [B, h, w] or [B, P], each patch's code by a visual tokenizer; needed unless `mim_weight=0`
                or a tokenizer was set with [`~SimlaForPreTraining.set_visual_tokenizer`].
            bool_masked_pos: [B, h, w] or [B, P], true = masked; drawn block-wise by default.
            mlm_input_ids, mlm_labels: [B, T], masked ids and labels (-100 = not predicted).
            negative_image_indices: [B], for each text the row of its negative image.
            negative_text_indices: [B], for each image the row of its negative text.
            patch_indices: [B, K], the patches of each image that contrast and fusion see; by default drawn as
                `patch_dropout` says in training mode, and otherwise all.
            distillation_alpha: share of the teacher's soft targets; the configuration's by default.
            update_teacher: false for all but the first micro-batch of an accumulated step.
            contrast_part: the batch is a part of a larger one; from `cache_contrast`.
            negative_hardness: of the negatives of matching, from 0 (any is as likely) to 1 (as the paper draws them).
            return_loss: tells transformers' Trainer that the loss needs no labels; there is always one.

        Raises:
            ValueError: visual tokens that are missing, or whose grid is not the patches'.
        """
        record = check_arguments(self, kwargs)
        pairs = Pairs.given(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_ids=image_ids,
            patch_indices=patch_indices,
        )
        if self.mim is not None:
            if visual_token_ids is None:
                visual_token_ids = self._visual_tokens(pixel_values)
            visual_token_ids, bool_masked_pos = self.mim.check_tokens(pixel_values, visual_token_ids, bool_masked_pos)
        step = PairStep.encode(
            self,
            pairs,
            distillation_alpha=distillation_alpha,
            update_teacher=update_teacher,
            part=contrast_part,
            patch_dropout=self.config.patch_dropout,
            **record,
        )
        contrast, match = self.itc.on_pairs(step), MatchingOutput()
        losses = {"itc": contrast.loss}
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
            losses["mim"] = self.mim.on_pairs(step, visual_token_ids, bool_masked_pos).loss
        if self.psl is not None:
            losses["psl"] = self.psl.on_pairs(step).loss
        return self._weigh(losses, step, match)

    @torch.no_grad()
    def predict_keywords(self, pixel_values: torch.Tensor, top_k: int = 10, **kwargs) -> KeywordPredictionOutput:
        """
        Predicts the words that each image contains, as the keyword head learnt them.

        Args:
            pixel_values: [B, 3, H, W].
            top_k: words per image, the most probable ones; special tokens are left out.

        Raises:
            ValueError: a model without keyword head, or an impossible `top_k`.
        """
        if self.psl is None:
            raise ValueError("This model has no keyword head (`psl_weight=0`): it cannot predict keywords.")
        special = torch.tensor(self.config.text_config.special_token_ids, device=pixel_values.device)
        words = self.config.text_config.vocab_size - len(special)
        if not 1 <= top_k <= words:
            raise ValueError(f"`top_k={top_k}`: choose 1 to {words}, the words of the vocabulary.")
        probabilities = self.psl.head(self.simla.encode_images(pixel_values).embeds).float().sigmoid()
        best = probabilities.index_fill(1, special, -1.0).topk(top_k, dim=1)
        return KeywordPredictionOutput(token_ids=best.indices, probabilities=best.values)


class SimlaForRetrieval(RetrievalTask, SimlaPreTrainedModel):
    """
    Image-text retrieval: fine-tuned with contrast and matching, answers in two stages ([`~SimlaForRetrieval.rerank`]).
    """


class SimlaForVQA(QuestionAnsweringTask, SimlaPreTrainedModel):
    """
    Answers questions about images with a decoder that starts from the text encoder's layers from
    `text_config.first_doubled_layer` on, and has as many.

    Example:

    ```python
    >>> inputs = processor(images=image, text="what is on the grass?", return_tensors="pt")
    >>> processor.tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    >>> answers = processor.tokenizer(["a dog", "a cat", "2"], padding=True, return_tensors="pt")
    >>> ranking = model.rank_answers(**inputs, answers=answers, top_k=2)
    >>> ranking.answer_indices, ranking.probabilities  # [1, 2] each, best first
    ```
    """


class SimlaForGrounding(GroundingTask, SimlaForRetrieval):
    """
    Finds what an expression names, from training on (image, expression) pairs alone: trains as `SimlaForRetrieval`,
    answers with a Grad-CAM heat map, for the expression and for each of its words.

    Example:

    ```python
    >>> inputs = processor(images=image, text="the dog on the left", return_tensors="pt")
    >>> heatmaps = model.eval()(**inputs).heatmaps  # [1, h, w]
    >>> ranking = model.rank_boxes(heatmaps, boxes=[proposals], image_sizes=[(image.height, image.width)])
    >>> proposals[ranking.best_indices[0]]
    ```
    """


class SimlaForVisualEntailment(VisualEntailmentTask, SimlaPreTrainedModel):
    """
    Whether an image contradicts a sentence, leaves it open or entails it.

    Example:

    ```python
    >>> inputs = processor(images=image, text="two dogs are asleep", return_tensors="pt")
    >>> logits = model(**inputs).logits  # [1, 3]
    >>> model.CLASSES[logits.argmax()]
    ```
    """


class SimlaForVisualReasoning(VisualReasoningTask, SimlaPreTrainedModel):
    """
    Whether a statement about two images is true. All layers attend to an image, the left and the right one in turn;
    those from `text_config.first_doubled_layer` on are doubled, and the two of a pair share keys and values.
    """


class SimlaForTextAssignment(TextAssignmentTask, SimlaPreTrainedModel):
    """
    The pretraining step before visual reasoning: of two images, which one does the text belong to, if any? The joint
    space only finds similar images and is not trained.
    """


__all__ = [
    "SimlaForGrounding",
    "SimlaForPreTraining",
    "SimlaForRetrieval",
    "SimlaForTextAssignment",
    "SimlaForVQA",
    "SimlaForVisualEntailment",
    "SimlaForVisualReasoning",
    "SimlaModel",
    "SimlaPreTrainedModel",
]
