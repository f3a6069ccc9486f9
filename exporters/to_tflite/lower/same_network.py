"""Whether two graphs are one network with other weights: what torch.export makes of them is then the same."""

from typing import Any

from torch import Tensor, fx, nn

_TENSORS = ("_parameters", "_buffers", "_modules")


def differ_in_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two graphs differ in the values of their parameters and buffers, and in nothing else.

    Where that is not certain they are held to differ in more: no more is lost than time.
    """
    if not isinstance(one, fx.GraphModule) or not isinstance(other, fx.GraphModule):
        return False
    if str(one.graph) != str(other.graph):
        return False
    if any(a.target != b.target for a, b in zip(one.graph.nodes, other.graph.nodes, strict=True)):
        return False
    pairs = zip(list(one.named_modules())[1:], list(other.named_modules())[1:], strict=False)
    return _tensors(one) == _tensors(other) and all(a[0] == b[0] and _alike(a[1], b[1]) for a, b in pairs)


def weights_of(graph: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, by all of their names."""
    buffers = dict(graph.named_buffers(remove_duplicate=False))
    return dict(graph.named_parameters(remove_duplicate=False)) | buffers


def _tensors(graph: nn.Module) -> list[Any]:
    """All that is to be seen of weights but their values: which of them are one tensor, too."""
    weights = weights_of(graph)
    first = {id(x): name for name, x in reversed(weights.items())}
    rows = [(name, x.shape, x.stride(), x.dtype, x.requires_grad, first[id(x)]) for name, x in weights.items()]
    return [*rows, sorted(graph.state_dict())]


def _alike(one: nn.Module, other: nn.Module) -> bool:
    if type(one) is not type(other):
        return False
    mine, theirs = ({k: v for k, v in vars(m).items() if k not in _TENSORS} for m in (one, other))
    try:
        return bool(mine == theirs)
    except (RuntimeError, ValueError):  # tensors that are no buffers
        return False
