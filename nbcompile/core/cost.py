"""What a network costs: multiply-accumulates and parameters, layer by layer.

The model is run once and the operators that PyTorch really executes are counted, so functional calls, shared
layers and attention are in, and auxiliary heads that the eval run never reaches are not. MACs are those of
convolutions, linear layers and matrix products (attention's q·kᵀ and attn·v included, causal or not); FLOPs are
2 × MACs. Norms, biases and unread parameters have columns of their own.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nbcompile.core.copies import working_copy
from nbcompile.core.errors import UsageError
from nbcompile.core.example import ExampleInput, inputs_for
from nbcompile.core.macs import NORMS, CountedRun, watch_run
from nbcompile.core.running import seldom_collected
from nbcompile.core.wrappers import unwrap


@dataclass(frozen=True)
class LayerCost:
    """One module that has parameters of its own, or ran operators of its own.

    Attributes:
        name: qualified name in the model; empty for the model itself (functional calls in its ``forward``).
        kind: class name.
        macs: multiply-accumulates per sample, over all calls.
        params: elements of its own parameters; one shared with an earlier layer is counted there.
        norm_params: those of ``params`` that belong to a norm.
        bias_params: those of ``params`` that are biases, norms' excepted.
        norm_elements: elements that a norm outputs per sample, over all calls.
        calls: how often it ran.
    """

    name: str
    kind: str
    macs: int
    params: int
    norm_params: int
    bias_params: int
    norm_elements: int
    calls: int


@dataclass(frozen=True)
class Cost:
    """The cost of a model; every total is the sum of its layers'.

    Attributes:
        layers: in the order of ``model.named_modules()``.
        unread_params: elements of parameters that the eval run never reads (auxiliary heads).
        stored: numbers that the eval run reads and that depend on no input: parameters, buffers, and constants that
            ``forward`` makes; no sum over layers.
    """

    layers: tuple[LayerCost, ...]
    unread_params: int
    stored: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        """2 × MACs."""
        return 2 * self.macs

    @property
    def params(self) -> int:
        """Elements of all parameters, norms included, each shared tensor once."""
        return sum(layer.params for layer in self.layers)

    @property
    def norm_params(self) -> int:
        """Elements of the parameters of norms."""
        return sum(layer.norm_params for layer in self.layers)

    @property
    def bias_params(self) -> int:
        """Elements of biases, norms' excepted."""
        return sum(layer.bias_params for layer in self.layers)

    @property
    def norm_elements(self) -> int:
        """Elements that norms output per sample."""
        return sum(layer.norm_elements for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Totals and layers in plain JSON types."""
        totals = ("macs", "flops", "params", "norm_params", "bias_params", "norm_elements", "unread_params")
        return {key: getattr(self, key) for key in totals} | {"layers": [asdict(layer) for layer in self.layers]}


@seldom_collected()
def cost(model: nn.Module, example_input: ExampleInput | None = None) -> Cost:
    """Count ``model`` in eval mode on the first sample of ``example_input``.

    The model is left as it was: modes, buffers and random state included.

    Args:
        model: any module; its parameters may live on any device, ``meta`` included.
        example_input: one tensor or a tuple of them, batch first; None where the model remembers it. A list of tensors
            among them (a detector's images) is taken whole, as one sample.

    Raises:
        UsageError: if there is no example input, its batch is empty, or the model does not run on it.
        PreconditionError: if the model has lazy parameters that have no shape yet.
    """
    model = working_copy(unwrap(model))
    whole = inputs_for(model, example_input, who="cost")
    inputs = tuple(x[:1] if isinstance(x, Tensor) and x.ndim else x for x in whole)
    tensors = tree_leaves(inputs)
    shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
    if any(x.numel() == 0 for x in tensors):
        raise UsageError(f"cost needs at least one sample; the first of the example input has shape {shapes}")
    try:
        run = watch_run(model, inputs)
    except Exception as error:
        kind, what = type(model).__name__, type(error).__name__
        raise UsageError(f"cost could not run {kind} on an input of shape {shapes}: {what}: {error}") from error
    unread = sum(p.numel() for p in model.parameters() if not run.read(p))
    return Cost(tuple(_layers(model, run)), unread, run.stored)


def _layers(model: nn.Module, run: CountedRun) -> Iterator[LayerCost]:
    """Modules with parameters or operators of their own; a shared parameter is its first owner's."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = {key: p for key, p in module.named_parameters(recurse=False) if id(p) not in seen}
        seen.update(map(id, own.values()))
        params = sum(p.numel() for p in own.values())
        norm = isinstance(module, NORMS)
        if params or run.macs[name] or run.norm_elements[name]:
            yield LayerCost(
                name=name,
                kind=type(module).__name__,
                macs=run.macs[name],
                params=params,
                norm_params=params if norm else 0,
                bias_params=0 if norm else sum(p.numel() for key, p in own.items() if "bias" in key and p.ndim == 1),
                norm_elements=run.norm_elements[name],
                calls=run.calls[name],
            )
