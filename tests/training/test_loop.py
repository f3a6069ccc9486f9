import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nbcompile
from nbcompile import CheckpointError, NBCompileError, UsageError
from nbcompile.training import Epoch, Event, Started, Stepped, TrainConfig, train
from nbcompile.training.batch import Batch
from nbcompile.training.data.load import load_data
from nbcompile.training.methods import METHODS
from tests.slow import one_in

Net = Callable[..., nn.Module]


def config(**options: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "method": "vanilla",
        "epochs": 3,
        "batch_size": 64,
        "warmup_epochs": 1,
        "accelerator": "cpu",
    }
    return TrainConfig(**(defaults | options))


class StopError(Exception):
    pass


def stop_at(step: int) -> Callable[[Event], None]:
    def listener(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == step:
            raise StopError

    return listener


def weights(path: Path) -> dict[str, Any]:
    state = torch.load(path / "last.ckpt", weights_only=True)["model"]
    assert isinstance(state, dict)
    return state


def lines(path: Path) -> list[dict[str, Any]]:
    """The metrics without the wall time."""
    return [json.loads(line) | {"seconds": 0} for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_vanilla_learns_and_leaves_what_it_promises(net: nn.Module, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    events: list[Event] = []
    result = train(net, config(epochs=8), tmp_path / "trained.pt", on_event=events.append)

    assert result.accuracy > 0.6
    assert result.fused_accuracy is None
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), "argument changed"
    assert not result.model.training

    started, *between, last = events
    assert isinstance(started, Started)
    assert (started.steps_per_epoch, started.done) == (22, 0)
    assert last is result
    assert sum(isinstance(event, Stepped) for event in between) == 8 * 22
    assert [event for event in between if isinstance(event, Epoch)] == list(result.history)
    assert [epoch.step for epoch in result.history] == [22 * (i + 1) for i in range(8)]
    assert result.history[-1].slope is None
    assert result.seconds == pytest.approx(sum(epoch.seconds for epoch in result.history))

    run = tmp_path / "trained-run"
    assert result.run_dir == run
    told = TrainConfig.from_json(json.loads((run / "config.json").read_text()))
    assert told == config(epochs=8, ema=1 - 1 / (0.04 * 8 * 22))
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        epoch.to_json() for epoch in result.history
    ]
    assert json.loads(json.dumps(result.to_json()))["accuracy"] == result.accuracy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trained-run", "trained.pt"]
    assert not list(run.glob("tiny.*")), "exported without being asked"


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (nn.Linear, "not the class Linear: make one, as in Linear"),
        ({"weight": torch.ones(1)}, "not weights alone (dict): load them into a model with load_state_dict"),
        (
            nn.Linear(1, 1, device="meta"),
            "train: 'weight' is on the meta device and has no values: load the weights first",
        ),
    ],
)
def test_only_models_are_trained(bad: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(NBCompileError) as caught:
        train(bad, config(), tmp_path / "t.pt")
    assert sentence in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_trained_file_is_read_back(net: nn.Module, tmp_path: Path) -> None:
    result = train(net, config(epochs=2), tmp_path / "trained.pt")
    images, labels = load_data(config()).val[list(range(360))]  # type: ignore[misc]
    loaded = nbcompile.load(tmp_path / "trained.pt").eval()
    with torch.no_grad():
        right = (loaded(images).argmax(1) == labels).sum().item()
    assert right / 360 == result.accuracy


def test_same_seed_same_numbers(net: nn.Module, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(net, config(epochs=2), tmp_path / f"{name}.pt")
    train(net, config(epochs=2, seed=1), tmp_path / "c.pt")
    assert lines(tmp_path / "a-run") == lines(tmp_path / "b-run") != lines(tmp_path / "c-run")


def test_the_loss_is_label_smoothed_cross_entropy() -> None:
    method = METHODS["vanilla"].start(config(label_smoothing=0.2), 1)
    logits, labels = torch.randn(5, 10), torch.arange(5)
    loss, given = method.loss(nn.Identity(), Batch(logits, labels))
    target = 0.8 * F.one_hot(labels, 10) + 0.2 / 10
    assert given is logits
    torch.testing.assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())


def batchless() -> nn.Module:
    """Without batch statistics, of which the parts of a batch have others than the whole."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


def test_a_batch_in_parts_gives_the_step_of_the_whole(tmp_path: Path) -> None:
    whole = train(batchless(), config(epochs=1, warmup_epochs=0), tmp_path / "whole.pt")
    parts = train(batchless(), config(epochs=1, warmup_epochs=0, accumulate=4), tmp_path / "parts.pt")
    assert parts.history[0].loss == pytest.approx(whole.history[0].loss, abs=1e-5)
    assert parts.history[0].train_accuracy == whole.history[0].train_accuracy
    for one, two in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, two)


class Watching(nn.Module):
    """Notes the strides and sizes of its training batches."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: set[tuple[int, bool]] = set()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.seen.add((len(x), x.stride(1) == 1))
        out: Tensor = self.net(x)
        return out


def test_channels_last_is_of_images_and_weights_and_not_of_the_trained_file(
    net_for: Net, folder: Path, tmp_path: Path
) -> None:
    options = {"epochs": 1, "warmup_epochs": 0, "batch_size": 4, "accumulate": 2, "channels_last": True}
    data = {"data": f"imagefolder:{folder}", "input_size": 16}
    result = train(Watching(net_for(2, 3)), config(**options, **data), tmp_path / "trained.pt")
    assert isinstance(result.model, Watching)
    assert result.model.seen == {(2, True)}
    saved = weights(tmp_path / "trained-run")["net.0.weight"]
    assert saved.is_contiguous(memory_format=torch.channels_last)
    assert torch.load(tmp_path / "trained.pt", weights_only=True)["state_dict"]["net.0.weight"].is_contiguous()


def test_a_teacher_is_asked_under_the_same_precision(net: nn.Module, tmp_path: Path) -> None:
    teacher = batchless()
    dtypes = set()
    teacher[0].register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    precision = {"precision": "bf16-mixed", "epochs": 1, "warmup_epochs": 0}
    kd = config(method="kd", teacher="batchless", **precision)
    copied: list[nn.Module] = []
    teacher[0].register_forward_hook(lambda module, inputs, output: copied.append(module))
    train(net, kd, tmp_path / "trained.pt", teacher=teacher)
    assert dtypes == {torch.float32, torch.bfloat16}, "once to see whether it fits, then in training"
    assert all(module is not teacher[0] for module in copied), "the caller's teacher was used"


@pytest.mark.slow
def test_compiled_once_and_once_more_when_the_giant_collapses(net_for: Net, tmp_path: Path) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    options = {"epochs": 4, "where": "all", "ratio": 2, "giant_epochs": 1, "plt_epochs": 2, "lr": 0.02}
    boosted = config(method="netbooster", collapse=True, ema=0.9, **options)
    compiled = config(method="netbooster", collapse=True, ema=0.9, compile=True, **options)
    fast = train(net_for(), compiled, tmp_path / "compiled.pt")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    plain = train(net_for(), boosted, tmp_path / "plain.pt")
    assert fast.history[0].loss == pytest.approx(plain.history[0].loss, rel=0.02)
    assert fast.model.state_dict().keys() == plain.model.state_dict().keys()
    torch.compiler.reset()


@pytest.mark.parametrize("at", one_in(3, [23, 1, 44]))
def test_a_stopped_run_goes_on_to_the_same_bits(net: nn.Module, tmp_path: Path, at: int) -> None:
    whole = train(net, config(), tmp_path / "whole.pt")
    with pytest.raises(StopError):
        train(net, config(), tmp_path / "half.pt", on_event=stop_at(at))
    with (tmp_path / "half-run" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"epoch": 2, "st')  # a line half written
    torch.rand(7)  # the generators are elsewhere
    resumed = train(net, config(), tmp_path / "half.pt", resume=True)

    assert lines(tmp_path / "whole-run") == lines(tmp_path / "half-run")
    assert [epoch.loss for epoch in resumed.history] == [epoch.loss for epoch in whole.history]
    one, two = weights(tmp_path / "whole-run"), weights(tmp_path / "half-run")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_resuming_a_finished_run_gives_its_result_again(net: nn.Module, tmp_path: Path) -> None:
    first = train(net, config(), tmp_path / "trained.pt")
    (tmp_path / "trained.pt").unlink()
    again = train(net, config(), tmp_path / "trained.pt", resume=True)
    assert again.history == first.history
    assert (tmp_path / "trained.pt").exists()


def test_resuming_with_no_checkpoint_begins_and_says_so(net: nn.Module, tmp_path: Path) -> None:
    events: list[Event] = []
    train(net, config(epochs=2), tmp_path / "trained.pt", resume=True, on_event=events.append)
    assert isinstance(events[0], Started)
    assert events[0].resume_found_nothing


def test_a_finished_run_is_replaced_and_an_unfinished_one_is_not(net: nn.Module, tmp_path: Path) -> None:
    train(net, config(epochs=2), tmp_path / "trained.pt")
    with pytest.raises(StopError):
        train(net, config(seed=5), tmp_path / "trained.pt", on_event=stop_at(10))
    assert not list((tmp_path / "trained-run").glob("*.ckpt")), "a checkpoint of the replaced run"
    with pytest.raises(StopError):
        train(net, config(seed=5), tmp_path / "trained.pt", on_event=stop_at(50))
    with pytest.raises(UsageError, match=r"holds a run that stopped after epoch 2 of 3: resume it, or choose another"):
        train(net, config(seed=6), tmp_path / "trained.pt")


@pytest.fixture
def stopped(net: nn.Module, tmp_path: Path) -> Path:
    with pytest.raises(StopError):
        train(net, config(), tmp_path / "trained.pt", on_event=stop_at(30))
    return tmp_path


def test_refuses_to_resume_with_another_config(net: nn.Module, stopped: Path) -> None:
    with pytest.raises(UsageError, match=r"was started with lr=0.1, seed=0, not lr=0.2, seed=1: resume with the same"):
        train(net, config(lr=0.2, seed=1), stopped / "trained.pt", resume=True)


def test_refuses_to_resume_another_network(stopped: Path) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(
        UsageError, match=r"last.ckpt holds another network than Sequential: resume with the same MODEL"
    ):
        train(other, config(), stopped / "trained.pt", resume=True)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "is damaged, or no checkpoint of nbcompile train"),
        (lambda path: path.write_bytes(b""), "is damaged, or no checkpoint of nbcompile train"),
        (lambda path: torch.save({"epoch": 3}, path), r"is damaged, or no checkpoint of nbcompile train \(KeyError\)"),
        (lambda path: torch.save({"format": 99}, path), "has format 99, this version of nbcompile reads 1: choose"),
    ],
)
def test_refuses_a_damaged_checkpoint(
    net: nn.Module, stopped: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(stopped / "trained-run" / "last.ckpt")
    with pytest.raises(CheckpointError, match=sentence):
        train(net, config(), stopped / "trained.pt", resume=True)


class Explodes(nn.Module):
    """Logits that are infinite from the 25th training batch on."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        out: Tensor = self.linear(x.flatten(1))
        return out + (math.inf if self.seen >= 25 else 0.0)


def test_stops_when_the_loss_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(NBCompileError) as caught:
        train(Explodes(), config(epochs=2), tmp_path / "trained.pt")
    assert str(caught.value) == (
        f"the loss is nan at optimiser step 25 with learning rate 0.098: lower lr, or lengthen warmup_epochs; "
        f"{tmp_path}/trained-run/last.ckpt still holds epoch 1"
    )
    assert not (tmp_path / "trained.pt").exists()
    assert weights(tmp_path / "trained-run")["linear.weight"].isfinite().all()


def test_says_when_there_is_no_checkpoint_yet(tmp_path: Path) -> None:
    linear = nn.Linear(64, 10)
    nn.init.constant_(linear.bias, math.nan)
    model = nn.Sequential(nn.Flatten(), linear)
    with pytest.raises(NBCompileError, match=r"the loss is nan at optimiser step 1 .*; there is no checkpoint yet$"):
        train(model, config(), tmp_path / "trained.pt")


def test_refuses_a_batch_larger_than_the_data(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_size 2000 is more than the 1437 images to train on"):
        train(net, config(batch_size=2000), tmp_path / "trained.pt")


def test_refuses_an_unusable_output_before_training(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*nowhere/trained.pt"):
        train(net, config(), tmp_path / "nowhere" / "trained.pt")


def test_refuses_a_run_folder_that_is_a_file(net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file cannot be made a run folder"):
        train(net, config(), tmp_path / "trained.pt", run_dir=tmp_path / "file")


def test_refuses_an_accelerator_that_is_not_there(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"accelerator 'abacus' with 1 devices: .*invalid accelerator name"):
        train(net, config(accelerator="abacus"), tmp_path / "trained.pt")


def test_refuses_a_batch_that_the_processes_cannot_share(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_size 64 must be a multiple of 3, the number of processes"):
        train(net, config(devices=3), tmp_path / "trained.pt")


def test_refuses_a_batch_that_cannot_be_divided(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="batch_size 64 must be a multiple of 4, the number of processes, times accumulate 32"
    ):
        train(net, config(devices=4, accumulate=32), tmp_path / "trained.pt")


def test_a_new_head_has_the_classes_of_the_data(net_for: Net, tmp_path: Path) -> None:
    model = net_for(num_classes=3)
    result = train(model, config(epochs=2, new_head=True), tmp_path / "trained.pt")
    assert result.model[9].out_features == 10  # type: ignore[index]
    again = train(model, config(epochs=2, new_head=True), tmp_path / "again.pt")
    assert [epoch.loss for epoch in again.history] == [epoch.loss for epoch in result.history]


def test_says_how_to_install_lightning(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.fabric", None)
    with pytest.raises(UsageError, match=r"nbcompile train needs lightning, .*: pip install 'nbcompile\[train\]'"):
        train(net, config(), tmp_path / "trained.pt")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            lambda net_for: net_for(num_classes=7),
            r"Sequential gives outputs of shape \(7,\), but digits has 10 classes: "
            r"write MODEL\?num_classes=10&in_channels=1, as in nbcompile:dscnn\?num_classes=10&in_channels=1$",
        ),
        (
            lambda net_for: net_for(in_channels=3),
            r"Sequential cannot take the images of digits, 1×8×8 \(.*\): write MODEL\?num_classes=10&in_channels=1",
        ),
        (lambda net_for: nn.Identity(), "Identity has no parameters: there is nothing to train"),
        (lambda net_for: TwoHeads(), "TwoHeads gives a tuple in training, not a tensor of logits: switch its aux"),
    ],
)
def test_refuses_a_network_that_does_not_fit(
    net_for: Net, tmp_path: Path, model: Callable[[Net], nn.Module], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        train(model(net_for), config(), tmp_path / "trained.pt")


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out: Tensor = self.linear(x.flatten(1))
        return (out, out) if self.training else out
