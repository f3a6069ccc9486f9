"""The deploy form of a whole network, and of one whose top only its parts can be."""

import copy
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from nbcompile.cli import app as cli
from nbcompile.core.copies import shadow
from nbcompile.core.errors import CaptureError, PreconditionError
from nbcompile.core.example import Origin, TensorSpec, origin_of, remember
from nbcompile.core.numerics import relative_error
from nbcompile.deploy.deploy_form import PassReport, compiled, deploy, own_memory_, require_values
from nbcompile.fusion import fused
from nbcompile.passes import FUSE
from nbcompile.testing import scramble_

IMAGES = ([torch.randn(3, 6, 5), torch.randn(3, 7, 5)],)


class Body(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x)).relu()
        return y


class Detector(nn.Module):
    """Control flow at its top, a head that is called twice and has two names, state of its own."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.backbone = Body(norm)
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.also = self.head
        self.scores = nn.Linear(4, 2)
        self.register_buffer("threshold", torch.tensor(0.25))
        self.register_buffer("cache", torch.tensor(3.0), persistent=False)
        self.anchors = [1, 2]
        scramble_(self)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            y = self.also(self.head(self.backbone(image[None])))
            if y.mean() > self.threshold:
                y = self.cache * y
            found.append({"boxes": y[0], "scores": self.scores(y.mean((2, 3)))})
        return found


def storages(model: nn.Module) -> set[int]:
    return {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers()) if x.numel()}


def rows(reports: tuple[PassReport, ...]) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """What was done to which piece by which pass."""
    return [(r.piece, name, result.rewritten, result.how) for r in reports for name, result in r.passes]


def assert_untouched(model: nn.Module, before: nn.Module) -> None:
    assert [(name, type(m), m.training) for name, m in model.named_modules()] == [
        (name, type(m), m.training) for name, m in before.named_modules()
    ]
    state = before.state_dict()
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_detector_keeps_its_class_its_state_and_what_is_shared() -> None:
    model = Detector().train()
    model.head.eval()
    before = copy.deepcopy(model)
    small, reports = compiled(model, IMAGES)
    assert_untouched(model, before)
    assert rows(reports) == [
        ("backbone", "remove-identity", (), ()),
        ("backbone", "remove-unread", (), ()),
        ("backbone", "merge-common", (), ()),
        ("backbone", "merge-shared", (), ()),
        ("backbone", "merge-affine", ("conv",), ("conv <- conv + norm",)),
        ("head", "remove-identity", (), ()),
        ("head", "remove-unread", (), ()),
        ("head", "merge-common", (), ()),
        ("head", "merge-shared", (), ()),
        ("head", "merge-affine", ("0",), ("0 <- 0 + 1",)),
    ]
    assert all(skip == () for report in reports for skip in (result.skipped for _, result in report.passes))
    assert type(small) is Detector
    assert not any(module.training for module in small.modules())
    assert isinstance(small.backbone, Body)
    assert small.head is small.also
    assert (small.anchors, float(small.cache), "cache" in small.state_dict()) == ([1, 2], 3, False)
    assert small.anchors is not model.anchors
    assert not [m for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not storages(small) & storages(model)
    assert "threshold" in small.state_dict()
    with torch.no_grad():
        assert relative_error(small(*IMAGES), before.eval()(*IMAGES)) <= 1e-5


def test_a_whole_network_is_a_graph_that_shares_nothing() -> None:
    body = nn.Sequential(Body(), nn.Conv2d(4, 4, 3), nn.PReLU(), nn.Conv2d(4, 4, 3))
    model = scramble_(body).train()
    model[3].weight = model[1].weight
    model[1].requires_grad_(False)
    remember(model, Origin((TensorSpec((1, 3, 9, 9)),)))
    before = copy.deepcopy(model)
    small, reports = compiled(model, None)
    assert_untouched(model, before)
    assert [row[:2] for row in rows(reports)] == [("", name) for name in FUSE]
    assert isinstance(small, fx.GraphModule)
    assert (type(small).__name__, small.training, origin_of(small)) == ("Sequential", False, origin_of(model))
    assert not storages(small) & storages(model)
    assert small.get_parameter("1.weight") is small.get_parameter("3.weight")
    assert not small.get_parameter("1.weight").requires_grad
    assert small.get_parameter("2.weight").requires_grad


class Constants(nn.Module):
    """A parameter and buffers that the graph itself reads."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("table", torch.rand(5))
        self.register_buffer("kept", torch.rand(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x.relu() * self.gamma).relu() + self.table * self.kept


def test_what_the_graph_reads_is_copied_as_what_it_is() -> None:
    model = Constants()
    small = compiled(model, None)[0]
    assert {key for key, _ in small.named_parameters()} == {"gamma"}
    assert {key for key, _ in small.named_buffers()} == {"table", "kept"}
    assert not storages(small) & storages(model)
    x = torch.randn(2, 4, 3, 5)
    assert torch.equal(small(x), model(x))


def test_verify_each_compares_before_and_after() -> None:
    assert rows(compiled(Body(), (torch.randn(1, 3, 5, 5),), verify_each=True)[1])[-1][2] == ("conv",)


class Wayward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_deploy_gives_a_copy_where_nothing_can_be_traced(caplog: pytest.LogCaptureFixture) -> None:
    model = Wayward().train()
    with pytest.raises(CaptureError, match="Wayward cannot be traced into a graph"):
        compiled(model, (torch.ones(2),))
    with caplog.at_level(logging.WARNING, "nbcompile"):
        small = deploy(model, (torch.ones(2),))
    assert (type(small), small.training, model.training) == (Wayward, False, True)
    assert small is not model
    assert caplog.messages[0].startswith("nothing is merged: Wayward cannot be traced into a graph: ")


def test_deploy_merges_what_can_be() -> None:
    assert not [m for m in deploy(Detector(), IMAGES).modules() if isinstance(m, nn.BatchNorm2d)]


def test_values() -> None:
    model = Detector()
    require_values(model)
    model.threshold.fill_(torch.nan)
    with pytest.raises(PreconditionError, match=r"^fuse: 'threshold' holds NaN: training diverged; take an earlier ch"):
        require_values(model)
    with pytest.raises(PreconditionError, match=r"^fuse: 'threshold' holds NaN"):
        deploy(model, IMAGES)


def test_factors_with_a_batch_dimension() -> None:
    """FrozenBatchNorm2d: on a map without a batch its factors would add a dimension, which one layer does not."""
    model = scramble_(Body(FrozenBatchNorm2d)).eval()
    x = torch.randn(2, 3, 5, 5)
    why = "'conv' cannot be seen to have 4 dimensions: fuse with an example_input"
    for example, merged, reasons in (
        (None, (), [why]),
        (x, ("conv",), []),
        (x[0], (), ["'conv' has fewer dimensions than the 4 of its factor"]),
    ):
        small, (report,) = fused(model, example_input=example)
        result = dict(report.passes)["merge-affine"]
        assert (result.rewritten, [s.reason for s in result.skipped]) == (merged, reasons)
        shown = x[0] if example is None or example.ndim == 3 else x
        assert small(shown).shape == model(shown).shape
        assert relative_error(small(shown), model(shown)) <= 1e-5


def test_factors_with_a_batch_dimension_inside_a_detector() -> None:
    """One run says how its parts are called; they are not run again."""
    reports = compiled(Detector(FrozenBatchNorm2d), IMAGES)[1]
    assert [dict(report.passes)["merge-affine"].rewritten for report in reports] == [("conv",), ("0",)]


FACTORIES = """
import torch
from torch import nn

class Top(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))

    def forward(self, x):
        return self.body(x) if x.numel() > 0 and x.sum() > -1e9 else x

def flat():
    return Top().body
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Type a command in an empty folder that holds the factories of ``deployed.py``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deployed.py").write_text(FACTORIES)
    log = logging.getLogger("nbcompile")
    monkeypatch.setattr(log, "handlers", [])  # the command adds its own, and stops propagation
    monkeypatch.setattr(log, "propagate", log.propagate)

    def typed(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["nbcompile", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run_cli()
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        return out, re.sub(r"\s+", " ", err)

    return typed


@pytest.mark.parametrize(("name", "prefix"), [("flat", ""), ("Top", "body.")])
def test_explain(run: Callable[..., Any], name: str, prefix: str) -> None:
    words = ("fuse", f"deployed:{name}", "--input", "1x3x8x8", "-o", "x.pt", "--json", "out.json", "--explain")
    run(*words)
    reason = "its input '_2' is no convolution or linear layer"
    assert cast(Any, json.loads(Path("out.json").read_text()))["passes"] == [
        {"pass": "remove-identity", "rewritten": 0, "how": [], "skipped": []},
        {"pass": "remove-unread", "rewritten": 0, "how": [], "skipped": []},
        {"pass": "merge-common", "rewritten": 0, "how": [], "skipped": []},
        {"pass": "merge-shared", "rewritten": 0, "how": [], "skipped": []},
        {
            "pass": "merge-affine",
            "rewritten": 1,
            "how": [f"{prefix}0 <- 0 + 1"],
            "skipped": [{"name": f"{prefix}3", "reason": reason}],
        },
    ]
    Path("x.pt").unlink()
    shown, _ = run(*words[:-3], "--explain")
    assert shown.splitlines()[:7] == [
        "remove-identity: 0 rewritten, 0 skipped",
        "remove-unread: 0 rewritten, 0 skipped",
        "merge-common: 0 rewritten, 0 skipped",
        "merge-shared: 0 rewritten, 0 skipped",
        "merge-affine: 1 rewritten, 1 skipped",
        f"  {prefix}0 <- 0 + 1",
        f"  skipped {prefix}3: {reason}",
    ]
    Path("x.pt").unlink()
    assert "merge-affine" not in run(*words[:-3])[0]


@pytest.mark.slow
def test_files_of_weights_say_whose_keys_they_have(run: Callable[..., Any]) -> None:
    said = "x.pt holds the merged layers' weights: its keys are those of nbcompile.fuse(model), not the model's"
    assert said in run("fuse", "deployed:flat", "--input", "1x3x8x8", "-o", "x.pt")[1]
    assert set(torch.load("x.pt")) >= {"0.weight", "0.bias"}
    assert "holds the merged" not in run("fuse", "deployed:flat", "--input", "1x3x8x8", "-o", "x.onnx")[1]


class Renormed(nn.Module):
    """Two layers behind a table, whose rows a lookup shortens in place, in a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(5, 3, max_norm=0.5), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(self.table(x)))
        return y


class WritesItsWeight(nn.Module):
    """In code that no graph shows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.a.weight.clamp_(-0.1, 0.1)
        y: Tensor = self.b(self.a(x)) * float(x.mean() > 0)
        return y


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Renormed(), torch.tensor([[0, 4]])),
        (fx.symbolic_trace(Renormed()), torch.tensor([[0, 4]])),
        (nn.Sequential(nn.Conv2d(3, 3, 3), WritesItsWeight()), torch.randn(1, 3, 7, 5)),
    ],
)
def test_weights_that_a_run_writes_into_stay_the_models_own(model: nn.Module, x: Tensor) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tiny, _ = compiled(model, (x,), verify_each=True)
    tiny(x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    ours, theirs = ({w.untyped_storage().data_ptr() for w in one.parameters()} for one in (tiny, model))
    assert ours.isdisjoint(theirs)


def test_what_is_not_merged_has_memory_of_its_own_and_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3))
    model[2].weight = model[0].weight
    tiny, (report,) = compiled(scramble_(model).eval(), (torch.randn(2, 3, 4),))
    assert [name for _, result in report.passes for name in result.rewritten] == ["4"]
    ours, theirs = ({w.untyped_storage().data_ptr() for w in one.parameters()} for one in (tiny, model))
    assert ours.isdisjoint(theirs)
    weights = dict(tiny.named_parameters(remove_duplicate=False))
    assert weights["0.weight"] is weights["2.weight"]


def test_what_became_of_a_shadow_gets_memory_of_its_own() -> None:
    model = Detector()
    made: Any = shadow(model, training=False)
    assert not made.training
    made.scores.bias = nn.Parameter(torch.ones(2))
    own, kept = made.scores.bias.data_ptr(), made.scores.weight
    own_memory_(made, model)
    assert made.scores.bias.data_ptr() == own
    assert made.scores.weight is kept
    for (_, theirs), (name, ours) in zip(model.named_parameters(), made.named_parameters(), strict=True):
        assert ours.data_ptr() != theirs.data_ptr()
        assert name == "scores.bias" or torch.equal(ours, theirs)


def test_a_model_made_under_inference_mode() -> None:
    with torch.inference_mode():
        model = Body().eval()
        x = torch.randn(1, 3, 6, 5)
    tiny, _ = compiled(model, (x,))
    assert not any(w.is_inference() for w in tiny.parameters())
    with torch.no_grad():
        assert torch.allclose(tiny(x), model(x), atol=1e-6)
