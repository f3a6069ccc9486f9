"""What trainers wrap around a model, and how to see through it."""

import sys

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


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
