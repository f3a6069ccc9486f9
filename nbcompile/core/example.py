"""Example inputs: what a model is run on, and how a model remembers it.

A model that nbcompile returns (a giant, a loaded checkpoint, what ``fuse`` gives back) remembers the shapes and
dtypes of its inputs in one plain attribute, outside its state_dict.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nbcompile.core.errors import UsageError

Inputs = tuple[Any, ...]
"""The positional inputs of ``forward``: tensors, or lists, tuples and dicts of tensors (a detector's images)."""

ExampleInput = Tensor | Sequence[Any]

_ATTRIBUTE = "_nbcompile_origin"


@dataclass(frozen=True)
class TensorSpec:
    """Shape (first dimension: the batch) and dtype of one input."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Origin:
    """What a model remembers about itself.

    Attributes:
        inputs: one spec per positional input of ``forward``; for a structure of tensors, that structure of specs.
        model: the MODEL string it was built from (``nbcompile:mcunet``), if known.
        preprocessing: how images become inputs (mean, std, size), if known; and of a detector what its maps mean
            (``boxes``).
        int8: the ranges that quantization-aware training found, which belong to these very weights; empty where there
            was none.
    """

    inputs: tuple[Any, ...]
    model: str | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    int8: dict[str, Any] = field(default_factory=dict)


def origin_of(model: nn.Module) -> Origin | None:
    """What ``model`` remembers, or None."""
    return getattr(model, _ATTRIBUTE, None)


def remember(model: nn.Module, origin: Origin | None) -> None:
    """Let ``model`` remember ``origin``; no key of its state_dict changes."""
    if origin is not None:
        object.__setattr__(model, _ATTRIBUTE, origin)


def as_inputs(example_input: ExampleInput) -> Inputs:
    """One tensor or several inputs as the tuple of positional inputs.

    An input that is a list itself stands inside: ``([image, image],)``.

    Raises:
        UsageError: if it is neither a tensor nor a non-empty list or tuple of tensors and structures of them.
    """
    if isinstance(example_input, Mapping):
        raise UsageError(
            "example_input is a dict, and inputs are given by position: give a tuple in the order of forward's "
            "parameters; what it takes by keyword alone needs a forward around it that passes it on"
        )
    inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    leaves = tree_leaves(inputs)
    if not leaves or not all(isinstance(x, Tensor) for x in leaves):
        kinds = ", ".join(type(x).__name__ for x in leaves) or "nothing"
        raise UsageError(f"example_input must be a tensor or a tuple of tensors, not ({kinds})")
    return inputs


def change_tensors(change: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """``inputs`` with every tensor changed."""
    changed: Inputs = tree_map(change, inputs)
    return changed


def specs(inputs: Inputs) -> tuple[Any, ...]:
    """Shapes and dtypes of ``inputs``, in their structure."""
    tree: tuple[Any, ...] = tree_map(lambda x: TensorSpec(tuple(x.shape), x.dtype), inputs)
    return tree


def inputs_for(model: nn.Module, example_input: ExampleInput | None, *, who: str) -> Inputs:
    """``example_input`` as a tuple, or random inputs of the shapes that ``model`` remembers.

    Args:
        model: the model that will be run; the inputs get the device of its first parameter, and its dtype
            where they are floating point.
        example_input: None where the model remembers.
        who: the verb that needs it, named in the error.

    Raises:
        UsageError: if there is neither an example nor a memory of one.
    """
    if example_input is not None:
        return _placed(as_inputs(example_input), model)
    origin = origin_of(model)
    if origin is None:
        raise UsageError(
            f"{who} needs an example_input: {type(model).__name__} does not remember the shape of its inputs "
            f"(giants, loaded checkpoints and what fuse returns do)"
        )
    return _placed(random_inputs(origin.inputs), model)


def random_inputs(wanted: Sequence[Any], *, seed: int = 0, batch: int | None = None) -> Inputs:
    """Seeded inputs of the given shapes: standard normal if floating point, else zeros and ones (False and True).

    Integers are indices as a rule: 0 and 1 fit every table of two rows, and tell two rows apart.

    Args:
        wanted: one spec per input, or a structure of specs.
        seed: of the generator; the global one is left alone.
        batch: replaces the first dimension of every input that is a tensor; a list of images is a batch by itself.
    """
    generator = torch.Generator().manual_seed(seed)

    def make(spec: TensorSpec) -> Tensor:
        if spec.dtype.is_floating_point:
            return torch.randn(spec.shape, generator=generator).to(spec.dtype)
        return torch.randint(0, 2, spec.shape, generator=generator).to(spec.dtype)

    def batched(spec: Any) -> Any:
        if batch is not None and isinstance(spec, TensorSpec) and spec.shape:
            return TensorSpec((batch, *spec.shape[1:]), spec.dtype)
        return spec

    return tuple(tree_map(make, batched(spec)) for spec in wanted)


def spec_to_json(spec: Any) -> Any:
    """A spec as ``[shape, dtype]``, a structure of them as lists and dicts."""
    if isinstance(spec, TensorSpec):
        return [list(spec.shape), str(spec.dtype).removeprefix("torch.")]
    if isinstance(spec, dict):
        return {str(key): spec_to_json(value) for key, value in spec.items()}
    return [spec_to_json(value) for value in spec]


def _placed(inputs: Inputs, model: nn.Module) -> Inputs:
    parameter = next(model.parameters(), None)
    if parameter is None:
        return inputs
    device, dtype = parameter.device, parameter.dtype if parameter.dtype.is_floating_point else None
    return change_tensors(lambda x: x.to(device, dtype if x.dtype.is_floating_point else None), inputs)
