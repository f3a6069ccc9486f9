"""Killed and resumed runs give the same numbers, whatever the method; stopped here after every epoch in turn."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import UsageError
from nbcompile.training import TrainConfig, TrainResult, train
from nbcompile.training.data.digits import load_digits
from nbcompile.training.data.subset import Subset
from tests.training.stopping import StopError, stop_after

BOOSTED: dict[str, Any] = {"method": "netbooster", "where": "all", "ratio": 2, "giant_epochs": 1, "plt_epochs": 2}
MIMIC: dict[str, Any] = {"method": "mimic", "teacher": "net", "unlabeled": "rest", "train_images": 600}
CASES: dict[str, dict[str, Any]] = {
    "vanilla": {"method": "vanilla", "ema": 0.9, "restarts": (2, 4)},
    "accumulated, channels last": {"method": "vanilla", "accumulate": 2, "channels_last": True},
    "plain first": BOOSTED | {"plain_epochs": 1, "preserve": True, "ema": 0.9, "decay": "cosine"},
    "at once": BOOSTED | {"plt_epochs": 0, "inserted_lr": 0.5},
    "contracted": BOOSTED | {"contract_at": "decay", "ema": 0.9},
    "collapsed": BOOSTED | {"collapse": True, "ema": 0.9, "restarts": (3,)},
    "its own teacher": BOOSTED | {"method": "netbooster+kd", "teacher": "self", "ema": 0.9},
    "one after the other": BOOSTED | {"rise": "from-input", "collapse": True, "decay": "cosine"},
    "waiting": BOOSTED
    | {"rise": "cheapest-first", "plt_loss": 0.02, "giant_epochs": 1, "plt_epochs": 3, "accumulate": 2},
    "a wider one": {"method": "netaug", "ema": 0.9, "wide_epochs": 3, "sort_epochs": 4},
    "the widest": {"method": "netdistiller", "accumulate": 2},
    "deeper and wider": BOOSTED | {"method": "netbooster+netaug", "plain_epochs": 1, "contract_at": "decay"},
    "a booster": {"method": "rocket", "where": "last:1", "ratio": 2, "ema": 0.9},
    "sizes and mixtures": {"method": "vanilla", "sizes": (6, 10, 8), "augment": "mixup", "ema": 0.9, "num_workers": 1},
    "stored labels": {"method": "kd", "teacher": "net", "stored_labels": "labels", "stored_views": 3, "accumulate": 2},
    "soft labels of mixtures": {"method": "kd", "teacher": "net", "labels": "none", "kd_mixup": 0.5},
    "another view": {"method": "kd", "teacher": "net", "same_view": False},
    "a route": {"method": "rco", "teacher": "net,other", "keep_anchors": 2},
    "a virtual teacher": {"method": "tf-kd"},
    "muon": BOOSTED | {"optimizer": "muon", "inserted_lr": 0.5},
    "branches": {"method": "grad-reparam", "branches": "dbb", "draw_branches": True, "ema": 0.9},
    "a teacher": {"method": "kd", "teacher": "net", "precision": "bf16-mixed"},
    "images without labels": MIMIC | {"adversarial": 0.1, "unlabeled_batch": 192, "ema": 0.9, "num_workers": 1},
    "an int8 finish": {"method": "vanilla", "ema": 0.9, "epochs": 3, "int8": 2},
    "a giant's int8 finish": BOOSTED | {"epochs": 4, "int8": 1},
    "these apart": MIMIC | {"adversarial": 0.1, "unlabeled_pass": "apart", "accumulate": 2, "precision": "bf16-mixed"},
}
EPOCHS = 5
SLOW = (
    "accumulated, channels last",
    "at once",
    "contracted",
    "a teacher",
    "sizes and mixtures",
    "stored labels",
    "soft labels of mixtures",
    "another view",
    "a route",
    "a virtual teacher",
    "its own teacher",
    "collapsed",
    "plain first",
    "one after the other",
    "waiting",
    "a wider one",
    "the widest",
    "deeper and wider",
    "a booster",
    "branches",
    "muon",
    "images without labels",
    "these apart",
    "an int8 finish",
    "a giant's int8 finish",
)


def lines(run: Path) -> list[dict[str, Any]]:
    """The metrics without the wall time."""
    return [json.loads(line) | {"seconds": 0} for line in (run / "metrics.jsonl").read_text().splitlines()]


def differing(one: Any, two: Any, where: str = "") -> list[str]:
    """Where two nested states are not equal to the bit, wall times aside."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = [key for key in {*one, *two} if key != "seconds"]
        return [found for key in keys for found in differing(one.get(key), two.get(key), f"{where}.{key}")]
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [
            found for i, pair in enumerate(zip(one, two, strict=True)) for found in differing(*pair, f"{where}.{i}")
        ]
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return [] if torch.equal(one, two) else [where]
    return [] if one == two else [where]


def weakened(net: nn.Module, times: int) -> nn.Module:
    """A network of its own for each number."""
    with torch.no_grad():
        for x in net.parameters():
            x.mul_(0.5**times)
    return net


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if c in SLOW else ()) for c in CASES])
def test_a_stopped_run_ends_with_the_same_bits(
    net_for: Callable[[], nn.Module], tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    defaults = {"epochs": EPOCHS, "batch_size": 256, "warmup_epochs": 1, "accelerator": "cpu"}
    config = TrainConfig(**(defaults | CASES[case]))
    teacher = [weakened(net_for(), number) for number, _ in enumerate(config.teachers)]
    if config.teacher == "self":
        teacher = []

    def run(name: str, **options: Any) -> TrainResult:
        return train(net_for(), config, tmp_path / f"{name}.pt", teacher=teacher or None, **options)

    whole = run("whole")
    for epoch in range(1, EPOCHS + 1):  # the last one is stopped, too: nothing but the end is missing then
        with pytest.raises(StopError):
            run("parts", resume=True, on_event=stop_after(epoch))
        torch.rand(epoch)  # the generators are elsewhere
    parts = run("parts", resume=True)

    assert lines(tmp_path / "parts-run") == lines(tmp_path / "whole-run")
    for name in ("whole-run/last.ckpt", "whole-run/best.ckpt", "whole.pt"):
        one, two = (torch.load(tmp_path / path, weights_only=True) for path in (name, name.replace("whole", "parts")))
        assert differing(one, two) == []
    assert parts.fused_accuracy == whole.fused_accuracy
    ends_small = config.contract_at == "decay" or config.int8 is not None
    assert (whole.fused_accuracy is None) == (ends_small or not (config.expands or config.widens))


def test_options_that_an_older_run_does_not_know_are_at_their_first_defaults(net: nn.Module, tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "vanilla", "epochs": 2, "batch_size": 256, "accelerator": "cpu"}
    with pytest.raises(StopError):
        train(net, TrainConfig(**options, ema=0.0), tmp_path / "trained.pt", on_event=stop_after(1))
    checkpoint = tmp_path / "trained-run" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    for new in ("ema", "restarts", "collapse", "teacher"):
        del state["config"][new]
    torch.save(state, checkpoint)
    with pytest.raises(UsageError, match=r"was started with ema=0.0, restarts=\[\], not ema=0.9, restarts=\[1\]: res"):
        train(net, TrainConfig(**options, ema=0.9, restarts=(1,)), tmp_path / "trained.pt", resume=True)
    with pytest.raises(UsageError, match=r"was started with ema=0.0, not ema=None: resume"):
        train(net, TrainConfig(**options), tmp_path / "trained.pt", resume=True)
    result = train(net, TrainConfig(**options, ema=0.0), tmp_path / "trained.pt", resume=True)
    assert len(result.history) == 2


SMALL: dict[str, Any] = {"method": "vanilla", "epochs": 2, "batch_size": 256, "accelerator": "cpu"}


def test_a_run_goes_on_in_less_memory_and_says_so(
    net: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a run that is out of memory is told to do."""
    with pytest.raises(StopError):
        train(net, TrainConfig(**SMALL), tmp_path / "trained.pt", on_event=stop_after(1))
    result = train(net, TrainConfig(**SMALL, accumulate=2, memory=1), tmp_path / "trained.pt", resume=True)
    assert len(result.history) == 2
    assert caplog.messages == [
        f"{tmp_path / 'trained-run'} goes on with accumulate=2 (it began with 1), memory=1 (it began with 4000): its "
        "numbers are not those of a run that never stopped"
    ]
    with pytest.raises(UsageError, match=r"was started with lr=0.1, not lr=0.5: resume with the same"):
        train(net, TrainConfig(**SMALL, lr=0.5), tmp_path / "trained.pt", resume=True)


def test_other_images_of_the_same_name_are_refused(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StopError):
        train(net, TrainConfig(**SMALL), tmp_path / "trained.pt", on_event=stop_after(1))
    data = load_digits()
    fewer = replace(data, train=Subset(data.train, torch.arange(1000)))
    renamed = replace(data, classes=("zero", *data.classes[1:]))
    for other, said in (
        (fewer, r"^digits had other images to train on when .*trained-run was started: 1,437, not 1,000: resume with"),
        (renamed, r"^digits had other classes when .*: 0, 1, .*, not zero, 1, .*: resume with the same images, or cho"),
    ):
        with pytest.raises(UsageError, match=said):
            train(net, TrainConfig(**SMALL), tmp_path / "trained.pt", resume=True, data=other)
    checkpoint = tmp_path / "trained-run" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    del state["data"]  # as a run before these were written down
    torch.save(state, checkpoint)
    assert len(train(net, TrainConfig(**SMALL), tmp_path / "trained.pt", resume=True).history) == 2


def test_what_is_left_aside_changes_nothing(net: nn.Module, tmp_path: Path) -> None:
    """A folder of answers, and another view, are asked by methods that take them alone."""
    foreign: dict[str, Any] = {"stored_labels": str(tmp_path / "answers"), "stored_views": 1, "ratio": 2}
    results = [
        train(net, TrainConfig(**SMALL, **options), tmp_path / f"{name}.pt")
        for name, options in {"plain": {}, "told": foreign, "seen": {"same_view": False}}.items()
    ]
    assert len({json.dumps([{**one.to_json(), "seconds": 0} for one in run.history]) for run in results}) == 1
    assert not (tmp_path / "answers").exists()
