"""Encodings: images and texts that were encoded once, for every use of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput


@dataclass
class ImageEncoding(ModelOutput):
    """
    Images, encoded once and for all texts.

    `embeds` [N, E], L2-normalised; `hidden_states` [N, S, d_v] ([CLS], patches, concepts); `attention_mask` [N, S],
    1 = attend, `None` where nothing is masked.
    """

    embeds: torch.Tensor | None = None
    hidden_states: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None

    @classmethod
    def concatenate(cls, encodings: "Sequence[ImageEncoding]") -> "ImageEncoding":
        """Joins batches of encodings; shorter sequences are padded and masked."""
        return cls(**_concatenate(encodings))


@dataclass
class TextEncoding(ModelOutput):
    """
    Texts, encoded by the text-only layers.

    Encoded texts: `embeds` [N, E], L2-normalised; `hidden_states` [N, T, d_t]; `attention_mask` [N, T], 1 = attend.
    `input_ids` [N, T] are there where the model fuses a text from its ids (single-stream).
    """

    embeds: torch.Tensor | None = None
    hidden_states: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    input_ids: torch.Tensor | None = None

    @classmethod
    def concatenate(cls, encodings: "Sequence[TextEncoding]") -> "TextEncoding":
        """Joins batches of encodings; shorter sequences are padded and masked."""
        joined = cls(**_concatenate(encodings))
        if encodings[0].input_ids is not None:
            longest = joined.hidden_states.shape[1]
            rows = [
                nn.functional.pad(encoding.input_ids, (0, longest - encoding.input_ids.shape[1]))
                for encoding in encodings
            ]
            joined.input_ids = torch.cat(rows)
        return joined

    def trimmed(self, index: torch.Tensor | None = None) -> "TextEncoding":
        """The texts `index` [n], all by default, without the columns that are padding in every one of them."""
        rows = {name: value if index is None else value.index_select(0, index) for name, value in self.items()}
        mask = rows.get("attention_mask")
        if mask is not None:
            longest = int(mask.bool().any(dim=0).nonzero().max()) + 1
            rows |= {name: value[:, :longest] for name, value in rows.items() if name != "embeds"}
        return TextEncoding(**rows)


def _concatenate(encodings) -> dict[str, torch.Tensor | None]:
    lengths = [encoding.hidden_states.shape[1] for encoding in encodings]
    longest = max(lengths)
    unmasked = all(encoding.attention_mask is None for encoding in encodings) and min(lengths) == longest
    hidden_states, masks = [], []
    for encoding, length in zip(encodings, lengths, strict=True):
        states, mask = encoding.hidden_states, encoding.attention_mask
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        hidden_states.append(nn.functional.pad(states, (0, 0, 0, longest - length)))
        masks.append(nn.functional.pad(mask, (0, longest - length)))
    return {
        "embeds": None if encodings[0].embeds is None else torch.cat([encoding.embeds for encoding in encodings]),
        "hidden_states": torch.cat(hidden_states),
        "attention_mask": None if unmasked else torch.cat(masks),
    }
