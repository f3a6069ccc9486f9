"""The machine."""

from dataclasses import dataclass

from nbcompile.core.options import NOT_NEGATIVE, POSITIVE, option

MEMORY = 4000
"""Megabytes of images that are held, by default."""


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """On what the run is computed."""

    num_workers: int = option(
        0, "Processes that read and augment images, per training process", panel="Machine", bound=NOT_NEGATIVE
    )
    memory: int = option(
        MEMORY,
        "Megabytes up to which images in files are decoded once and held in memory, by each training process; larger "
        "sets, and all at 0, are read from files",
        bound=NOT_NEGATIVE,
    )
    accelerator: str = option(
        "auto",
        "As in Lightning Fabric: auto, cpu, cuda or mps",
        metavar="NAME",
        offers=("auto", "cpu", "cuda", "mps"),
    )
    devices: int = option(1, "Training processes to start; under torchrun, torchrun decides", bound=POSITIVE)
    precision: str = option("32-true", "Of the training step", metavar="NAME", choices=("32-true", "bf16-mixed"))
    device_images: bool = option(
        False,
        "Hold the images on the accelerator, and make their views there: small images of one size, in memory",
    )
    cuda_graphs: bool = option(
        False, "Record a training step on a CUDA GPU once a phase, and replay it: small networks wait for Python else"
    )
    compile: bool = option(False, "Let torch.compile compile the training step's forward")
    channels_last: bool = option(False, "Memory format of images and weights")
