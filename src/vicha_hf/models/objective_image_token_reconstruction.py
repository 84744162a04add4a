"""
Reconstruction of masked patches as discrete visual tokens, with the help of the text: the image half of symmetric
cross-modality reconstruction (the text half is masked language modelling).

References:
    [1] Khan et al., SIMLA, arXiv 2203.14395, section 3 (symmetric cross-modality reconstruction, XMM).
    [2] Bao et al., BEiT, arXiv 2106.08254, section 2 (visual tokens as targets, block-wise masks, mask token).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_simla import SimlaConfig
from .encoder_vision import blank_patches
from .input_checks import value_bounds
from .objective_mlm import IGNORED, distilled_cross_entropy, leading_positions, predicted_rows
from .pair_step import PairStep
from .process_group import mean_over_processes
from .random_draws import Draws, block_masks, check_block_mask


@dataclass
class ImageTokenReconstructionOutput(ModelOutput):
    """`logits`, `teacher_logits` [M, visual vocabulary] and `labels` [M] at the M masked patches, in row-major order."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    teacher_logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None


class ImageTokenReconstruction(nn.Module):
    """
    A learned mask token replaces the embeddings of masked patches. The vision encoder's output then runs through the
    text encoder as its input, with the text's embeddings as keys and values of the cross-attention. A linear head
    names each masked patch's visual token. Loss: (1 - alpha) * cross-entropy + alpha * soft cross-entropy against the
    momentum teacher, over the masked patches of all processes; no masked patch gives 0.

    Args:
        config: sizes, visual vocabulary and mask settings.
    """

    # Image tokens run through the layers with cross-attention.
    fuses = True

    def __init__(self, config: SimlaConfig):
        super().__init__()
        self.config = config
        vision, text = config.vision_config, config.text_config
        self._check_grid((vision.grid_size, vision.grid_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, vision.hidden_size))
        self.head = nn.Linear(text.hidden_size, config.visual_vocab_size)

    @torch.no_grad()
    def init_raw_tensors(self) -> None:
        """Initialises tensors that a generic initialisation of layers does not reach."""
        init.trunc_normal_(self.mask_token, mean=0.0, std=self.config.initializer_range)

    def _mask_settings(self) -> dict:
        config = self.config
        return {
            "max_masked": config.mim_max_masked_patches,
            "min_block": config.mim_min_block_patches,
            "min_aspect": config.mim_min_block_aspect,
        }

    def _check_grid(self, grid: tuple[int, int]) -> None:
        check_block_mask(grid, **self._mask_settings())

    def draw_masks(self, pixel_values: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
        """
        Draws block-wise masks [B, P] for images [B, 3, H, W], true = masked; see [`draw_block_masks`]. `draws`: source of
        the draws, torch's generator by default.
        """
        seed = None if draws is None else draws.seed
        return block_masks(pixel_values, seed, *self._grid(pixel_values), **self._mask_settings())

    def check_tokens(
        self, pixel_values: torch.Tensor, visual_token_ids: torch.Tensor | None, bool_masked_pos: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Tokens [B, P] and, where given, the mask [B, P] from either form, [B, h, w] or [B, P].

        Raises:
            ValueError: no tokens, a grid that is not the patches', or tokens outside the visual vocabulary.
        """
        if visual_token_ids is None:
            raise ValueError(
                "Training needs `visual_token_ids` [B, P], each patch's visual token: store them with `vicha-hf visual-tokens` "
                "and give them to the dataset, or switch the objective off with `mim_weight=0`."
            )
        tokens = self._flatten("visual_token_ids", visual_token_ids, pixel_values)
        bounds = value_bounds(tokens)
        if bounds is not None and not 0 <= bounds[0] <= bounds[1] < self.config.visual_vocab_size:
            raise ValueError(
                f"`visual_token_ids` holds {bounds[0]} to {bounds[1]}, but the model has `visual_vocab_size="
                f"{self.config.visual_vocab_size}`; use the visual tokenizer that it was made for."
            )
        if bool_masked_pos is None:
            return tokens, None
        return tokens, self._flatten("bool_masked_pos", bool_masked_pos, pixel_values).bool()

    def _grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        patch = self.config.vision_config.patch_size
        return pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch

    def _flatten(self, name: str, values: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        grid, batch_size = self._grid(pixel_values), len(pixel_values)
        fits = {2: (batch_size, grid[0] * grid[1]), 3: (batch_size, *grid)}
        if fits.get(values.dim()) == tuple(values.shape):
            return values.flatten(1)
        own = " x ".join(map(str, values.shape[1:]))
        raise ValueError(
            f"`{name}` has shape {tuple(values.shape)}, {own} per image, but the {batch_size} images have "
            f"{grid[0]} x {grid[1]} = {grid[0] * grid[1]} patches each: the grid of visual tokens must be the grid of "
            "patches. Choose a tokenizer whose codes are as large as `vision_config.patch_size`, or resize its input."
        )

    def on_pairs(
        self, step: PairStep, visual_token_ids: torch.Tensor, bool_masked_pos: torch.Tensor | None = None
    ) -> ImageTokenReconstructionOutput:
        """
        Reconstructs the images of an encoded batch with the help of the texts' embeddings.

        Args:
            step: the encoded batch; its teacher has an objective like this one as `mim`.
            visual_token_ids, bool_masked_pos: [B, P], from [`~ImageTokenReconstruction.check_tokens`]; the mask is drawn
                by default.
        """
        pixel_values, texts = step.pairs.pixel_values, step.pairs.texts
        if bool_masked_pos is None:
            bool_masked_pos = self.draw_masks(pixel_values, step.draws())
        model, teacher = step.model, step.teacher_model
        text_embeddings = model.text_model.embeddings(texts.input_ids)
        logits = self.predict(
            model.vision_model, model.text_model, pixel_values, bool_masked_pos, text_embeddings, texts.attention_mask
        )
        with torch.no_grad():
            if not self.config.quirks.simla_teacher_online_inputs:
                text_embeddings = teacher.text_model.embeddings(texts.input_ids)
            teacher_logits = step.teacher["mim"].predict(
                teacher.vision_model,
                teacher.text_model,
                pixel_values,
                bool_masked_pos,
                text_embeddings,
                texts.attention_mask,
            )
        labels = predicted_rows(visual_token_ids.masked_fill(~bool_masked_pos, IGNORED), bool_masked_pos)
        return self(logits, teacher_logits, labels, step.alpha)

    def reconstruct(
        self,
        vision_model: nn.Module,
        text_model: nn.Module,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor,
        text_embeddings: torch.Tensor,
        text_attention_mask: torch.Tensor | None = None,
        output_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            vision_model, text_model: the encoders.
            pixel_values: [B, 3, H, W].
            bool_masked_pos: [B, P], true = masked.
            text_embeddings: [B, T, d_t], the text encoder's embedding layer; `text_attention_mask` [B, T], 1 = attend.
            output_index: [B, Q], the image tokens (0 = [CLS]) whose states are wanted; all by default.

        Returns:
            The fused image tokens [B, 1 + P, d_t], or [B, Q, d_t].
        """
        pixel_values = blank_patches(pixel_values, bool_masked_pos, self.config.vision_config.patch_size)
        image_tokens = vision_model(
            pixel_values, bool_masked_pos=bool_masked_pos, mask_token=self.mask_token
        ).last_hidden_state
        return text_model(
            inputs_embeds=text_model.embeddings.place(image_tokens, "image tokens"),
            encoder_hidden_states=text_embeddings,
            encoder_attention_mask=text_attention_mask,
            output_index=output_index,
            mode="multimodal",
        ).last_hidden_state

    def predict(
        self,
        vision_model: nn.Module,
        text_model: nn.Module,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor,
        text_embeddings: torch.Tensor,
        text_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits [M, visual vocabulary] at the masked patches; arguments as in [`~ImageTokenReconstruction.reconstruct`]."""
        position, is_masked = leading_positions(bool_masked_pos)
        # Behind [CLS].
        wanted = None if position is None else position + 1
        states = self.reconstruct(
            vision_model, text_model, pixel_values, bool_masked_pos, text_embeddings, text_mask, wanted
        )
        return self.head(predicted_rows(states[:, 1:] if wanted is None else states, is_masked))

    def forward(
        self, logits: torch.Tensor, teacher_logits: torch.Tensor | None, labels: torch.Tensor, alpha: float
    ) -> ImageTokenReconstructionOutput:
        """`logits`, `teacher_logits` [M, visual vocabulary] and `labels` [M] at the masked patches; alpha: the teacher's share."""
        losses = distilled_cross_entropy(logits, teacher_logits, labels, alpha)
        loss = mean_over_processes(losses.sum(), (labels != IGNORED).sum())
        return ImageTokenReconstructionOutput(loss=loss, logits=logits, teacher_logits=teacher_logits, labels=labels)


class ImageTokenizer(Protocol):
    """A visual tokenizer as the model sees it: one code per patch of the very pixel values that it reads itself."""

    vocab_size: int
    patch_size: int

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image of height x width pixels."""

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> codes, int64 [B, P]."""


def require_fitting_tokenizer(
    tokenizer: ImageTokenizer,
    *,
    image_size: int | tuple[int, int],
    patch_size: int,
    vocab_size: int | None = None,
    image_processor=None,
) -> None:
    """
    Checks that a tokenizer gives one token for each patch of a model.

    Args:
        image_size: side of the model's square input in pixels, or (height, width).
        patch_size: the model's.
        vocab_size: codes that the model's head predicts; None does not look.
        image_processor: the one that normalises the images; None does not look.

    Raises:
        ValueError: naming what differs, with both values and the remedy.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    tokens, patches = tokenizer.grid_size(height, width), (height // patch_size, width // patch_size)
    if tokens != patches:
        raise ValueError(
            f"the visual tokenizer makes {tokens[0]} x {tokens[1]} tokens of an image of {height} x {width} pixels "
            f"(one per {tokenizer.patch_size} pixels), but the model has {patches[0]} x {patches[1]} patches (one per "
            f"{patch_size} pixels): make a tokenizer with patch_size={patch_size}"
        )
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"the visual tokenizer has {tokenizer.vocab_size} codes, but the model predicts {vocab_size}: set the "
            f"model's number of visual tokens to {tokenizer.vocab_size}"
        )
    if image_processor is not None:
        for name in ("image_mean", "image_std"):
            expected, found = list(getattr(tokenizer.config, name)), list(getattr(image_processor, name))
            if not torch.allclose(torch.tensor(expected), torch.tensor(found), atol=1e-4):
                raise ValueError(
                    f"the visual tokenizer was made for images normalised with {name}={expected}, but the image "
                    f"processor uses {found}: make the tokenizer with the image processor's {name}"
                )
