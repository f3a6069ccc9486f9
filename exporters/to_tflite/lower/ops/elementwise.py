"""Element by element: activations, arithmetic, comparisons. They keep the layout of what they read."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.lower.refusal import LoweringError
from nbcompile.exporters.to_tflite.lower.value import Value, constant, elementwise

Number = int | float
Operand = Value | Tensor | Number


def unary(f: Callable[[tf.Tensor], tf.Tensor], nonnegative: bool = False) -> Callable[..., Value]:
    """The handler of a function of one number."""
    return lambda x, *_: x.like(f(x.tensor), nonnegative)


def binary(f: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Callable[..., Value]:
    """The handler of a function of two numbers."""
    return lambda a, b: elementwise(f, *_operands(a, b))


def comparison(name: str, f: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> dict[str, Callable[..., Value]]:
    """The rows of a comparison, with a number and with another value."""
    return dict.fromkeys((f"{name}.Scalar", f"{name}.Tensor"), binary(f))


def of_truths(f: Callable[..., tf.Tensor]) -> Callable[..., Value]:
    """The handler of a function of booleans, which numbers are where they are not 0."""

    def handler(*operands: Operand) -> Value:
        truths = [
            _as(x, torch.bool) if _dtype(x) == torch.bool else elementwise(tf.not_equal, *_operands(x, 0))
            for x in operands
        ]
        return elementwise(f, *truths)

    return handler


def _operands(a: Operand, b: Operand) -> tuple[Value | Tensor, Value | Tensor]:
    """Both of one kind, as PyTorch promotes them: floating point, else the whole numbers of a value, else booleans."""
    kinds, own = [_dtype(a), _dtype(b)], [_dtype(x) for x in (a, b) if isinstance(x, Value)]
    if any(kind.is_floating_point for kind in kinds):
        return _as(a, torch.float32), _as(b, torch.float32)
    wanted = next((kind for kind in (*own, *kinds) if kind != torch.bool), torch.bool)
    return _as(a, wanted), _as(b, wanted)


def _as(x: Operand, wanted: torch.dtype) -> Value | Tensor:
    if not isinstance(x, Value):
        return torch.as_tensor(x, dtype=wanted)
    made = tf.cast(x.tensor, str(wanted).removeprefix("torch."))
    return x if made.dtype == x.tensor.dtype else x.like(made, x.nonnegative)


def _dtype(x: Operand) -> torch.dtype:
    return getattr(torch, x.tensor.dtype.name) if isinstance(x, Value) else torch.as_tensor(x).dtype


def add_scaled(a: Operand, b: Operand, *, alpha: Number = 1) -> Value:
    """``a + alpha * b``; infinity in a constant becomes a number that softmax makes 0 of."""
    a, b = (x if isinstance(x, Value) else _finite(x) for x in (a, b))
    a, b = _operands(a, b if alpha == 1 else mul(b, alpha) if isinstance(b, Value) else b * alpha)
    made = elementwise(tf.add, a, b)
    both = all(x.nonnegative if isinstance(x, Value) else bool((x >= 0).all()) for x in (a, b))
    return made.like(made.tensor, both)


def sub(a: Operand, b: Operand, *, alpha: Number = 1) -> Value:
    """``a - alpha * b``."""
    a, b = _operands(a, b if alpha == 1 else mul(b, alpha) if isinstance(b, Value) else b * alpha)
    return elementwise(tf.subtract, a, b)


def mul(a: Operand, b: Operand) -> Value:
    """``a * b``; of booleans, whether both hold."""
    a, b = _operands(a, b)
    return elementwise(tf.logical_and if _dtype(a) == torch.bool else tf.multiply, a, b)


def div(a: Operand, b: Operand) -> Value:
    """``a / b``; by a constant: times its inverse, which integers can be multiplied with."""
    if isinstance(b, Value):
        return elementwise(tf.divide, _as(a, torch.float32), _as(b, torch.float32))
    return mul(a, 1 / torch.as_tensor(b))


def div_rounded(a: Operand, b: Operand, *, rounding_mode: str | None = None) -> Value:
    """``a / b``, down to a whole number, or towards zero."""
    if rounding_mode == "floor":
        return elementwise(tf.math.floordiv, *_operands(a, b))
    quotient = div(a, b)
    if rounding_mode is None:
        return quotient
    if not any(_dtype(x).is_floating_point for x in (a, b)):
        raise LoweringError("it divides whole numbers towards zero", "use rounding_mode='floor'")
    whole = tf.where(quotient.tensor < 0, tf.math.ceil(quotient.tensor), tf.floor(quotient.tensor))
    return quotient.like(whole)


def hardtanh(x: Value, low: Number = -1.0, high: Number = 1.0) -> Value:
    """Limited to ``low`` … ``high``; RELU6 and its like are one operator, and part of a convolution before them."""
    return clamp(x, low, high)


def clamp(x: Value, low: Number | None = None, high: Number | None = None) -> Value:
    """Limited to ``low`` … ``high``, None: not limited."""
    y = x.tensor
    low, high = (None if limit is None or math.isinf(limit) else limit for limit in (low, high))
    if (low, high) == (0, 6):
        return x.like(tf.nn.relu6(y), nonnegative=True)
    if low == 0:
        y = tf.nn.relu(y)
    elif low is not None:
        y = tf.maximum(y, tf.constant(low, y.dtype))
    if high is not None:
        y = tf.minimum(y, tf.constant(high, y.dtype))
    return x.like(y, nonnegative=low is not None and low >= 0)


def gelu(x: Value, *, approximate: str = "none") -> Value:
    """One GELU."""
    return x.like(tf.nn.gelu(x.tensor, approximate == "tanh"))


def gelu_in_parts(x: Value, *, approximate: str = "none") -> Value:
    """The tanh form in products, sums and a LOGISTIC: ``(1 + tanh(u)) / 2`` is ``sigmoid(2 * u)``."""
    if approximate != "tanh":
        raise LoweringError("its exact form has no other operators", "use nn.GELU(approximate='tanh')")
    y, factor = x.tensor, 2 * math.sqrt(2 / math.pi)
    return x.like(y * tf.sigmoid(y * (factor + 0.044715 * factor * (y * y))))


def leaky_relu(x: Value, slope: Number = 0.01) -> Value:
    """One LEAKY_RELU."""
    return x.like(tf.nn.leaky_relu(x.tensor, slope))


def prelu(x: Value, weight: Tensor) -> Value:
    """One PRELU, which the converter makes of this form; one slope, or one per channel."""
    slope = constant(weight.reshape(-1, *(1,) * (x.rank - 2)) if x.rank > 1 else weight, x.shape, x.axes)
    slope = slope.reshape((1,) * (len(x.axes) - 1 - slope.ndim) + slope.shape)  # the form has one dimension less
    return x.like(tf.nn.relu(x.tensor) + -slope * tf.nn.relu(-x.tensor))


def elu(x: Value, alpha: Number = 1.0, scale: Number = 1.0, input_scale: Number = 1.0) -> Value:
    """ELU, SELU and CELU; below 0 ``scale * alpha * (exp(input_scale * x) - 1)``; one ELU where all are 1."""
    y = x.tensor
    if alpha == scale == input_scale == 1:
        return x.like(tf.nn.elu(y))
    below = tf.nn.elu(tf.minimum(y * input_scale, 0.0)) * (scale * alpha)
    return x.like(tf.nn.relu(y) * scale + below)


def softplus(x: Value, beta: Number = 1.0, threshold: Number = 20.0) -> Value:
    """``log(1 + exp(beta * x)) / beta``, in a form that never overflows, and so has no use for a threshold."""
    if threshold < ROUNDED:
        raise LoweringError(f"from threshold={threshold} on it is a line", "leave out threshold, or use ReLU")
    y = x.tensor * beta
    return x.like((tf.nn.relu(y) + tf.math.log(1.0 + tf.exp(tf.abs(y) * -1))) * (1 / beta), nonnegative=True)


def sign(x: Value) -> Value:
    """1, 0 or -1."""
    negative = where(elementwise(tf.less, *_operands(x, 0)), -1, x.like(tf.zeros_like(x.tensor)))
    return where(elementwise(tf.greater, *_operands(x, 0)), 1, negative)


def pow_(x: Value, exponent: Operand) -> Value:
    """``x ** exponent``; of whole exponents in products, which integers and all targets have."""
    if isinstance(exponent, Number) and exponent in range(3, MOST_FACTORS + 1):
        half = pow_(x, exponent // 2)
        whole = mul(half, half)
        return mul(whole, x) if exponent % 2 else whole
    known = {2: tf.square, 0.5: tf.sqrt, -0.5: tf.math.rsqrt, 1: tf.identity, -1: tf.math.reciprocal}
    if isinstance(exponent, Number) and exponent in known:
        return x.like(known[exponent](x.tensor))
    return elementwise(tf.pow, *_operands(x, exponent))


def atan2(y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """One ATAN2, which takes operands of one shape."""
    shape = np.broadcast_shapes(tuple(y.shape), tuple(x.shape))
    return tf.atan2(*(one if tuple(one.shape) == shape else tf.broadcast_to(one, shape) for one in (y, x)))


def where(condition: Value | Tensor, a: Operand, b: Operand) -> Value:
    """``a`` where the condition holds, else ``b``; a condition that is constant costs a product and a sum."""
    a, b = (x if isinstance(x, Value) else _finite(x) for x in (a, b))
    if isinstance(condition, Value):
        return elementwise(tf.where, condition, *_operands(a, b))
    keep = condition.to(torch.float32)
    return add_scaled(mul(a, keep), mul(b, 1 - keep)) if not _is_zero(b) else mul(a, keep)


def _finite(x: Tensor | Number) -> Tensor | Number:
    """A constant, infinities as ``MASKED``."""
    values = torch.as_tensor(x)
    if not values.is_floating_point() or not values.isinf().any():
        return x
    return torch.where(values.isinf(), torch.sign(values) * MASKED, values)


def _is_zero(x: Operand) -> bool:
    return not isinstance(x, Value) and bool((torch.as_tensor(x) == 0).all())


def masked_fill(x: Value, mask: Value | Tensor, fill: Number | Tensor) -> Value:
    """``x`` with ``fill`` where the mask is set; ``-inf`` becomes a number that softmax makes 0 of."""
    if isinstance(mask, Tensor) and isinstance(fill, Number) and math.isinf(fill):
        return add_scaled(x, torch.where(mask, fill, 0.0))
    return where(mask, fill, x)


MOST_FACTORS = 8
"""Of a power; of more, the products' own rounding would add up."""

ROUNDED = 15.0
"""Where softplus is a line to float32: ``log(1 + exp(-15))`` is 3e-7, of 15 less than a rounding."""

MASKED = 1e3
"""What stands for infinity in an attention mask: ``exp(-1e3)`` is 0 in float32. At 1e4 XNNPACK adds int8 badly."""

_NONNEGATIVE = True

ELEMENTWISE_OPS: Mapping[str, Callable[..., Any]] = {
    "relu": unary(tf.nn.relu, _NONNEGATIVE),
    "relu6": unary(tf.nn.relu6, _NONNEGATIVE),
    "hardtanh": hardtanh,
    "clamp": clamp,
    "clamp_min": clamp,
    "clamp_max": lambda x, high: clamp(x, None, high),
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "elu": elu,
    "selu": lambda x: elu(x, 1.6732632423543772, 1.0507009873554805),
    "celu": lambda x, alpha=1.0: elu(x, alpha, 1.0, 1 / alpha),
    "gelu": gelu,
    "silu": unary(lambda x: x * tf.sigmoid(x)),
    "hardswish": unary(lambda x: x * (tf.nn.relu6(x + 3.0) * (1 / 6))),
    "hardsigmoid": unary(lambda x: tf.nn.relu6(x + 3.0) * (1 / 6), _NONNEGATIVE),
    "sigmoid": unary(tf.sigmoid, _NONNEGATIVE),
    "tanh": unary(tf.tanh),
    "softplus": softplus,
    "mish": lambda x: mul(x, x.like(tf.tanh(softplus(x).tensor))),
    "sign": sign,
    "log_sigmoid_forward": lambda x: [x.like(softplus(x.like(x.tensor * -1)).tensor * -1), None],
    "exp": unary(tf.exp, _NONNEGATIVE),
    "log": unary(tf.math.log),
    "sqrt": unary(tf.sqrt, _NONNEGATIVE),
    "rsqrt": unary(tf.math.rsqrt, _NONNEGATIVE),
    "abs": unary(tf.abs, _NONNEGATIVE),
    "neg": unary(lambda x: x * -1),  # NEG has no kernel for integers that have a scale
    "reciprocal": unary(lambda x: 1.0 / x),
    "square": unary(tf.square, _NONNEGATIVE),
    "sin": unary(tf.sin),
    "cos": unary(tf.cos),
    "floor": unary(tf.floor),
    "ceil": unary(tf.math.ceil),
    "round": unary(tf.round),
    "atan2": binary(atan2),
    "add.Tensor": add_scaled,
    "sub.Tensor": sub,
    "rsub.Scalar": lambda x, y, alpha=1: sub(y, x, alpha=alpha),
    **dict.fromkeys(("mul.Tensor", "mul.Scalar"), mul),
    "div.Tensor": div,
    "div.Tensor_mode": div_rounded,
    **dict.fromkeys(("remainder.Tensor", "remainder.Scalar"), binary(tf.math.floormod)),
    **dict.fromkeys(("pow.Tensor_Scalar", "pow.Tensor_Tensor"), pow_),
    "maximum": binary(tf.maximum),
    "minimum": binary(tf.minimum),
    **dict.fromkeys(("where.self", "where.ScalarOther"), where),
    **dict.fromkeys(("masked_fill.Scalar", "masked_fill.Tensor"), masked_fill),
    **comparison("gt", tf.greater),
    **comparison("ge", tf.greater_equal),
    **comparison("lt", tf.less),
    **comparison("le", tf.less_equal),
    **comparison("eq", tf.equal),
    **comparison("ne", tf.not_equal),
    **dict.fromkeys(("logical_and", "bitwise_and.Tensor"), of_truths(tf.logical_and)),
    **dict.fromkeys(("logical_or", "bitwise_or.Tensor"), of_truths(tf.logical_or)),
    **dict.fromkeys(("logical_xor", "bitwise_xor.Tensor"), of_truths(tf.not_equal)),
    **dict.fromkeys(("logical_not", "bitwise_not"), of_truths(tf.logical_not)),
}
