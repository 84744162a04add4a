"""Small typed values for what `forward` is given: texts, visual concepts, and pairs of an image and a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import nn

from .input_checks import check_rows


# Integer types as wide as a floating-point number of so many bytes.
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def mask_with_a_token(attention_mask: torch.Tensor) -> torch.Tensor:
    """The mask [N, T] of texts, 1 = attend, where a row of zeros attends to its first token alone."""
    empty = ~attention_mask.bool().any(dim=1, keepdim=True)
    first = torch.arange(attention_mask.shape[1], device=attention_mask.device) == 0
    return torch.where(empty & first, torch.ones_like(attention_mask), attention_mask)


@dataclass(frozen=True)
class Texts:
    """Tokens of N texts: `input_ids` [N, T]; `attention_mask` [N, T], 1 = attend, `None` where all are attended to."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None

    @classmethod
    def given(cls, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> "Texts":
        """
        The arguments `input_ids` and `attention_mask` as one value. A row of padding only is read as its first token
        alone: attention to nothing is another thing in every backend.

        Raises:
            ValueError: a mask of another shape than the ids, or ids without columns.
        """
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError(
                f"`input_ids` has shape {tuple(input_ids.shape)}; expected [texts, tokens] with a token or more."
            )
        if attention_mask is None:
            return cls(input_ids)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`attention_mask` has shape {tuple(attention_mask.shape)} and `input_ids` {tuple(input_ids.shape)}: "
                "give one value for each token."
            )
        return cls(input_ids, mask_with_a_token(attention_mask))

    def masked(self) -> "Texts":
        """The same texts with a mask in any case."""
        if self.attention_mask is not None:
            return self
        return replace(self, attention_mask=torch.ones_like(self.input_ids))


@dataclass(frozen=True)
class Concepts:
    """
    Visual concepts of N images: `input_ids` [N, C]; `attention_mask` [N, C], 1 = attend, `None` where all are attended
    to. What it means to have no concepts is decided here: an image without them has a mask row of zeros, and a batch
    without them is `None`.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None

    @classmethod
    def given(
        cls, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None = None, name: str = "concept"
    ) -> "Concepts | None":
        """
        The arguments `NAME_input_ids` and `NAME_attention_mask` as one value; `None` where neither is given.

        Raises:
            ValueError: a mask without ids, or of another shape.
        """
        if input_ids is None and attention_mask is None:
            return None
        if input_ids is None:
            raise ValueError(f"`{name}_attention_mask` was given without `{name}_input_ids`.")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`{name}_attention_mask` must have the shape of `{name}_input_ids`; got "
                f"{tuple(attention_mask.shape)} for {tuple(input_ids.shape)}."
            )
        return cls(input_ids, attention_mask)

    @classmethod
    def none(cls, num_images: int, device: torch.device | str | None = None, pad_token_id: int = 0) -> "Concepts":
        """A batch without concepts, spelt out: one token for each image, which nothing attends to."""
        mask = torch.zeros(num_images, 1, dtype=torch.long, device=device)
        return cls(torch.full_like(mask, pad_token_id), mask)

    @classmethod
    def join(cls, batches: "Sequence[Concepts | None]") -> "Concepts | None":
        """Equally many images of every batch, one batch after the other; shorter rows are padded and masked."""
        given = [batch for batch in batches if batch is not None]
        if not given:
            return None
        longest = max(batch.input_ids.shape[1] for batch in given)
        ids, masks = [], []
        for batch in batches:
            if batch is None:
                batch = cls.none(len(given[0].input_ids), given[0].input_ids.device)
            padding = (0, longest - batch.input_ids.shape[1])
            mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
            ids.append(nn.functional.pad(batch.input_ids, padding))
            masks.append(nn.functional.pad(mask, padding))
        return cls(torch.cat(ids), torch.cat(masks))

    @property
    def self_attention_mask(self) -> torch.Tensor | None:
        """
        The mask among the tokens of one image. A row that may attend to nothing is undefined in some attention
        backends, so a row without concepts attends to its own padding; whoever reads the tokens masks them.
        """
        if self.attention_mask is None:
            return None
        attended = self.attention_mask.bool()
        return attended | ~attended.any(dim=-1, keepdim=True)


@dataclass(frozen=True)
class ConceptTokens:
    """
    The share of the concepts in the encoding of B images.

    Args:
        tokens: [B, C, d_v], that join the patches; `None` without concepts.
        mask: [B, C] of the tokens, 1 = attend; `None` where all are attended to.
        embeds: [B, E], the concepts' own embeddings in the joint space, L2-normalised, zero for an image without
            concepts; `None` in a model without `concept_shortcut`.
    """

    tokens: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    embeds: torch.Tensor | None = None


@dataclass(frozen=True)
class Pairs:
    """
    B images and the text of each.

    Args:
        pixel_values: [B, 3, H, W].
        texts: B texts.
        concepts: of the B images; `None` for none.
        image_ids: [B], equal for the same image.
        patch_indices: [B, K], the patches that the model sees; all by default.
    """

    pixel_values: torch.Tensor
    texts: Texts
    concepts: Concepts | None = None
    image_ids: torch.Tensor | None = None
    patch_indices: torch.Tensor | None = None

    @classmethod
    def given(
        cls,
        *,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        patch_indices: torch.Tensor | None = None,
        **per_image: torch.Tensor | None,
    ) -> "Pairs":
        """
        `forward`'s arguments as one value; `per_image` are others that have a row for each image.

        Raises:
            ValueError: arguments with different numbers of rows.
        """
        check_rows(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            concept_input_ids=concept_input_ids,
            image_ids=image_ids,
            patch_indices=patch_indices,
            **per_image,
        )
        return cls(
            pixel_values=pixel_values,
            texts=Texts.given(input_ids, attention_mask),
            concepts=Concepts.given(concept_input_ids, concept_attention_mask),
            image_ids=image_ids,
            patch_indices=patch_indices,
        )

    def __len__(self) -> int:
        return len(self.pixel_values)

    def seed(self) -> torch.Tensor:
        """A number of the batch, int64 []: the same batch has the same one. For random draws in evaluation."""
        # Sums of integers: exact, so that no order of summation changes them.
        bits = self.pixel_values.detach().contiguous().view(INTEGERS[self.pixel_values.element_size()])
        ids = self.texts.input_ids
        if self.texts.attention_mask is not None:
            ids = ids * (self.texts.attention_mask > 0)
        position = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        return bits.sum(dtype=torch.int64) * 31 + (ids * position).sum(dtype=torch.int64)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Pairs":
        """The same pairs with `function` of every tensor."""
        return _map(self, function)


def _map(value, function: Callable):
    """`function` of every tensor inside a value of this file."""
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return function(value)
    return replace(value, **{field.name: _map(getattr(value, field.name), function) for field in fields(value)})
