"""Expand, train, linearise, contract: tiny networks made more accurate at no cost on the device.

The verbs are loaded when they are first used: ``import nbcompile`` imports no torch.
"""

from importlib import import_module

TYPE_CHECKING = False  # but to type checkers; what is imported here is a moment in which Ctrl-C is a traceback
if TYPE_CHECKING:
    from typing import Any

    from nbcompile import zoo as zoo
    from nbcompile.checkpoint import load as load
    from nbcompile.checkpoint import save as save
    from nbcompile.collapse import collapse_ as collapse_
    from nbcompile.core.cost import Cost as Cost
    from nbcompile.core.cost import cost as cost
    from nbcompile.core.errors import CaptureError as CaptureError
    from nbcompile.core.errors import CheckpointError as CheckpointError
    from nbcompile.core.errors import ExportError as ExportError
    from nbcompile.core.errors import NBCompileError as NBCompileError
    from nbcompile.core.errors import PostconditionError as PostconditionError
    from nbcompile.core.errors import PreconditionError as PreconditionError
    from nbcompile.core.errors import UsageError as UsageError
    from nbcompile.core.errors import VerificationError as VerificationError
    from nbcompile.deploy.export import export as export
    from nbcompile.expansion import expand as expand
    from nbcompile.fusion import fuse as fuse
    from nbcompile.plt import PLT as PLT
    from nbcompile.reparam.grad_reparam import grad_reparam as grad_reparam
    from nbcompile.reparam.multipliers import GradReparam as GradReparam
    from nbcompile.verification import Verification as Verification
    from nbcompile.verification import verify as verify
    from nbcompile.widening import at_width as at_width
    from nbcompile.widening import widen as widen
    from nbcompile.widening import width_groups as width_groups

__version__ = "0.1.0"

_HOME = {
    # the verbs, in the order of the story
    "expand": "nbcompile.expansion",
    "PLT": "nbcompile.plt",
    "collapse_": "nbcompile.collapse",
    "widen": "nbcompile.widening",
    "at_width": "nbcompile.widening",
    "width_groups": "nbcompile.widening",
    "grad_reparam": "nbcompile.reparam.grad_reparam",
    "GradReparam": "nbcompile.reparam.multipliers",
    "fuse": "nbcompile.fusion",
    "verify": "nbcompile.verification",
    "Verification": "nbcompile.verification",
    "cost": "nbcompile.core.cost",
    "Cost": "nbcompile.core.cost",
    "save": "nbcompile.checkpoint",
    "load": "nbcompile.checkpoint",
    "export": "nbcompile.deploy.export",
    "zoo": "nbcompile",
    # the errors
    "NBCompileError": "nbcompile.core.errors",
    "CaptureError": "nbcompile.core.errors",
    "PreconditionError": "nbcompile.core.errors",
    "PostconditionError": "nbcompile.core.errors",
    "ExportError": "nbcompile.core.errors",
    "VerificationError": "nbcompile.core.errors",
    "CheckpointError": "nbcompile.core.errors",
    "UsageError": "nbcompile.core.errors",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> "Any":
    if name not in _HOME:
        raise AttributeError(f"module 'nbcompile' has no attribute '{name}'")
    if name == "zoo":
        return import_module("nbcompile.zoo")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
