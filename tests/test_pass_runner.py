from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

from nbcompile.core.errors import PostconditionError, UsageError
from nbcompile.core.graph.nodes import render_graph
from nbcompile.core.tracing.capture import capture
from nbcompile.pass_runner import run_passes, run_pipeline
from nbcompile.passes import FUSE, PASSES, MergeAffine, Pass, PassResult, RemoveIdentity
from nbcompile.testing import scramble_

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


def net() -> fx.GraphModule:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU(), nn.Identity())
    return capture(scramble_(model)).eval()


@dataclass(frozen=True)
class Wrong(Pass):
    """Drops the bias."""

    name: ClassVar[str] = "wrong"

    def call(self, gm: fx.GraphModule) -> PassResult:
        conv = gm.get_submodule("0")
        assert isinstance(conv.bias, Tensor)
        with torch.no_grad():
            conv.bias.zero_()
        return PassResult(gm, ("0",))


def test_runs_in_order() -> None:
    gm = net()
    wanted = gm(X)
    removed, folded = run_passes((RemoveIdentity(), MergeAffine()), gm, (X,))
    assert (removed.rewritten, folded.rewritten) == (("_1", "_4"), ("0",))
    assert torch.allclose(gm(X), wanted, atol=1e-5)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_verify_names_the_first_pass_that_changed_the_function(place: int) -> None:
    passes: list[Pass] = [RemoveIdentity(), MergeAffine()]
    passes.insert(place, Wrong())
    run_passes(passes, net())  # trusted
    with pytest.raises(
        PostconditionError, match=r"^wrong changed the function: relative error \d.*, at most 1e-05 is r"
    ):
        run_passes(passes, net(), (X,))


def test_a_pipeline_is_built_of_what_is_known_and_run_in_its_order() -> None:
    gm = net()
    wanted = gm(X)
    results = run_pipeline(FUSE, gm, {"inputs": (X,), "force": True}, verify=(X,))
    assert list(results) == ["remove-identity", "remove-unread", "merge-common", "merge-shared", "merge-affine"]
    assert [result.rewritten for result in results.values()] == [("_1", "_4"), (), (), (), ("0",)]
    assert torch.allclose(gm(X), wanted, atol=1e-5)
    other = net()
    assert [bool(result.rewritten) for result in run_pipeline(FUSE[::-1], other, {}).values()] == [
        False,
        False,
        False,
        False,
        True,
    ]
    assert "2" in dict(other.named_modules())  # the norm behind a dropout was not seen


def test_a_maker_sees_the_graph_as_it_is_at_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, "wrong", Wrong)
    ran: list[Tensor] = []

    def never(gm: fx.GraphModule) -> None:
        ran.append(gm(X))

    gm = net()
    before = gm(X)
    results = run_pipeline(("remove-identity", "merge-affine", "wrong"), gm, {}, {"wrong": never})
    assert list(results) == ["remove-identity", "merge-affine"]
    assert torch.allclose(ran[0], before, atol=1e-5)
    assert list(run_pipeline(("wrong",), net(), {}, {"wrong": lambda gm: Wrong()})) == ["wrong"]
    assert list(run_pipeline(("wrong",), net(), {})) == ["wrong"]


def test_verify_moves_no_statistics_of_a_model_in_training() -> None:
    gm = net().train()
    before = {key: value.clone() for key, value in gm.state_dict().items()}
    run_passes((RemoveIdentity(),), gm, (X,))
    assert gm.get_submodule("2").training
    assert all(torch.equal(value, before[key]) for key, value in gm.state_dict().items())


def test_verify_takes_inputs_that_are_no_floats() -> None:
    """The tolerance is that of the outputs."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Dropout(), nn.Linear(4, 2))
    gm = capture(model).eval()

    @dataclass(frozen=True)
    class Rounding(Pass):
        name: ClassVar[str] = "rounding"

        def call(self, gm: fx.GraphModule) -> PassResult:
            weight = gm.get_submodule("2").weight
            assert isinstance(weight, Tensor)
            with torch.no_grad():
                weight.mul_(1 + 2e-7)
            return PassResult(gm, ("2",))

    assert run_passes((Rounding(),), gm, (torch.tensor([[0, 1, 4]]),))[0].modified


def test_dumps_the_graph_after_every_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep" / "dump"
    monkeypatch.setenv("NBCOMPILE_DUMP", str(folder))
    gm = net()
    before = render_graph(gm)
    run_passes((RemoveIdentity(), MergeAffine()), gm)
    assert sorted(p.name for p in folder.iterdir()) == ["00-input.txt", "01-remove-identity.txt", "02-merge-affine.txt"]
    assert (folder / "00-input.txt").read_text() == before
    assert "Dropout" not in (folder / "01-remove-identity.txt").read_text()
    assert (folder / "02-merge-affine.txt").read_text() == render_graph(gm)


def test_dumps_nowhere_without_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NBCOMPILE_DUMP", raising=False)
    monkeypatch.chdir(tmp_path)
    run_passes((RemoveIdentity(),), net())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NBCOMPILE_DUMP", str(tmp_path / "file" / "dump"))
    with pytest.raises(UsageError, match=r"NBCOMPILE_DUMP=.*file/dump: the folder cannot be created: Not a directory"):
        run_passes((RemoveIdentity(),), net())
