"""Copies of models: to keep, to look at and to run, and shadows, which share the weights."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from types import CellType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import origin_of, remember

_ATOMS = (type(None), bool, int, float, str, bytes, complex, type, torch.dtype, torch.device)
_KINDS = frozenset(_ATOMS)
_CONTAINERS = frozenset((dict, OrderedDict, list, set, tuple))
_FRAME = ("_parameters", "_buffers", "_modules")


def copied(model: nn.Module, *, training: bool | None = None) -> nn.Module:
    """A deep copy that remembers what ``model`` remembers; a GraphModule's own forgets plain attributes.

    Args:
        model: any module.
        training: the mode that the copy is put in, by its own ``train`` or ``eval``; None keeps it as it is.

    Raises:
        PreconditionError: if the model cannot be copied, naming what in it cannot.
    """
    try:
        return _copied(model, {}, training)
    except Exception as error:
        raise _refused(model, error) from error


def working_copy(model: nn.Module, *, training: bool | None = None, tensors: bool = True) -> nn.Module:
    """As :func:`copied`, and it shares plain attributes that cannot be copied, such as a lock.

    Args:
        model: any module.
        training: as there.
        tensors: whether tensors that cannot be copied are shared, too; not where the copy is given away.

    Raises:
        PreconditionError: if one of the modules cannot be copied; it is named.
    """
    return _lenient(model, {}, training, tensors)


def shadow(model: nn.Module, *, training: bool | None = None) -> nn.Module:
    """As :func:`working_copy`, for who does not write into parameters: those are in the memory of the model's own.

    It needs no memory for the weights, and is as good for a run: modules, buffers and whatever they
    keep in attributes are copies. Where a model's own ``train`` is to be called, which may merge weights, it is no
    shadow.

    Raises:
        PreconditionError: as there.
    """
    if training is not None and any(map(_switches_by_itself, set(map(type, model.modules())))):
        return working_copy(model, training=training)
    plain = (x for x in model.parameters() if type(x) is nn.Parameter and not x.is_inference())
    return _lenient(model, {id(x): nn.Parameter(x.detach(), x.requires_grad) for x in plain}, training, True)


def weightless(model: nn.Module) -> nn.Module:
    """As :func:`working_copy`, on ``meta``: it has the sizes of the model's tensors, and none of their memory."""
    memo: dict[int, Any] = {}
    for x in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(x, device="meta")
        memo[id(x)] = nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty
    return _lenient(model, memo, None, True)


def _lenient(model: nn.Module, memo: dict[int, Any], training: bool | None, tensors: bool) -> nn.Module:
    """A copy in which ``memo`` has the copies that are there; what cannot be copied is shared."""
    try:
        return _copied(model, dict(memo), training)
    except Exception as error:
        stubborn = list(_stubborn(model))
        kept = nn.Module if tensors else (nn.Module, Tensor)
        if not stubborn or any(isinstance(value, kept) for _, value, _ in stubborn):
            raise _refused(model, error) from error
        return _copied(model, {id(value): value for _, value, _ in stubborn} | memo, training)


def _copied(model: nn.Module, memo: dict[int, Any], training: bool | None) -> nn.Module:
    copy_ = _module(model, memo)
    remember(copy_, origin_of(model))
    if training is not None:  # what a model's own `train` and `eval` return does not matter
        copy_.train() if training else copy_.eval()
    return copy_


def _module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy of a module, as deepcopy makes it, which is slower."""
    begun: list[nn.Module] = []
    copy_ = _framed(module, memo, begun)
    for one in begun:  # what else they hold may know any of them
        made = memo[id(one)].__dict__
        for key, value in vars(one).items():
            if key not in made:
                made[key] = _value(value, memo)
    return copy_


def _framed(module: nn.Module, memo: dict[int, Any], begun: list[nn.Module]) -> nn.Module:
    """A copy; if it is in ``begun``, without what may know other modules. Its children are copied before it is."""
    if id(module) in memo:
        return cast(nn.Module, memo[id(module)])
    if plain := _is_plain(type(module)):
        begun.append(module)
        memo[id(module)] = object.__new__(type(module))
    if not isinstance(module, torch.jit.ScriptModule):  # its copy has all that is in it
        for child in module.children():
            _framed(child, memo, begun)
    if plain:
        made: nn.Module = memo[id(module)]
        for key, value in vars(module).items():
            if type(value) in _KINDS:
                made.__dict__[key] = value
            elif key in _FRAME or (type(value) in _CONTAINERS and not value):
                made.__dict__[key] = _value(value, memo)
        return made
    made = copy.deepcopy(module, memo)
    for part in made.modules():
        for key, hooks in vars(part).items():
            if key.endswith("_hooks") and isinstance(hooks, dict):  # a copy's are to know the copy
                hooks.update({n: rebound(h, memo) for n, h in hooks.items() if isinstance(h, FunctionType)})
    return made


def _value(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of what a module holds."""
    kind = type(value)
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict or kind is OrderedDict:
        made = memo[id(value)] = kind()
        for key, part in value.items():
            made[key if type(key) in _KINDS else _value(key, memo)] = (
                part if type(part) in _KINDS else _value(part, memo)
            )
        return made
    if kind is Tensor or kind is nn.Parameter:
        return _tensor(value, memo)
    if isinstance(value, _ATOMS):
        return value
    if kind is list:
        parts: list[Any] = []
        memo[id(value)] = parts
        parts.extend(_value(part, memo) for part in value)
        return parts
    if kind is set:
        return {_value(part, memo) for part in value}
    if kind is tuple:
        return tuple(_value(part, memo) for part in value)
    if isinstance(value, FunctionType):  # a hook
        return rebound(value, memo)
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, nn.Module):
        return _module(value, memo)
    return copy.deepcopy(value, memo)


def _tensor(x: Tensor, memo: dict[int, Any]) -> Tensor:
    """As deepcopy does, which is slower; tensors that are no parameters go on sharing memory."""
    if type(x) is nn.Parameter:
        made: Tensor = nn.Parameter(x.detach().clone(), x.requires_grad)
    elif not _is_whole(x) or (storage := x.untyped_storage())._cdata in (shared := memo.setdefault("torch", {})):  # type: ignore[call-overload]
        return copy.deepcopy(x, memo)
    else:
        made = x.detach().clone().requires_grad_(x.requires_grad)
        shared[storage._cdata] = made.untyped_storage()  # where deepcopy looks for it
    memo[id(x)] = made
    return made


def _is_whole(x: Tensor) -> bool:
    """Whether a tensor is numbers that fill memory from end to end, and nothing more."""
    plain = x.layout is torch.strided and x.device.type == "cpu" and x.is_leaf and x.grad is None and not vars(x)
    special = x.is_quantized or x.is_complex() or x.is_inference() or x._backward_hooks
    return plain and not special and x.is_contiguous() and x.untyped_storage().nbytes() == x.nbytes


def _switches_by_itself(cls: type) -> bool:
    """Whether its modules do more than torch's own, when they are put in another mode."""
    return any(getattr(cls, name) is not getattr(nn.Module, name) for name in ("train", "eval"))


def _is_plain(cls: type) -> bool:
    """Whether its objects are what is in their ``__dict__``."""
    own = ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__new__")
    return all(getattr(cls, name, None) is getattr(nn.Module, name, None) for name in own)


def rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """A function that a module holds, a hook say, with the copies of the modules that it was made with."""
    cells, named = function.__closure__ or (), function.__kwdefaults__ or {}
    inside = [cell.cell_contents for cell in cells if cell != CellType()]
    if not any(id(value) in memo for value in (*inside, *(function.__defaults__ or ()), *named.values())):
        return function
    closure = tuple(CellType(memo.get(id(cell.cell_contents), cell.cell_contents)) for cell in cells)
    defaults = tuple(memo.get(id(value), value) for value in function.__defaults__ or ())
    made = FunctionType(function.__code__, function.__globals__, function.__name__, defaults, closure)
    made.__kwdefaults__ = {key: memo.get(id(value), value) for key, value in named.items()}
    return made


def _stubborn(model: nn.Module) -> Iterator[tuple[str, Any, Exception]]:
    """Name, value and reason of every attribute that cannot be copied, and then of modules whose own rules refuse."""
    modules: dict[int, Any] = {id(module): module for module in model.modules()}
    stubborn: dict[int, Any] = {}
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in ("_parameters", "_buffers", "_modules")}
        for key, value in {**own, **module._parameters, **module._buffers}.items():
            try:
                copy.deepcopy(value, dict(modules))
            except Exception as error:
                stubborn[id(value)] = value
                yield f"{name}.{key}".lstrip("."), value, error
    for name, module in model.named_modules():
        if hasattr(type(module), "__deepcopy__"):
            try:
                copy.deepcopy(module, dict(stubborn))
            except Exception as error:
                yield name, module, error


def _refused(model: nn.Module, error: Exception) -> PreconditionError:
    name, value, reason = next(_stubborn(model), ("", model, error))
    return PreconditionError(f"{type(model).__name__} cannot be copied: {_why(name, value, reason)}")


def _why(name: str, value: Any, reason: Exception) -> str:
    if isinstance(value, nn.Module):
        return f"'{name}': {reason}" if name else str(reason)
    if isinstance(value, Tensor):
        return f"'{name}' is a tensor that remembers how it was computed: keep it detached, or outside of the model"
    return f"'{name}' is a {type(value).__name__} ({reason}): keep it outside of the model"
