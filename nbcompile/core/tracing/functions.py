"""What torch's functions are: how a call is written in a graph, what it may write to, and what it tells."""

import dis
import functools
import operator
import sys
from operator import attrgetter
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.tracing.places import caller, callers

_SWAPPED = {
    f"__r{name}__": getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
}
_SWAPPED |= {"__rdiv__": operator.truediv, "__rmatmul__": operator.matmul}
_SYMBOLS = frozenset(["add", "sub", "mul", "matmul", "div", "neg", "pow", "lt", "le", "gt", "ge", "eq", "ne"])
_METHODS = {getattr(Tensor, name): name for name in sorted(dir(Tensor)) if callable(getattr(Tensor, name))}
"""Where two names are of one function, the one without underscores."""
SIZES = frozenset(["size", "numel", "nelement", "shape"])
ASKS = frozenset(
    [
        "dim",
        "ndimension",
        "ndim",
        "dtype",
        "layout",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "is_signed",
        "element_size",
        "itemsize",
        "get_device",
        "is_pinned",
        "is_cuda",
        "is_cpu",
        "is_meta",
        "is_mps",
        "is_xla",
        "is_xpu",
        "is_mkldnn",
        "is_sparse",
        "is_sparse_csr",
        "is_quantized",
        "is_nested",
        "is_vulkan",
        "is_ipu",
        "is_leaf",
        "requires_grad",
        "retains_grad",
        "grad_fn",
        "has_names",
        "result_type",
        "can_cast",
        "__hash__",
        "is_same_size",
        "stride",
        "storage_offset",
        "__len__",
        "grad",
        "names",
        "is_conj",
        "is_neg",
        "is_inference",
        "_is_view",
        "_version",
        "is_tensor",
        "is_storage",
        "type",
        "is_set_to",
        "_assert",
    ]
)
"""What can be known of a tensor without its values, and ``torch._assert``, which chooses no way."""
LAYOUT = frozenset(["is_contiguous", "stride", "storage_offset"])
"""What may be another at a batch of one, whose stride does not count."""
READS = {"__bool__": "branches on a value", "item": "reads a value (item)", "tolist": "reads values (tolist)"}


def as_node(func: Any, name: str, attribute: str, args: Any, kwargs: Any) -> tuple[str, Any, Any, Any]:
    """The node of a function, as symbolic tracing would have written it."""
    if name == "__get__":
        return "call_function", getattr, (args[0], attribute), {}
    name = _METHODS.get(func, "")
    if not name:
        home = str(getattr(func, "__module__", ""))
        if home.startswith("torch._ops."):  # torch tells of what is behind the operator, which has no name
            func = attrgetter(f"{home.removeprefix('torch._ops.')}.{func.__name__}")(torch.ops)
        return "call_function", func, args, kwargs
    if name in _SWAPPED:
        return "call_function", _SWAPPED[name], args[::-1], {}
    symbol = getattr(operator, "truediv" if name == "div" else name, None)
    if symbol is not None and not kwargs and (name.startswith("__") or name in _SYMBOLS):
        return "call_function", symbol, args, {}
    return "call_method", name, args, kwargs


def write_counts(tensors: list[Tensor]) -> list[int]:
    """How often each was written to; those made under ``inference_mode`` do not count it."""
    return [0 if x.is_inference() else x._version for x in tensors]


def in_assert() -> bool:
    """Whether the truth value that is asked for decides only if an AssertionError is raised that nobody catches."""
    frame, inner = caller(), sys._getframe(1)
    while inner is not frame and inner.f_back is not None:
        if inner.f_code is torch._assert.__code__:
            break
        inner = inner.f_back
    checks = inner is not frame or _is_assert(frame.f_code, frame.f_lasti)
    return checks and not any(_in_try(f.f_code, f.f_lasti) for f in callers(frame))


def _in_try(code: CodeType, at: int) -> bool:
    """Whether what is raised there goes to a handler in the same function."""
    return any(start <= at < end for start, end, *_ in _handled(code))


@functools.cache
def _handled(code: CodeType) -> list[Any]:
    return list(dis._parse_exception_table(code))  # type: ignore[attr-defined]


def _is_assert(code: CodeType, at: int) -> bool:
    following = [i for i in dis.get_instructions(code) if i.offset >= at and i.opname != "CACHE"][:4]
    raises = [n for n, i in enumerate(following) if "ASSERTION_ERROR" in i.opname or i.argval is AssertionError]
    return bool(raises) and any(i.opname.endswith("IF_TRUE") for i in following[: raises[0]])
