"""What torch's operators do to values: a row an operator, a word a fact. Whoever needs such a fact asks here.

An operator is the same thing as a function, as a method and as a module: one row covers all three. Facts are about the
first tensor that it takes, in eval mode. What is not stated is not known; but of torch's operators, one that is no
``view`` gives memory of its own, and one that is not ``random`` gives the same values every time.
"""

import builtins
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.padding import _CircularPadNd, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd

from nbcompile.core.graph import guards
from nbcompile.core.layers import FORWARDS


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator.

    Attributes:
        names: of its functions in torch and of the methods of tensors, the usual one first.
        modules: classes of ``torch.nn`` that compute it.
        axes: how many spatial axes it has; 0 where any number.
        python: names of its functions in Python's ``operator`` and ``builtins``.
        homes: where its functions are: not where one of the name takes other arguments.
        activation: a nonlinearity that stands between layers; gates and output functions do not.
        elementwise: an output element depends on the input element at its place alone.
        per_channel: it has a number for every channel, dimension 1.
        channelwise: a channel of the output depends on that channel of the input alone.
        scales: ``f(s * x) == s * f(x)`` for every positive ``s``.
        keeps_rank: the output has as many dimensions as the input.
        broadcasts: it takes several values, and gives the shape to which they broadcast.
        reshapes: the output has the elements of the input, in their order.
        view: the output may be in the memory of the input.
        identity: the output is the input.
        gate: output elements are between 0 and 1.
        pooling: it has windows of ``kernel_size``, at a ``stride``, over a map with ``padding``.
        layer: a convolution or linear layer.
        norm: a normalisation.
        random: other values every time: drawn, or left over in memory.
        creates: a tensor of numbers.
        metadata: it tells a shape, a dtype or a device, and reads no values.
    """

    names: tuple[str, ...]
    modules: tuple[type[nn.Module], ...] = ()
    axes: int = 0
    python: tuple[str, ...] = ()
    homes: tuple[ModuleType, ...] = (torch, F)
    activation: bool = False
    elementwise: bool = False
    per_channel: bool = False
    channelwise: bool = False
    scales: bool = False
    keeps_rank: bool = False
    broadcasts: bool = False
    reshapes: bool = False
    view: bool = False
    identity: bool = False
    gate: bool = False
    pooling: bool = False
    layer: bool = False
    norm: bool = False
    random: bool = False
    creates: bool = False
    metadata: bool = False

    @property
    def name(self) -> str:
        """The usual name."""
        return self.names[0]

    def functions(self) -> Iterator[Any]:
        """The functions that compute it, in place or not."""
        for home in self.homes:
            yield from (getattr(home, word) for word in self._words() if callable(getattr(home, word, None)))
        yield from (getattr(operator, word, None) or getattr(builtins, word) for word in self.python)

    def methods(self) -> Iterator[str]:
        """The methods of tensors that compute it, in place or not."""
        return (word for word in self._words() if callable(getattr(Tensor, word, None)))

    def _words(self) -> list[str]:
        return [*self.names, *(f"{word}_" for word in self.names)]


def _op(names: str, facts: str, *modules: type[nn.Module], python: str = "", **more: Any) -> Operator:
    stated: Any = dict.fromkeys(facts.split(), True)
    return Operator(tuple(names.split()), modules, python=tuple(python.split()), **stated, **more)


def _each(names: str, facts: str) -> Iterator[Operator]:
    """Operators that are alike."""
    return (_op(name, facts) for name in names.split())


def _on_maps(name: str, facts: str, module: str, axes: tuple[int, ...] = (1, 2, 3), **more: Any) -> Iterator[Operator]:
    """``max_pool1d``, ``max_pool2d`` and ``max_pool3d``."""
    return (_op(f"{name}{n}d", facts, getattr(nn, f"{module}{n}d"), axes=n, **more) for n in axes)


_ONE = "elementwise keeps_rank"
_ACT = f"activation {_ONE}"
_MAP = "channelwise scales keeps_rank"
_DROP = "identity keeps_rank view random"
OPERATORS = (
    _op("relu", f"{_ACT} scales", nn.ReLU),
    _op("leaky_relu", f"{_ACT} scales", nn.LeakyReLU),
    _op("prelu", f"{_ACT} scales per_channel", nn.PReLU),
    _op("rrelu", f"{_ACT} scales random", nn.RReLU),
    _op("relu6", _ACT, nn.ReLU6),
    _op("hardtanh", _ACT, nn.Hardtanh),
    _op("hardswish", _ACT, nn.Hardswish),
    _op("silu", _ACT, nn.SiLU),
    _op("gelu", _ACT, nn.GELU),
    _op("mish", _ACT, nn.Mish),
    _op("elu", _ACT, nn.ELU),
    _op("selu", _ACT, nn.SELU),
    _op("celu", _ACT, nn.CELU),
    _op("tanh", _ACT, nn.Tanh),
    _op("softplus", _ACT, nn.Softplus),
    _op("softsign", _ACT, nn.Softsign),
    _op("hardshrink", _ACT, nn.Hardshrink),
    _op("softshrink", _ACT, nn.Softshrink),
    _op("tanhshrink", _ACT, nn.Tanhshrink),
    _op("logsigmoid", _ACT, nn.LogSigmoid),
    _op("threshold", _ACT, nn.Threshold),
    _op("glu", "activation keeps_rank", nn.GLU),
    _op("clamp clip", _ONE),  # a limit; which limits are an activation, activation_of knows
    _op("sigmoid", f"{_ONE} gate", nn.Sigmoid),
    _op("hardsigmoid", f"{_ONE} gate", nn.Hardsigmoid),
    _op("softmax", "keeps_rank", nn.Softmax, nn.Softmax2d),
    _op("softmin", "keeps_rank", nn.Softmin),
    _op("log_softmax", "keeps_rank", nn.LogSoftmax),
    _op("add", "broadcasts", python="add iadd"),
    _op("sub subtract", "broadcasts", python="sub isub"),
    _op("mul multiply", "broadcasts", python="mul imul"),
    _op("div divide true_divide", "broadcasts", python="truediv itruediv"),
    _op("neg negative", f"{_ONE} scales", python="neg"),
    _op("cat concat concatenate", ""),
    _op("mean", "scales"),
    *_on_maps("conv", "layer keeps_rank", "Conv"),
    *_on_maps("conv_transpose", "layer keeps_rank", "ConvTranspose"),
    _op("linear", "layer keeps_rank", nn.Linear),
    _op("batch_norm", "norm keeps_rank", _BatchNorm, nn.SyncBatchNorm, homes=(F,)),
    _op("instance_norm", "norm keeps_rank", _InstanceNorm, homes=(F,)),
    _op("layer_norm", "norm keeps_rank", nn.LayerNorm),
    _op("group_norm", "norm keeps_rank", nn.GroupNorm),
    _op("rms_norm", "norm keeps_rank", nn.RMSNorm),
    *_on_maps("avg_pool", f"{_MAP} pooling", "AvgPool"),
    *_on_maps("max_pool", f"{_MAP} pooling", "MaxPool"),
    *_on_maps("adaptive_avg_pool", _MAP, "AdaptiveAvgPool"),
    *_on_maps("adaptive_max_pool", _MAP, "AdaptiveMaxPool", homes=(F,)),  # torch's gives indices, too
    *_on_maps("lp_pool", _MAP, "LPPool"),
    *_on_maps("max_unpool", _MAP, "MaxUnpool"),
    *_on_maps("fractional_max_pool", f"{_MAP} random", "FractionalMaxPool", axes=(2, 3)),
    _op("interpolate upsample", _MAP, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    # Of the axes of a map, and by zeros if by a constant.
    _op("pad", _MAP, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd, _CircularPadNd),
    _op("identity contiguous", "identity keeps_rank view", nn.Identity),
    _op("dropout", _DROP, nn.Dropout),
    *_on_maps("dropout", _DROP, "Dropout"),
    _op("alpha_dropout", _DROP, nn.AlphaDropout),
    _op("feature_alpha_dropout", _DROP, nn.FeatureAlphaDropout),
    _op("feature_dropout", "view random"),
    _op("flatten", "view reshapes", nn.Flatten),
    _op("unflatten", "view reshapes", nn.Unflatten),
    *_each("view reshape squeeze unsqueeze ravel view_as reshape_as atleast_1d atleast_2d atleast_3d", "view reshapes"),
    _op("getitem", "view", python="getitem"),
    _op("getattr", "view", python="getattr"),
    _op("unfold", "view", homes=()),  # the function is im2col, which copies
    *_each("chunk split tensor_split hsplit vsplit dsplit split_with_sizes unbind", "view"),
    *_each(
        "unsafe_chunk unsafe_split unsafe_split_with_sizes meshgrid broadcast_tensors cartesian_prod einsum", "view"
    ),
    *_each("transpose t adjoint permute moveaxis movedim swapaxes swapdims", "view keeps_rank"),
    *_each("as_strided broadcast_to expand expand_as sum_to_size diagonal narrow select", "view"),
    *_each("to type type_as float double half bfloat16 bool byte char short int long cfloat cdouble chalf", "view"),
    *_each("detach cpu cuda pin_memory as_tensor asarray to_dense dequantize positive", "view"),
    *_each("real imag conj conj_physical resolve_conj resolve_neg view_as_real view_as_complex", "view"),
    *_each("zeros ones full tensor eye arange linspace", "creates"),
    *_each("rand rand_like randn randn_like randint randint_like randperm normal poisson binomial", "random"),
    *_each("bernoulli multinomial gumbel_softmax scaled_dot_product_attention random uniform", "random"),
    *_each("cauchy exponential geometric log_normal native_dropout", "random"),
    *_each("empty empty_like empty_strided empty_permuted empty_quantized new_empty new_empty_strided", "random"),
    *(_op(name, "metadata", homes=(guards,)) for name in ("require_sizes", "require_same_choice")),
    *_each("size dim numel nelement ndimension is_floating_point __len__ get_device", "metadata"),
)
METADATA_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout", "is_nested"}
"""Of tensors: who reads one reads no values."""
UNKNOWN = Operator(("",))
"""What is in no row."""

_NAMED = {row.name: row for row in OPERATORS}
_FUNCTIONS = {function: row for row in OPERATORS for function in row.functions()}
_METHODS = {name: row for row in OPERATORS for name in row.methods()}
_MODULES = {cls: row for row in OPERATORS for cls in row.modules}


def named(name: str) -> Operator:
    """The row of that usual name."""
    return _NAMED[name]


ADD, SUB, MUL, DIV, NEG = named("add"), named("sub"), named("mul"), named("div"), named("neg")
SPLITS = (named("chunk"), named("split"), named("tensor_split"))


def called(node: fx.Node) -> Operator:
    """What ``node`` calls as a function or as a method."""
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target, UNKNOWN)
    return _METHODS.get(str(node.target), UNKNOWN) if node.op == "call_method" else UNKNOWN


def of_class(cls: type) -> Operator:
    """What the nearest class of ``torch.nn`` computes that ``cls`` is or derives from."""
    for base in cls.__mro__:
        if base in _MODULES:
            return _MODULES[base]
    return UNKNOWN


def of_module(module: nn.Module) -> Operator:
    """What ``module`` computes; :data:`UNKNOWN` where its class has a ``forward`` of its own."""
    for cls in type(module).__mro__:
        if cls in _MODULES:
            return _MODULES[cls]
        if any(name in vars(cls) for name in FORWARDS):
            break
    return UNKNOWN


def is_foreign(node: fx.Node) -> bool:
    """Whether ``node`` calls a function that is neither torch's nor Python's own: it may do anything."""
    home = str(getattr(node.target, "__module__", None) or "torch")
    own = home.partition(".")[0] in ("torch", "_operator", "builtins", "math") and not home.startswith("torch._ops")
    return node.op == "call_function" and not own


_WORDS = {word: row for row in OPERATORS for word in row.names}
_SIGNS = {
    f"__{kind}{word}__": row for row in OPERATORS for word in (*row.names, *row.python) for kind in ("", "r", "i")
}


def of_function(function: Any) -> Operator:
    """What a function of torch or a method of tensors computes, in place or not, as a ``TorchFunctionMode`` sees it."""
    name = getattr(function, "__name__", "")
    return _SIGNS.get(name) or _WORDS.get(name) or _WORDS.get(name.rstrip("_"), UNKNOWN)
