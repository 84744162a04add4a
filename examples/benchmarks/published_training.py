"""Savings of this package's training step, taken back: each entry of `OPTIMISATIONS` switches one off.

All of them off together are the step as the published code does it. Every pass projects the image's tokens to keys and
values again. All positions pass the last layer, and logits are formed at every position. Attention is a matrix
product, a softmax and another product, with the probabilities stored. Everything that the backward pass needs is kept.
Teacher and optimiser go through the parameters one by one. The results are the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import torch

from vicha_hf.models import encoder_recomputation, encoder_text, objective_itc
from vicha_hf.models.encoder_attention import RealTokens, split_heads
from vicha_hf.models.encoder_text import CrossAttention, TextEncoder
from vicha_hf.models.inputs import Texts
from vicha_hf.models.objective_image_token_reconstruction import ImageTokenReconstruction
from vicha_hf.models.objective_mlm import MaskedLanguageModeling, MaskedLanguageModelingOutput, mask_texts
from vicha_hf.models.teacher import TrainingState


@dataclass
class _Unprojected:
    """Stand-in for keys and values: the tokens, to be projected by each pass."""

    hidden_states: torch.Tensor


@contextmanager
def repeated_key_values(model, optimizer) -> Iterator[None]:
    """Gives every text its own copy of the image's tokens, which the pass projects again; heads are views of that."""
    forward, project = TextEncoder.forward, TextEncoder.project_keys_values

    def project_heads(self, states):
        return tuple(split_heads(projection(states), self.head_dim) for projection in (self.key, self.value))

    def projecting(
        self,
        *args,
        encoder_hidden_states=None,
        encoder_key_values=None,
        encoder_attention_mask=None,
        encoder_index=None,
        **kwargs,
    ):
        if encoder_key_values is not None:
            encoder_hidden_states = encoder_key_values.hidden_states
        if encoder_hidden_states is None:
            return forward(self, *args, **kwargs)
        if encoder_index is not None:
            encoder_hidden_states = encoder_hidden_states.index_select(0, encoder_index)
            if encoder_attention_mask is not None:
                encoder_attention_mask = encoder_attention_mask.index_select(0, encoder_index)
        kwargs["encoder_key_values"] = project(self, encoder_hidden_states)
        return forward(self, *args, encoder_attention_mask=encoder_attention_mask, **kwargs)

    with (
        mock.patch.object(TextEncoder, "project_keys_values", lambda self, states: _Unprojected(states)),
        mock.patch.object(TextEncoder, "forward", projecting),
        mock.patch.object(CrossAttention, "project", project_heads),
    ):
        yield


@contextmanager
def all_rows(model, optimizer) -> Iterator[None]:
    """The last layer computes every position; those that nobody wants are thrown away."""
    forward = TextEncoder.forward

    def computing_all(self, *args, output_index=None, **kwargs):
        output = forward(self, *args, **kwargs)
        if output_index is not None:
            output.last_hidden_state = output.last_hidden_state.take_along_dim(output_index.unsqueeze(-1), dim=1)
        return output

    with mock.patch.object(TextEncoder, "forward", computing_all):
        yield


@contextmanager
def all_logits(model, optimizer) -> Iterator[None]:
    """Logits over the vocabulary at every position, of the teacher too, and hence every position's state."""
    with (
        mock.patch.object(MaskedLanguageModeling, "on_pairs", _all_words),
        mock.patch.object(ImageTokenReconstruction, "predict", _all_visual_tokens),
    ):
        yield


def _all_words(self, step, head, masked_ids, labels):
    if masked_ids is None:
        masked_ids, labels = mask_texts(step.pairs.texts, step.model.config)
    texts = Texts(masked_ids, step.pairs.texts.attention_mask)
    logits = head(step.model.fuse_tokens(step.images, texts, key_values=step.key_values).last_hidden_state)
    with torch.no_grad():
        teacher_states = step.teacher_model.fuse_tokens(step.teacher_images, texts).last_hidden_state
        soft_targets = step.teacher["mlm_head"](teacher_states).softmax(dim=-1)
    hard = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    soft = -(logits.log_softmax(dim=-1) * soft_targets).sum(dim=-1)
    loss = (1 - step.alpha) * hard + step.alpha * soft[labels != -100].mean()
    return MaskedLanguageModelingOutput(loss=loss)


def _all_visual_tokens(
    self, vision_model, text_model, pixel_values, bool_masked_pos, text_embeddings, text_mask
) -> torch.Tensor:
    states = self.reconstruct(vision_model, text_model, pixel_values, bool_masked_pos, text_embeddings, text_mask)
    return self.head(states[:, 1:])[bool_masked_pos]


@contextmanager
def stored_probabilities(model, optimizer) -> Iterator[None]:
    """Attention as a matrix product, a softmax, and another product."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for config in configs.values():
        config._attn_implementation = "eager"
    yield
    for config in configs.values():
        config._attn_implementation = "sdpa"


@contextmanager
def teacher_one_by_one(model, optimizer) -> Iterator[None]:
    """Replaces every parameter of the teacher by a weighted sum of its own."""

    @torch.no_grad()
    def update(self, online, momentum):
        for kept, moved in zip(self.teacher.parameters(), torch.nn.ModuleDict(online).parameters(), strict=True):
            kept.data = kept.data * momentum + moved.data * (1.0 - momentum)

    with mock.patch.object(TrainingState, "update_teacher", update):
        yield


@contextmanager
def optimizer_one_by_one(model, optimizer) -> Iterator[None]:
    """AdamW as a loop over the parameters with a pass over memory for each operation."""
    before = [{name: group[name] for name in ("fused", "foreach")} for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update(fused=False, foreach=False)
    yield
    for group, options in zip(optimizer.param_groups, before, strict=True):
        group.update(options)


@contextmanager
def kept_results(model, optimizer) -> Iterator[None]:
    """Everything that the backward pass needs is kept."""

    def kept(*tensors, checkpointed=False):
        return nullcontext()

    with (
        mock.patch.object(encoder_recomputation, "recomputed", kept),
        mock.patch.object(encoder_text, "recomputed", kept),
        mock.patch.object(objective_itc, "recomputed", kept),
    ):
        yield


@contextmanager
def padded_texts(model, optimizer) -> Iterator[None]:
    """The text layers compute padding as if it were words."""
    with mock.patch.object(RealTokens, "of", lambda attention_mask: None):
        yield


# By name: what the optimisation is, and what switches it off.
OPTIMISATIONS = {
    "shared_key_values": ("an image's keys and values, projected once", repeated_key_values),
    "wanted_rows": ("last layer: only the rows that a loss reads", all_rows),
    "predicted_logits": ("logits only where something is predicted", all_logits),
    "real_tokens": ("padding of texts left out", padded_texts),
    "fused_attention": ("attention without stored probabilities", stored_probabilities),
    "recomputed_results": ("what is cheap computed twice instead of kept", kept_results),
    "foreach_teacher": ("teacher's moving average over all weights at once", teacher_one_by_one),
    "fused_optimizer": ("AdamW in one pass over memory", optimizer_one_by_one),
}
