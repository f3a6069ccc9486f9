import pytest
import torch
from torch import nn

from nbcompile.core.errors import PreconditionError
from nbcompile.core.graph.channel_ranges import channel_ranges
from tests.symbolic import capture

NET = capture(nn.Sequential(nn.BatchNorm2d(2), nn.ReLU6(inplace=True), nn.Flatten(), nn.Linear(8, 3), nn.ReLU()).eval())


def test_smallest_and_largest_over_all_batches_before_the_activation_writes() -> None:
    x = torch.zeros(1, 2, 2, 2)
    x[0, 0, 0, 0], x[0, 1, 1, 1] = -3.0, 9.0
    before = {key: value.clone() for key, value in NET.state_dict().items()}
    found = channel_ranges(NET, [(x,), (2 * x,)])
    unit = 1 / (1 + 1e-5) ** 0.5
    assert found["_1"].low.tolist() == pytest.approx([-6 * unit, 0])
    assert found["_1"].high.tolist() == pytest.approx([0, 18 * unit])
    assert found["_4"].low.shape == (3,)
    assert all(torch.equal(value, before[key]) for key, value in NET.state_dict().items())


def test_bad_calibration_sets() -> None:
    with pytest.raises(PreconditionError, match="the calibration set is empty: no activation's range is known"):
        channel_ranges(NET, [])
    with pytest.raises(PreconditionError, match="'_1' is given values that are NaN or infinite on the calibration set"):
        channel_ranges(NET, [(torch.full((1, 2, 2, 2), torch.nan),)])
    with pytest.raises(PreconditionError, match="does not run on the example input"):
        channel_ranges(NET, [(torch.zeros(1, 3, 2, 2),)])
