"""Number of a visual tokenizer's codes that a corpus uses, and how evenly."""

from dataclasses import dataclass

import torch


@dataclass
class CodeUsage:
    """
    Counts of codes, gathered batch by batch with `add`.

    Attributes:
        counts: occurrences of each code, int64 [V].
    """

    counts: torch.Tensor

    @classmethod
    def empty(cls, vocab_size: int) -> "CodeUsage":
        """Nothing counted yet."""
        return cls(torch.zeros(vocab_size, dtype=torch.int64))

    def add(self, token_ids: torch.Tensor) -> None:
        """Counts code ids of any shape."""
        self.counts += torch.bincount(token_ids.flatten().cpu(), minlength=len(self.counts))

    @property
    def num_used(self) -> int:
        """Codes that occur at all."""
        return int((self.counts > 0).sum())

    @property
    def perplexity(self) -> float:
        """The number of equally frequent codes that would be as hard to guess: 1 (always the same) to V."""
        shares = self.counts[self.counts > 0].double() / self.counts.sum()
        return torch.special.entr(shares).sum().exp().item()

    def summary(self) -> str:
        """One line for people."""
        most = 100 * self.counts.max().item() / max(int(self.counts.sum()), 1)
        return (
            f"{int(self.counts.sum())} tokens, {self.num_used} of {len(self.counts)} codes used, perplexity "
            f"{self.perplexity:.1f}, the most frequent code {most:.1f} %"
        )
