"""Statistics of how well a batch's pairs are told apart, read off the objectives while they train."""

import inspect

import torch
from torch import Tensor, nn

from ..models.objective_itc import ContrastiveOutput, ImageTextContrast
from ..models.objective_itm import ImageTextMatching, MatchingOutput


class BatchStatistics:
    """Watches the contrast and the matching of a model; a model without them has no statistics.

    - `positive_similarity`: mean cosine of the pairs, online features against the teacher's.
    - `hardest_negative_similarity`: mean over the rows, both ways, of the greatest cosine within the process's batch with
      a partner of another image.
    - `contrast_accuracy`: share of the rows, both ways, whose own pair is ahead of all those.
    - `matching_accuracy`: share of the pairs, positive and hard negative, that the matching head judges rightly.

    All stay tensors on the device: reading them is the caller's choice.

    Args:
        model: unwrapped.
    """

    def __init__(self, model: nn.Module):
        self._collected: list[dict[str, Tensor]] = []
        for module in model.modules():
            if isinstance(module, ImageTextContrast):
                module.register_forward_hook(self._watch_contrast, with_kwargs=True)
            elif isinstance(module, ImageTextMatching):
                module.register_forward_hook(self._watch_matching)

    def take(self) -> dict[str, Tensor]:
        """Means over the forward passes since the last call, [] each."""
        collected, self._collected = self._collected, []
        names = {name: None for statistics in collected for name in statistics}
        return {
            name: torch.stack([statistics[name] for statistics in collected if name in statistics]).mean()
            for name in names
        }

    @torch.no_grad()
    def _watch_contrast(self, module: ImageTextContrast, args, kwargs, output: ContrastiveOutput) -> None:
        if not module.training:
            return
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        self._collected.append(contrast_statistics(output, given["temperature"], given.get("image_ids")))

    @torch.no_grad()
    def _watch_matching(self, module: ImageTextMatching, args, output: MatchingOutput) -> None:
        if not module.training:
            return
        negatives = args[1]
        exists = torch.cat([torch.ones_like(negatives.image_exists), negatives.image_exists, negatives.text_exists])
        correct = (output.logits.argmax(dim=1) == output.labels) & exists
        self._collected.append({"matching_accuracy": correct.sum() / exists.sum()})


@torch.no_grad()
def contrast_statistics(
    contrast: ContrastiveOutput, temperature: Tensor, image_ids: Tensor | None = None
) -> dict[str, Tensor]:
    """See [`BatchStatistics`].

    Args:
        contrast: similarities [B, columns], divided by the temperature.
        temperature: [] or [1].
        image_ids: [B], equal for the same image.
    """
    rows = torch.arange(contrast.sim_i2t.shape[0], device=contrast.sim_i2t.device)
    own = slice(contrast.batch_start, contrast.batch_start + len(rows))
    same = rows[:, None] == rows
    if image_ids is not None:
        same = same | (image_ids[:, None] == image_ids)
    # [2, B, B]: both ways.
    similarity = torch.stack([contrast.sim_i2t[:, own], contrast.sim_t2i[:, own]]).float() * temperature.float()
    positive = similarity.diagonal(dim1=1, dim2=2)
    hardest = similarity.masked_fill(same, -torch.inf).amax(dim=2)
    exists = hardest.isfinite()
    return {
        "positive_similarity": positive.mean(),
        "hardest_negative_similarity": hardest.where(exists, 0.0).sum() / exists.sum().clamp(min=1),
        "contrast_accuracy": (positive > hardest).float().mean(),
    }
