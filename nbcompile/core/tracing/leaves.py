"""Which modules stay one node of every graph."""

from typing import Any

import torch
from torch import nn

from nbcompile.core.blocks import Expanded
from nbcompile.core.layers import why_no_layer

_HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_leaf(module: nn.Module) -> bool:
    """Whether ``module`` stays one node of every graph: torch's own, our blocks, layers."""
    if isinstance(module, (Expanded, torch.jit.ScriptModule, _Scripted)) or why_no_layer(module) is None:
        return True
    home = type(module).__module__
    return home.startswith(("torch.nn", "torch.ao.nn")) and not isinstance(module, _HOLDERS)


def calls_itself(module: nn.Module) -> bool:
    """Whether its class says for itself what a call is: hooks do not see that, so it is no node of any graph."""
    return type(module).__call__ is not nn.Module.__call__ and not isinstance(module, torch.jit.ScriptModule)


def hollow_scripts(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of ``root`` by name; modules of TorchScript, which take no hooks, get something around them first."""
    scripts = [(name, m) for name, m in root.named_modules() if name and isinstance(m, torch.jit.ScriptModule)]
    for name, script in scripts:
        if not isinstance(root.get_submodule(name.rpartition(".")[0]), (torch.jit.ScriptModule, _Scripted)):
            root.set_submodule(name, _Scripted(script))
    return list(root.named_modules())


class _Scripted(nn.Module):
    """Around a module of TorchScript."""

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self.__dict__["_script"] = script

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the script computes."""
        return self._script(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_script"], name)
