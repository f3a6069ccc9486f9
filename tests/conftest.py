"""What every test shares: one thread, one seed, the same drawn examples, and a watch on what may not change."""

import gc
import logging
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from tests.slow import mark_listed
from tests.torch_tables import make_tables_once
from tests.unchanged import torch_unchanged, watch_verbs

torch.set_num_threads(1)  # the suite runs one worker a core
logging.getLogger("torch.__trace").propagate = True  # else pytest listens to it, and torch writes down all it traces
hypothesis.settings.register_profile("nbcompile", deadline=None, derandomize=True, max_examples=50, database=None)
hypothesis.settings.load_profile("nbcompile")
watch_verbs()  # before a test module imports them
make_tables_once()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.default_generator.manual_seed(0)  # torch.manual_seed formats the stack for each device that is not there


@pytest.fixture(autouse=True)
def _torch_is_left_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch_unchanged(request.node.name):
        yield


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Networks that a module builds when it is imported are the same in every run, whatever else is collected."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)  # before -m leaves out what is slow
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What `tests.slow` lists is slow."""
    mark_listed(items, whole=not any("::" in arg for arg in config.args))


def pytest_collection_finish() -> None:
    """What was imported stays until the end: the collector need not look at it after every graph."""
    gc.collect()
    gc.freeze()
