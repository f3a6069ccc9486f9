"""Torch's exporters, without the tables of operators that they make anew for every export."""

from functools import cache

from torch._export import utils
from torch.onnx._internal.exporter._registration import ONNXRegistry


def make_tables_once() -> None:
    """Keep what depends on torch alone, for all exports of a process."""
    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign,assignment]
    utils._materialize_cpp_cia_ops = cache(utils._materialize_cpp_cia_ops)
