"""The one table of what can be lowered: ATen operators, and the handler of each."""

from collections.abc import Callable, Mapping
from typing import Any

from nbcompile.exporters.to_tflite.lower.ops import convolution, elementwise, matrix, pooling, scatter, shape

HANDLERS: Mapping[str, Callable[..., Any]] = {
    **convolution.CONVOLUTION_OPS,
    **elementwise.ELEMENTWISE_OPS,
    **matrix.MATRIX_OPS,
    **pooling.POOLING_OPS,
    **scatter.SCATTER_OPS,
    **shape.SHAPE_OPS,
}
"""By name, such as ``conv2d`` or ``add.Tensor`` (the overload ``default`` is left out).

A handler takes the operator's own arguments: a `value.Value` for what depends on the input, a torch tensor for
what does not.
"""

NATIVE: Mapping[str, str] = {
    "gelu": "GELU",
    "scaled_dot_product_attention": "BATCH_MATMUL",
    "flip": "REVERSE_V2",
    "pow.Tensor_Tensor": "POW",
}
"""Operators of TFLite that not every runtime has, by the ATen operator that becomes one."""

INSTEAD: Mapping[str, Callable[..., Any]] = {"gelu": elementwise.gelu_in_parts}
"""Handlers for targets that lack the native operator."""
