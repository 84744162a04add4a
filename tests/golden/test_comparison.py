"""The golden comparison must be able to fail."""

import pytest
import torch
from comparison import Comparison


def differences(expected, observed, **kwargs):
    comparison = Comparison(**kwargs)
    comparison.tensors(expected, observed)
    return comparison.differences


def test_equal_tensors_pass_and_are_counted():
    comparison = Comparison()
    comparison.tensors({"a": torch.ones(3), "b": torch.tensor([2.0])}, {"a": torch.ones(3), "b": torch.tensor(2.0)})
    comparison.check()
    assert comparison.compared == 2


@pytest.mark.parametrize(
    "observed",
    [
        torch.tensor([1.0, 2.0, 3.001]),
        torch.tensor([1.0, 2.0, float("nan")]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([[1.0, 2.0, 3.0]]),
    ],
    ids=["relative 3e-4", "nan", "length", "shape"],
)
def test_a_difference_is_reported(observed):
    assert len(differences({"a": torch.tensor([1.0, 2.0, 3.0])}, {"a": observed})) == 1


def test_small_tensors_get_a_small_tolerance():
    assert differences({"a": torch.full((2,), 1e-4)}, {"a": torch.full((2,), 1.01e-4)})


def test_a_key_without_counterpart_fails_unless_listed():
    assert differences({"a": torch.ones(1)}, {}) == ["a: nothing to compare it with"]
    assert not differences({"a": torch.ones(1)}, {}, without_counterpart={"a": "a reason"})


def test_comparing_nothing_fails():
    with pytest.raises(AssertionError, match="nothing was compared"):
        Comparison().check()


def test_float64_excuses_rounding_of_key_projections_and_nothing_else():
    key, other = "grad.encoder.self.key.weight", "grad.encoder.self.query.weight"
    exact = torch.tensor([1e-5, -2e-5], dtype=torch.float64)
    golden, ours, wrong = (exact + torch.tensor(shift) for shift in ([2e-9, -1e-9], [-1e-9, 1e-9], [1e-8, 0.0]))
    for name, expected, differences in ((key, golden, 0), (key, wrong, 1), (other, golden, 1)):
        comparison = Comparison()
        comparison.tensors({name: expected.float()}, {name: ours.float()}, lambda name=name: {name: exact})
        assert len(comparison.differences) == differences
        assert comparison.compared == 1
    comparison = Comparison()
    comparison.tensors({key: golden.float()}, {key: ours.float()})
    assert comparison.differences
