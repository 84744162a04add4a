"""
Weakly supervised grounding: where in the image is what the expression names?

References:
    [1] Selvaraju et al., Grad-CAM, arXiv 1610.02391.
    [2] Li et al., Align before Fuse (ALBEF), arXiv 2107.07651, section 6.4 (RefCOCO+).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Unpack

import torch
from torch import nn
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_vision_text import GROUNDING_METHODS
from .encoder_attention import AttentionRecord, recorded_attention
from .input_checks import check_arguments
from .inputs import Pairs, Texts
from .modeling_outputs import BoxRankingOutput, GroundingOutput, Recorded, RetrievalTrainingOutput
from .objective_itm import MATCH
from .pair_step import ContrastPart


RECORDED_OUTPUTS = ("hidden_states", "attentions", "cross_attentions")


def rank_boxes(
    heatmaps: torch.Tensor,
    boxes: Sequence[torch.Tensor | Sequence[Sequence[float]]],
    image_sizes: Sequence[tuple[int, int]],
    area_exponent: float = 0.5,
) -> BoxRankingOutput:
    """
    Scores boxes by the heat inside them: sum / area^0.5, on the map brought to the image's size (bicubic).

    Args:
        heatmaps: [B, h, w].
        boxes: for each image its proposals [n, 4], (x, y, width, height) in pixels; edges are cut to whole pixels.
        image_sizes: for each image (height, width), pixels.
        area_exponent: 0 favours large boxes, 1 small ones.

    Raises:
        ValueError: not one list of boxes and one size per map, or a box without area.
    """
    if not len(heatmaps) == len(boxes) == len(image_sizes):
        raise ValueError(
            f"{len(heatmaps)} `heatmaps`, {len(boxes)} lists of `boxes` and {len(image_sizes)} `image_sizes`: give one "
            "of each per image."
        )
    all_scores, best = [], []
    for number, (heatmap, proposals, size) in enumerate(zip(heatmaps, boxes, image_sizes, strict=True)):
        upsampled = nn.functional.interpolate(
            heatmap[None, None].float(), size=tuple(size), mode="bicubic", align_corners=False
        )[0, 0]
        scores = []
        for x, y, width, height in torch.as_tensor(proposals, dtype=torch.float64).reshape(-1, 4).tolist():
            if width <= 0 or height <= 0:
                raise ValueError(
                    f"`boxes[{number}]` holds {(x, y, width, height)}: a box is (x, y, width, height) with an area."
                )
            inside = upsampled[max(int(y), 0) : max(int(y + height), 0), max(int(x), 0) : max(int(x + width), 0)]
            scores.append(inside.sum() / (width * height) ** area_exponent)
        scores = torch.stack(scores) if scores else upsampled.new_zeros(0)
        found = len(scores) > 0 and bool(scores.max() > 0)
        best.append(int(scores.argmax()) if found else -1)
        all_scores.append(scores)
    return BoxRankingOutput(best_indices=torch.tensor(best, device=heatmaps.device), scores=tuple(all_scores))


class GroundingTask:
    """
    Grad-CAM heat maps on top of a retrieval head. To be mixed in before a family's retrieval class, whose training and
    weights it shares.
    """

    rank_boxes = staticmethod(rank_boxes)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        distillation_alpha: float | None = None,
        update_teacher: bool = True,
        method: str | None = None,
        layer: int | None = None,
        return_loss: bool | None = None,
        negative_image_indices: torch.Tensor | None = None,
        negative_text_indices: torch.Tensor | None = None,
        contrast_part: ContrastPart | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GroundingOutput | RetrievalTrainingOutput:
        """
        Computes the retrieval losses in training mode, otherwise heat maps.

        Args:
            pixel_values: [B, 3, H, W]; row b of images and expressions is a pair.
            input_ids, attention_mask: [B, T], 1 = attend.
            concept_input_ids, concept_attention_mask: [B, C], 1 = attend; optional, a zero row = no concepts.
            image_ids, distillation_alpha, update_teacher, negative_image_indices, negative_text_indices, contrast_part:
                for the losses, as in the retrieval class.
            method: `"itm"`: the match logit's gradient in a fusion layer's cross-attention. `"itc"`: the similarity's
                gradient in a vision layer's [CLS] attention. By default the configuration's `grounding_method`.
            layer: 0-based, of the text encoder (`"itm"`) or the vision encoder (`"itc"`). By default the configuration's
                `grounding_layer`, where `method` is its `grounding_method`. Otherwise two thirds up, which is the
                published layer 8 of 12, or the first fusion layer if that is higher.
            return_loss: the retrieval losses instead of heat maps; by default in training mode.

        Returns:
            [`GroundingOutput`], or the retrieval class's output.

        Raises:
            ValueError: unknown method or layer, or heat maps asked for in training mode.
        """
        record = check_arguments(self, kwargs)
        if self.training if return_loss is None else return_loss:
            return super().forward(
                pixel_values,
                input_ids,
                attention_mask,
                concept_input_ids,
                concept_attention_mask,
                image_ids=image_ids,
                distillation_alpha=distillation_alpha,
                update_teacher=update_teacher,
                negative_image_indices=negative_image_indices,
                negative_text_indices=negative_text_indices,
                contrast_part=contrast_part,
                return_loss=True,
                **record,
            )
        method, layers = self._method_and_layers(method)
        if layer is None:
            layer = self.config.heatmap_layer(method)
        if type(layer) is not int or layer not in layers:
            raise ValueError(
                f"`layer={layer!r}`: with `method={method!r}` this model has layers {layers.start} to {layers.stop - 1}."
            )
        pairs = Pairs.given(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            concept_input_ids=concept_input_ids,
            concept_attention_mask=concept_attention_mask,
        )
        return self._heatmaps(pairs, method, [layer], **record)[0]

    def layer_heatmaps(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_attention_mask: torch.Tensor | None = None,
        *,
        method: str | None = None,
    ) -> dict[int, torch.Tensor]:
        """
        The heat maps [B, h, w] of every layer that can ground, from one forward and one backward pass. Each equals that
        of `forward` with this `layer`. Arguments are those of `forward`.
        """
        method, layers = self._method_and_layers(method)
        pairs = Pairs.given(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            concept_input_ids=concept_input_ids,
            concept_attention_mask=concept_attention_mask,
        )
        outputs = self._heatmaps(pairs, method, layers)
        return {layer: output.heatmaps for layer, output in zip(layers, outputs, strict=True)}

    def _method_and_layers(self, method: str | None) -> tuple[str, range]:
        if self.training:
            raise ValueError("Heat maps need a model without dropout: call `model.eval()` first.")
        method = self.config.grounding_method if method is None else method
        if method not in GROUNDING_METHODS:
            raise ValueError(f"`method={method!r}` is not known; choose one of {GROUNDING_METHODS}.")
        return method, self.config.heatmap_layers(method)

    def _heatmaps(self, pairs: Pairs, method: str, layers: Sequence[int], **wanted: Recorded) -> list[GroundingOutput]:
        compute = self._match_heatmaps if method == "itm" else self._similarity_heatmaps
        with _gradients_enabled():
            return compute(pairs.map(_usable), layers, **wanted)

    def _match_heatmaps(self, pairs: Pairs, layers: Sequence[int], **wanted: Recorded) -> list[GroundingOutput]:
        base = self.base_model
        with torch.no_grad():
            images, _ = base.embed_images(pairs.pixel_values, pairs.concepts)
        attentions = [base.text_model.encoder.layer[layer].crossattention.self for layer in layers]
        recorded: list[ModelOutput] = []

        def match(added: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, tuple[torch.Tensor, list[torch.Tensor]]]:
            with _recorded_attentions(attentions, added) as records:
                fused = base.fuse_tokens(images, pairs.texts, **wanted)
            if wanted:
                recorded.append(fused)
            logits = self.itm_head(fused.last_hidden_state[:, 0])
            return logits[:, MATCH].sum(), (logits, [record.probabilities for record in records])

        tokens = images.hidden_states
        heads = base.text_model.config.num_attention_heads
        shape = (len(pairs), heads, pairs.texts.input_ids.shape[1], tokens.shape[1])
        zeros = tuple(tokens.new_zeros(shape) for _ in layers)
        gradients, (logits, probabilities) = _gradients_at_zero(match, zeros)
        grid = self._grid(pairs.pixel_values)
        counted, number = self._counted_positions(pairs.texts)
        counted = counted[:, None, :, None, None]
        outputs = []
        for attention, gradient in zip(probabilities, gradients, strict=True):
            attention = _on_grid(attention, grid) * counted
            gradient = _on_grid(gradient, grid).clamp(min=0) * counted
            word_heatmaps = (attention * gradient).mean(dim=1)
            outputs.append(
                GroundingOutput(
                    heatmaps=word_heatmaps.sum(dim=1) / number[:, None, None],
                    word_heatmaps=word_heatmaps,
                    match_logits=logits.detach(),
                    attention=attention,
                    attention_gradient=gradient,
                    **_recorded(recorded),
                )
            )
        return outputs

    def _similarity_heatmaps(self, pairs: Pairs, layers: Sequence[int], **wanted: Recorded) -> list[GroundingOutput]:
        base = self.base_model
        with torch.no_grad():
            texts, _ = base.embed_texts(pairs.texts)
        attentions = [base.vision_model.layers[layer].attention for layer in layers]
        recorded: list[ModelOutput] = []

        def compare(added: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, tuple[torch.Tensor, list[torch.Tensor]]]:
            with _recorded_attentions(attentions, added) as records:
                images, output = base.embed_images(pairs.pixel_values, pairs.concepts, **wanted)
            if wanted:
                recorded.append(output)
            similarity = images.embeds @ texts.embeds.T / base.temperature
            return similarity.diagonal().sum(), (similarity, [record.probabilities for record in records])

        grid = self._grid(pairs.pixel_values)
        num_tokens = 1 + grid[0] * grid[1] + (0 if pairs.concepts is None else pairs.concepts.input_ids.shape[1])
        # The map needs the attention of [CLS] alone, the first query.
        shape = (len(pairs), self.config.vision_config.num_attention_heads, 1, num_tokens)
        zeros = tuple(texts.embeds.new_zeros(shape) for _ in layers)
        gradients, (similarity, probabilities) = _gradients_at_zero(compare, zeros)
        outputs = []
        for attention, gradient in zip(probabilities, gradients, strict=True):
            attention = _on_grid(attention[:, :, 0], grid)
            gradient = _on_grid(gradient[:, :, 0], grid).clamp(min=0)
            outputs.append(
                GroundingOutput(
                    heatmaps=(attention * gradient).mean(dim=1),
                    similarity=similarity.detach(),
                    attention=attention,
                    attention_gradient=gradient,
                    **_recorded(recorded),
                )
            )
        return outputs

    def _grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        patch = self.config.vision_config.patch_size
        return pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch

    def _counted_positions(self, texts: Texts) -> tuple[torch.Tensor, torch.Tensor]:
        """Marks the text positions that make the map [B, T], and counts them [B] for the average: words by default."""
        input_ids, mask = texts.input_ids, texts.masked().attention_mask
        if self.config.quirks.gradcam_all_positions:
            return mask, torch.full_like(mask[:, 0], mask.shape[1])
        text = self.config.text_config
        words = mask.bool() & (input_ids != text.cls_token_id)
        if text.sep_token_id is not None:
            words = words & (input_ids != text.sep_token_id)
        # An expression without words has a map of zeros.
        return words, words.sum(dim=1).clamp(min=1)


@contextmanager
def _gradients_enabled() -> Iterator[None]:
    """Heat maps are inference with a gradient: callers may have switched gradients off, in either way."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _recorded(outputs: Sequence[ModelOutput]) -> dict[str, tuple[torch.Tensor | None, ...]]:
    """An encoder's recorded outputs as numbers: the gradient of a heat map has been taken."""
    return {
        name: tuple(tensor if tensor is None else tensor.detach() for tensor in output[name])
        for output in outputs
        for name in RECORDED_OUTPUTS
        if output.get(name) is not None
    }


def _usable(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that can take part in a gradient; one made in inference mode cannot, its copy can."""
    return tensor.clone() if not torch.compiler.is_compiling() and tensor.is_inference() else tensor


@contextmanager
def _recorded_attentions(
    modules: Sequence[nn.Module], added: Sequence[torch.Tensor]
) -> Iterator[list[AttentionRecord]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(recorded_attention(module, tensor))
            for module, tensor in zip(modules, added, strict=True)
        ]


def _gradients_at_zero(
    function: Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, Any]], zeros: tuple[torch.Tensor, ...]
) -> tuple[tuple[torch.Tensor, ...], Any]:
    """The gradient of a function's first result with respect to each of `zeros`, and its second result."""
    if torch.compiler.is_compiling():
        # A compiler follows this one; it does not go with hooks for saved tensors, which are there otherwise.
        return torch.func.grad(function, has_aux=True)(zeros)
    for tensor in zeros:
        tensor.requires_grad_()
    value, others = function(zeros)
    return torch.autograd.grad(value, zeros), others


def _on_grid(over_keys: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """[..., 1 + P + C] over [CLS], patches and concepts -> [..., h, w] over the patches."""
    return over_keys[..., 1 : 1 + grid[0] * grid[1]].unflatten(-1, grid).detach().float()
