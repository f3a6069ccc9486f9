"""What goes wrong in the middle of a run is said in one sentence."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile import NBCompileError, UsageError
from nbcompile.training import TrainConfig, train
from nbcompile.training.failures import explained
from nbcompile.training.outputs.run_folder import RunFolder
from tests.full_disk import full_disk

OPTIONS: dict[str, Any] = {
    "method": "vanilla",
    "epochs": 2,
    "batch_size": 128,
    "warmup_epochs": 1,
    "accelerator": "cpu",
}
STEPS = 1437 // 128


def asks_for_too_much() -> None:
    torch.empty(2**50)


def is_refused_by_cuda() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def is_refused_by_python() -> None:
    raise MemoryError


class Hungry(nn.Module):
    """Wants more memory from the second epoch on."""

    def __init__(self, want: Callable[[], None]) -> None:
        super().__init__()
        self.linear, self.want, self.seen = nn.Linear(64, 10), want, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += self.training and torch.is_grad_enabled()
        if self.seen > STEPS:
            self.want()
        out: Tensor = self.linear(x.flatten(1))
        return out


@pytest.mark.parametrize(
    ("want", "said"),
    [
        (asks_for_too_much, r"\[enforce fail at .*"),
        (is_refused_by_cuda, r"CUDA out of memory. Tried to allocate 2.00 GiB."),
        (is_refused_by_python, "MemoryError"),
    ],
)
def test_out_of_memory(tmp_path: Path, want: Callable[[], None], said: str) -> None:
    with pytest.raises(NBCompileError) as caught:
        train(Hungry(want), TrainConfig(**OPTIONS), tmp_path / "trained.pt")
    assert caught.match(
        rf"^out of memory \({said}\): raise accumulate, now 1 \(the learning rate stays right, batch norms see smaller "
        rf"batches\), or lower batch_size 128 or input_size; {tmp_path}/trained-run/last.ckpt still holds epoch 1$"
    )
    assert not (tmp_path / "trained.pt").exists()


def test_a_full_disk(tmp_path: Path) -> None:
    run, full = tmp_path / "trained-run", ExitStack()
    net = Hungry(lambda: full.enter_context(full_disk(4000)))
    with full, pytest.raises(UsageError) as caught:
        train(net, TrainConfig(**OPTIONS), tmp_path / "trained.pt")
    assert caught.match(
        rf"^cannot write {run}/\w+.ckpt: File too large; it is as it was; {run}/last.ckpt still holds ep"
    )
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_a_full_disk_for_what_is_appended(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("x" * 5000)
    with (
        pytest.raises(UsageError, match=rf"^cannot write {tmp_path}: File too large; there is no checkpoint yet$"),
        explained(TrainConfig(**OPTIONS), RunFolder(tmp_path)),
        full_disk(5000),
        (tmp_path / "metrics.jsonl").open("a") as metrics,
    ):
        metrics.write("more")


@pytest.mark.parametrize(
    "words", ["Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL"]
)
def test_another_process_has_ended(tmp_path: Path, words: str) -> None:
    with (
        pytest.raises(
            NBCompileError, match=rf"^another .* \({words}\): see what it said, start all anew and resume; there"
        ),
        explained(TrainConfig(**OPTIONS), RunFolder(tmp_path)),
    ):
        raise RuntimeError(f"[gloo/transport/tcp/pair.cc:561] {words} [127.0.0.1]:41899")


def test_a_network_that_cannot_be_compiled(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch.compiler.reset()
    with (
        torch.compiler.config.patch(force_disable_caches=True),
        pytest.raises(
            NBCompileError, match=r"^torch.compile cannot compile this network \(.*\): train without compile; "
        ),
    ):
        train(net, TrainConfig(**OPTIONS, compile=True), tmp_path / "trained.pt")


def test_other_errors_are_let_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^mine$"), explained(TrainConfig(**OPTIONS), RunFolder(tmp_path)):
        raise RuntimeError("mine")
