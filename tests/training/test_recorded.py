"""Recorded steps: on the CPU a stand-in for CUDA graphs records a step by going through it again, or by freezing it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile import NBCompileError, UsageError
from nbcompile.training import TrainConfig, train
from nbcompile.training.batch import Batch
from nbcompile.training.methods import METHODS
from nbcompile.training.recorded import Recorded, StepRecorder, recorder_on, with_strides_of
from tests.slow import one_in

Step = Callable[[], None]


class Again(StepRecorder):
    """Goes through the step without effect, as recording does, and does it at every replay, into the same memory."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.recorded, self.replays = model, 0, 0

    def record(self, step: Step) -> Callable[[], object]:
        self.recorded += 1
        before = {name: x.clone() for name, x in self.model.named_buffers()}
        with torch.random.fork_rng(devices=[]):
            step()
        for name, buffer in self.model.named_buffers():
            buffer.copy_(before[name])
        memory = [p.grad for p in self.model.parameters()]

        def replay() -> None:
            self.replays += 1
            for p in self.model.parameters():
                p.grad = None
            with torch.enable_grad():
                step()
            for p, kept in zip(self.model.parameters(), memory, strict=True):
                if kept is not None and p.grad is not None:
                    kept.copy_(p.grad)

        return replay


class Frozen(Again):
    """What the step did when it was recorded is all that a replay leaves."""

    def record(self, step: Step) -> Callable[[], object]:
        super().record(step)
        return lambda: None


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 3, 3))


def batches(count: int = 4) -> list[Batch]:
    g = torch.Generator().manual_seed(0)
    draw = lambda: (torch.randn(6, 1, 7, 5, generator=g), torch.randint(0, 3, (6,), generator=g))  # noqa: E731
    return [Batch(*draw(), {"more": torch.randn(6, generator=g)}) for _ in range(count)]


def learner(model: nn.Module, share: Callable[[], float] = lambda: 1.0) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    def learn(batch: Batch) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        logits = model(batch.images)
        each = nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        loss = share() * (each * batch.more["more"].abs()).mean()
        loss.backward()
        return loss.detach(), (logits.argmax(1) == batch.labels).sum()

    return learn


def gone_through(learn: Callable[[Batch], tuple[Tensor, Tensor]], model: nn.Module) -> list[Any]:
    found = []
    for batch in batches():
        loss, right = learn(batch)
        gradients = [p.grad for p in model.parameters()]
        assert all(g is not None for g in gradients)
        found.append((float(loss), int(right), [g.clone() for g in gradients if g is not None]))
    return found


def test_a_recorded_step_does_what_the_step_does() -> None:
    one, other = net(), net()
    recorder = Again(other)
    expected = gone_through(learner(one), one)
    found = gone_through(Recorded(learner(other), other, recorder), other)
    assert (recorder.recorded, recorder.replays) == (1, 3)
    for (loss, right, gradients), (loss_, right_, gradients_) in zip(expected, found, strict=True):
        assert (loss, right) == (loss_, right_)
        assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_, strict=True))
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_what_python_decides_anew_is_refused() -> None:
    model, drawn = net(), iter(range(1, 100))
    learn = Recorded(learner(model, lambda: float(next(drawn))), model, Again(model))
    with pytest.raises(NBCompileError, match=r"is not what the step does: leave cuda_graphs out \(gradients .* apart"):
        gone_through(learn, model)


def test_a_replay_that_leaves_old_gradients_is_refused() -> None:
    model = net()
    with pytest.raises(NBCompileError, match="is not what the step does"):
        gone_through(Recorded(learner(model), model, Frozen(model)), model)


def test_gradients_that_only_one_of_both_has_are_refused() -> None:
    model, passes = net(), []

    def learn(batch: Batch) -> tuple[Tensor, Tensor]:
        passes.append(batch)
        found = learner(model)(batch)
        if len(passes) == 4:  # the proof's
            model[0].bias.grad = None
        return found

    with pytest.raises(NBCompileError, match=r"is not what the step does: leave cuda_graphs out$"):
        gone_through(Recorded(learn, model, Again(model)), model)


def test_a_step_that_waits_for_the_device_cannot_be_recorded() -> None:
    class Waits(Again):
        def record(self, step: Step) -> Callable[[], object]:
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be")

    model = net()
    said = "cuda_graphs: the training step cannot be recorded: operation not permitted when stream is capturing; leave"
    with pytest.raises(NBCompileError, match=re.escape(said)):
        gone_through(Recorded(learner(model), model, Waits(model)), model)


def test_gradients_are_laid_out_as_their_parameters() -> None:
    pointwise, kernel = (
        torch.randn(shape).to(memory_format=torch.channels_last) for shape in ((6, 4, 1, 1), (6, 4, 3, 3))
    )
    for parameter in (pointwise, kernel):
        gradient = torch.randn(parameter.shape)
        found = with_strides_of(parameter, gradient)
        assert torch.equal(found, gradient)
        assert found.stride() == parameter.stride() != gradient.stride()
    gradient = torch.randn(pointwise.shape)
    assert with_strides_of(pointwise, gradient).data_ptr() == gradient.data_ptr()
    model = nn.Conv2d(4, 6, 1, bias=False).to(memory_format=torch.channels_last)

    def learn(batch: Batch) -> tuple[Tensor, Tensor]:
        model.weight.grad = torch.ones(6, 4, 1, 1)
        return torch.zeros(()), torch.zeros(())

    recorded = Recorded(learn, model, Again(model))
    for batch in batches():
        recorded(batch)
        assert model.weight.grad is not None
        assert model.weight.grad.stride() == model.weight.stride()


def test_it_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cuda_graphs needs a CUDA GPU, and the run is on 'cpu': leave it out$"):
        recorder_on(torch.device("cpu"))
    config = TrainConfig(data="digits", method="vanilla", epochs=1, accelerator="cpu", cuda_graphs=True)
    with pytest.raises(UsageError, match="cuda_graphs needs a CUDA GPU"):
        train(nbcompile.zoo.dscnn(num_classes=10, in_channels=1), config, tmp_path / "trained.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "netaug"}, r"^cuda_graphs records one step for all, and method 'netaug' decides anew"),
        ({"method": "netbooster", "plt_loss": 0.1}, "and plt_loss decides anew"),
        ({"method": "netbooster", "rise": "cheapest-first"}, "and rise 'cheapest-first' decides anew"),
        ({"method": "kd", "teacher": "a.pt", "kd_mixup": 0.2, "labels": "none"}, "and kd_mixup decides anew"),
        ({"method": "vanilla", "compile": True}, "^cuda_graphs and compile do not go together: choose one of them$"),
        ({"method": "vanilla", "devices": 2}, "^cuda_graphs and devices do not go together"),
        ({"method": "vanilla", "int8": 1}, "^cuda_graphs and int8 do not go together"),
    ],
)
def test_what_does_not_go_with_it(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TrainConfig(data="digits", cuda_graphs=True, **options)


@pytest.mark.parametrize("name", one_in(3, [name for name, row in METHODS.items() if row.alike]))
def test_every_method_that_says_so_trains_alike(
    name: str, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, models = METHODS[name], []

    class Last(StepRecorder):
        def record(self, step: Step) -> Callable[[], object]:
            return Again(models[-1]).record(step)

    def made(learn: Any, model: nn.Module, recorder: StepRecorder) -> Recorded:
        models.append(model)
        return Recorded(learn, model, recorder)

    for module in ("session", "loop"):
        monkeypatch.setattr(f"nbcompile.training.{module}.recorder_on", lambda _: Last())
    monkeypatch.setattr("nbcompile.training.session.Recorded", made)
    options: dict[str, Any] = {"method": name, "epochs": 2, "batch_size": 100, "train_images": 400}
    options |= {"accelerator": "cpu", "channels_last": True}
    options |= {"where": ["3"]} if "where" in row.takes else {}
    teacher: Any = None
    if row.distils:
        options["teacher"], teacher = ("a,b", [net, net]) if name == "rco" else ("a", net)
    results = []
    for graphs in (False, True):
        config = TrainConfig(data="digits", cuda_graphs=graphs, **options)
        results.append(train(net, config, tmp_path / f"{graphs}.pt", teacher=teacher))
    assert models
    here, there = (result.history[-1] for result in results)
    assert here.loss == pytest.approx(there.loss, rel=1e-5)  # its optimizer is one kernel, which rounds otherwise
    assert here.measured == pytest.approx(there.measured, rel=1e-3)
    torch.testing.assert_close(results[0].model.state_dict(), results[1].model.state_dict(), rtol=1e-3, atol=5e-4)
