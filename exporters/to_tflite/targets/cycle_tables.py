"""Instructions of TFLite Micro's kernels with CMSIS-NN, by what they do; ``benchmarks/cycles.py`` fits and prints them.

tflite-micro 90b983c, CMSIS-NN 4ab83cc, arm-none-eabi-g++ 12.2, ``-O2``. What is done: see `work`.
"""

from collections.abc import Mapping

Table = Mapping[str, Mapping[str, float]]
"""By kind of kernel, and by what is done."""

PLAIN: Table = {
    "ADD": {"input": 237.4, "part": 889.6},
    "CONCATENATION": {"call": 517.9, "output": 0.8116, "part": 306.1},
    "FULLY_CONNECTED": {"mac": 7.397},
    "MEAN": {"input": 178.7},
    "PAD": {"input": 0.9689, "part": 881.4},
    "SLICE": {"output": 7.466},
    "convolution": {"call": 1467.0, "mac": 5.976, "output": 102.5, "place": 569.8, "weight": 0.5279, "gathered": 9.896},
    "depthwise 3x3": {"mac": 35.38, "place": 566.3},
    "pointwise": {"call": 1165.0, "mac": 5.998, "output": 97.55, "place": 2.761, "weight": 4.743},
    "strided pointwise": {"mac": 10.81},
}
"""Armv6-M: Cortex-M0+."""

DSP: Table = {
    "ADD": {"input": 80.37, "part": 264.0},
    "AVERAGE_POOL_2D": {"mac": 7.055, "output": 15.97},
    "CONCATENATION": {"call": 278.7, "output": 0.5308, "part": 176.4},
    "DEQUANTIZE in float32": {"input": 12.05},
    "FULLY_CONNECTED": {"call": 478.4, "mac": 1.884, "output": 56.73},
    "GATHER": {"input": 26.24},
    "HARD_SWISH": {"input": 85.59},
    "LEAKY_RELU": {"input": 51.97},
    "LOGISTIC": {"input": 448.6},
    "MAXIMUM": {"input": 8.442},
    "MAX_POOL_2D": {"mac": 6.365, "output": 15.86},
    "MEAN": {"input": 127.1, "output": 40.0, "part": 750.9},
    "MUL": {"input": 36.02},
    "PAD": {"input": 0.4044, "output": 0.1873, "part": 719.5},
    "QUANTIZE": {"input": 42.18},
    "QUANTIZE of float32": {"input": 18.05},
    "RELU": {"input": 49.49},
    "RESHAPE": {"input": 0.6979},
    "RESIZE_NEAREST_NEIGHBOR": {"output": 7.35},
    "SLICE": {"output": 4.826, "part": 20.08},
    "SOFTMAX": {"input": 548.6},
    "SUB": {"input": 112.9},
    "TANH": {"input": 461.0},
    "TRANSPOSE": {"input": 6.383},
    "convolution": {"mac": 1.627, "output": 48.22, "place": 573.4, "gathered": 2.191},
    "depthwise": {"mac": 6.982, "output": 32.8, "place": 1541.0},
    "depthwise 3x3": {"mac": 7.675, "place": 115.4},
    "pointwise": {"mac": 1.381, "output": 41.88, "weight": 3.687},
    "strided pointwise": {"mac": 3.703},
}
"""With DSP instructions: Cortex-M4, Cortex-M7, Cortex-M33."""

HELIUM: Table = {}
"""With Helium: Cortex-M55."""
