"""``load`` and ``save`` run what a file describes beside the model, where both are known, and name what differs."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.core.blocks import sites
from nbcompile.core.errors import CheckpointError
from nbcompile.core.numerics import relative_error
from nbcompile.core.serialization import describe
from nbcompile.testing import scramble_
from tests.unchanged import arguments_unchanged

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """With a table that no state_dict holds."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.head = nn.Conv2d(8, 4, 1)
        self.register_buffer("table", torch.ones(4, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.act(self.norm(self.conv(x)))) * self.table
        return y


class BatchOnly(Net):
    """Another network at other batch sizes than the example's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if len(x) == 2 else super().forward(x) * 1.01


def changed(change: Callable[[Any], Any]) -> nn.Module:
    model = Net()
    change(model)
    return model


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "activation": (lambda: changed(lambda m: setattr(m, "act", nn.SiLU())), "first at 'act'"),
    "eps": (lambda: changed(lambda m: setattr(m.norm, "eps", 0.1)), "first at 'norm'"),
    "padding": (lambda: changed(lambda m: setattr(m.head, "padding", (1, 1))), "first at 'head'"),
    "table": (lambda: changed(lambda m: m.table.mul_(2)), "in what it returns"),
    "another batch": (BatchOnly, "in what it returns"),
}


def linear(model: nn.Module, **options: Any) -> nn.Module:
    giant = scramble_(nbcompile.expand(model, X, ["conv"], **options), 1)
    for block in sites(giant).values():
        block.slope.fill_(1)
    return giant


@pytest.fixture(params=["giant", "plain"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = scramble_(Net())
    path = tmp_path / "file.pt"
    nbcompile.save(linear(model) if request.param == "giant" else model, path, X)
    return path


@pytest.mark.parametrize("other", OTHERS)
def test_another_network_is_refused_and_left_as_it_was(other: str, file: Path) -> None:
    build, first = OTHERS[other]
    model = build()
    name = type(model).__name__
    message = (
        rf"file\.pt: {name} is another network than the file describes, {first}: (relative error .*, at most 1e-05 is "
        r"rounding|outputs of different shape .*); either it is another model, or it was changed by hand after it was "
        r"made: then load\(\.\.\., proof=False\) takes its code as it is$"
    )
    with arguments_unchanged("load", model), pytest.raises(CheckpointError, match=message):
        nbcompile.load(file, model=model)
    assert nbcompile.load(file, model=model, proof=False) is model


class Returns(nn.Module):
    """One of several ways to give the same tensors."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.how = nn.Linear(4, 3), nn.Linear(4, 3), how

    def forward(self, x: Tensor) -> Any:
        if self.how == "one batch size" and len(x) != 2:
            raise ValueError("two samples, please")
        a, b = self.a(x) * 1e7, self.b(x) * (1.1 if self.how == "small beside large" else 1.0)
        return {"a": b, "b": a} if self.how == "other names" else {"a": a, "b": b, "both": torch.cat([a, b], 1)}


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("other names", r"in what it returns: outputs of different structure .*"),
        ("one batch size", r"with 3 samples: the file's runs, and the model does not"),
        (
            "small beside large",
            r"in what it returns: relative error \S+ in .*output\['bo?t?h?'\], at most 1e-05 is rounding",
        ),
    ],
)
def test_what_is_returned_has_its_names_its_sizes_and_its_parts(how: str, sentence: str, tmp_path: Path) -> None:
    nbcompile.save(Returns().eval(), tmp_path / "file.pt", torch.randn(2, 4))
    with pytest.raises(CheckpointError, match=rf"than the file describes, {sentence}; either it is another model"):
        nbcompile.load(tmp_path / "file.pt", model=Returns(how))
    assert isinstance(nbcompile.load(tmp_path / "file.pt", model=Returns()), Returns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_network_is_taken(dtype: torch.dtype, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Net().to(dtype)
    with caplog.at_level(logging.WARNING, "nbcompile"):
        assert nbcompile.load(file, model=model) is model
    assert not caplog.messages
    alone = nbcompile.load(file).to(dtype)
    with torch.no_grad():
        assert relative_error(alone(X.to(dtype)), model(X.to(dtype))) == 0


def test_a_collapsed_giant_takes_what_its_layers_are(tmp_path: Path) -> None:
    giant = linear(Net(), preserve=True)
    nbcompile.save(giant, tmp_path / "giant.pt")
    assert sites(nbcompile.load(tmp_path / "giant.pt", model=nbcompile.collapse_(copy.deepcopy(giant))))[
        "conv"
    ].collapsed


def test_weights_that_do_not_fit_change_nothing(file: Path) -> None:
    model = changed(lambda m: setattr(m, "head", nn.Conv2d(8, 5, 1)))
    with arguments_unchanged("load", model), pytest.raises(CheckpointError, match="the weights do not fit Net: size"):
        nbcompile.load(file, model=model)


class NeedsMore(Net):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * scale


class Single(nn.ReLU):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("one of it is enough")


def test_what_cannot_be_compared_is_said(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    stubborn = changed(lambda m: setattr(m, "act", Single()))
    with caplog.at_level(logging.WARNING, "nbcompile"):
        nbcompile.load(file, model=NeedsMore())
        nbcompile.load(file, model=stubborn)
    first, second = caplog.messages
    start = "load: {} was not compared with the network that the file describes: {}"
    assert first.startswith(start.format("NeedsMore", "TypeError: NeedsMore.forward() missing 1 required positional"))
    assert second.startswith(start.format("Net", "Net cannot be copied: 'act': one of it is enough"))


def test_a_file_whose_graph_is_damaged_is_taken_by_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nbcompile.save(linear(Net()), tmp_path / "giant.pt")
    monkeypatch.setattr("nbcompile.core.serialization.rebuild.PATH", None)
    nbcompile.load(tmp_path / "giant.pt", model=Net())
    assert caplog.messages[-1].startswith("load: Net was not compared with the network that the file describes: ")


def test_a_giant_that_was_changed_by_hand_is_written_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    giant: Any = linear(Net())
    with caplog.at_level(logging.WARNING, "nbcompile"):
        nbcompile.save(giant, tmp_path / "giant.pt")
        assert not caplog.messages
        giant.act = nn.SiLU()
        nbcompile.save(giant, tmp_path / "giant.pt", proof=False)
        assert not caplog.messages
        nbcompile.save(giant, tmp_path / "giant.pt")
    (said,) = caplog.messages
    assert said.startswith(
        "save: the giant was changed by hand after it was made; without its code the file is the network that was "
        "made, which differs first at 'act': relative error "
    )
    assert nbcompile.load(tmp_path / "giant.pt", model=giant, proof=False) is giant


def test_a_network_that_is_written_wrongly_needs_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Plant a fault in the writing: the eps of norms forgotten."""
    right = describe.module_to_json

    def wrong(module: nn.Module) -> Any:
        other = copy.deepcopy(module)
        if isinstance(other, nn.BatchNorm2d):
            other.eps = 0.1
        return right(other)

    monkeypatch.setattr(describe, "module_to_json", wrong)
    with caplog.at_level(logging.WARNING, "nbcompile"):
        nbcompile.save(Net(), tmp_path / "net.pt", X)
    assert caplog.messages[0].startswith(
        "files of this Net will need its code (--model, or load(path, model=...)): what can be written of it is "
        "another network, first at 'norm': relative error "
    )
    with pytest.raises(CheckpointError, match="cannot be read without the model's code"):
        nbcompile.load(tmp_path / "net.pt")
    nbcompile.save(Net(), tmp_path / "net.pt", X, proof=False)
    nbcompile.load(tmp_path / "net.pt")
