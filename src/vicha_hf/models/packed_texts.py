"""Texts without padding, to be fused with one image after the other: the inner loop of re-ranking."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from .encoder_attention import attention_function, cross_attention_implementation, split_heads
from .encoder_text import TextEncoder
from .encodings import TextEncoding


# Text tokens that are fused at once: bounds the memory of fusion whatever the number of texts.
TOKENS_PER_BATCH = 4096

# Texts of one length, in the order of their tokens: how many, and how long.
LengthGroups = list[tuple[int, int]]


class PackedTexts:
    """
    The tokens of many texts in one row [tokens, d_t], ordered by length, as they enter the first cross-attention. The
    layers before it do not depend on the image and are computed here, once. Then each image costs its keys and values
    once, only real tokens, and in the last layer only the [CLS] of each text.

    In evaluation mode; without gradient.

    Args:
        text_model: the text encoder that fuses.
        texts: encodings of all texts, as one or as batches.

    Raises:
        ValueError: a text whose first position is masked out.
    """

    @torch.no_grad()
    def __init__(self, text_model: TextEncoder, texts: TextEncoding | Sequence[TextEncoding]):
        self.text_model = text_model
        batches = [texts] if isinstance(texts, TextEncoding) else texts
        mode = text_model.config.fusion_mode
        self.layers = [text_model.encoder.layer[index] for index in text_model.layers_of(mode)]
        tokens, lengths = zip(*(packed for batch in batches for packed in self._pack(batch)), strict=True)
        self.lengths, tokens = torch.cat(lengths), torch.cat(tokens)
        # By length, so that the texts of one length can be attended to as a batch, wherever they come from.
        order = self.lengths.argsort(stable=True)
        starts = self.lengths.cumsum(0) - self.lengths
        self.tokens = tokens[_token_index(starts[order], self.lengths[order])]
        self.starts = torch.empty_like(starts)
        self.starts[order] = self.lengths[order].cumsum(0) - self.lengths[order]
        self._attend_alone(self.lengths[order])

    def __len__(self) -> int:
        return len(self.lengths)

    def _pack(self, texts: TextEncoding) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The real tokens of some texts [tokens, d_t] and the texts' lengths."""
        mask, from_ids = texts.attention_mask, texts.input_ids is not None
        given = texts.input_ids if from_ids else texts.hidden_states
        # In parts: the padded states of a whole corpus are much larger than what is kept of them.
        for start in range(0, len(given), TOKENS_PER_BATCH):
            states = given[start : start + TOKENS_PER_BATCH]
            if from_ids:
                states = self.text_model.embeddings(states)
            if mask is None:
                allowed = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
            else:
                allowed = mask[start : start + TOKENS_PER_BATCH].bool()
            if not allowed[:, 0].all():
                text = start + int((~allowed[:, 0]).nonzero()[0])
                raise ValueError(
                    f"Text {text} of its batch is masked out at its first position, which the matching head reads; pad "
                    "texts on the right and give every one at least [CLS]."
                )
            yield states[allowed], allowed.sum(dim=1)

    def _attend_alone(self, lengths: torch.Tensor) -> None:
        """Runs, in place, all that precedes the first cross-attention."""
        start = 0
        for chunk in _split_by_tokens(lengths):
            groups = _groups(chunk)
            stop = start + int(chunk.sum())
            hidden = self.tokens[None, start:stop]
            for layer in self.layers:
                hidden = _attend_within_texts(layer.attention, hidden, groups)
                if layer.crossattention is not None:
                    break
                hidden = layer.feed_forward(hidden)
            self.tokens[start:stop] = hidden[0]
            start = stop
        while self.layers[0].crossattention is None:
            self.layers = self.layers[1:]

    @torch.no_grad()
    def fuse(self, image_states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """
        The fused [CLS] states [n, d_t] of one image with the texts `index` [n]; `image_states` [S, d_v] are the
        image's tokens that may be attended to.
        """
        key_values = [layer.crossattention.self.project(image_states[None]) for layer in self.layers]
        fused = self.tokens.new_empty(len(index), self.tokens.shape[-1])
        by_length = self.lengths[index].argsort(stable=True)
        start = 0
        for lengths in _split_by_tokens(self.lengths[index[by_length]]):
            chunk = by_length[start : start + len(lengths)]
            start += len(lengths)
            hidden = self.tokens[None, _token_index(self.starts[index[chunk]], lengths)]
            groups = _groups(lengths)
            first_tokens = lengths.cumsum(0) - lengths
            for number, (layer, (key, value)) in enumerate(zip(self.layers, key_values, strict=True)):
                wanted = first_tokens if number == len(self.layers) - 1 else None
                if number > 0:
                    hidden = _attend_within_texts(layer.attention, hidden, groups, wanted)
                elif wanted is not None:
                    hidden = hidden[:, wanted]
                hidden = layer.crossattention(hidden, key, value)
                hidden = layer.feed_forward(hidden)
            fused[chunk] = hidden[0]
        return fused


def _attend_within_texts(
    block: nn.Module, hidden_states: torch.Tensor, groups: LengthGroups, wanted: torch.Tensor | None = None
) -> torch.Tensor:
    """
    A self-attention block over packed texts [1, tokens, d_t]: the projections run on all tokens at once, attention on
    the texts of each length. `wanted` [n]: each text's only position whose result is needed, the first.
    """
    attention, implementation = block.self, block.self.config._attn_implementation
    asking = hidden_states if wanted is None else hidden_states[:, wanted]
    if wanted is not None:
        implementation = cross_attention_implementation(implementation)
    query, key, value = attention.query(asking)[0], attention.key(hidden_states)[0], attention.value(hidden_states)[0]
    attend = attention_function(attention, implementation)
    contexts, text, token = [], 0, 0
    for count, length in groups:
        of_group = slice(token, token + count * length)
        asked = query[of_group] if wanted is None else query[text : text + count]
        heads = [
            split_heads(states.unflatten(0, (count, -1)), attention.head_dim)
            for states in (asked, key[of_group], value[of_group])
        ]
        contexts.append(attend(attention, *heads, None, scaling=attention.scaling)[0].flatten(2).flatten(0, 1))
        text, token = text + count, token + count * length
    return block.output(torch.cat(contexts)[None], asking)


def _token_index(starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The positions of the tokens of texts that begin at `starts` [n] and have `lengths` [n] tokens."""
    first = (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
    return first + torch.arange(len(first), device=first.device)


def _split_by_tokens(lengths: torch.Tensor) -> list[torch.Tensor]:
    """Ascending `lengths` [n] in parts of `TOKENS_PER_BATCH` tokens at most, of one text at least."""
    parts, start, tokens = [], 0, 0
    for position, length in enumerate(lengths.tolist()):
        if tokens + length > TOKENS_PER_BATCH and position > start:
            parts.append(lengths[start:position])
            start, tokens = position, 0
        tokens += length
    return [*parts, lengths[start:]] if start < len(lengths) else parts


def _groups(lengths: torch.Tensor) -> LengthGroups:
    values, counts = lengths.unique_consecutive(return_counts=True)
    return list(zip(counts.tolist(), values.tolist(), strict=True))
