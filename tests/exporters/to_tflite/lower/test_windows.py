import pytest
import torch
from torch.nn import functional as F

from nbcompile.exporters.to_tflite.lower.windows import Window, scheme


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (2, 1), (3, 1), (5, 2), (3, 0)])
@pytest.mark.parametrize("size", [7, 8, 9, 12])
def test_as_many_windows_as_pytorch_has(size: int, kernel: int, padding: int, stride: int, ceil: bool) -> None:
    window = Window.of(size, kernel, stride, padding, padding, ceil=ceil)
    assert window.count == F.max_pool1d(torch.zeros(1, 1, size), kernel, stride, padding, ceil_mode=ceil).shape[-1]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation", "name"),
    [
        (9, 3, 1, 1, 1, "SAME"),
        (9, 3, 2, 1, 1, "SAME"),
        (8, 3, 2, 1, 1, None),  # SAME has its one zero behind
        (9, 3, 1, 0, 1, "VALID"),
        (8, 1, 2, 0, 1, "VALID"),
        (9, 3, 1, 2, 2, "SAME"),
        (9, 3, 1, 2, 1, None),
        (9, 5, 1, 1, 1, None),
        (8, 2, 2, 1, 1, None),
    ],
)
def test_the_padding_that_tensorflow_has_for_it(
    size: int, kernel: int, stride: int, padding: int, dilation: int, name: str | None
) -> None:
    assert scheme([Window.of(size, kernel, stride, padding, padding, dilation)]) == name


def test_zeros_that_no_window_reads_are_left_out() -> None:
    assert Window.of(8, 3, 2, 1, 1).after == 0
    assert Window.of(9, 3, 2, 1, 1).after == 1


def test_both_dimensions_must_agree() -> None:
    same, valid, neither = Window.of(9, 3, 2, 1, 1), Window.of(9, 3, 2, 0, 0), Window.of(8, 3, 2, 1, 1)
    assert [scheme(pair) for pair in ([same, same], [valid, valid], [same, valid], [same, neither])] == [
        "SAME",
        "VALID",
        None,
        None,
    ]
