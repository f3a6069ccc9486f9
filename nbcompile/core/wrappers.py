"""What trainers wrap around a model, and how to see through it."""

import copy
import sys

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import origin_of, remember


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP, DataParallel, ``torch.compile`` and AveragedModel wrappers, in any order."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # a second to import; without it nothing is compiled
    while True:
        if dynamo is not None and isinstance(model, dynamo.OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, (DistributedDataParallel, DataParallel, AveragedModel)):
            model = model.module
        else:
            return model


def copied(model: nn.Module) -> nn.Module:
    """A deep copy that remembers what ``model`` remembers; a GraphModule's own forgets plain attributes.

    Raises:
        PreconditionError: if the model cannot be copied.
    """
    try:
        copy_ = copy.deepcopy(model)
    except Exception as error:
        raise PreconditionError(f"{type(model).__name__} cannot be copied: {error}") from error
    remember(copy_, origin_of(model))
    return copy_
