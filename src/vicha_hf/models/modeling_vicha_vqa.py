"""ViCHA for visual question answering."""

from .modeling_vicha import ViChaPreTrainedModel
from .task_question_answering import QuestionAnsweringTask


class ViChaForVQA(QuestionAnsweringTask, ViChaPreTrainedModel):
    """
    Answers questions about pictures with a decoder that has as many layers as the text encoder has fusion layers.

    Example:

    ```python
    >>> inputs = processor(images=picture, text="what is on the grass?", concepts=[["dog"]], return_tensors="pt")
    >>> processor.tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    >>> answers = processor.tokenizer(["a dog", "a cat", "2"], padding=True, return_tensors="pt")
    >>> ranking = model.rank_answers(**inputs, answers=answers, top_k=2)
    >>> ranking.answer_indices, ranking.probabilities  # [1, 2] each, best first
    ```
    """


__all__ = ["ViChaForVQA"]
