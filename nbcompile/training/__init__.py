"""The reference recipe on Lightning Fabric: one loop, one small file per method. Imports nothing until it is used.

::

    command.py             behind `nbcompile train`
    loop.py                `train`: the loop that all methods share
    begin.py  finish.py    start and end of a run            session.py   what it works with
    options/               what a run is told, and what that must keep
    methods/               the table of methods; what differs between them
    data/                  the table of data sets; a file for each
    stored/                a teacher's answers in a folder
    int8/                  the finish for int8 files
    tasks/                 what is learnt: its loss, what is measured, which networks fit
    loader.py              batches and their order           seeds.py     random numbers
    batch.py               what a step gets
    learning_rate.py       warm-up and cosine                weight_average.py   of the last steps
    check_fits.py          does the model fit the data?      new_head.py  a new last layer, a detector's head
    accuracy.py            on held-out images                epoch_meter.py      loss and accuracy of an epoch
    deployed_accuracy.py   of deploy files                   compute.py   what a run costs
    outputs/               the run folder, what a run tells, its pictures, bars and lines
    engine.py              Fabric                            failures.py  errors as sentences

A new method is one file in ``methods/`` and one row there; a new data set one file in ``data/`` and one row.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbcompile.training.loop import train as train
    from nbcompile.training.options.config import TrainConfig as TrainConfig
    from nbcompile.training.outputs.records import Epoch as Epoch
    from nbcompile.training.outputs.records import Event as Event
    from nbcompile.training.outputs.records import Started as Started
    from nbcompile.training.outputs.records import Stepped as Stepped
    from nbcompile.training.outputs.records import TrainResult as TrainResult

_HOME = {"train": "nbcompile.training.loop", "TrainConfig": "nbcompile.training.options.config"} | dict.fromkeys(
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
