from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.graph.nodes import render_graph
from nbcompile.core.tracing.capture import capture
from nbcompile.passes import RemoveIdentity
from nbcompile.testing import check_pass

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Every identity of eval mode, a gate that is none, and dropout that stays on in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.drop = nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5), nn.Identity())
        self.alpha = nn.AlphaDropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.alpha(self.drop(self.conv(x)))
        y = F.dropout(y, 0.5, self.training).permute(0, 2, 3, 1).contiguous().view(-1)
        return F.dropout(y, 0.0, True) + 1


def test_removes_and_keeps(golden: Callable[[str, str], None]) -> None:
    result = check_pass(RemoveIdentity(), Net(), X)
    assert result.rewritten == ("drop_0", "drop_1", "drop_2", "alpha", "dropout")
    golden("remove_identity", render_graph(result.gm))


def test_contiguous_stays_because_view_needs_it() -> None:
    gm = RemoveIdentity()(capture(Net().eval(), 1)).gm
    assert [node.target for node in gm.graph.find_nodes(op="call_method")] == ["permute", "contiguous", "view"]


class ToOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.one(x)
        return y, F.relu(self.one(y))


def test_identities_that_are_outputs_or_called_twice() -> None:
    result = check_pass(RemoveIdentity(), ToOutput(), X)
    assert result.rewritten == ("one", "one_1")
    assert not list(result.gm.graph.find_nodes(op="call_module"))


def test_nothing_to_remove() -> None:
    assert not check_pass(RemoveIdentity(), nn.Conv2d(3, 4, 1), X).modified
