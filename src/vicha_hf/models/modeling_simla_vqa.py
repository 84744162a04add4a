"""SIMLA for visual question answering."""

from .modeling_simla import SimlaPreTrainedModel
from .task_question_answering import QuestionAnsweringTask


class SimlaForVQA(QuestionAnsweringTask, SimlaPreTrainedModel):
    """
    Answers questions about pictures with a decoder that starts from the text encoder's layers from
    `text_config.first_doubled_layer` on, and has as many.

    Example:

    ```python
    >>> inputs = processor(images=picture, text="what is on the grass?", return_tensors="pt")
    >>> processor.tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    >>> answers = processor.tokenizer(["a dog", "a cat", "2"], padding=True, return_tensors="pt")
    >>> ranking = model.rank_answers(**inputs, answers=answers, top_k=2)
    >>> ranking.answer_indices, ranking.probabilities  # [1, 2] each, best first
    ```
    """


__all__ = ["SimlaForVQA"]
