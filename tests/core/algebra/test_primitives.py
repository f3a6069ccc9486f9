"""The maps that have no weight of their own, against torch's operators."""

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from nbcompile.core.algebra import NotExact, average_pool, frozen_norm, identity, padding_map
from tests.core.algebra.maps import MODES, error, normal, run

LIKE = torch.empty(0, dtype=torch.float64)
SIZES = {1: (7,), 2: (7, 5), 3: (5, 4, 6)}
POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@pytest.mark.parametrize("affine", [True, False])
def test_a_frozen_norm_is_torchs_own(affine: bool) -> None:
    mean, var = normal(4), torch.rand(4, dtype=torch.float64) + 0.1
    gamma, beta = normal(2, 4).unbind() if affine else (None, None)
    x = normal(2, 4, 7, 5)
    wanted = F.batch_norm(x, mean, var, gamma, beta, eps=1e-3)
    assert error(run(frozen_norm(mean, var, gamma, beta, 1e-3, 2), x), wanted) < 1e-12


@pytest.mark.parametrize(("axes", "window", "stride", "padding"), [*product((1, 2, 3), (2, 3), (1, 2), (0, 1))])
def test_an_average_pool_is_torchs_own(axes: int, window: int, stride: int, padding: int) -> None:
    m = average_pool((window,) * axes, (stride,) * axes, ((padding, padding),) * axes, 3, LIKE)
    x = normal(2, 3, *SIZES[axes])
    assert error(run(m, x), POOLS[axes](x, window, stride, padding)) < 1e-12


@pytest.mark.parametrize(("axes", "mode"), [*product((1, 2, 3), MODES)])
def test_padding_is_torchs_own(axes: int, mode: str) -> None:
    padding = ((1, 0), (2, 3), (0, 1))[:axes]
    x = normal(2, 3, *SIZES[axes])
    sides = [side for pads in reversed(padding) for side in pads]
    wanted = F.pad(x, sides, "constant" if mode == "zeros" else mode)
    assert torch.equal(run(padding_map(padding, 3, LIKE, mode), x), wanted)


def test_padding_with_values_and_with_nothing() -> None:
    x = normal(2, 3, 7, 5)
    m = padding_map(((1, 0), (0, 2)), 3, LIKE, value=torch.full((3,), 0.5))
    assert error(run(m, x), F.pad(x, (0, 2, 1, 0), value=0.5)) < 1e-12
    assert m.geometry.filled
    nothing = padding_map(((0, 0), (0, 0)), 3, LIKE, "reflect", torch.ones(3))
    assert nothing.geometry == identity(3, 2, LIKE).geometry
    assert torch.equal(run(nothing, x), x)


def test_padding_with_infinity_is_no_affine_map() -> None:
    with pytest.raises(NotExact, match="it pads with a value that is not finite"):
        padding_map(((1, 1),), 2, LIKE, value=torch.tensor([0.0, -torch.inf]))
