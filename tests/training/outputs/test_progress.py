import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from nbcompile.cli.show import show_train
from nbcompile.training import Epoch, Started, Stepped, TrainResult
from nbcompile.training.compute import TrainingCost
from nbcompile.training.outputs.progress import Display


def started(done: int = 0, nothing: bool = False, run_dir: str = "my-run") -> Started:
    return Started(
        method="netbooster",
        data="digits",
        epochs=4,
        done=done,
        steps_per_epoch=22,
        run_dir=Path(run_dir),
        resume_found_nothing=nothing,
    )


STEPPED = Stepped(epoch=1, step=11, loss=2.31, accuracy=0.25, slope=0.4, lr=0.05, phase="plt")
EPOCH = Epoch(
    epoch=1,
    step=22,
    phase="plt",
    loss=1.2345,
    train_accuracy=0.5,
    val_accuracy=0.75,
    slope=1.0,
    lr=0.05,
    seconds=1.26,
)


def shown(*events: Started | Stepped | Epoch, terminal: bool) -> str:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=terminal, width=110, color_system=None)) as display:
        for event in events:
            display(event)
    return re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", out.getvalue())


def test_names_are_shown_as_they_can_be() -> None:
    (line, _) = shown(started(done=2, run_dir="a[red]:x:\nb"), terminal=False).splitlines()
    assert line == r"resuming a[red]:x:\nb after epoch 2 of 4"


def test_log_lines_where_there_is_no_terminal() -> None:
    assert shown(started(), STEPPED, EPOCH, terminal=False).splitlines() == [
        "netbooster on digits: 4 epochs of 22 steps",
        "epoch 1/4  plt  loss 1.234  train 50.0%  val 75.0%  slope 1.00  lr 0.05  1.3 s  left 0:00:04",
    ]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (started(done=2), "resuming my-run after epoch 2 of 4"),
        (started(nothing=True), "no checkpoint in my-run: starting from the beginning"),
    ],
)
def test_says_what_resuming_found(event: Started, line: str) -> None:
    assert shown(event, terminal=False).splitlines()[0] == line


def test_says_what_is_said_of_the_data() -> None:
    event = replace(started(), note="10 images, 3 MB, held in memory")
    assert shown(event, terminal=False).splitlines()[0] == "digits: 10 images, 3 MB, held in memory"


def test_bars_on_a_terminal() -> None:
    text = shown(started(), STEPPED, EPOCH, terminal=True)
    assert "plt 1/4" in text
    assert "loss 2.310  accuracy 25.0%  slope 0.40" in text
    assert "left" in text
    assert "epoch 1/4  plt  loss 1.234" in text


def test_no_slope_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display(Epoch(**(EPOCH.to_json() | {"slope": None})))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "slope" not in captured.err
    assert "val 75.0%" in captured.err


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        ({"fused_accuracy": None}, []),
        ({"fused_accuracy": 0.74, "int8_accuracy": 0.735, "notes": ("tiny.onnx is not measured: [no]",)}, [
            "accuracy of the fused network: 74.00%",
            "accuracy of tiny.tflite in LiteRT, int8: 73.50%",
            "tiny.onnx is not measured: [no]",
        ]),
        ({"fused_accuracy": 0.74, "onnx_accuracy": 0.74}, [
            "accuracy of the fused network: 74.00%", "accuracy of tiny.onnx in ONNX Runtime: 74.00%",
        ]),
    ],
)  # fmt: skip
def test_where_the_run_ended(found: dict[str, Any], lines: list[str]) -> None:
    result = TrainResult(
        method="kd", data="digits", history=(EPOCH,), accuracy=0.75, seconds=1.0, output=Path("trained.pt"),
        cost=TrainingCost(network=3000, giant=0, teacher=600, plain_epoch=1500, epochs=2), advice="train [longer]",
        run_dir=Path("trained-run"), model=nn.Identity(), **found,
    )  # fmt: skip
    out = io.StringIO()
    show_train(result.to_json(), Console(file=out, width=110))
    last = [
        "written: trained.pt, run folder trained-run",
        "this run cost 3.6e+03 training MACs (network 3e+03, teacher 600), 1.20 × plain training of as many epochs",
        "train [longer]",
    ]
    assert out.getvalue().splitlines() == ["accuracy: 75.00% (kd on digits)", *lines, *last]
