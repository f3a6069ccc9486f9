"""What a graph in a file may name: the allow-list.

A record comes from anywhere, so every name in it is looked up here, never imported or walked to. Allowed are torch's
overridable functions (pure functions of tensors) minus a written deny list, lists of functions that make constants and
that write values into a tensor of the graph, a list of ``operator`` functions, ``getattr`` on a few attribute names,
and the functions and modules that torchvision and timm declare as fx leaves.
"""

import inspect
import math
import operator
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.fx import _symbolic_trace

from nbcompile.core.errors import CheckpointError
from nbcompile.core.graph.guards import require_same_choice, require_sizes

ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "T", "mT", "H", "mH", "requires_grad"})

# They draw no random numbers and leave no memory as it was; what they make is counted on `meta` first.
CREATORS = frozenset(
    {
        *("arange", "as_tensor", "eye", "full", "linspace", "ones", "scalar_tensor", "tensor"),
        *("tril_indices", "triu_indices", "zeros"),
    }
)

# They write values, into memory that the tensor has: no other shape or dtype, no other memory, no random numbers.
IN_PLACE = frozenset(
    {
        *("abs_", "add_", "addcdiv_", "addcmul_", "ceil_", "clamp_", "clamp_max_", "clamp_min_", "clip_", "copy_"),
        *("cos_", "div_", "divide_", "exp_", "expm1_", "fill_", "floor_", "floor_divide_", "index_add_"),
        *("index_copy_", "index_fill_", "index_put_", "lerp_", "log1p_", "log_", "masked_fill_", "masked_scatter_"),
        *("mul_", "multiply_", "nan_to_num_", "neg_", "negative_", "pow_", "reciprocal_", "relu_", "remainder_"),
        *("round_", "rsqrt_", "scatter_", "scatter_add_", "sigmoid_", "sign_", "sin_", "sqrt_", "square_", "sub_"),
        *("subtract_", "tanh_", "tril_", "triu_", "true_divide_", "trunc_", "zero_"),
    }
)
ACTIVATIONS_IN_PLACE = ("celu_", "elu_", "hardtanh_", "leaky_relu_", "selu_", "threshold_")
UNLISTED = ("hardsigmoid", "hardswish")
"""Activations that `torch.overrides` leaves out of its list."""

# Functions that reach beyond values (storage, hooks, autograd's own state, serialisation, devices, uninitialised
# memory), draw random numbers whatever the mode, or loop as often as a number says.
DENIED = frozenset(
    {
        *("storage", "untyped_storage", "storage_type", "storage_offset", "data_ptr", "const_data_ptr", "is_set_to"),
        *("is_shared", "is_pinned", "pin_memory", "record_stream", "as_strided", "as_strided_copy"),
        *("as_strided_scatter", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes", "resize"),
        *("register_hook", "register_post_accumulate_grad_hook", "backward", "retain_grad", "module_load"),
        *("resize_as", "put", "numpy", "tolist", "item", "autocast", "hash_tensor", "batch_norm_update_stats"),
        *("cuda", "cpu", "xpu", "ipu", "mtia", "get_device", "to_mkldnn", "empty_like"),
        *("bernoulli", "binomial", "multinomial", "poisson", "gumbel_softmax"),
        *("rand_like", "randint_like", "randn_like"),
        *("lobpcg", "svd_lowrank", "pca_lowrank", "combinations", "mvlgamma", "multigammaln"),
        *("choose_qparams_optimized", "fused_moving_avg_obs_fake_quant"),
    }
)
# Kernels of one vendor or of quantized tensors, most without checks of their own; polynomials loop over their degree.
DENIED_PARTS = ("fbgemm_", "miopen_", "mkldnn", "quantize", "quantized_", "fake_quantize", "polynomial")

# Modules that hold what they are given, are shaped by their first input, or move themselves to devices.
DENIED_MODULES = frozenset(
    {
        *("Module", "Container", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"),
        *("DataParallel", "Transformer", "TransformerEncoder", "TransformerDecoder"),
    }
)

_OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "neg", "pos", "abs", "invert", "index"),
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"),
    *("getitem", "setitem", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "not_", "truth"),
)
_MATH = ("ceil", "floor", "trunc", "sqrt", "log", "log2", "exp", "prod")


def function_name(function: Callable[..., Any]) -> str | None:
    """The name under which ``function`` may stand in a record, or None if it may not."""
    if name := _functions()[1].get(function):
        return name
    name = _qualified(function)
    library = name.partition(".")[0]
    return name if library in ("timm", "torchvision") and _library(library)[0].get(name) is function else None


def function(name: str) -> Callable[..., Any]:
    """The function that a record calls ``name``.

    Raises:
        CheckpointError: if it is not allowed.
    """
    known = _functions()[0].get(name)
    if known is None and (library := name.partition(".")[0]) in ("timm", "torchvision"):
        known = _library(library)[0].get(name)
    if known is None:
        raise CheckpointError(f"the graph calls '{str(name)[:80]}', which no graph in a file may call")
    return known


def method(name: str) -> str:
    """``name``, if a graph may call it as a tensor's method.

    Raises:
        CheckpointError: if not.
    """
    if name not in _methods():
        raise CheckpointError(f"the graph calls the method '{str(name)[:80]}', which no graph in a file may call")
    return name


def module_class(name: str) -> type[nn.Module]:
    """The module class that a record calls ``name``: ``torch.nn.Conv2d``, or a leaf of torchvision or timm.

    Raises:
        CheckpointError: if it is not allowed.
    """
    head, _, tail = name.rpartition(".")
    cls = getattr(nn, tail, None) if head == "torch.nn" and not tail.startswith("_") else None
    if cls is None and (library := name.partition(".")[0]) in ("timm", "torchvision"):
        cls = _library(library)[1].get(name)
    denied = tail in DENIED_MODULES or tail.startswith("Lazy")
    if denied or not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise CheckpointError(
            f"the graph holds a module of class '{str(name)[:80]}', which no graph in a file may hold"
        )
    return cls


def module_class_name(module: nn.Module) -> str | None:
    """The name under which the class of ``module`` may stand in a record, or None if it may not."""
    cls = type(module)
    if getattr(nn, cls.__name__, None) is cls:
        return f"torch.nn.{cls.__name__}"
    name = _qualified(cls)
    library = name.partition(".")[0]
    return name if library in ("timm", "torchvision") and _library(library)[1].get(name) is cls else None


@cache
def _functions() -> tuple[dict[str, Callable[..., Any]], dict[Callable[..., Any], str]]:
    spaces: dict[str, ModuleType] = {
        "torch": torch,
        "torch.nn.functional": torch.nn.functional,
        "torch.linalg": torch.linalg,
        "torch.special": torch.special,
        "torch.fft": torch.fft,
    }
    all_functions = torch.overrides.get_overridable_functions()
    overridable = {id(f) for space in spaces.values() for f in all_functions.get(space, ())}
    names: dict[str, Callable[..., Any]] = {
        f"{prefix}.{attribute}": value
        for prefix, space in spaces.items()
        for attribute, value in vars(space).items()
        if id(value) in overridable and _permitted(attribute)
    }
    names |= {f"operator.{n}": getattr(operator, n) for n in _OPERATORS}
    names |= {f"math.{n}": getattr(math, n) for n in _MATH}
    names |= {f"torch.{n}": getattr(torch, n) for n in sorted(CREATORS | IN_PLACE) if hasattr(torch, n)}
    names |= {f"torch.nn.functional.{n}": getattr(nn.functional, n) for n in ACTIVATIONS_IN_PLACE + UNLISTED}
    names |= {f"nbcompile.{check.__name__}": check for check in (require_same_choice, require_sizes)}
    names |= {"torch._assert": torch._assert, "getattr": getattr, "round": round}
    names |= {"collections.OrderedDict": OrderedDict, "torch.Size": torch.Size}  # what a network may return
    return names, {value: name for name, value in reversed(names.items())}


@cache
def _methods() -> frozenset[str]:
    overridable = torch.overrides.get_overridable_functions()[torch.Tensor]
    names = {getattr(f, "__name__", "_") for f in overridable}
    names |= {"new_full", "new_ones", "new_tensor", "new_zeros", "unflatten"}
    return frozenset(n for n in names if _permitted(n) and callable(getattr(torch.Tensor, n, None)))


def _permitted(name: str) -> bool:
    """No underscored name, nothing on the deny list; in place only what writes values."""
    if name.startswith("_") or (name.endswith("_") and name not in IN_PLACE) or name in DENIED:
        return False
    return not any(part in name for part in DENIED_PARTS)


@cache
def _library(name: str) -> tuple[dict[str, Callable[..., Any]], dict[str, type[nn.Module]]]:
    """The leaf functions and modules that a library declares; none where it is not installed."""
    try:
        if name == "timm":
            import_module("timm.models")
            fx_helpers = import_module("timm.layers._fx")
            functions, modules = fx_helpers.get_notrace_functions(), fx_helpers.get_notrace_modules()
        else:
            import_module("torchvision.models")
            ops = import_module("torchvision.ops")
            members = [v for k, v in vars(ops).items() if not k.startswith("_")]
            functions = [v for v in members if inspect.isfunction(v)]
            modules = [v for v in members if inspect.isclass(v) and issubclass(v, nn.Module)]
    except ImportError:
        return {}, {}
    wrapped = _symbolic_trace._wrapped_fns_to_patch.items()  # what torch.fx.wrap was called for
    functions += [
        g[f] for (_, f), g in wrapped if str(g.get("__name__")).startswith(f"{name}.") and inspect.isfunction(g.get(f))
    ]
    return {_qualified(f): f for f in functions}, {_qualified(m): m for m in modules}


def _qualified(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
