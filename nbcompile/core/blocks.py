"""The module that stands in a giant for one layer of the original: an expansion block.

A block is a chain of stages (layer, norm, linearisable activation) and a last layer; with ``preserve`` the original
layer stays beside it, and the chain's output goes through one more norm before the sum. Once the slope is 1 the whole
block is one affine map, :meth:`Expanded.merged`, and a *collapsed* block trains in weight space: the map is composed
from its parameters at every call, and the feature map sees one layer.

Source: NetBooster (arXiv 2306.13586) sec. 3.3 and 4.1; Table 4 for the kinds. Weight space: OREPA (Hu et al. 2022,
arXiv 2204.00826), SESR (Bhardwaj et al. 2022, arXiv 2103.09404).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nbcompile.core import record
from nbcompile.core.activations import Activation, linearised
from nbcompile.core.algebra import AffineMap, add, compose
from nbcompile.core.channelwise.pointwise import as_product
from nbcompile.core.channelwise.runs import run_ends, run_stages
from nbcompile.core.copies import copied
from nbcompile.core.errors import CheckpointError
from nbcompile.core.layers import LayerSpec, Scale, Template, lift, memory_format, stored_weight
from nbcompile.core.site_spec import SiteSpec, planned_layers

fx.wrap("linearised")  # a leaf for every tracer, so that a block can be traced into

SLOPE_ROUNDING = 1e-6
"""How far from 1 a slope may be and count as 1: averaging classes blend 1.0 with 1.0 in float32 and round."""

_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Stage(nn.Module):
    """An inserted layer, what normalises it, and its activation at the block's slope."""

    def __init__(self, layer: nn.Module, norm: nn.Module | None, activation: Activation) -> None:
        super().__init__()
        self.layer = layer
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """``(N, C, *spatial)`` to ``(N, hidden, *spatial')``."""
        compiling = torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
        return self.bent(as_product(self.layer, x) if compiling else self.layer(x), slope)

    def bent(self, y: Tensor, slope: Tensor) -> Tensor:
        """What follows the layer."""
        if self.norm is not None:
            y = self.norm(y)
        return linearised(y, slope, self.activation.name, self.activation.parameter)

    def extra_repr(self) -> str:
        """The activation, which is no child."""
        return f"activation={self.activation.name}"


class Expanded(nn.Module):
    """An expansion block in the place of one layer.

    It offers the hyper-parameters of that layer (``in_channels``, ``kernel_size``, …), but no ``weight``.

    Args:
        spec: what to build.
        layer: the layer it replaces: gives dtype, device and memory format, and with ``spec.preserve`` stays.

    Attributes:
        slope: 0-dim buffer, 0 (activations as they were) to 1 (linear).
        ramp: buffer ``(step, start, steps)`` of the schedule that set the slope, in optimiser steps; zeros before.
        loads: how often a state_dict was loaded; tells PLT to read ``ramp`` again.
        collapsed: whether it computes as one layer, in train mode, too: the inner norms are then constants as in eval
            mode. Set by ``collapse_``, in no state_dict; loading a slope below 1 ends it.
    """

    slope: Tensor
    ramp: Tensor

    def __init__(self, spec: SiteSpec, layer: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        weight = cast(Tensor, layer.weight)
        self.stages = nn.ModuleList()
        *inner, last = planned_layers(spec)
        for planned in inner:
            self.stages.append(Stage(planned.build(weight), _norm(spec, planned, weight), spec.activation))
        self.last = last.build(weight)
        self.last_norm: nn.Module | None = None
        self.original: nn.Module | None = None
        if spec.preserve:
            self.original = layer
            self.last_norm = _norm(spec, last, weight) if spec.inner == "norm" else None
            nn.init.zeros_(cast(Tensor, (self.last_norm or self.last).weight))
        self.register_buffer("slope", torch.zeros((), device=weight.device))
        self.register_buffer("ramp", torch.zeros(3, dtype=torch.int64, device=weight.device))
        self.loads = 0
        self.collapsed = False
        self._template = Template(layer)
        self._record = record.encode_record({"site": spec.to_json()})
        self.train(layer.training)
        for module in (self.stages, self.last, self.last_norm):
            if module is not None:
                module.requires_grad_(weight.requires_grad)
        for name, value in _offered(spec.layer).items():
            setattr(self, name, value)
        if memory_format(weight) is not torch.contiguous_format:
            self.to(memory_format=memory_format(weight))

    @property
    def linear(self) -> bool:
        """Whether the slope is 1, up to the rounding of averages."""
        return abs(1.0 - float(self.slope)) <= SLOPE_ROUNDING

    def forward(self, x: Tensor) -> Tensor:
        """As the layer it replaces."""
        if self.collapsed and not isinstance(cast(object, x), fx.Proxy):  # a tracer is shown the layers
            return self.as_one_layer(x)
        y = run_stages(self.stages, x, self.slope)
        return run_ends(self.last, self.last_norm, self.original, y, x)

    def as_one_layer(self, x: Tensor) -> Tensor:
        """The merged layer on ``x``: what a collapsed block computes.

        Autocast is for feature maps: the weight is composed in float32 at least.
        """
        own = cast(Tensor, self.last.weight).dtype
        with _no_autocast(x.device.type):
            whole = self.merged(torch.promote_types(own, torch.float32))
            weight, bias = stored_weight(whole).to(own), None if whole.bias is None else whole.bias.to(own)
            weight = weight.reshape(-1).view(weight.shape)  # strides of a 1×1 kernel can say channels-last by chance
        like = self._template.layer
        if isinstance(like, _ConvTransposeNd):
            convolve = _TRANSPOSED[self.spec.layer.axes]
            more = (like.stride, like.padding, like.output_padding, like.groups, like.dilation)
            return convolve(x, weight, bias, *more)
        if isinstance(like, _ConvNd):
            return like._conv_forward(x, weight, bias)
        return F.linear(x, weight, bias)

    def merged(self, dtype: torch.dtype = torch.float64) -> AffineMap:
        """The block as one affine map, as it is at slope 1 in eval mode (reference: module algebra).

        Args:
            dtype: of the computation; differentiable with respect to the block's parameters.
        """
        axes = self.spec.layer.axes
        chain = [lift(module, dtype, axes) for module in self._chain()]
        whole = chain[0]
        for part in chain[1:]:
            whole = compose(whole, part)
        return whole if self.original is None else add(lift(self.original, dtype, axes), whole)

    def _chain(self) -> Iterator[nn.Module]:
        for stage in self.stages:
            yield from (m for m in (stage.layer, stage.norm) if isinstance(m, nn.Module))
        yield from (m for m in (self.last, self.last_norm) if m is not None)

    def layer(self) -> nn.Module:
        """A layer of the original's class and hyper-parameters, on the block's device; its weights are not set."""
        weight = cast(Tensor, self.last.weight)
        fresh = copy.deepcopy(self._template.layer).to(weight.dtype).to_empty(device=weight.device)
        return fresh.train(self.training)

    def attach_record(self, payload: dict[str, Any]) -> None:
        """Let the block carry ``payload`` beside its own spec, constant from now on."""
        self._record = record.encode_record({"site": self.spec.to_json(), **payload})

    @classmethod
    def from_record(
        cls, value: Tensor, where: str, layer: nn.Module | None = None, known: dict[SiteSpec, "Expanded"] | None = None
    ) -> "Expanded":
        """The block that wrote ``value`` as its extra state, with the same record; its weights are not set.

        Args:
            value: the extra state.
            where: its key, named in errors.
            layer: the layer it replaces; None makes one of the recorded hyper-parameters.
            known: a block of each kind, of which the one that is returned is a copy; it gets those that it lacks.

        Raises:
            CheckpointError: if it is no record of a block.
        """
        data = record.decode_record(value, where)
        try:
            spec = SiteSpec.from_json(data["site"])
            block = cls(spec, layer or spec.layer.build()) if known is None else cls._twin(spec, known)
        except Exception as error:
            raise CheckpointError(f"the record '{where}' is of no block: {type(error).__name__}: {error}") from None
        block._record = record.as_bytes(value)
        return block

    @classmethod
    def _twin(cls, spec: SiteSpec, known: dict[SiteSpec, "Expanded"]) -> "Expanded":
        kind = spec.kind
        if kind not in known:
            known[kind] = cls(kind, kind.layer.build())
        block = cast(Expanded, copied(known[kind]))
        block.spec = spec
        return block

    def get_extra_state(self) -> Tensor:
        """The record, as a fresh uint8 tensor: who averages state_dicts in place must not reach our bytes."""
        return self._record.clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Check that a loaded record is one of this very block; our own bytes stay.

        Raises:
            CheckpointError: if the loaded block was expanded in another way.
        """
        if state.shape == self._record.shape and torch.equal(record.as_bytes(state), self._record):
            return
        theirs = record.decode_record(state, "_extra_state").get("site")
        ours = record.decode_record(self._record, "_extra_state")["site"]
        if theirs != ours:
            differing = sorted(k for k in ours if not isinstance(theirs, dict) or theirs.get(k) != ours[k])
            raise CheckpointError(
                f"the loaded block differs from this one in {', '.join(differing)}: expand the model with the same "
                "options as the one that was saved"
            )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.loads += 1
        self.collapsed = self.collapsed and self.linear

    def extra_repr(self) -> str:
        """What was expanded, and how."""
        collapsed = ", collapsed" if self.collapsed else ""
        return f"block={self.spec.block}, ratio={self.spec.ratio}, preserve={self.spec.preserve}{collapsed}"


def sites(model: nn.Module) -> dict[str, Expanded]:
    """The expansion blocks of ``model`` by name, in the order of its modules; an aliased block once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Expanded)}


def absorbers_of(site: str, block: Expanded) -> tuple[str, ...]:
    """The running means that are to take the shift of ``block``: their keys in the network that has it at ``site``."""
    prefix = site.removesuffix(block.spec.name)  # the network may be inside of another
    return tuple(prefix + key for key in block.spec.absorbers)


def check_absorbers(model: nn.Module) -> None:
    """Check that every running mean that is to take a shift is there.

    Raises:
        CheckpointError: if not.
    """
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name, block in sites(model).items():
        for key in absorbers_of(name, block):
            mean = buffers.get(key)
            if mean is None or mean.shape != (block.spec.layer.outputs,):
                raise CheckpointError(f"the block '{name}' needs the running mean '{key}', which is not there")


def _norm(spec: SiteSpec, after: LayerSpec, like: Tensor) -> nn.Module | None:
    if spec.inner == "scale":
        return Scale(after.outputs, spec.layer.axes).to(like)
    if spec.inner != "norm":
        return None
    cls = nn.SyncBatchNorm if spec.sync else _NORMS[spec.layer.axes]
    return cls(after.outputs, spec.eps, spec.momentum, device=like.device, dtype=like.dtype)


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if _has_autocast(device) else nullcontext()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch 2.9 cannot compile the question
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def _offered(layer: LayerSpec) -> dict[str, Any]:
    if layer.kind == "Linear":
        return {"in_features": layer.inputs, "out_features": layer.outputs}
    return {
        "in_channels": layer.inputs,
        "out_channels": layer.outputs,
        "kernel_size": layer.kernel,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "padding_mode": layer.padding_mode,
        **({"output_padding": layer.output_padding} if layer.transposed else {}),
    }
