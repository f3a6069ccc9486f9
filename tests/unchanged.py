"""Nothing that is handed to a verb, and nothing of torch's, may be changed by it: to the bit, errors included.

A verb whose name ends in an underscore says that it changes what it is given; the others are watched in every test.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.parameter import is_lazy
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

VERBS = {
    "nbcompile.checkpoint": ("save",),
    "nbcompile.core.cost": ("cost",),
    "nbcompile.deploy.export": ("export",),
    "nbcompile.deploy.to_device": ("export_tflite",),
    "nbcompile.expansion": ("expand", "candidates"),
    "nbcompile.fusion": ("fuse", "fused"),
    "nbcompile.reparam.grad_reparam": ("grad_reparam",),
    "nbcompile.report.errors_by_layer": ("per_layer_error",),
    "nbcompile.report.collect": ("report_on",),
    "nbcompile.verification": ("verify", "verify_merged"),
    "nbcompile.widening": ("widen", "width_groups"),
}
DRAWING = ("expand",)
"""Verbs that draw weights from torch's generator, as every new layer does."""
MOST_ELEMENTS = 2_000_000
"""Of a network whose numbers are compared; of larger ones, torch's own count of in-place writes has to do."""

_GLOBAL_HOOKS = [name for name in vars(torch_modules) if name.startswith("_global_") and "_is_" not in name]
_INNER = ("_parameters", "_buffers", "_modules")
_MISSING = object()
_running = threading.local()


def torch_state() -> dict[str, Any]:
    """The switches of torch that hold for the whole process or thread."""
    cudnn, methods = torch.backends.cudnn, ("__call__", "__getattr__", "__setattr__")
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic warnings": torch.is_deterministic_algorithms_warn_only_enabled(),
        "threads": torch.get_num_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "mha fast path": torch.backends.mha.get_fastpath_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        **{f"cudnn.{flag}": getattr(cudnn, flag) for flag in ("enabled", "benchmark", "deterministic", "allow_tf32")},
        **{f"Module.{name}": vars(nn.Module).get(name) for name in methods},
        **{name: tuple(getattr(torch_modules, name)) for name in _GLOBAL_HOOKS},
        "function modes": len(_get_current_function_mode_stack()),
        "dispatch modes": len(_get_current_dispatch_mode_stack()),
    }


@contextmanager
def torch_unchanged(what: str) -> Iterator[None]:
    """After what is inside, torch's switches are what they were.

    Raises:
        AssertionError: naming the first that is not.
    """
    before = torch_state()
    yield
    after = torch_state()
    for name, value in before.items():
        assert after[name] == value, f"{what} changed torch's {name} from {value} to {after[name]}"


@contextmanager
def arguments_unchanged(what: str, arguments: Any) -> Iterator[None]:
    """After what is inside, the models and tensors in ``arguments`` and torch's generator are what they were.

    Raises:
        AssertionError: naming the first that is not, whatever else was raised inside.
    """
    models = [_Model(x) for x in tree_leaves(arguments) if isinstance(x, nn.Module)]
    tensors = [_Bits(x) for x in tree_leaves(arguments) if _has_bits(x)]
    random = torch.get_rng_state()
    try:
        yield
    finally:
        for model in models:
            assert not (changed := model.changed()), f"{what} changed its model: {changed}"
        for i, bits in enumerate(tensors):
            assert not bits.changed(), f"{what} changed tensor {i} of its inputs"
        drew = not torch.equal(random, torch.get_rng_state())
        assert what in DRAWING or not drew, f"{what} used up numbers of torch's generator"


def watch_verbs() -> None:
    """Let every verb compare its arguments before and after, for whoever imports it from now on."""
    for home, names in VERBS.items():
        module = import_module(home)
        for name in names:
            setattr(module, name, _watched(name, getattr(module, name)))


def _watched(name: str, verb: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(verb)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if getattr(_running, "inside", False):  # verbs call each other
            return verb(*args, **kwargs)
        _running.inside = True
        try:
            with arguments_unchanged(name, (args, kwargs)):
                return verb(*args, **kwargs)
        finally:
            _running.inside = False

    return watched


class _Bits:
    """A tensor, and what it held."""

    def __init__(self, tensor: Tensor, compared: bool = True) -> None:
        readable = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized
        self._tensor, self._facts = tensor, _facts(tensor)
        self._held = _bytes(tensor).clone() if compared and readable and tensor.numel() <= MOST_ELEMENTS else None

    def changed(self) -> bool:
        if self._facts != _facts(self._tensor):
            return True
        return self._held is not None and not torch.equal(self._held, _bytes(self._tensor))


class _Model:
    """A model, the dictionaries of its modules, and the bits of their tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._held = {name: (module, _attributes(module)) for name, module in model.named_modules()}
        owned = [x for _, attributes in self._held.values() for x in tree_leaves(attributes) if _has_bits(x)]
        compared = sum(x.numel() for x in owned) <= MOST_ELEMENTS
        self._bits = {id(x): _Bits(x, compared) for x in owned}

    def changed(self) -> str | None:
        """What changed, and where."""
        if list(self._held) != (names := [name for name, _ in self._model.named_modules()]):
            return f"its modules are {names} and were {list(self._held)}"
        for name, (module, before) in self._held.items():
            after = _attributes(module)
            for key in dict.fromkeys((*before, *after)):
                if not _same(before.get(key, _MISSING), after.get(key, _MISSING)):
                    return f"'{name}.{key}' is {after.get(key)} and was {before.get(key)}"
                if any(self._bits[id(x)].changed() for x in tree_leaves(before[key]) if _has_bits(x)):
                    return f"the numbers of '{name}.{key}'"
        return None


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What ``module`` holds, containers copied: what is put in or taken out must show."""
    if isinstance(module, torch.jit.ScriptModule):  # its dictionaries are no dictionaries
        return dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])
    inner = {key: value for name in _INNER for key, value in vars(module)[name].items()}
    order = {name: list(vars(module)[name]) for name in _INNER}
    own = {key: value for key, value in vars(module).items() if key not in _INNER}
    return {key: _copied(value) for key, value in {**own, **inner, **order}.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value)
    return type(value)(value) if type(value) in (list, tuple, set) else value


def _same(before: Any, after: Any) -> bool:
    """Whether two attributes are the same objects, in containers of the same content and order."""
    if before is after or type(before) is not type(after):
        return before is after
    if isinstance(before, dict):
        return list(before) == list(after) and all(map(_same, before.values(), after.values()))
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(map(_same, before, after))
    return isinstance(before, (int, float, str, bytes, set)) and bool(before == after)


def _has_bits(value: Any) -> bool:
    return isinstance(value, Tensor) and not is_lazy(value)


def _facts(tensor: Tensor) -> tuple[Any, ...]:
    version = None if tensor.is_inference() else tensor._version
    return version, type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
