"""Every row of FORMULAS, on meta tensors: also the operators that only another device would choose."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nbcompile.core.macs import FORMULAS, CountedRun


def t(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


aten = torch.ops.aten
MATRICES, BATCHES = (t(4, 5), t(5, 6)), (t(3, 4, 5), t(3, 5, 6))
HEADS = (t(2, 3, 5, 8), t(2, 3, 7, 8), t(2, 3, 7, 8))
CONVOLUTION = (t(2, 4, 7, 5), t(6, 2, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 2)
LSTM = [t(16, 5), t(16, 4), t(16), t(16)]
STATE = (t(1, 1, 4), t(1, 1, 4))
BYTES, EIGHTHS = torch.int8, torch.float8_e4m3fn

LATE = (aten._convolution, aten.miopen_rnn)

ROWS: dict[Any, tuple[tuple[Any, ...], int]] = {
    aten.convolution: (CONVOLUTION, 2 * 5 * 3 * 6 * 2 * 9),
    aten._convolution: ((*CONVOLUTION, False, False, False, False), 2 * 5 * 3 * 6 * 2 * 9),
    aten.linear: ((t(3, 4, 5), t(6, 5)), 3 * 4 * 5 * 6),
    aten.mm: (MATRICES, 4 * 5 * 6),
    aten.bmm: (BATCHES, 3 * 4 * 5 * 6),
    aten._int_mm: ((t(4, 5, dtype=BYTES), t(5, 6, dtype=BYTES)), 4 * 5 * 6),
    aten._scaled_mm: ((t(16, 32, dtype=EIGHTHS), t(48, 32, dtype=EIGHTHS).t(), t(), t()), 16 * 32 * 48),
    aten.addmm: ((t(6), *MATRICES), 4 * 5 * 6),
    aten._addmm_activation: ((t(6), *MATRICES), 4 * 5 * 6),
    aten.addbmm: ((t(4, 6), *BATCHES), 3 * 4 * 5 * 6),
    aten.baddbmm: ((t(4, 6), *BATCHES), 3 * 4 * 5 * 6),
    aten.mv: ((t(4, 5), t(5)), 4 * 5),
    aten.dot: ((t(5), t(5)), 5),
    aten.vdot: ((t(5), t(5)), 5),
    aten.addmv: ((t(4), t(4, 5), t(5)), 4 * 5),
    aten._scaled_dot_product_flash_attention: (HEADS, 2 * 3 * 5 * 7 * (8 + 8)),
    aten._scaled_dot_product_flash_attention_for_cpu: (HEADS, 2 * 3 * 5 * 7 * (8 + 8)),
    aten._scaled_dot_product_efficient_attention: ((*HEADS, None, False), 2 * 3 * 5 * 7 * (8 + 8)),
    aten._scaled_dot_product_cudnn_attention: ((*HEADS, None, False), 2 * 3 * 5 * 7 * (8 + 8)),
    aten._scaled_dot_product_fused_attention_overrideable: (HEADS, 2 * 3 * 5 * 7 * (8 + 8)),
    aten._scaled_dot_product_attention_math_for_mps: (HEADS, 2 * 3 * 5 * 7 * (8 + 8)),
    aten.conv_tbc: ((t(7, 2, 4), t(3, 4, 5), t(5)), (7 - 2) * 2 * 3 * 4 * 5),
    aten._trilinear: ((t(3, 4), t(6, 4, 5), t(3, 5), [1, 3], [0], [1, 2], [2, 3]), 3 * 6 * (4 * 5 + 5)),
    aten.mkldnn_rnn_layer: (
        (t(6, 1, 5), *LSTM, t(1, 4), t(1, 4), False, [], 2, 4, 1, True, False, False, False),
        6 * 16 * (5 + 4),
    ),
    aten._cudnn_rnn: (
        (t(6, 1, 5), LSTM, 4, None, *STATE, 2, 4, 0, 1, False, 0.0, False, False, [], None),
        6 * 16 * (5 + 4),
    ),
    aten.miopen_rnn: (
        (t(6, 1, 5), LSTM, 4, *STATE, 2, 4, 1, False, 0.0, False, False, [], None),
        6 * 16 * (5 + 4),
    ),
}


@pytest.mark.parametrize("operator", FORMULAS, ids=str)
def test_row(operator: Any) -> None:
    if operator in LATE and torch.__version__.startswith("2.9."):
        pytest.skip("torch 2.9 has no meta kernel of it")
    arguments, macs = ROWS[operator]
    run = CountedRun()
    with torch.no_grad(), run:
        operator(*arguments)
    assert run.macs == {"": macs}
