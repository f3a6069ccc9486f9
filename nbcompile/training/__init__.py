"""The reference recipe on Lightning Fabric: one loop, one small file per method.

::

    config.py       what a run is told          records.py    what it tells
    data.py         batches and their order     schedule.py   learning rate, parameter groups
    digits.py  imagefolder.py                   methods/      what differs between methods
    loop.py         the loop                    session.py    what it works with
    check.py        model against data          measure.py    accuracy
    runs.py         the run folder, resuming    engine.py     Fabric
    progress.py     bars and lines              command.py    behind `nbcompile train`

A new data set is one file and one line in ``data.load_data``; a new method one file and one line in
``methods/__init__.py``.
"""

from nbcompile.training.config import TrainConfig
from nbcompile.training.loop import train
from nbcompile.training.records import Epoch, Event, Started, Stepped, TrainResult

__all__ = ["Epoch", "Event", "Started", "Stepped", "TrainConfig", "TrainResult", "train"]
