"""One run of a model, watched: which operators multiplied, inside which module, reading which parameters.

``FORMULAS`` is the one place that says what counts as a multiply-accumulate; what is not in it costs none.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nbcompile.core.example import Inputs
from nbcompile.core.running import untouched, watched

Formula = Callable[..., int]

NORMS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Every output position (every input position, if transposed) meets every weight once; padding counts."""
    transposed = rest[4]  # after bias, stride, padding and dilation
    over = x if transposed else out
    return over.shape[0] * over.shape[2:].numel() * weight.numel()


def _product(left: int, right: int) -> Formula:
    """``(..., m, k) @ (..., k, n)``; which arguments of the operator they are."""
    return lambda out, *args: args[left].numel() * args[right].shape[-1]


def _with_vector(matrix: int) -> Formula:
    """``(..., k) @ (k,)``; which argument of the operator the left one is."""
    return lambda out, *args: args[matrix].numel()


def _linear(out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """``(..., k)`` by a weight ``(n, k)``."""
    return x.numel() * weight.shape[0]


def _attention(out: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> int:
    """``(..., L, d) · (..., S, d)ᵀ``, then ``(..., L, S) @ (..., S, e)``, per query head; masks save nothing."""
    return query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _mkldnn_rnn(out: Any, x: Tensor, w_input: Tensor, w_hidden: Tensor, *rest: Any) -> int:
    """At every step of ``(T, N, features)``, every element of both weights."""
    return x.shape[:-1].numel() * (w_input.numel() + w_hidden.numel())


def _cudnn_rnn(out: Any, x: Tensor, weights: list[Tensor], *rest: Any) -> int:
    """The same over all layers and directions; the one-dimensional entries are biases."""
    return x.shape[:-1].numel() * sum(w.numel() for w in weights if w.ndim == 2)


def _temporal(out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """``conv_tbc``: at every position ``(T, N)`` of the output, every element of ``(kernel, C_in, C_out)``."""
    return out.shape[:2].numel() * weight.numel()


def _bilinear(out: Any, left: Tensor, weight: Tensor, right: Tensor, *rest: Any) -> int:
    """``left`` of each sample through every element of a weight ``(out, left, right)``; what comes out by ``right``."""
    return left.shape[0] * (weight.numel() + weight[:, 0].numel())


_aten = torch.ops.aten
FORMULAS: dict[Any, Formula] = {
    _aten.convolution: _convolution,
    _aten._convolution: _convolution,
    _aten.linear: _linear,
    _aten.mm: _product(0, 1),
    _aten.bmm: _product(0, 1),
    _aten._int_mm: _product(0, 1),
    _aten._scaled_mm: _product(0, 1),
    _aten.addmm: _product(1, 2),
    _aten._addmm_activation: _product(1, 2),
    _aten.addbmm: _product(1, 2),
    _aten.baddbmm: _product(1, 2),
    _aten.mv: _with_vector(0),
    _aten.dot: _with_vector(0),
    _aten.vdot: _with_vector(0),
    _aten.addmv: _with_vector(1),
    _aten._scaled_dot_product_flash_attention: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_efficient_attention: _attention,
    _aten._scaled_dot_product_cudnn_attention: _attention,
    _aten._scaled_dot_product_fused_attention_overrideable: _attention,
    _aten._scaled_dot_product_attention_math_for_mps: _attention,
    _aten.conv_tbc: _temporal,
    _aten._trilinear: _bilinear,
    _aten.mkldnn_rnn_layer: _mkldnn_rnn,
    _aten._cudnn_rnn: _cudnn_rnn,
    _aten.miopen_rnn: _cudnn_rnn,
}


class CountedRun(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    """What one run executed, by the qualified name of the innermost running module.

    Attributes:
        macs: multiply-accumulates.
        calls: how often the module ran.
        norm_elements: elements that it output, if it is a norm.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.norm_elements: Counter[str] = Counter()
        self._running = [""]
        self._read: set[tuple[int, int]] = set()
        self._computed: set[tuple[int, int]] = set()
        self._stored: dict[tuple[int, int], int] = {}
        self._made = 0

    def read(self, tensor: Tensor) -> bool:
        """Whether any operator had ``tensor`` as an input, or another view of the same memory."""
        return _memory(tensor) in self._read

    @property
    def stored(self) -> int:
        """Elements of all that was read and depends on no input: parameters, buffers, constants made on the way."""
        return sum(self._stored.values()) + self._made

    def start(self, inputs: Inputs) -> None:
        """The model is given ``inputs``."""
        self._computed.update(map(_memory, _tensors(inputs)))

    def enter(self, name: str, *_: Any) -> None:
        """What runs now is inside the module ``name``."""
        self._running.append(name)
        self.calls[name] += 1

    def leave(self, name: str, module: nn.Module, _: Any, __: Any, output: Any) -> None:
        """The module ``name`` has run."""
        self._running.pop()
        if isinstance(module, NORMS) and isinstance(output, Tensor):
            self.norm_elements[name] += output.numel()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else the first operator would import torch._dynamo, which takes longer than the whole run."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func.overloadpacket)
        if formula is None:
            with self:  # under inference_mode composite operators arrive whole: count what they are made of
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        operands = _tensors((args, kwargs))
        out = func(*args, **kwargs)
        self._read.update(map(_memory, operands))
        if not operands or func.overloadpacket is _aten.lift_fresh:  # the latter is what torch.tensor calls
            self._made += sum(x.numel() for x in _tensors(out))
        else:
            self._stored |= {_memory(x): x.numel() for x in operands if _memory(x) not in self._computed}
        self._computed.update(map(_memory, _tensors(out)))
        if formula is not None:
            self.macs[self._running[-1]] += formula(out, *args)
        return out


def watch_run(model: nn.Module, inputs: Inputs) -> CountedRun:
    """Run ``model`` once in eval mode, without gradients, and leave it as it was.

    Modes, buffers, hooks, random state and PyTorch's switches are those of before, also after an error.
    """
    run = CountedRun()
    looking = watched(model.named_modules(), enter=run.enter, leave=run.leave)
    with looking, untouched(model, inputs) as (buffers, copies), _in_parts(), run:
        run.start(copies)
        functional_call(model, buffers, copies)
    return run


@contextmanager
def _in_parts() -> Iterator[None]:
    """Fused attention is off: the encoder fast paths hide their parts, and CUDA's flash kernel pads the heads."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _eager():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _eager() -> AbstractContextManager[Any]:
    """Compiled parts run as they were written; nothing is compiled where the compiler is not even loaded."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.layout is torch.strided]


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Identity of a tensor's memory: also on ``meta``, and the same for an alias such as ``.data``."""
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset())
