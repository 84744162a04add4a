"""SIMLA for visual reasoning over two pictures (NLVR2), and the pretraining step before it."""

from .modeling_simla import SimlaPreTrainedModel
from .task_text_assignment import TextAssignmentTask
from .task_visual_reasoning import VisualReasoningTask


class SimlaForVisualReasoning(VisualReasoningTask, SimlaPreTrainedModel):
    """
    Whether a statement about two pictures is true. All layers attend to a picture, the left and the right one in turn;
    those from `text_config.first_doubled_layer` on are doubled, and the two of a pair share keys and values.
    """


class SimlaForTextAssignment(TextAssignmentTask, SimlaPreTrainedModel):
    """
    The pretraining step before visual reasoning: of two pictures, which one does the text belong to, if any? The joint
    space only finds similar pictures and is not trained.
    """


__all__ = ["SimlaForTextAssignment", "SimlaForVisualReasoning"]
