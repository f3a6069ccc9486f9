"""Where a report was made: versions and machine."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    "nbcompile",
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "onnxsim",
    "tensorflow",
    "ai-edge-litert",
    "tflite-micro",
    "numpy",
    "lightning",
)


def versions() -> dict[str, str]:
    """The versions of Python and of those packages of the project that are installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # an extra that is not installed took no part
    return versions


def machine_line() -> str:
    """Processor, cores and system in one line."""
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
