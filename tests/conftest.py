"""What every test shares: one thread, one seed, and property tests that draw the same examples every time."""

import hypothesis
import pytest
import torch

torch.set_num_threads(1)  # the suite runs one worker a core
hypothesis.settings.register_profile("nbcompile", deadline=None, derandomize=True, max_examples=100, database=None)
hypothesis.settings.load_profile("nbcompile")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Networks that a module builds when it is imported are the same in every run, whatever else is collected."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)
