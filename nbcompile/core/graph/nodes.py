"""Reading fx graphs: what a node is, who reads its values, and how a graph looks as text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from nbcompile.core.activations import KNOWN_NAMES, Activation
from nbcompile.core.graph.operators import METADATA_ATTRIBUTES, UNKNOWN, Operator, called, of_module
from nbcompile.core.layers import why_changed


@dataclass(frozen=True)
class Norm:
    """A normalisation node.

    Attributes:
        batch: whether it is of the batch-norm family; the fields below are set only then.
        running_mean: key of its running mean in the state_dict, or None where eval mode does not use one.
        eps: added to the variance.
        momentum: of the running statistics.
        sync: whether it is a SyncBatchNorm.
    """

    batch: bool
    running_mean: str | None = None
    eps: float = 1e-5
    momentum: float | None = 0.1
    sync: bool = False


def module_of(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that ``node`` calls, or None."""
    if node.op != "call_module":
        return None
    module: nn.Module = gm
    for name in cast(str, node.target).split("."):  # as get_submodule, without its checks: passes ask for every node
        module = cast(nn.Module, module._modules[name])
    return module


def operator_of(gm: fx.GraphModule, node: fx.Node) -> Operator:
    """What ``node`` computes; ``UNKNOWN`` where its module may compute something else than its class does."""
    return _operator(node, module_of(gm, node))


def _operator(node: fx.Node, module: nn.Module | None) -> Operator:
    if module is None:
        return called(node)
    return UNKNOWN if why_changed(module) else of_module(module)


def layer_of(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The convolution or linear layer that ``node`` calls, or None."""
    module = module_of(gm, node)
    return module if isinstance(module, (_ConvNd, nn.Linear)) else None


def norm_of(gm: fx.GraphModule, node: fx.Node) -> Norm | None:
    """The normalisation that ``node`` computes, as a module or as a function, or None."""
    module = module_of(gm, node)
    if not _operator(node, module).norm:
        return None
    if isinstance(module, _BatchNorm):
        tracked = None if module.running_mean is None else f"{node.target}.running_mean"
        sync = isinstance(module, nn.SyncBatchNorm)
        return Norm(True, tracked, module.eps, module.momentum, sync)
    if node.target is F.batch_norm:
        mean = argument(node, 1, "running_mean")
        fixed = isinstance(mean, fx.Node) and mean.op == "get_attr" and not argument(node, 5, "training", False)
        tracked = str(mean.target) if fixed else None
        eps, momentum = argument(node, 7, "eps", 1e-5), argument(node, 6, "momentum", 0.1)
        return Norm(True, tracked, float(eps), None if momentum is None else float(momentum))
    return Norm(False)


def activation_of(gm: fx.GraphModule, node: fx.Node) -> Activation | str | None:
    """The activation that ``node`` computes: one that can be linearised, else its class name, else None."""
    module = module_of(gm, node)
    does = _operator(node, module)
    if module is not None:
        return (Activation.of(module) or type(module).__name__) if does.activation else None
    match does.name:
        case "leaky_relu":
            slope = argument(node, 1, "negative_slope", 0.01)
            plain = isinstance(slope, (int, float)) and slope >= 0
            return Activation("leaky_relu", float(slope)) if plain else f"leaky_relu of slope {slope}"
        case "gelu":
            return Activation("gelu", str(argument(node, 1, "approximate", "none")))
        case "hardtanh":
            limits = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
            return _CLAMPS.get(limits, "hardtanh")
        case "clamp":  # others are limits, not activations
            return _CLAMPS.get((argument(node, 1, "min"), argument(node, 2, "max")))
        case name if does.activation:
            return Activation(name) if name in KNOWN_NAMES else name
    return None


_CLAMPS = {(0, 6): Activation("relu6"), (0, None): Activation("relu")}


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of ``node``, however it was passed."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def readers(node: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes that read the *values* of ``node``; asking for its shape or dtype is no reading."""
    return tuple(user for user in node.users if not asks_metadata(user))


def passes_through(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` is the identity in eval mode."""
    if not operator_of(gm, node).identity:
        return False
    return node.op != "call_function" or not argument(node, 2, "training", True)


def settled(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """``node``, or the last of the identities that alone read it."""
    while len(who := readers(node)) == 1 and passes_through(gm, who[0]):
        node = who[0]
    return node


def after(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The only reader of ``node``, seen through identities; None where there are several or none."""
    who = readers(settled(gm, node))
    return who[0] if len(who) == 1 else None


def downstream(nodes: list[fx.Node], *, up: bool = False) -> Iterator[fx.Node]:
    """All nodes that ``nodes`` reach (or, with ``up``, that reach them), nearest first."""
    seen, frontier = set(nodes), list(nodes)
    while frontier:
        reached = []
        for node in frontier:
            for other in node.all_input_nodes if up else readers(node):
                if other not in seen:
                    seen.add(other)
                    reached.append(other)
                    yield other
        frontier = reached


def calls(gm: fx.GraphModule) -> dict[nn.Module, list[fx.Node]]:
    """The nodes that call each leaf module, whatever name they call it by."""
    callers: dict[nn.Module, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if module is not None:
            callers.setdefault(module, []).append(node)
    return callers


def aliases(model: nn.Module, module: nn.Module) -> tuple[str, ...]:
    """Every qualified name of ``module`` in ``model``; the first is the one named_modules gives."""
    return tuple(name for name, m in model.named_modules(remove_duplicate=False) if m is module)


def render_graph(gm: fx.GraphModule) -> str:
    """The graph as text, one node a line: what dumps and golden files hold."""
    lines = []
    for node in gm.graph.nodes:
        inputs = ", ".join(str(n) for n in node.all_input_nodes)
        module = module_of(gm, node)
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
        what = f"{target}: {module}" if module is not None else f"{node.op} {target}"
        lines.append(f"{node.name} = {what} ({inputs})")
    return "\n".join(lines) + "\n"


def asks_metadata(node: fx.Node) -> bool:
    """Whether ``node`` asks for a shape, a dtype or a device, and reads no values."""
    return called(node).metadata or (node.target is getattr and node.args[1] in METADATA_ATTRIBUTES)
