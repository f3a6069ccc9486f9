"""One GPU for several processes at the same time."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from rich.console import Console

CONTROL = "nvidia-cuda-mps-control"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"


@contextmanager
def sharing_gpu(console: Console) -> Iterator[None]:
    """Let the kernels of processes that are started meanwhile run beside each other, where NVIDIA's MPS is installed.

    Else they take turns. What was started before, by the environment, is used. Reference:
    https://docs.nvidia.com/deploy/mps.
    """
    if PIPES in os.environ:
        yield
        return
    control = shutil.which(CONTROL)
    if control is None:
        console.print(f"{CONTROL} is not installed: processes take turns on the GPU")
        yield
        return
    with TemporaryDirectory() as folder:
        os.environ |= {PIPES: folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        started = subprocess.run([control, "-d"], check=False)
        console.print("MPS:", "started" if started.returncode == 0 else "does not start: processes take turns")
        try:
            yield
        finally:
            subprocess.run([control], input=b"quit\n", check=False)
            for name in (PIPES, "CUDA_MPS_LOG_DIRECTORY"):
                del os.environ[name]
