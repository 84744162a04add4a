"""Draws from a seed: repeatable, different from one to the next, and distributed as they say."""

import pytest
import torch

from vicha_hf.models.random_draws import Draws


CPU = torch.device("cpu")


def seeded(number=12345678901):
    return Draws(torch.tensor(number))


def test_a_seed_gives_the_same_numbers_and_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    first, second = seeded(), seeded()
    for draws in (first, second):
        draws.numbers = [draws.uniform((3, 5), CPU), draws.integers(1000, (7,), CPU), draws.exponential((4,), CPU)]
    assert all(map(torch.equal, first.numbers, second.numbers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("other", [12345678902, -12345678901, 12345678901 + 2**32, 12345678901 - 2**63])
def test_other_seeds_and_later_draws_are_others(other):
    draws = seeded()
    numbers = [draws.integers(2**32, (1000,), CPU) for _ in range(2)] + [seeded(other).integers(2**32, (1000,), CPU)]
    for one in range(3):
        for another in range(one):
            assert (numbers[one] == numbers[another]).sum() == 0
            pair = torch.stack([numbers[one], numbers[another]]).double()
            # Of independent numbers 0 within 1 / sqrt(1000), five times over.
            assert torch.corrcoef(pair)[0, 1].abs() < 0.16


def test_uniform_numbers_fill_the_interval():
    numbers = seeded().uniform((400, 500), CPU)
    assert numbers.min() > 0 and numbers.max() < 1
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    # Chi-squared of 99 degrees of freedom: mean 99, standard deviation 14.
    assert 99 - 5 * 14 < ((counts - 2000) ** 2 / 2000).sum() < 99 + 5 * 14
    neighbours = torch.corrcoef(torch.stack([numbers.flatten()[:-1], numbers.flatten()[1:]]))[0, 1]
    assert neighbours.abs() < 5 / 200_000**0.5


def test_choices_are_in_proportion_and_never_of_nothing():
    weights = torch.tensor([0.0, 0.1, 0.6, 0.0, 0.3]).expand(100_000, -1)
    share = torch.bincount(seeded().choices(weights), minlength=5) / 100_000
    torch.testing.assert_close(share, weights[0], atol=0.008, rtol=0)
    assert share[0] == share[3] == 0


def test_without_a_seed_the_numbers_are_torchs():
    torch.manual_seed(3)
    weights = torch.rand(6, 4)
    torch.manual_seed(7)
    expected = [
        torch.rand(2, 3),
        torch.randint(9, (4,)),
        torch.empty(5).exponential_(),
        torch.multinomial(weights, 1)[:, 0],
    ]
    torch.manual_seed(7)
    draws = Draws()
    observed = [
        draws.uniform((2, 3), CPU),
        draws.integers(9, (4,), CPU),
        draws.exponential((5,), CPU),
        draws.choices(weights),
    ]
    assert all(map(torch.equal, observed, expected))
