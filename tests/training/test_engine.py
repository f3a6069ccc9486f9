"""Accelerators that are not there are named, whatever Lightning raises for want of them."""

import pytest

from nbcompile import UsageError
from nbcompile.training.engine import start_fabric
from nbcompile.training.options.config import TrainConfig


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tpu", r"^accelerator 'tpu' with 1 devices: .*torch_xla"),
        ("abacus", r"^accelerator 'abacus' with 1 devices: You selected an invalid accelerator name"),
    ],
)
def test_accelerators_that_are_not_there(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        start_fabric(TrainConfig(accelerator=name))
    assert "\n" not in str(caught.value)
