"""Lightning Fabric: devices, precision, and the processes that torchrun starts."""

import logging
import os
from typing import TYPE_CHECKING, Any

from nbcompile.core.errors import UsageError, missing_extra

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from nbcompile.training.options.config import TrainConfig


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints: torchrun numbers them in RANK, Fabric in LOCAL_RANK."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def start_fabric(config: "TrainConfig") -> "Fabric":
    """Fabric on the devices of ``config``, launched.

    Raises:
        UsageError: if Lightning is not installed, there is no such accelerator, or the batch cannot be divided.
    """
    try:
        from lightning.fabric import Fabric
    except ImportError as error:
        raise missing_extra("train", "nbcompile train", "lightning") from error
    for name in ("lightning.fabric", "lightning.pytorch"):  # a banner and a line per process, on stderr
        logging.getLogger(name).setLevel(logging.ERROR)
    world = int(os.environ.get("WORLD_SIZE", config.devices))
    if config.batch_size % (world * config.accumulate):
        parts = "" if config.accumulate == 1 else f", times accumulate {config.accumulate}"
        raise UsageError(
            f"batch_size {config.batch_size} must be a multiple of {world}, the number of processes{parts}"
        )
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))
    precision: Any = config.precision
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=per_node,
            num_nodes=world // per_node,
            strategy="ddp" if world > 1 else "auto",
            precision=precision,
        )
    except Exception as error:  # of Lightning; an accelerator may need a package of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"accelerator '{config.accelerator}' with {per_node} devices: {reason}") from error
    fabric.launch()
    return fabric
