"""The door through which every verb takes a model: what may come in, what is wrapped around it, and copies of it."""

import copy
import sys
from collections.abc import Iterator, Mapping
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.example import origin_of, remember


def unwrap(model: object) -> nn.Module:
    """The model inside DDP, DataParallel, ``torch.compile`` and AveragedModel wrappers, in any order.

    Raises:
        UsageError: if it is no model, or one that shows no layers: TorchScript, a graph of ``torch.export``.
        PreconditionError: if one of its parameters has no shape yet.
    """
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # a second to import; without it nothing is compiled
    while True:
        if dynamo is not None and isinstance(model, dynamo.OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, (DistributedDataParallel, DataParallel, AveragedModel)):
            model = model.module
        else:
            break
    if not isinstance(model, nn.Module) or not _shows_layers(model):
        raise UsageError(f"the model must be a torch.nn.Module as its own code makes it, not {_described(model)}")
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            raise PreconditionError(f"'{key}' of {type(model).__name__} has no shape yet: run the model once first")
    return model


def require_loaded(model: nn.Module, who: str) -> None:
    """Check that every parameter and buffer has values.

    Args:
        model: any module.
        who: the verb that needs them, named in the error.

    Raises:
        PreconditionError: naming the first on the meta device.
    """
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise PreconditionError(f"{who}: '{key}' is on the meta device and has no values: load the weights first")


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
        name, value, reason = next(_stubborn(model), ("", model, error))
        raise PreconditionError(f"{type(model).__name__} cannot be copied: {_why(name, value, reason)}") from error


def working_copy(model: nn.Module, *, training: bool | None = None, tensors: bool = True) -> nn.Module:
    """As :func:`copied`, and it shares plain attributes that cannot be copied, such as a lock.

    Args:
        model: any module.
        training: as there.
        tensors: whether tensors that cannot be copied are shared, too; not where the copy is given away.

    Raises:
        PreconditionError: if one of the modules cannot be copied; it is named.
    """
    try:
        return copied(model, training=training)
    except PreconditionError:
        kept = nn.Module if tensors else (nn.Module, Tensor)
        shared = {id(value): value for _, value, _ in _stubborn(model)}
        if not shared or any(isinstance(value, kept) for value in shared.values()):
            raise
        return _copied(model, shared, training)


def _copied(model: nn.Module, memo: dict[int, Any], training: bool | None) -> nn.Module:
    copy_ = copy.deepcopy(model, memo)
    for module in copy_.modules():
        for key, hooks in vars(module).items():
            if key.endswith("_hooks") and isinstance(hooks, dict):  # a copy's are to know the copy
                hooks.update({n: rebound(hook, memo) for n, hook in hooks.items() if isinstance(hook, FunctionType)})
    remember(copy_, origin_of(model))
    if training is not None:  # what a model's own `train` and `eval` return does not matter
        copy_.train() if training else copy_.eval()
    return copy_


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


def _why(name: str, value: Any, reason: Exception) -> str:
    if isinstance(value, nn.Module):
        return f"'{name}': {reason}" if name else str(reason)
    if isinstance(value, Tensor):
        return f"'{name}' is a tensor that remembers how it was computed: keep it detached, or outside of the model"
    return f"'{name}' is a {type(value).__name__} ({reason}): keep it outside of the model"


def _shows_layers(model: nn.Module) -> bool:
    """Whether it is made of modules: neither TorchScript nor a graph of ``torch.export``."""
    exported = any(cls.__module__.startswith("torch.export.") for cls in type(model).__mro__)
    return not exported and not isinstance(model, torch.jit.ScriptModule)


def _described(value: object) -> str:
    """What was given in the place of a model, and what to do."""
    if isinstance(value, type):
        return f"the class {value.__name__}: make one, as in {value.__name__}(...)"
    if isinstance(value, str):
        return f"the text '{value[:80]}': nbcompile.load reads files, and names of models are for the command line"
    if isinstance(value, torch.jit.ScriptModule):
        return "TorchScript: give the model that was scripted or traced"
    if isinstance(value, (nn.Module, torch.export.ExportedProgram)):
        return "what torch.export made: give the model that was exported"
    if isinstance(value, Mapping):
        return f"weights alone ({type(value).__name__}): load them into a model with load_state_dict, and give that"
    return f"a {type(value).__name__}"
