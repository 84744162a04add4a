"""ViCHA for visual reasoning over two pictures (NLVR2), and the pretraining step before it."""

from .modeling_outputs import ImageEncoding
from .modeling_vicha import ViChaPreTrainedModel
from .task_text_assignment import TextAssignmentTask
from .task_visual_reasoning import VisualReasoningTask


class ViChaForVisualReasoning(VisualReasoningTask, ViChaPreTrainedModel):
    """
    Whether a statement about two pictures is true. The fusion layers are doubled: the first of a pair reads the left
    picture, the second the right one; they share keys and values.
    """

    def _encode_images(self, base, *inputs) -> ImageEncoding:
        if base is self.vicha or "nlvr_online_teacher" not in self.config.reference_quirks:
            return super()._encode_images(base, *inputs)
        return base._encode_images(*inputs, vision_model=self.vicha.vision_model)[0]


class ViChaForTextAssignment(TextAssignmentTask, ViChaPreTrainedModel):
    """
    The pretraining step before visual reasoning: of two pictures, which one does the text belong to, if any? The joint
    space only finds similar pictures and is not trained.
    """


__all__ = ["ViChaForTextAssignment", "ViChaForVisualReasoning"]
