"""Order of the samples in batches: a function of seed, epoch and step alone, whatever the number of workers."""

from dataclasses import dataclass

import numpy as np


# Size of a stream, whose samples nobody has counted.
ENDLESS = 2**62


@dataclass(frozen=True)
class DataOrder:
    """The order of the samples in every epoch of a run.

    An epoch is one permutation of the dataset, cut into optimiser steps of equal size; what does not fill the last
    step waits for the next epoch's permutation. A dataset smaller than one step is repeated until the step is full.

    Args:
        dataset_size: samples of the dataset.
        batch_size: samples that one process sees in one forward pass.
        gradient_accumulation_steps: forward passes of one optimiser step.
        num_processes: processes that train together.
        seed: of the permutations.
    """

    dataset_size: int
    batch_size: int
    gradient_accumulation_steps: int
    num_processes: int
    seed: int

    def __post_init__(self):
        if self.dataset_size < 1:
            raise ValueError("the training dataset is empty: check the annotation files of `data.train`.")

    @property
    def samples_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation_steps * self.num_processes

    def changes_since(self, before: "DataOrder") -> list[str]:
        """A line for each cause why the steps of two runs do not have the same samples; none where they have.

        The batch size, the accumulation and the number of processes may differ as long as their product is the same.
        """
        changes = [
            f"{name} was {getattr(before, name)!r} and is {getattr(self, name)!r}"
            for name in ("dataset_size", "seed")
            if getattr(before, name) != getattr(self, name)
        ]
        if before.samples_per_step != self.samples_per_step:
            changes.append(
                f"the samples of a step were {before._product()} and are {self._product()} "
                "(batch_size x gradient_accumulation_steps x num_processes; the product must stay the same)"
            )
        return changes

    def _product(self) -> str:
        factors = f"{self.batch_size} x {self.gradient_accumulation_steps} x {self.num_processes}"
        return f"{factors} = {self.samples_per_step}"

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.dataset_size // self.samples_per_step)

    def batches(self, epoch: int, process_index: int, first_step: int = 0) -> list[list[int]]:
        """Dataset indices of each forward pass that `process_index` runs in `epoch`, from optimiser step `first_step` on."""
        permutation = np.random.default_rng([self.seed, epoch]).permutation(self.dataset_size)
        used = np.resize(permutation, self.steps_per_epoch * self.samples_per_step)
        # Neighbours in the permutation share a forward pass: [steps, accumulation, processes, batch].
        grid = used.reshape(-1, self.gradient_accumulation_steps, self.num_processes, self.batch_size)
        return grid[first_step:, :, process_index].reshape(-1, self.batch_size).tolist()
