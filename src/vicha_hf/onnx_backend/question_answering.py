"""Question answering by ONNX files: answers written token by token, or ranked from a list, as the torch models do."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..models.answer_ranking import AnswerTree
from ..models.modeling_outputs import AnswerRankingOutput
from .sessions import OnnxModel, concept_inputs


# Answers whose logits over the vocabulary are held at once.
ANSWERS_PER_BATCH = 64


class OnnxQuestionAnswering(OnnxModel):
    """
    The question encoder, which reads an image and a question, and the answer decoder.

    ```python
    >>> model = load_finetuned("vqa", "outputs/onnx", backend="onnx")
    >>> processor.tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    >>> model.rank_answers(**inputs, answers=answers, top_k=2).answer_indices  # [B, 2]
    ```
    """

    def encode_questions(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        concept_input_ids: Tensor | None = None,
        concept_attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """
        Images [B, 3, H, W] and questions [B, T], with or without concepts [B, C] -> `question_hidden_states` [B, T, d_t]
        and `question_attention_mask` [B, T].
        """
        part = self.parts["question_encoder"]
        concepts = concept_inputs(part, len(pixel_values), concept_input_ids, concept_attention_mask)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return part(pixel_values=pixel_values.float(), input_ids=input_ids, attention_mask=mask, **concepts)

    def answer_tree(self, answers: Mapping[str, Tensor] | Tensor | None) -> dict[str, Tensor]:
        """
        `rank_answers`' list of answers, checked once for many calls: `input_ids` and `attention_mask` [M, A], or ids.

        Raises:
            ValueError: see [`AnswerTree.build`].
        """
        if answers is None:
            raise ValueError("Ranking needs `answers`: the tokenised list, `input_ids` and `attention_mask` [M, A].")
        ids = answers["input_ids"] if isinstance(answers, Mapping) else answers
        mask = answers.get("attention_mask") if isinstance(answers, Mapping) else None
        if mask is None:
            mask = (ids != self.config.text_config.pad_token_id).long()
        AnswerTree.build(ids, mask)
        return {"input_ids": ids, "attention_mask": mask}

    def rank_answers(
        self, *inputs: Tensor, answers=None, top_k: int | None = 128, exact: bool = False, **named: Tensor
    ) -> AnswerRankingOutput:
        """
        Ranks a closed list of answers, as [`QuestionAnsweringTask.rank_answers`] does.

        Args:
            inputs, named: of `encode_questions`.
            answers: the list as a tokenizer returns it, `input_ids` and `attention_mask` [M, A], or the ids alone.
            top_k: candidates per question by their first token; `None` takes all.
            exact: orders the whole list, and then takes `top_k`.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k={top_k}`: ranking needs at least one candidate.")
        answers = self.answer_tree(answers)
        ids, mask = answers["input_ids"].cpu(), answers["attention_mask"].cpu()
        k = len(ids) if top_k is None else min(top_k, len(ids))
        questions = self.encode_questions(*inputs, **named)
        number = len(questions["question_hidden_states"])
        start = ids[:1, :1].expand(number, -1)
        first_logits = self._logits(start, torch.ones_like(start), questions, torch.arange(number))[:, 0]
        first = first_logits.log_softmax(dim=1)[:, ids[:, 1]]
        candidates = first.topk(len(ids) if exact else k, dim=1).indices
        scores = torch.stack(
            [self._likelihoods(ids[row], mask[row], questions, place) for place, row in enumerate(candidates)]
        )
        if self.config.quirks.vqa_first_token_twice:
            scores = scores + first.gather(1, candidates)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, candidates = scores[:, :k], candidates.gather(1, order)[:, :k]
        return AnswerRankingOutput(
            answer_indices=candidates,
            probabilities=scores.softmax(dim=1),
            scores=scores,
            first_token_logits=first_logits,
        )

    def generate(self, *inputs: Tensor, max_new_tokens: int = 10, **named: Tensor) -> Tensor:
        """
        Writes answers freely, always with the likeliest token.

        Args:
            inputs, named: of `encode_questions`.
            max_new_tokens: longest answer, tokens, the final [SEP] included.

        Returns:
            Token ids [B, L] without the leading [CLS], padded after [SEP].
        """
        text, questions = self.config.text_config, self.encode_questions(*inputs, **named)
        number = len(questions["question_hidden_states"])
        answers = torch.full((number, 1), text.cls_token_id)
        ended = torch.zeros(number, dtype=torch.bool)
        for _ in range(max_new_tokens):
            logits = self._logits(answers, torch.ones_like(answers), questions, torch.arange(number))
            token = logits[:, -1].argmax(dim=1).masked_fill(ended, text.pad_token_id)
            answers, ended = torch.cat([answers, token[:, None]], dim=1), ended | (token == text.sep_token_id)
            if ended.all():
                break
        return answers[:, 1:]

    def _likelihoods(self, ids: Tensor, mask: Tensor, questions: Mapping[str, Tensor], question: int) -> Tensor:
        """log p [n] of answers [n, A] to one question."""
        found = []
        for own_ids, own_mask in zip(ids.split(ANSWERS_PER_BATCH), mask.split(ANSWERS_PER_BATCH), strict=True):
            length = int(own_mask.sum(dim=1).max())
            own_ids, own_mask = own_ids[:, :length], own_mask[:, :length]
            of_question = torch.full((len(own_ids),), question)
            logits = self._logits(own_ids[:, :-1], own_mask[:, :-1], questions, of_question)
            steps = logits.log_softmax(dim=-1).gather(2, own_ids[:, 1:, None])[..., 0]
            found.append((steps * own_mask[:, 1:]).sum(dim=1))
        return torch.cat(found)

    def _logits(self, ids: Tensor, mask: Tensor, questions: Mapping[str, Tensor], question_index: Tensor) -> Tensor:
        """Logits [n, A, vocabulary] after every token of the answers [n, A] to the questions `question_index` [n]."""
        chosen = {name: tensor[question_index] for name, tensor in questions.items()}
        return self.parts["answer_decoder"](answer_input_ids=ids, answer_attention_mask=mask, **chosen)["logits"]
