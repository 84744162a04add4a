import pytest
from accelerate_state import forget_accelerator


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its settings in process-wide state, which would leak from one test into the next."""
    yield
    forget_accelerator()
