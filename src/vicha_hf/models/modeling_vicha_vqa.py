"""ViCHA for visual question answering."""

from .configuration_vicha import ViChaConfig
from .decoder_answer import AnswerDecoder
from .head_language_modeling import LanguageModelingHead
from .modeling_vicha import ViChaModel, ViChaPreTrainedModel
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

    def __init__(self, config: ViChaConfig):
        super().__init__(config)
        text = config.text_config
        self.vicha = ViChaModel(config, add_projections=False)
        self.answer_decoder = AnswerDecoder(text, text.num_hidden_layers - text.first_cross_attention_layer)
        self.mlm_head = LanguageModelingHead(text)
        self.training_state = None
        self.post_init()


__all__ = ["ViChaForVQA"]
