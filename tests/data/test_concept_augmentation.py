from collections import Counter

import numpy as np
import pytest

from vicha_hf.data.concept_augmentation import sample_concepts


WORDS = [f"word{number}" for number in range(15)]


@pytest.mark.parametrize(("length", "expected"), [(0, 0), (1, 1), (3, 1), (7, 2), (10, 3), (15, 4)])
def test_number_of_concepts(length, expected):
    drawn = sample_concepts(WORDS[:length], 0.3, np.random.default_rng(0))
    assert len(drawn) == expected


def test_draws_without_replacement_and_every_word_equally_often():
    rng = np.random.default_rng(1)
    counts = Counter()
    for _ in range(3000):
        drawn = sample_concepts(WORDS, 0.3, rng)
        assert len(set(drawn)) == len(drawn) == 4
        counts.update(drawn)
    assert set(counts) == set(WORDS)
    # 800 expected, standard deviation 24.
    assert all(abs(count - 3000 * 4 / 15) < 120 for count in counts.values())


def test_floating_point_does_not_lose_a_concept():
    assert len(sample_concepts([str(number) for number in range(100)], 0.29, np.random.default_rng(0))) == 29


def test_all_concepts_keep_their_order():
    assert sample_concepts(WORDS, 1.0, np.random.default_rng(0)) == WORDS


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
def test_bad_fraction(fraction):
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        sample_concepts(WORDS, fraction, np.random.default_rng(0))
