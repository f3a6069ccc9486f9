"""The reference recipe on Lightning Fabric: one loop, one small file per method.

::

    config.py  rules.py    what a run is told, and what it must keep          records.py   what it tells
    data.py                what a data set is; the table of them              schedule.py  learning rate, groups
        digits.py  cifar10.py  imagefolder.py  torchvision_data.py  factory_data.py
        tensor_images.py   small images, by the batch        transformed_images.py  pictures.py   large ones, in files
        choosing.py        some of the images
    loader.py              batches and their order                            seeds.py     random numbers
    methods/               what differs between methods      head.py        a new last layer
    loop.py                the loop                          session.py     what it works with
    begin.py  finish.py    start and end of a run            averaging.py   an average of the weights
    check.py               model against data                measure.py  meter.py   accuracy, loss
    runs.py                the run folder, resuming          tensorboard.py  curves.py   pictures of it
    engine.py              Fabric                            failures.py    errors as sentences
    deployed.py            accuracy of deploy files          progress.py    bars and lines
    command.py             behind `nbcompile train`

A new data set is one file and a few lines in ``data.py``; a new method one file and one line in
``methods/__init__.py``.
"""

from nbcompile.training.config import TrainConfig
from nbcompile.training.loop import train
from nbcompile.training.outputs.records import Epoch, Event, Started, Stepped, TrainResult

__all__ = ["Epoch", "Event", "Started", "Stepped", "TrainConfig", "TrainResult", "train"]
