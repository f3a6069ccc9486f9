"""The door through which every verb takes a model: what may come in, and what is wrapped around it."""

import re
import sys
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from nbcompile.core.errors import PreconditionError, UsageError

_UNSAID = re.compile(r'["\\\r\n\0\ud800-\udfff]')


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
    """Check that every parameter and buffer has values, and a name that can be said.

    Args:
        model: any module.
        who: the verb that needs them, named in the error.

    Raises:
        PreconditionError: naming the first on the meta device, or of another name.
    """
    require_names(model, who)
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise PreconditionError(f"{who}: '{key}' is on the meta device and has no values: load the weights first")


def require_names(model: nn.Module, who: str) -> None:
    """Check that names can be said: graphs say them in Python code between quotes, and files in Unicode.

    Args:
        model: any module.
        who: the verb, named in the error.

    Raises:
        PreconditionError: naming the first that cannot.
    """
    layers = (name for name, _ in model.named_modules())
    for name in (*layers, *(key for key, _ in (*model.named_parameters(), *model.named_buffers()))):
        if _UNSAID.search(name):
            raise PreconditionError(
                f"{who}: '{name}' of {type(model).__name__} cannot be named in a graph: rename it, without quotes, "
                "backslashes and line breaks"
            )


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
