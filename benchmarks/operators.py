"""Operators: each that PyTorch's own tests know, as a network of its own, in ``.onnx`` and in a float ``.tflite`` file.

``torch.testing._internal.common_methods_invocations`` lists PyTorch's operators, with arguments that they are tested
on; of each, those in the middle of its list are taken. The network takes the first argument as a sample, and keeps the
others; all are in float32. Operators whose first argument is no such tensor, or that do not run, are left out.

A verdict is ``right`` (``export`` checks each file in its own runtime, and keeps none that differs), ``refused`` (an
error of nbcompile's, which is a sentence) or ``traceback`` (any other exception, or a process that dies or hangs).
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _common import parser, write, written
from _networks import isolated
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import nbcompile

FORMATS: dict[str, dict[str, Any]] = {"onnx": {"batch": 1}, "tflite": {"quantize": "float32"}}
"""With the options of ``export``: what each operator computes is computed in floats, and for one sample."""

AT_ONCE = 20
"""Operators that one process tries: it imports TensorFlow first."""

SECONDS = 60.0


class OneOperator(nn.Module):
    """Of the one sample in a batch."""

    def __init__(self, operator: Any, args: Any, kwargs: Any) -> None:
        super().__init__()
        self.operator, self.args, self.kwargs = operator, args, kwargs

    def forward(self, x: Tensor) -> Any:
        """What the operator gives for that sample, as a batch again."""
        y = self.operator(x[0], *self.args, **self.kwargs)
        if isinstance(y, tuple | list):
            return tuple(part[None] if isinstance(part, Tensor) else part for part in y)
        return y[None] if isinstance(y, Tensor) else y


def networks() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Name, network and input of each operator that has one."""
    from torch.testing._internal.common_methods_invocations import op_db

    for one in op_db:
        name = f"{one.name}.{one.variant_test_name}".removesuffix(".")
        if torch.float32 not in one.dtypes or name.startswith("jiterator"):  # those are of CUDA
            continue
        try:
            samples = list(one.sample_inputs("cpu", torch.float32, requires_grad=False))
        except Exception:  # some lack a library here
            continue
        given = [s for s in samples if isinstance(s.input, Tensor) and s.input.dtype == torch.float32]
        given = [s for s in given if s.input.ndim and s.input.numel() and s.input.layout is torch.strided]
        if given:
            sample = given[len(given) // 2]
            yield name, OneOperator(one.op, sample.args, sample.kwargs).eval(), sample.input.detach().clone()[None]


def verdict(network: nn.Module, x: Tensor, form: str) -> tuple[str, str]:
    """What becomes of a network, and what was said."""
    try:
        with torch.no_grad():
            network(x)
    except Exception:
        return "does not run", ""
    try:
        with tempfile.TemporaryDirectory() as folder:
            nbcompile.export(network, Path(folder) / f"a.{form}", x, **FORMATS[form])
    except nbcompile.NBCompileError as error:
        return "refused", str(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    return "right", ""


def verdicts(chosen: list[tuple[str, nn.Module, Tensor]], form: str) -> list[tuple[str, str]]:
    """Of several, in a process of their own; where that dies, of each in its own."""
    try:
        found: list[tuple[str, str]] = isolated(
            lambda: [verdict(network, x, form) for _, network, x in chosen],
            seconds=SECONDS * len(chosen), gigabytes=24,
        )  # fmt: skip
    except RuntimeError as error:
        if len(chosen) == 1:
            return [("traceback", str(error))]
        return [one for part in chosen for one in verdicts([part], form)]
    return found


def summary(names: list[str], found: list[tuple[str, str]]) -> dict[str, Any]:
    """Counts, and what was said, by operator."""
    said: dict[str, dict[str, str]] = {kind: {} for kind in ("refused", "traceback")}
    for name, (kind, text) in zip(names, found, strict=True):
        if kind in said:
            said[kind][name] = text.splitlines()[0] if text else ""
    right = sum(kind == "right" for kind, _ in found)
    return {"right": right, **{kind: len(texts) for kind, texts in said.items()}, "said": said}


def main() -> None:
    made = parser("operators", __doc__)
    made.add_argument("--only", choices=tuple(FORMATS), help="one format; what the result file has of the other stays")
    args = made.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("nbcompile").setLevel(logging.ERROR)
    torch.manual_seed(0)
    chosen = list(networks())[:: 40 if args.quick else 1]
    parts = [chosen[start : start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE)]
    results = {}
    table = Table("format", "right", "refused", "traceback")
    for form in [args.only] if args.only else FORMATS:
        found = [one for part in track(parts, form) for one in verdicts(part, form)]
        results[form] = summary([name for name, _, _ in chosen], found)
        table.add_row(form, *(str(results[form][kind]) for kind in ("right", "refused", "traceback")))
    Console().print(table)
    results = (written(args.out).get("results", {}) if args.only else {}) | results
    write(args, 0, {"right": "operators", "refused": "operators", "traceback": "operators"}, results)


if __name__ == "__main__":
    main()
