"""What the tests of the models run under."""

import pytest
import torch


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """
    Fresh memory usually holds harmless numbers, so that a result which depends on it is wrong only now and then. Here
    torch fills it with NaN.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
