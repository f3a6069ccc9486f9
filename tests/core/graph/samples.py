"""How every operator of the table is called, so that its facts can be checked by running it."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from nbcompile.core.graph.operators import Operator, of_class

Call = Callable[[Tensor], Any]
SIZES = (2, 6, 7, 5, 9)
GENERATOR = torch.Generator().manual_seed(15)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=GENERATOR)


def places(x: Tensor) -> Tensor:
    """Where values go in maps of twice the size per axis: to every second place, fourth, eighth."""
    size, step = x.shape[2:], 2 ** (x.ndim - 2)
    return torch.arange(0, step * size.numel(), step).reshape(size).expand_as(x)


W = drawn(6).abs() + 0.5
KERNELS = {n: drawn(6, 6, *(2,) * n) for n in (1, 2, 3)}
DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
DROPOUTS += ("feature_dropout", "native_dropout")
# Arguments after the tensor, of functions and methods alike.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    **{"prelu": (W,), "threshold": (0.3, -0.7), "clamp": (-0.4, 0.9), "softmax": (1,), "softmin": (1,)},
    **{"log_softmax": (1,), "glu": (1,), "mean": ((2, 3),), "linear": (drawn(4, 5), drawn(4))},
    **{f"{kind}{n}d": (KERNELS[n], W) for n in (1, 2, 3) for kind in ("conv", "conv_transpose")},
    **{"batch_norm": (-W, W, W, W), "instance_norm": (-W, W, W, W, False), "layer_norm": ((7, 5),)},
    **{"group_norm": (3,), "rms_norm": ((7, 5),), "interpolate": (None, 2.0), "pad": ((1, 2, 0, 1),)},
    **{f"{kind}_pool{n}d": (3, 2, 1) for n in (1, 2, 3) for kind in ("avg", "max")},
    **{f"adaptive_{kind}_pool{n}d": ((3,) * n,) for n in (1, 2, 3) for kind in ("avg", "max")},
    **{f"lp_pool{n}d": (2.0, 3) for n in (1, 2, 3)},
    **dict.fromkeys(DROPOUTS, (0.5, False)),
    **{"unflatten": (1, (2, 3)), "view": ((2, -1),), "reshape": ((2, -1),), "unsqueeze": (1,), "getitem": (slice(1),)},
    **{"getattr": ("mT",), "unfold": (1, 2, 1), "chunk": (2, 1), "split": (4, 1), "tensor_split": (2, 1)},
    **{"unsafe_chunk": (2, 1), "unsafe_split": (4, 1), "hsplit": ([1],), "vsplit": ([1],), "dsplit": ([1],)},
    **dict.fromkeys(("split_with_sizes", "unsafe_split_with_sizes"), ([2, 4], 1)),
    **dict.fromkeys(("transpose", "moveaxis", "movedim", "swapaxes", "swapdims"), (1, 2)),
    **{"permute": ((0, 2, 1, 3),), "as_strided": ((2, 3), (1, 2)), "narrow": (1, 1, 2), "select": (1, 0)},
    **dict.fromkeys(("broadcast_to", "expand", "sum_to_size"), (SIZES[:4],)),
    **{"to": (torch.float64,), "type": (torch.float64,)},
    **{"randint_like": (99,), "bernoulli": (0.5,), "geometric": (0.5,)},
}
DRAWING: dict[str, tuple[Any, ...]] = {"rrelu": (0.1, 0.3, True), **dict.fromkeys(DROPOUTS, (0.5, True))}
SHAPES: dict[str, tuple[int, ...]] = {"t": (6, 5), "dsplit": (2, 6, 7), "cartesian_prod": (7,), "meshgrid": (7,)}
SHAPES |= {"squeeze": (2, 1, 6), "view_as_complex": (6, 2), "multinomial": (3, 7), "einsum": (6, 5), "adjoint": (6, 5)}
DTYPES = {
    **{"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16, "bool": torch.bool},
    **{"byte": torch.uint8, "char": torch.int8, "short": torch.int16, "int": torch.int32, "long": torch.int64},
    **{"cfloat": torch.complex64, "cdouble": torch.complex128, "chalf": torch.complex32, "dequantize": torch.float32},
    **dict.fromkeys(("real", "imag", "conj", "resolve_conj", "view_as_real"), torch.complex128),
}
# Functions and methods that take more than a tensor and literals, or something else.
OTHERS: dict[str, Callable[[Any, Tensor], Any]] = {
    **dict.fromkeys(("add", "sub", "mul", "div"), lambda f, x: f(x, W[:, None, None])),
    **dict.fromkeys(("view_as", "reshape_as"), lambda f, x: f(x, torch.empty(2, x.numel() // 2))),
    **dict.fromkeys(("expand_as", "type_as", "broadcast_tensors"), lambda f, x: f(x, x.clone())),
    **dict.fromkeys(("max_unpool1d", "max_unpool2d", "max_unpool3d"), lambda f, x: f(x, places(x), 2)),
    **dict.fromkeys(("fractional_max_pool2d", "fractional_max_pool3d"), lambda f, x: f(x, 2, 3)),
    "einsum": lambda f, x: f("ij->ji", x),
    "meshgrid": lambda f, x: f(x, indexing="ij"),
    "cat": lambda f, x: f([x, x], 1),
    "scaled_dot_product_attention": lambda f, x: f(x, x, x, None, 0.5),
    **dict.fromkeys(("rand", "randn", "zeros", "ones", "eye", "randperm", "arange"), lambda f, _: f(97)),
    "randint": lambda f, _: f(99, (97,)),
    "full": lambda f, _: f((7,), 1.5),
    "tensor": lambda f, _: f([1.5, 2.5]),
    "linspace": lambda f, _: f(0, 1, 7),
    "normal": lambda f, x: f(x, 1.0),
    "poisson": lambda f, x: f(9 * x.abs()),
    "binomial": lambda f, x: f(torch.full_like(x, 9), x.sigmoid()),
    "multinomial": lambda f, x: f(x.exp(), 4),
}
MODULES: dict[str, tuple[Any, ...]] = {
    **{"PReLU": (6,), "Threshold": (0.3, -0.7), "Softmax": (1,), "Softmin": (1,), "LogSoftmax": (1,), "GLU": (1,)},
    **{"Linear": (5, 4), "LayerNorm": ((7, 5),), "GroupNorm": (3, 6), "RMSNorm": ((7, 5),), "Upsample": (None, 2)},
    **dict.fromkeys(("UpsamplingNearest2d", "UpsamplingBilinear2d"), (None, 2)),
    **{f"{kind}{n}d": (6, 6, 2) for n in (1, 2, 3) for kind in ("Conv", "ConvTranspose")},
    **{f"{kind}Norm{n}d": (6,) for n in (1, 2, 3) for kind in ("Batch", "Instance")},
    **{f"{kind}Pool{n}d": (3, 2, 1) for n in (1, 2, 3) for kind in ("Avg", "Max")},
    **{f"Adaptive{kind}Pool{n}d": (3,) for n in (1, 2, 3) for kind in ("Avg", "Max")},
    **{f"LPPool{n}d": (2.0, 3) for n in (1, 2, 3)},
    **{f"FractionalMaxPool{n}d": (2, 3) for n in (2, 3)},
    **{f"MaxUnpool{n}d": (2,) for n in (1, 2, 3)},
    **{f"{kind}Pad{n}d": (1,) for n in (1, 2, 3) for kind in ("Zero", "Reflection", "Replication", "Circular")},
    **{f"ConstantPad{n}d": (1, 0.0) for n in (1, 2, 3)},
    **{"SyncBatchNorm": (6,), "Unflatten": (1, (2, 3))},
}
UNRUN = {"cuda", "pin_memory"}  # need another device
UNRUN |= {"require_sizes", "require_same_choice"}  # they give nothing
UNRUN |= {"empty", "empty_like", "empty_strided", "empty_permuted", "empty_quantized", "new_empty", "new_empty_strided"}


def functions(row: Operator, *, training: bool = False) -> Iterator[tuple[str, Call, Tensor]]:
    """Name, call and a tensor for every function and method of ``row``, in place or not."""
    shape = SHAPES.get(row.name, SIZES[: 2 + (row.axes or 2)])
    x = (3 * drawn(*shape)).to(DTYPES.get(row.name, torch.float64))
    arguments = ARGUMENTS.get(row.name, ())
    arguments = DRAWING.get(row.name, arguments) if training else arguments
    called = OTHERS.get(row.name, lambda f, x: f(x, *arguments))
    for function in (*row.functions(), *(getattr(Tensor, name) for name in row.methods())):
        yield function.__name__, lambda x, function=function: called(function, x), x


def classes(row: Operator) -> list[type[nn.Module]]:
    """The public classes of ``row``: some rows name what these derive from."""
    public = [cls for cls in vars(nn).values() if isinstance(cls, type) and issubclass(cls, nn.Module)]
    return [cls for cls in public if not issubclass(cls, LazyModuleMixin) and of_class(cls).name == row.name]


def modules(row: Operator, *, training: bool = False) -> Iterator[tuple[str, Any, Tensor]]:
    """Name, module and a tensor for every module of ``row``; its numbers are drawn."""
    for cls in classes(row):
        made: Any = cls(*MODULES.get(cls.__name__, ())).double().train(training)
        for value in (*made.parameters(), *made.buffers()):
            if value.is_floating_point():
                value.data = 0.5 + drawn(*value.shape).abs()
        digit = re.search(r"(\d)d$", cls.__name__)
        x = 3 * drawn(*SIZES[: 2 + int(digit[1] if digit else 2)])
        yield cls.__name__, (lambda x, m=made: m(x, places(x))) if "Unpool" in cls.__name__ else made, x
