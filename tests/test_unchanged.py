"""The watch on what verbs are given sees every kind of change, and no verb can be called past it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile import expansion, fusion, verification
from nbcompile.testing import scramble_
from tests.house import ROOT
from tests.unchanged import VERBS, arguments_unchanged, torch_state, torch_unchanged


def net() -> nn.Sequential:
    return scramble_(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))


def _kept(model: nn.Sequential) -> None:
    model[0].kept = torch.ones(1)


def _bias_back(model: nn.Sequential) -> None:
    bias = model[0].bias
    del model[0].bias
    model[0].register_parameter("bias", nn.Parameter(bias.detach().clone()))


CHANGES: dict[str, tuple[Callable[[nn.Sequential], Any], str]] = {
    "past the counter of writes": (lambda m: m[0].weight.data.mul_(2), "the numbers of '0.weight'"),
    "one bit": (lambda m: m[1].running_mean.view(torch.int32)[0].bitwise_xor_(1), "the numbers of '1.running_mean'"),
    "other zeros": (lambda m: m[1].num_batches_tracked.add_(1), "the numbers of '1.num_batches_tracked'"),
    "a mode": (lambda m: m[2].eval(), "'2.training' is False and was True"),
    "a hook": (lambda m: m[2].register_forward_hook(lambda *_: None), "'2._forward_hooks' is"),
    "something kept": (_kept, "'0.kept' is tensor"),
    "a tensor taken away": (lambda m: delattr(m[1], "running_var"), "'1.running_var' is None"),
    "an equal parameter": (_bias_back, "'0.bias' is Parameter"),
    "no gradients": (lambda m: m[0].weight.requires_grad_(False), "the numbers of '0.weight'"),
    "persistence": (lambda m: m[1]._non_persistent_buffers_set.add("x"), "'1._non_persistent_buffers_set' is"),
    "a module less": (lambda m: m.pop(2), "its modules are"),
    "another module": (lambda m: m.__setitem__(2, nn.ReLU()), "'.2' is ReLU"),
    "the order of children": (lambda m: m._modules.update({"0": m._modules.pop("0")}), "its modules are"),
    "the dictionary itself": (lambda m: vars(m[0]).update(note="x"), "'0.note' is x"),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_model_is_seen(name: str, fails: bool) -> None:
    change, said = CHANGES[name]
    model = net().train()

    def verb() -> None:
        with arguments_unchanged("a verb", ((model,), {})):
            change(model)
            if fails:
                raise ValueError("the verb's own")

    with pytest.raises(AssertionError) as caught:
        verb()
    assert str(caught.value).startswith(f"a verb changed its model: {said}")


def test_what_does_not_change_is_not_seen() -> None:
    model, x = net().eval(), torch.randn(2, 3, 5, 5)
    model[1].running_mean[0] = float("nan")  # equals itself
    with arguments_unchanged("a verb", ((model, [x]), {"also": {"x": x}})):
        model(x)


@pytest.mark.parametrize("place", [lambda x: ((x,), {}), lambda x: (([{"image": x}],), {}), lambda x: ((), {"x": x})])
def test_a_change_of_an_input_is_seen(place: Callable[[Tensor], Any]) -> None:
    x = torch.ones(2, 3)

    def verb() -> None:
        with arguments_unchanged("a verb", place(x)):
            x.numpy()[0, 0] = 2

    with pytest.raises(AssertionError, match=r"^a verb changed tensor 0 of its inputs"):
        verb()


def test_random_numbers_that_are_used_up_are_seen() -> None:
    def verb(name: str) -> None:
        with arguments_unchanged(name, ()):
            torch.rand(())

    with pytest.raises(AssertionError, match=r"^fuse used up numbers of torch's generator"):
        verb("fuse")
    verb("expand")


@contextmanager
def _patched(name: str) -> Iterator[None]:
    """A method of every module, wrapped; here it is undone, whatever the watch says."""
    original = getattr(nn.Module, name)
    setattr(nn.Module, name, lambda *args, **kwargs: original(*args, **kwargs))
    try:
        yield
    finally:
        setattr(nn.Module, name, original)


@contextmanager
def _hooked() -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _set(setter: Callable[[Any], Any], value: Any, back: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(back)


SWITCHES: dict[str, Callable[[], Any]] = {
    "default dtype": lambda: _set(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: _set(torch.set_default_device, "meta", None),
    "grad mode": torch.no_grad,
    "deterministic algorithms": lambda: _set(torch.use_deterministic_algorithms, True, False),
    "threads": lambda: _set(torch.set_num_threads, 2, 1),
    "mha fast path": lambda: _set(torch.backends.mha.set_fastpath_enabled, False, True),
    "cudnn.benchmark": lambda: torch.backends.cudnn.flags(True, True, allow_tf32=True),
    "Module.__call__": lambda: _patched("__call__"),
    "Module.__getattr__": lambda: _patched("__getattr__"),
    "_global_forward_hooks": _hooked,
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_of_torch_that_is_left_over_is_seen(name: str) -> None:
    watch = torch_unchanged("a test")
    watch.__enter__()
    with SWITCHES[name](), pytest.raises(AssertionError, match=f"^a test changed torch's {name} from "):
        watch.__exit__(None, None, None)
    assert torch_state() == torch_state()


def test_every_verb_is_watched_whatever_name_it_is_called_by() -> None:
    verbs = {name for name in nbcompile.__all__ if name.islower() and callable(getattr(nbcompile, name))}
    watched = {name for names in VERBS.values() for name in names}
    assert verbs - watched == {"collapse_", "load", "at_width"}  # load says that it fills the model that it is given
    for verb in (nbcompile.fuse, fusion.fuse, fusion.fused, expansion.expand, verification.verify, nbcompile.cost):
        assert verb.__wrapped__.__name__ == verb.__name__


PLANTED = """
import nbcompile, torch
from torch import nn

class Kept(nn.Module):
    def forward(self, x):
        return x

def test_it(monkeypatch):
    monkeypatch.setattr("nbcompile.fusion.working_copy", lambda model, **_: model)
    monkeypatch.setattr("nbcompile.deploy.deploy_form.shadow", lambda model, **_: model.eval())
    nbcompile.fuse(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train())

def test_switch():
    torch.set_default_dtype(torch.float64)
"""


def test_planted_violations_fail_a_suite(tmp_path: Path) -> None:
    file = tmp_path / "test_planted.py"
    file.write_text(PLANTED)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(tmp_path), str(file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "fuse changed its model: '.training' is False and was True" in run.stdout
    assert "test_switch changed torch's default dtype from torch.float32 to torch.float64" in run.stdout
    assert run.returncode == 1
