"""Classifying fused images and text with a momentum teacher's soft labels: what entailment and reasoning share."""

from collections.abc import Mapping
from typing import ClassVar, Protocol, Unpack

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_vision_text import VisionTextConfig, name_classes
from .input_checks import check_arguments, check_labels
from .inputs import Pairs
from .modeling_outputs import ClassificationOutput, Recorded
from .objective_mlm import distilled_cross_entropy
from .process_group import mean_over_processes


class Inputs(Protocol):
    """Images and texts as a task encodes them."""

    # A row for each text.
    pixel_values: torch.Tensor


class ClassificationHead(nn.Module):
    """[CLS] of the fused text [B, d_t] -> linear, ReLU, linear -> logits [B, num_classes]."""

    def __init__(self, hidden_size: int, num_classes: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, num_classes)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output(self.dense(hidden_states).relu())


class ClassificationTask:
    """
    A head that owns a classifier over the first token of the fused text, and says how to fuse. To be mixed in before
    a family's `PreTrainedModel`.
    """

    # Not `Generic`, whose memory layout keeps FSDP2 from changing a model's class.

    CLASSES: ClassVar[tuple[str, ...]]
    # The classifier's name, another for every task: a head that starts from another task's folder needs one of its own.
    CLASSIFIER: ClassVar[str]

    def _add_classifier(self) -> None:
        name_classes(self.config, self.CLASSES)
        setattr(self, self.CLASSIFIER, ClassificationHead(self.config.text_config.hidden_size, len(self.CLASSES)))

    def _online_modules(self) -> dict[str, nn.Module]:
        return {self.base_model_prefix: self.base_model, self.CLASSIFIER: getattr(self, self.CLASSIFIER)}

    def fuse_by(
        self, modules: Mapping[str, nn.Module], inputs: Inputs, **record: Recorded
    ) -> BaseModelOutputWithCrossAttentions:
        """`last_hidden_state` [B, T, d_t], the fused text, by the online modules or by the teacher's."""
        raise NotImplementedError

    def classify(
        self,
        inputs: Inputs,
        labels: torch.Tensor | None,
        distillation_alpha: float | None,
        update_teacher: bool,
        **record: Recorded,
    ) -> ClassificationOutput:
        """
        Predicts the classes of B fused texts, and learns from their labels [B] where they are given; `record`: what to
        record of the fusion, e.g. `output_attentions=True`.
        """
        if labels is not None:
            check_labels(labels, len(inputs.pixel_values), self.CLASSES)
            self.begin_training_step(update_teacher)
        online = self._online_modules()
        fused = self.fuse_by(online, inputs, **record)
        output = ClassificationOutput(
            logits=online[self.CLASSIFIER](fused.last_hidden_state[:, 0]),
            last_hidden_state=fused.last_hidden_state,
            hidden_states=fused.hidden_states,
            attentions=fused.attentions,
            cross_attentions=fused.cross_attentions,
        )
        if labels is not None:
            teacher_logits = None
            if self.training:
                output.distillation_alpha = self.alpha_of(distillation_alpha)
                teacher_logits = self._teacher_logits(inputs)
            losses = distilled_cross_entropy(output.logits, teacher_logits, labels, output.distillation_alpha)
            output.loss = mean_over_processes(losses.sum(), torch.tensor(len(labels), device=losses.device))
        return output

    @torch.no_grad()
    def _teacher_logits(self, inputs: Inputs) -> torch.Tensor:
        teacher = self.teacher_modules()
        return teacher[self.CLASSIFIER](self.fuse_by(teacher, inputs).last_hidden_state[:, 0])


class VisualEntailmentTask(ClassificationTask):
    """Does the image entail the sentence? (ALBEF section 5, SNLI-VE)."""

    CLASSES = ("contradiction", "neutral", "entailment")
    CLASSIFIER = "entailment_classifier"

    head_modules: ClassVar[tuple[str, ...]] = (CLASSIFIER,)

    def __init__(self, config: VisionTextConfig):
        super().__init__(config)
        self._add_base_model(add_projections=False)
        self._add_classifier()
        self.post_init()

    def fuse_by(
        self, modules: Mapping[str, nn.Module], inputs: Pairs, **record: Recorded
    ) -> BaseModelOutputWithCrossAttentions:
        base = modules[self.base_model_prefix]
        images, _ = base.embed_images(inputs.pixel_values, inputs.concepts)
        return base.fuse_tokens(images, inputs.texts, **record)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        distillation_alpha: float | None = None,
        update_teacher: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ClassificationOutput:
        """
        Args:
            pixel_values: [B, 3, H, W]; row b of images and sentences is a pair.
            input_ids, attention_mask: [B, T], 1 = attend.
            concept_input_ids, concept_attention_mask: [B, C], 1 = attend; optional, a zero row = no concepts.
            labels: [B], indices into `CLASSES` (contradiction, neutral, entailment); without them there is no loss. It
                is distilled in training mode, plain cross-entropy in evaluation mode.
            distillation_alpha: share of the teacher's soft labels; the configuration's by default.
            update_teacher: false for all but the first micro-batch of an accumulated step.

        Raises:
            ValueError: images, sentences and labels that do not belong together.
        """
        record = check_arguments(self, kwargs)
        pairs = Pairs.given(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            concept_input_ids=concept_input_ids,
            concept_attention_mask=concept_attention_mask,
        )
        return self.classify(pairs, labels, distillation_alpha, update_teacher, **record)
