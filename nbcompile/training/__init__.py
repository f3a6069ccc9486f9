"""The reference recipe on Lightning Fabric: one loop, one small file per method."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbcompile.training.config import TrainConfig as TrainConfig
    from nbcompile.training.loop import train as train
    from nbcompile.training.outputs.records import Epoch as Epoch
    from nbcompile.training.outputs.records import Event as Event
    from nbcompile.training.outputs.records import Started as Started
    from nbcompile.training.outputs.records import Stepped as Stepped
    from nbcompile.training.outputs.records import TrainResult as TrainResult

_HOME = {"train": "nbcompile.training.loop", "TrainConfig": "nbcompile.training.config"} | dict.fromkeys(
    ("Epoch", "Event", "Started", "Stepped", "TrainResult"), "nbcompile.training.outputs.records"
)

__all__ = ["Epoch", "Event", "Started", "Stepped", "TrainConfig", "TrainResult", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nbcompile.training' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
