"""
The vision encoder: a ViT whose sequence is [CLS], patches, concept tokens (ViCHA section 3.2).

Reference:
    [1] Xiao et al., Early Convolutions Help Transformers See Better, arXiv 2106.14881, section 4 (the convolutional stem).
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.output_capturing import capture_outputs

from .configuration_vision_text import VisionConfig
from .encoder_attention import attention_function, split_heads
from .encoder_recomputation import keeps_all, recomputed_input


class ConvolutionalStem(nn.Sequential):
    """
    Convolutions of 3 x 3 with stride 2 halve a patch until it is a point, each with twice the channels of the one before.
    One of 1 x 1 follows. A patch's embedding also sees some pixels of its neighbours.

    Each convolution is followed by a layer norm over the channels and GELU; [1] has batch norm and ReLU. With layer norm an
    embedding depends on its own image alone, not on the rest of a batch or on other processes.

    Args:
        num_channels: of the image.
        hidden_size: width of the embeddings, d_v.
        patch_size: pixels, a power of two of 2 or more.
        eps: of the layer norms.
    """

    def __init__(self, num_channels: int, hidden_size: int, patch_size: int, eps: float):
        halvings = patch_size.bit_length() - 1
        widths = [hidden_size // 2**step for step in reversed(range(halvings))]
        layers: list[nn.Module] = []
        for before, width in zip([num_channels, *widths], widths, strict=False):
            layers += [
                nn.Conv2d(before, width, kernel_size=3, stride=2, padding=1, bias=False),
                ChannelNorm(width, eps=eps),
                nn.GELU(),
            ]
        super().__init__(*layers, nn.Conv2d(hidden_size, hidden_size, kernel_size=1))
        self.patch_size = patch_size

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, d_v, H // patch, W // patch]; pixels beyond the last whole patch are unused."""
        height, width = (side - side % self.patch_size for side in pixel_values.shape[-2:])
        return super().forward(pixel_values[..., :height, :width])


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, H, W], at each place by itself."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class VisionEmbeddings(nn.Module):
    """[CLS] and patches, each with its learned absolute position."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.num_patches + 1, width))
        self.patch_embeddings = (
            ConvolutionalStem(config.num_channels, width, patch, eps=config.layer_norm_eps)
            if config.stem == "convolutional"
            else nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        pixel_values: torch.Tensor,
        patch_indices: torch.Tensor | None = None,
        cls_position: bool = True,
        bool_masked_pos: torch.Tensor | None = None,
        mask_token: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Embeds `pixel_values` [B, 3, H, W]. `patch_indices` [B, K] keeps only those patches, in that order. Where
        `bool_masked_pos` [B, P] is true, the `mask_token` [1, 1, d_v] stands with the patch's position. Returns [B, 1
        + P, d_v] (or [B, 1 + K, d_v]).
        """
        # A graph has any batch size: what it is compiled for must not depend on this one.
        if pixel_values.ndim != 4 or not (torch.compiler.is_compiling() or len(pixel_values)):
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}; the model expects [batch, "
                f"{self.config.num_channels}, height, width] with an image or more."
            )
        if pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"`pixel_values` has {pixel_values.shape[1]} channels (shape {tuple(pixel_values.shape)}); "
                f"the model expects [batch, {self.config.num_channels}, height, width]."
            )
        patches = self.patch_embeddings(pixel_values.to(self.cls_token.dtype))
        positions = interpolate_positions(self.position_embeddings, tuple(patches.shape[-2:]))
        patches = patches.flatten(2).transpose(1, 2)
        if bool_masked_pos is not None:
            patches = torch.where(bool_masked_pos[..., None], mask_token.to(patches.dtype), patches)
        patches = patches + positions[:, 1:]
        if patch_indices is not None:
            patches = patches.gather(1, patch_indices[..., None].expand(-1, -1, patches.shape[-1]))
        cls_token = self.cls_token + positions[:, :1] if cls_position else self.cls_token
        return self.dropout(torch.cat([cls_token.expand(patches.shape[0], -1, -1), patches], dim=1))


def interpolate_positions(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    Learned positions [1, 1 + g*g, d] for another grid of patches, by bicubic interpolation; the [CLS] row is kept.
    Returns [1, 1 + grid[0]*grid[1], d].
    """
    side = int((positions.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return positions
    patch_positions = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(patch_positions.float(), size=grid, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resized.to(positions.dtype).flatten(2).transpose(1, 2)], dim=1)


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        context, probabilities = attention_function(
            self, self.config._attn_implementation, kwargs.get("output_attentions")
        )(
            self,
            split_heads(self.q_proj(hidden_states), self.head_dim),
            split_heads(self.k_proj(hidden_states), self.head_dim),
            split_heads(self.v_proj(hidden_states), self.head_dim),
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(context.flatten(2)), probabilities


class VisionMLP(nn.Module):
    # Set by transformers with that of the layer.
    gradient_checkpointing = False

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return recomputed_input(self.activation, self.fc1(hidden_states), self.fc2, keeps_all(self))


class VisionLayer(GradientCheckpointingLayer):
    """A pre-norm transformer block."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VisionAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        checkpointed = keeps_all(self)
        attend = partial(self.attention, attention_mask=attention_mask, **kwargs)
        attended, _ = recomputed_input(self.layernorm_before, hidden_states, attend, checkpointed)
        hidden_states = hidden_states + self.dropout(attended)
        transformed = recomputed_input(self.layernorm_after, hidden_states, self.mlp, checkpointed)
        return hidden_states + self.dropout(transformed)


@dataclass
class VisionOutput(BaseModelOutput):
    """`attention_mask` [B, S], 1 = attend: which of the tokens may be attended to; `None` where all may."""

    attention_mask: torch.Tensor | None = None


class VisionEncoder(PreTrainedModel):
    """
    ViT over [CLS], patches and, where given, concept tokens. Concept tokens carry no position of the ViT and pass
    through every block; `hidden_states` on request are the embeddings and each block's output before the final norm.
    """

    config: VisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisionEmbeddings", "VisionLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": VisionLayer, "attentions": VisionAttention}  # noqa: RUF012

    def __init__(self, config: VisionConfig):
        super().__init__(config)
        self.embeddings = VisionEmbeddings(config)
        self.layers = nn.ModuleList([VisionLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, VisionEmbeddings):
            std = self.config.initializer_range
            init.trunc_normal_(module.cls_token, mean=0.0, std=std)
            init.trunc_normal_(module.position_embeddings, mean=0.0, std=std)
            if self.config.stem_initializer_range is not None:
                init.normal_(module.patch_embeddings[-1].weight, mean=0.0, std=self.config.stem_initializer_range)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers looks for the choice of backend in this file's text; it is in encoder_attention.py.
        return True

    def get_input_embeddings(self):
        return self.embeddings.patch_embeddings

    def resize_positions(self, image_size: int) -> None:
        """Interpolates the learned positions to another input size (pixels), as fine-tuning at 384 px does."""
        self.config.image_size = image_size
        positions = interpolate_positions(self.embeddings.position_embeddings.data, (self.config.grid_size,) * 2)
        self.embeddings.position_embeddings = nn.Parameter(positions.clone())

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        concept_embeds: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        patch_indices: torch.Tensor | None = None,
        cls_position: bool = True,
        bool_masked_pos: torch.Tensor | None = None,
        mask_token: torch.Tensor | None = None,
        **kwargs,
    ) -> VisionOutput:
        """
        Args:
            pixel_values: [B, 3, H, W]; another size than the configuration's interpolates the positions.
            concept_embeds: [B, C, d_v], appended after the patches.
            concept_attention_mask: [B, C], 1 = attend; all are attended to when it is not given.
            patch_indices: [B, K], the patches to keep (masked image modelling); all by default.
            cls_position: whether [CLS] gets its position embedding.
            bool_masked_pos: [B, P], true where `mask_token` [1, 1, d_v] replaces the patch's embedding; none by default.
        Returns:
            `last_hidden_state` [B, 1 + P + C, d_v], after the final norm; `attention_mask` [B, 1 + P + C].
        """
        hidden_states = self.embeddings(pixel_values, patch_indices, cls_position, bool_masked_pos, mask_token)
        token_mask = None
        if concept_embeds is not None:
            token_mask = _image_attention_mask(hidden_states, concept_attention_mask)
            hidden_states = torch.cat([hidden_states, concept_embeds.to(hidden_states.dtype)], dim=1)
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=token_mask
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return VisionOutput(last_hidden_state=self.layernorm(hidden_states), attention_mask=token_mask)


def blank_patches(pixel_values: torch.Tensor, removed: torch.Tensor, patch_size: int) -> torch.Tensor:
    """
    Images [B, 3, H, W] whose `removed` patches [B, P] are zero, the mean colour. A convolutional stem embeds a patch with
    the rims of its neighbours: without this, an encoder would see parts of what it is to reconstruct.
    """
    height, width = (side // patch_size for side in pixel_values.shape[-2:])
    removed = removed.bool().unflatten(1, (height, width))
    removed = removed.repeat_interleave(patch_size, dim=1).repeat_interleave(patch_size, dim=2)
    return pixel_values[..., : height * patch_size, : width * patch_size].masked_fill(removed[:, None], 0.0)


def _image_attention_mask(
    image_tokens: torch.Tensor, concept_attention_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """
    Key mask over [CLS], patches and concepts: `image_tokens` [B, 1 + P, d], `concept_attention_mask` [B, C],
    1 = attend -> [B, 1 + P + C]; `None` (attend to all) without concepts to mask.
    """
    if concept_attention_mask is None:
        return None
    patches = concept_attention_mask.new_ones(image_tokens.shape[:2])
    return torch.cat([patches, concept_attention_mask], dim=1)
