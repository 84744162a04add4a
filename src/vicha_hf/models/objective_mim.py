"""
Masked image modelling: reconstruct the removed patches from the rest, alone or with the help of the text.

References:
    [1] Shukor et al., ViCHA, arXiv 2208.13628, section 3.3 (U-MIM).
    [2] He et al., Masked Autoencoders, arXiv 2111.06377 (decoder, normalised pixel targets, sin-cos positions).
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_vicha import ViChaConfig
from .encoder_vision import VisionLayer, blank_patches
from .input_checks import check_shape
from .pair_step import PairStep
from .process_group import mean_over_processes


@dataclass
class PatchMask(ModelOutput):
    """
    `kept_indices` [B, K]: the patches that stay, in the encoder's order; `restore_indices` [B, P]: for each patch its
    place in (kept, removed); `removed` [B, P]: 1 = removed.
    """

    kept_indices: torch.Tensor | None = None
    restore_indices: torch.Tensor | None = None
    removed: torch.Tensor | None = None


def draw_patch_mask(noise: torch.Tensor, mask_ratio: float) -> PatchMask:
    """Keeps the floor(P * (1 - mask_ratio)) patches with the smallest `noise` [B, P]."""
    num_kept = int(noise.shape[1] * (1 - mask_ratio))
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    return PatchMask(
        kept_indices=order[:, :num_kept], restore_indices=restore, removed=(restore >= num_kept).to(torch.float32)
    )


def patchify(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """[B, 3, H, W] -> [B, P, patch_size**2 * 3], patches in row-major order, channels last within a patch."""
    grid = pixel_values.shape[2] // patch_size, pixel_values.shape[3] // patch_size
    pixel_values = pixel_values[:, :, : grid[0] * patch_size, : grid[1] * patch_size]
    patches = pixel_values.unflatten(3, (grid[1], patch_size)).unflatten(2, (grid[0], patch_size))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def normalized_patches(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Each patch with its own mean and (unbiased) variance removed: [B, P, patch_size**2 * 3]."""
    patches = patchify(pixel_values, patch_size)
    # One fused pass: layer norm takes the biased variance, so its eps and its result are scaled to the unbiased one.
    scale = (patches.shape[-1] - 1) / patches.shape[-1]
    return nn.functional.layer_norm(patches, patches.shape[-1:], eps=1e-6 * scale) * scale**0.5


def sincos_positions(dim: int, grid_size: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine positions [1 + grid_size**2, dim]; the first row ([CLS]) is zero. `dim` % 4 == 0."""
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    # Columns vary fastest in the patch order; their half comes first.
    across = axis[None, :, :].expand(grid_size, -1, -1)
    down = axis[:, None, :].expand(-1, grid_size, -1)
    positions = torch.cat([across, down], dim=-1).flatten(0, 1)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), positions]).to(torch.float32)


def insert_mask_tokens(tokens: torch.Tensor, mask_token: torch.Tensor, mask: PatchMask) -> torch.Tensor:
    """[CLS] and kept patches [B, 1 + K, d] -> [CLS] and all patches [B, 1 + P, d], removed ones as the mask token."""
    num_removed = mask.restore_indices.shape[1] - (tokens.shape[1] - 1)
    masked = mask_token.to(tokens.dtype).expand(tokens.shape[0], num_removed, -1)
    patches = torch.cat([tokens[:, 1:], masked], dim=1)
    patches = patches.gather(1, mask.restore_indices[..., None].expand(-1, -1, tokens.shape[2]))
    return torch.cat([tokens[:, :1], patches], dim=1)


class PatchDecoder(nn.Module):
    """Transformer blocks over kept patches and mask tokens with fixed positions, and a linear map to pixels."""

    def __init__(self, config: ViChaConfig):
        super().__init__()
        width, vision = config.mim_decoder_hidden_size, config.vision_config
        block_config = copy.deepcopy(vision)
        block_config.hidden_size, block_config.intermediate_size = width, 4 * width
        block_config.num_attention_heads = config.mim_decoder_heads
        self.embed = nn.Linear(vision.hidden_size, width)
        self.layers = nn.ModuleList([VisionLayer(block_config) for _ in range(config.mim_decoder_layers)])
        # The reference decoder's norm has torch's default eps, unlike its blocks.
        self.layernorm = nn.LayerNorm(width, eps=1e-5)
        self.prediction = nn.Linear(width, vision.patch_size**2 * vision.num_channels)
        self.register_buffer("positions", sincos_positions(width, vision.grid_size), persistent=False)
        self.grid_size = vision.grid_size

    @torch.no_grad()
    def init_raw_tensors(self) -> None:
        """The fixed positions are in no checkpoint, so loading must make them again."""
        init.copy_(self.positions, sincos_positions(self.positions.shape[1], self.grid_size))

    def resize_positions(self, grid_size: int) -> None:
        """Makes the fixed positions for another number of patches a side."""
        self.grid_size = grid_size
        self.positions = sincos_positions(self.positions.shape[1], grid_size).to(self.positions)

    def forward(
        self, image_tokens: torch.Tensor, mask_token: torch.Tensor, mask: PatchMask
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Kept tokens [B, 1 + K, d_v] -> predicted pixels [B, P, patch pixels] and decoder states [B, 1 + P, width]."""
        hidden_states = insert_mask_tokens(self.embed(image_tokens), mask_token, mask)
        hidden_states = hidden_states + self.positions.to(hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        hidden_states = self.layernorm(hidden_states)
        return self.prediction(hidden_states[:, 1:]), hidden_states


@dataclass
class PixelReconstructionOutput(ModelOutput):
    """
    `predictions`, `target` [B, P, patch pixels]; `branch_losses` and `predictions` hold the cross-modal branch first
    where both run; `loss` is the branches' mean.
    """

    loss: torch.Tensor | None = None
    branch_losses: tuple[torch.Tensor, ...] | None = None
    predictions: tuple[torch.Tensor, ...] | None = None
    target: torch.Tensor | None = None
    mask: PatchMask | None = None
    image_tokens: torch.Tensor | None = None
    decoder_states: torch.Tensor | None = None


class PixelReconstruction(nn.Module):
    """
    Mean squared error on the removed patches against per-patch normalised pixels, averaged over all processes.

    Masked image modelling in one of three modes. In `unimodal` the vision encoder sees the kept patches (no concepts),
    and a small decoder fills in the rest. In `crossmodal` kept patches and mask tokens run through the fusion layers
    as queries, with the text's hidden states as keys and values. `both` is the mean of the two.
    """

    def __init__(self, config: ViChaConfig):
        super().__init__()
        self.config = config
        vision, mode = config.vision_config, config.mim_mode
        unimodal, crossmodal = mode in ("unimodal", "both"), mode in ("crossmodal", "both")
        width = config.mim_decoder_hidden_size if unimodal else vision.hidden_size
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder = PatchDecoder(config) if unimodal else None
        pixels = vision.patch_size**2 * vision.num_channels
        self.crossmodal_prediction = nn.Linear(vision.hidden_size, pixels) if crossmodal else None

    @property
    def fuses(self) -> bool:
        """Whether the fusion layers take part."""
        return self.crossmodal_prediction is not None

    @torch.no_grad()
    def init_raw_tensors(self) -> None:
        """Initialises tensors that a generic initialisation of layers does not reach."""
        init.zeros_(self.mask_token)

    def on_pairs(self, step: PairStep, noise: torch.Tensor | None = None) -> PixelReconstructionOutput:
        """
        Reconstructs the images of an encoded batch, or the first of them, as `mim_fraction` says; `noise` [B, P] is drawn
        by default.
        """
        pixel_values, num_patches = step.pairs.pixel_values, self.config.vision_config.num_patches
        if noise is None:
            noise = step.draws().uniform((len(pixel_values), num_patches), pixel_values.device)
        check_shape((len(pixel_values), num_patches), mim_noise=noise)
        model, rows = step.model, slice(math.ceil(len(pixel_values) * self.config.mim_fraction))
        return self(
            pixel_values[rows],
            model.vision_model,
            model.text_model,
            step.texts.hidden_states[rows],
            step.pairs.texts.attention_mask[rows],
            noise[rows],
        )

    def forward(
        self,
        pixel_values: torch.Tensor,
        vision_model: nn.Module,
        text_model: nn.Module,
        text_states: torch.Tensor,
        text_attention_mask: torch.Tensor | None,
        noise: torch.Tensor,
    ) -> PixelReconstructionOutput:
        """
        Args:
            pixel_values: [B, 3, H, W].
            vision_model: encodes the kept patches.
            text_model: its fusion layers reconstruct in the cross-modal branch.
            text_states: [B, T, d_t], *text* mode's output; `text_attention_mask` [B, T], 1 = attend.
            noise: [B, P]; the patches with the smallest values stay.
        """
        vision = self.config.vision_config
        mask = draw_patch_mask(noise, self.config.mim_mask_ratio)
        image_tokens = vision_model(
            blank_patches(pixel_values, mask.removed, vision.patch_size),
            patch_indices=mask.kept_indices,
            cls_position=not self.config.quirks.mim_cls_without_position,
        ).last_hidden_state
        predictions, decoder_states = [], None
        if self.crossmodal_prediction is not None:
            fused = text_model(
                inputs_embeds=insert_mask_tokens(image_tokens, self.mask_token, mask),
                encoder_hidden_states=text_states,
                encoder_attention_mask=text_attention_mask,
                mode="fusion",
            ).last_hidden_state
            predictions.append(self.crossmodal_prediction(fused[:, 1:]))
        if self.decoder is not None:
            prediction, decoder_states = self.decoder(image_tokens, self.mask_token, mask)
            predictions.append(prediction)
        target = normalized_patches(pixel_values, vision.patch_size).to(predictions[0].dtype)
        losses = [self._removed_patches_error(prediction, target, mask.removed) for prediction in predictions]
        return PixelReconstructionOutput(
            loss=sum(losses) / len(losses),
            branch_losses=tuple(losses),
            predictions=tuple(predictions),
            target=target,
            mask=mask,
            image_tokens=image_tokens,
            decoder_states=decoder_states,
        )

    @staticmethod
    def _removed_patches_error(prediction: torch.Tensor, target: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
        error = nn.functional.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=-1)
        return mean_over_processes((error * removed).sum(), removed.sum())
