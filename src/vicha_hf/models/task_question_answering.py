"""Visual question answering by generating, or by ranking a list of answers (ALBEF section 5, VQA)."""

import copy
from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import ClassVar, Unpack

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.utils import TransformersKwargs, can_return_tuple, logging

from .answer_ranking import AnswerTree, PrefixLikelihoods
from .configuration_vision_text import VisionTextConfig
from .decoder_answer import AnswerDecoder, QuestionEncoding
from .input_checks import check_arguments
from .inputs import Pairs
from .modeling_outputs import AnswerRankingOutput, QuestionAnsweringOutput, Recorded
from .objective_mlm import IGNORED, LanguageModelingHead, distilled_cross_entropy, predicted_rows
from .process_group import mean_over_processes


logger = logging.get_logger(__name__)

LONGEST_ANSWER = 10


class QuestionAnsweringTask:
    """
    A head that owns an `answer_decoder` and its language head `mlm_head`, which is named as in pretraining, whose
    head it starts from. To be mixed in before a family's `PreTrainedModel`.
    """

    # What the model chooses from; see `rank_answers`.
    companion_files = ("answer_list.json",)
    _tied_weights_keys = {  # noqa: RUF012
        "mlm_head.decoder.weight": "answer_decoder.embeddings.word_embeddings.weight"
    }

    head_modules: ClassVar[tuple[str, ...]] = ("answer_decoder", "mlm_head")

    def __init__(self, config: VisionTextConfig):
        super().__init__(config)
        text = config.text_config
        self._add_base_model(add_projections=False)
        self.answer_decoder = AnswerDecoder(text, text.num_hidden_layers - text.first_doubled_layer)
        self.mlm_head = LanguageModelingHead(text)
        self.post_init()
        self.generation_config = GenerationConfig(**self._answer_settings())

    # A saved folder holds `generation_config.json`, and what stands there is read back.
    adjust_generation_fn = GenerationMixin.adjust_generation_fn
    output_modalities = GenerationMixin.output_modalities

    @classmethod
    def can_generate(cls) -> bool:
        return True

    def _answer_settings(self) -> dict[str, int | bool]:
        """Settings of written answers where `generation_config` has none: greedy, from [CLS] to [SEP]."""
        text = self.config.text_config
        return {
            "bos_token_id": text.cls_token_id,
            "eos_token_id": text.sep_token_id,
            "pad_token_id": text.pad_token_id,
            "max_new_tokens": LONGEST_ANSWER,
            "do_sample": False,
            "use_cache": False,
        }

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True):
        """A folder without a decoder is whole: transformers would call it corrupt, as if a tied weight had been lost."""
        if missing_keys is not None and missing_keys.issuperset(chain(*self._tied_weights_keys.items())):
            super().tie_weights(None, recompute_mapping)
            # Those that the encoders share are there all the same.
            for name, source in self.all_tied_weights_keys.items():
                if source not in missing_keys:
                    missing_keys.discard(name)
            return
        super().tie_weights(missing_keys, recompute_mapping)

    def get_output_embeddings(self):
        return self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        self.mlm_head.decoder = new_embeddings

    def _resize_other_vocabularies(self, num_tokens: int, mean_resizing: bool) -> None:
        super()._resize_other_vocabularies(num_tokens, mean_resizing)
        self.answer_decoder.resize_token_embeddings(num_tokens, mean_resizing=mean_resizing)
        self.tie_weights()

    def _online_modules(self) -> dict[str, nn.Module]:
        return {
            self.base_model_prefix: self.base_model,
            "answer_decoder": self.answer_decoder,
            "mlm_head": self.mlm_head,
        }

    def _start_missing_weights(self, missing: set[str]) -> None:
        super()._start_missing_weights(missing)
        layers = {f"answer_decoder.encoder.{name}" for name, _ in self.answer_decoder.encoder.named_parameters()}
        if layers <= missing:
            unmatched = self.answer_decoder.start_from_text_encoder(self.base_model.text_model)
            self.tie_weights()
            logger.warning(
                "The answer decoder starts from the text encoder's embeddings and last layers"
                + (f", except {unmatched}, which are new." if unmatched else ".")
            )

    def _encode_questions(
        self, modules: Mapping[str, nn.Module], pairs: Pairs, **record: Recorded
    ) -> tuple[QuestionEncoding, BaseModelOutputWithCrossAttentions]:
        """The fused questions, and what was recorded of their fusion."""
        base = modules[self.base_model_prefix]
        images, _ = base.embed_images(pairs.pixel_values, pairs.concepts)
        fused = base.fuse_tokens(images, pairs.texts, **record)
        mask = pairs.texts.attention_mask
        return modules["answer_decoder"].project_question(fused.last_hidden_state, mask), fused

    def encode_questions(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
    ) -> QuestionEncoding:
        """Images [B, 3, H, W] and questions [B, T], with or without concepts [B, C] -> [`QuestionEncoding`]."""
        pairs = Pairs.given(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            concept_input_ids=concept_input_ids,
            concept_attention_mask=concept_attention_mask,
        )
        return self._encode_questions(self._online_modules(), pairs)[0]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        answer_input_ids: torch.Tensor | None = None,
        answer_attention_mask: torch.Tensor | None = None,
        answer_counts: torch.Tensor | None = None,
        answer_weights: torch.Tensor | None = None,
        distillation_alpha: float | None = None,
        update_teacher: bool = True,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringOutput:
        """
        The loss of given answers: sum(weight * summed token loss) / B. To answer, see `rank_answers` and `generate`.

        Args:
            pixel_values: [B, 3, H, W]; row b of images and questions is a pair.
            input_ids, attention_mask: [B, T], the questions; 1 = attend.
            concept_input_ids, concept_attention_mask: [B, C], 1 = attend; optional, a zero row = no concepts.
            answer_input_ids, answer_attention_mask: [n, A], every question's answers, one question after the other,
                [CLS] answer [SEP]; without a mask whatever is not padding is attended to and predicted.
            answer_counts: [B], how many of the n answers belong to each question; one each by default.
            answer_weights: [n]; by default an answer's share, 1 / count.
            distillation_alpha: share of the teacher's soft labels; the configuration's by default. The loss is
                distilled in training mode, plain cross-entropy in evaluation mode.
            update_teacher: false for all but the first micro-batch of an accumulated step.
            return_loss: tells transformers' Trainer that the loss needs no labels; there is always one.

        Raises:
            ValueError: answers that do not belong to the questions.
        """
        record = check_arguments(self, kwargs)
        if answer_input_ids is None:
            raise ValueError("The loss needs `answer_input_ids` [n, A]; to answer, call `rank_answers` or `generate`.")
        question_index, weights = self._assign_answers(len(input_ids), answer_input_ids, answer_counts, answer_weights)
        if answer_attention_mask is None:
            answer_attention_mask = (answer_input_ids != self.config.text_config.pad_token_id).long()
        questions = Pairs.given(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            concept_input_ids=concept_input_ids,
            concept_attention_mask=concept_attention_mask,
        )
        answers = (answer_input_ids[:, :-1], answer_attention_mask[:, :-1])
        predicted = answer_attention_mask[:, 1:].bool()
        labels = predicted_rows(answer_input_ids[:, 1:].masked_fill(~predicted, IGNORED), predicted)
        self.begin_training_step(update_teacher)

        question, fused = self._encode_questions(self._online_modules(), questions, **record)
        states = self.answer_decoder(*answers, question=question, question_index=question_index).last_hidden_state
        logits = self.mlm_head(predicted_rows(states, predicted))
        alpha, teacher_logits = None, None
        if self.training:
            alpha = self.alpha_of(distillation_alpha)
            teacher_logits = self._teacher_logits(questions, answers, question_index, predicted)
        effective = 0.0 if self.config.quirks.vqa_alpha_unused else alpha
        losses = distilled_cross_entropy(logits, teacher_logits, labels, effective)
        answer = torch.arange(len(predicted), device=losses.device)[:, None].expand_as(predicted)
        answer_losses = losses.new_zeros(len(predicted)).index_add(0, predicted_rows(answer, predicted), losses)
        count = torch.tensor(len(input_ids), device=losses.device)
        return QuestionAnsweringOutput(
            loss=mean_over_processes((weights * answer_losses).sum(), count),
            answer_losses=answer_losses,
            question_hidden_states=question.hidden_states,
            distillation_alpha=alpha,
            hidden_states=fused.hidden_states,
            attentions=fused.attentions,
            cross_attentions=fused.cross_attentions,
        )

    @torch.no_grad()
    def _teacher_logits(
        self,
        questions: Pairs,
        answers: tuple[torch.Tensor, torch.Tensor],
        question_index: torch.Tensor,
        predicted: torch.Tensor,
    ) -> torch.Tensor:
        teacher = self.teacher_modules()
        question, _ = self._encode_questions(teacher, questions)
        states = teacher["answer_decoder"](*answers, question=question, question_index=question_index)
        return teacher["mlm_head"](predicted_rows(states.last_hidden_state, predicted))

    @staticmethod
    def _assign_answers(
        num_questions: int,
        answer_input_ids: torch.Tensor,
        answer_counts: torch.Tensor | None,
        answer_weights: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each answer's question [n] and weight [n]."""
        num_answers, device = len(answer_input_ids), answer_input_ids.device
        if answer_counts is None:
            answer_counts = torch.ones(num_questions, dtype=torch.long, device=device)
        # In a compiled graph values are not to be had; `output_size` then fails where the counts do not sum up.
        total = num_answers if torch.compiler.is_compiling() else int(answer_counts.sum())
        if answer_counts.shape != (num_questions,) or total != num_answers:
            raise ValueError(
                f"`answer_counts` (shape {tuple(answer_counts.shape)}, sum {total}) must say for each of the "
                f"{num_questions} questions how many of the {num_answers} rows of `answer_input_ids` are its own."
            )
        spread = partial(torch.repeat_interleave, repeats=answer_counts, output_size=num_answers)
        if answer_weights is None:
            answer_weights = spread(1.0 / answer_counts.clamp(min=1))
        if answer_weights.shape != (num_answers,):
            raise ValueError(
                f"`answer_weights` has shape {tuple(answer_weights.shape)}; expected one weight for each row of "
                f"`answer_input_ids`, [{num_answers}]."
            )
        return spread(torch.arange(num_questions, device=device)), answer_weights

    @torch.no_grad()
    def rank_answers(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        answers: AnswerTree | Mapping[str, torch.Tensor] | torch.Tensor | None = None,
        top_k: int | None = 128,
        exact: bool = False,
    ) -> AnswerRankingOutput:
        """
        Ranks a closed list of answers: the first token's probability picks `top_k` candidates per question, the
        likelihood of the whole answer orders them.

        Args:
            pixel_values: [B, 3, H, W].
            input_ids, attention_mask: [B, T], the questions; 1 = attend.
            concept_input_ids, concept_attention_mask: [B, C], 1 = attend; optional.
            answers: the list as a tokenizer returns it, `input_ids` and `attention_mask` [M, A], or the ids alone; every
                answer is [CLS] answer [SEP]. Or what `answer_tree` made of it, once for many calls.
            top_k: candidates per question, at most M are taken; `None` takes and orders all.
            exact: the `top_k` likeliest of the whole list, instead of the candidates with the likeliest first tokens.
                The search decodes only what can still be among them, little where the decoder is sure of itself.

        Raises:
            ValueError: an answer that does not begin like the others, or has no token to predict.
        """
        tree = answers if isinstance(answers, AnswerTree) else self.answer_tree(answers)
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k={top_k}`: ranking needs at least one candidate.")
        k = len(tree.answers) if top_k is None else min(top_k, len(tree.answers))
        question = self.encode_questions(
            pixel_values, input_ids, attention_mask, concept_input_ids, concept_attention_mask
        )
        likelihoods = PrefixLikelihoods(self.answer_decoder, self.mlm_head, question, tree)
        first_counts = 2 if self.config.quirks.vqa_first_token_twice else 1
        if exact:
            likelihoods.decode_best(k, first_counts)
            scores, candidates = likelihoods.scores(first_counts)[:, tree.answers].sort(
                dim=1, descending=True, stable=True
            )
            scores, candidates = scores[:, :k], candidates[:, :k]
        else:
            candidates = likelihoods.values[:, tree.answer_paths[:, 1]].topk(k, dim=1).indices
            likelihoods.decode_paths(tree.answer_paths[candidates])
            scores = likelihoods.scores(first_counts).gather(1, tree.answers[candidates])
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            candidates = candidates.gather(1, order)
        return AnswerRankingOutput(
            answer_indices=candidates,
            probabilities=scores.softmax(dim=1),
            scores=scores,
            first_token_logits=likelihoods.first_token_logits,
        )

    def answer_tree(self, answers: Mapping[str, torch.Tensor] | torch.Tensor | None) -> AnswerTree:
        """`rank_answers`' list of answers, prepared for many calls: `input_ids` and `attention_mask` [M, A], or ids."""
        if answers is None:
            raise ValueError("Ranking needs `answers`: the tokenised list, `input_ids` and `attention_mask` [M, A].")
        if not isinstance(answers, Mapping | torch.Tensor):
            raise TypeError(
                f"`answers` is a {type(answers).__name__}; give the tokenised list: `processor.tokenize_answers([...])`."
            )
        ids = answers["input_ids"] if isinstance(answers, Mapping) else answers
        mask = answers.get("attention_mask") if isinstance(answers, Mapping) else None
        if mask is None:
            mask = (ids != self.config.text_config.pad_token_id).long()
        return AnswerTree.build(ids.to(self.device), mask.to(self.device))

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        max_new_tokens: int | None = None,
        **generation_options,
    ) -> torch.Tensor:
        """
        Writes answers freely.

        Args:
            pixel_values: [B, 3, H, W].
            input_ids, attention_mask: [B, T], the questions; 1 = attend.
            concept_input_ids, concept_attention_mask: [B, C], 1 = attend; optional.
            max_new_tokens: longest answer, tokens, the final [SEP] included; that of `generation_config` by default.
            generation_options: of [`~transformers.GenerationMixin.generate`], e.g. `num_beams=3`; what is not given stands in
                `generation_config`, greedy by default.

        Returns:
            Token ids [B, L] without the leading [CLS], padded after [SEP].
        """
        question = self.encode_questions(
            pixel_values, input_ids, attention_mask, concept_input_ids, concept_attention_mask
        )
        settings = copy.deepcopy(generation_options.pop("generation_config", None) or self.generation_config)
        for name, value in self._answer_settings().items():
            # Folders of others, and tokenizers without names for them, leave some open.
            if getattr(settings, name, None) is None:
                setattr(settings, name, value)
        if max_new_tokens is not None:
            settings.max_new_tokens = max_new_tokens
        # The decoder has no cache of its own: its keys and values are the question's.
        settings.use_cache = False
        start = input_ids.new_full((len(input_ids), 1), self.config.text_config.cls_token_id)
        answers = self.answer_decoder.generate(
            start,
            attention_mask=torch.ones_like(start),
            question=question,
            question_index=torch.arange(len(start), device=start.device),
            head=self.mlm_head,
            generation_config=settings,
            **generation_options,
        )
        return answers[:, 1:] if isinstance(answers, torch.Tensor) else answers
