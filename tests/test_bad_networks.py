"""Networks that are no good, and good ones with odd parts: ``fuse`` is exact, or says by name what is wrong."""

import copy
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import nbcompile
from nbcompile.cli import app as cli
from nbcompile.core.errors import CaptureError, PreconditionError
from nbcompile.core.numerics import relative_error
from nbcompile.fusion import fused
from nbcompile.testing import scramble_

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
HOOKED = "it carries hooks, which would be lost; remove them first"
PARAMETRIZED = "its weight is computed by a parametrization; remove it first"
NOT_FINITE = "the merged weights would not be finite in float32"


def net() -> nn.Sequential:
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    return scramble_(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), inner))


class Written(nn.Module):
    """A network as a function of its layers."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)
        self.written = forward
        scramble_(self)

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def outcome(model: nn.Module, x: Tensor = X, tolerance: float = 1e-5) -> tuple[list[str], dict[str, str], nn.Module]:
    """What merged and what did not, and the result, which must be ``model`` in eval mode."""
    reference = copy.deepcopy(model).eval()
    modes = [module.training for module in model.modules()]
    small, reports = fused(model)
    assert [module.training for module in model.modules()] == modes
    assert not any(module.training for module in small.modules())
    with torch.no_grad():
        assert relative_error(small(x), reference(x)) <= tolerance
    results = [(f"{report.piece}.".lstrip("."), result) for report in reports for _, result in report.passes]
    done = [prefix + name for prefix, result in results for name in result.rewritten]
    return done, {prefix + skip.name: skip.reason for prefix, result in results for skip in result.skipped}, small


def refusal(model: nn.Module) -> str:
    with pytest.raises(PreconditionError) as caught:
        nbcompile.fuse(model)
    return str(caught.value)


def test_training_mode_is_the_users() -> None:
    model = net().train()
    model[3].eval()
    assert outcome(model)[0] == ["0", "3.0"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_small_floats(dtype: torch.dtype, tolerance: float) -> None:
    done, _, small = outcome(net().to(dtype), X.to(dtype), tolerance)
    assert done == ["0", "3.0"]
    assert {p.dtype for p in small.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
def test_weights_that_are_no_floats(dtype: torch.dtype) -> None:
    layers = [nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)]
    for layer in layers:
        layer.weight = nn.Parameter((layer.weight.detach() * 10).to(dtype), requires_grad=False)
    if not dtype.is_complex:  # torch itself runs no such convolution
        with pytest.raises(
            CaptureError, match=r"^what Sequential takes cannot be guessed from its layers: give an example"
        ):
            fused(nn.Sequential(*layers))
        return
    small, (report,) = fused(nn.Sequential(*layers))
    result = dict(report.passes)["merge-affine"]
    reason = "its weight is complex64, not floating point"
    assert (result.rewritten, [s.reason for s in result.skipped]) == ((), [reason] * 2)
    assert torch.equal(small.get_parameter("0.weight"), layers[0].weight)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool])
def test_factors_that_are_no_floats(dtype: torch.dtype) -> None:
    factor = (torch.arange(4).view(4, 1, 1) % 2).to(dtype)
    assert outcome(Written(lambda m, x: m.conv(x) * m.f, conv=nn.Conv2d(3, 4, 1), f=factor))[:2] == ([], {})


def test_integer_factors_are_numbers() -> None:
    factor = torch.arange(4).view(4, 1, 1)
    assert outcome(Written(lambda m, x: m.conv(x) * m.f, conv=nn.Conv2d(3, 4, 1), f=factor))[0] == ["conv"]


def test_complex_functional_weights() -> None:
    forward = lambda m, x: F.conv2d(F.conv2d(x, m.w), m.v).abs()  # noqa: E731
    model = Written(forward, w=torch.randn(4, 3, 1, 1) + 1j, v=torch.randn(4, 4, 1, 1) + 1j)
    why = "its weight is complex64, not floating point"
    assert outcome(model, X.to(torch.complex64))[:2] == ([], {"conv2d": why, "conv2d_1": why})


@pytest.mark.parametrize(
    ("key", "value", "eps"),
    [
        ("1.running_var", -1.0, 1e-5),
        ("1.running_var", 0.0, 0.0),
        ("1.running_mean", torch.inf, 1e-5),
        ("1.weight", -torch.inf, 1e-5),
        ("0.weight", torch.inf, 1e-5),
    ],
)
def test_what_is_not_finite_is_left_alone(key: str, value: float, eps: float) -> None:
    model = net()
    model[1].eps = eps
    model.state_dict()[key].view(-1)[0] = value
    done, skipped, _ = outcome(model)
    assert (done, skipped) == (["3.0"], {"1": NOT_FINITE})


@pytest.mark.parametrize("value", [0.0, torch.inf])
def test_variances_that_have_a_finite_factor(value: float) -> None:
    model = net()
    model.get_buffer("1.running_var")[0] = value
    assert outcome(model)[:2] == (["0", "3.0"], {})


@pytest.mark.parametrize("key", ["0.weight", "1.running_mean", "1.running_var", "1.bias", "3.0.bias"])
def test_nan_is_refused(key: str) -> None:
    model = net()
    model.state_dict()[key].view(-1)[1] = torch.nan
    assert refusal(model) == f"fuse: '{key}' holds NaN: training diverged; take an earlier checkpoint"


def test_complex_nan_is_refused_and_infinities_are_no_nan() -> None:
    model = net()
    model.register_buffer("odd", torch.tensor([torch.inf, -torch.inf]))  # its sum is NaN
    assert outcome(model)[0] == ["0", "3.0"]
    model.register_buffer("odd", torch.tensor([complex(0, torch.nan)]))
    assert refusal(model) == "fuse: 'odd' holds NaN: training diverged; take an earlier checkpoint"


def int8() -> Tensor:
    return torch.quantize_per_tensor(torch.randn(4, 3, 3, 3), 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_models_are_refused() -> None:
    linear = nn.Sequential(nn.ReLU(), nn.Linear(5, 4))
    dynamic = torch.ao.quantization.quantize_dynamic(linear, {nn.Linear}, torch.qint8)
    assert refusal(dynamic) == "fuse: '1' is quantized (Linear): fuse the float model first"
    assert refusal(dynamic[1]) == "fuse: the model itself is quantized (Linear): fuse the float model first"
    model = net()
    model[0].weight = nn.Parameter(int8(), requires_grad=False)
    assert refusal(model) == "fuse: '0.weight' is quantized (qint8): fuse the float model first"
    model[0].weight = nn.Parameter(torch.randn(4, 3, 3, 3).to(torch.float8_e4m3fn))
    assert refusal(model) == "fuse: '0.weight' is quantized (float8_e4m3fn): fuse the float model first"
    model = net()
    model.register_buffer("table", int8())
    assert refusal(model) == "fuse: 'table' is quantized (qint8): fuse the float model first"


class BeforeQuantization(nn.Module):
    """A float network as torch's tools take it."""

    def __init__(self) -> None:
        super().__init__()
        self.take, self.give = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv, self.norm, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        self.sum = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Any:
        x = self.take(x)
        return self.give(self.sum.add(self.act(self.norm(self.conv(x))), x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_float_networks_before_quantization_are_none() -> None:
    model, x = scramble_(BeforeQuantization()).eval(), torch.randn(2, 3, 7, 5)
    joined = torch.ao.quantization.fuse_modules(copy.deepcopy(model), [["conv", "norm", "act"]])
    for one in (model, joined):
        tiny = nbcompile.fuse(one, example_input=x)
        with torch.no_grad():
            torch.testing.assert_close(tiny(x), one(x), rtol=1e-5, atol=1e-6)
    aware = copy.deepcopy(model).train()
    aware.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    aware = torch.ao.quantization.prepare_qat(aware).eval()
    assert refusal(aware) == "fuse: 'conv' is quantized (Conv2d): fuse the float model first"


def test_meta_tensors_are_refused() -> None:
    wanted = "fuse: '{}' is on the meta device and has no values: load the weights first"
    assert refusal(net().to("meta")) == wanted.format("0.weight")
    model = net()
    model[3][1].to("meta")
    assert refusal(model) == wanted.format("3.1.weight")


class Counter:
    """A hook that doubles, and counts."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Counter":
        return self

    def before(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        self.calls.append(1)
        return (args[0] * 2,)

    def after(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        self.calls.append(1)
        return out * 2


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize(
    ("name", "done", "skipped"),
    [
        ("", ["3.0"], {}),
        ("3", ["0"], {}),
        ("2", ["0", "3.0"], {}),
        ("0", ["3.0"], {"0": HOOKED, "1": "'0' before it is left alone"}),
        ("1", ["3.0"], {"1": HOOKED}),
        ("3.1", ["0"], {"3.1": HOOKED}),
    ],
)
def test_hooks_are_called_once_a_call(name: str, done: list[str], skipped: dict[str, str], kind: str) -> None:
    model, counter = net(), Counter()
    register = "register_forward_pre_hook" if kind == "before" else "register_forward_hook"
    getattr(model.get_submodule(name), register)(getattr(counter, kind))
    found = outcome(model)
    assert found[:2] == (done, skipped)
    counter.calls.clear()
    found[2](X)
    assert len(counter.calls) == 1


@pytest.mark.parametrize("name", ["", "3", "0"])
def test_hooks_on_gradients_are_called(name: str) -> None:
    model, calls = net(), []
    model.get_submodule(name).register_full_backward_hook(lambda *_: calls.append(1))
    small = outcome(model)[2]
    small(X.clone().requires_grad_()).sum().backward()
    assert calls == [1]


def test_a_layer_with_a_hook_and_nothing_else() -> None:
    layer = nn.Conv2d(3, 4, 1)
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(CaptureError) as caught:
        nbcompile.fuse(layer)
    assert str(caught.value) == (
        "nothing in Conv2d can be captured: no part of it that holds a convolution or linear layer is called in one "
        "way, with tensors, and carries no hooks"
    )


@pytest.mark.parametrize("change", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrizations_go_on_being_computed(change: Callable[[nn.Module], object]) -> None:
    model = net()
    change(model[0])
    done, skipped, small = outcome(model)
    assert (done, skipped) == (["3.0"], {"0": PARAMETRIZED, "1": "'0' before it is left alone"})
    assert {k for k in small.state_dict() if k.startswith("0.")} == {
        k for k in model.state_dict() if k.startswith("0.")
    }


@pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_the_old_norms_of_weights_are_refused(kind: str) -> None:
    model = net()
    getattr(nn.utils, kind)(model[3][0])
    model(X)
    assert refusal(model) == (
        f"fuse: '3.0' cannot be copied, its weight is computed by the old {kind}: remove it with "
        f"torch.nn.utils.remove_{kind}, or use torch.nn.utils.parametrizations.{kind}"
    )
    getattr(nn.utils, f"remove_{kind}")(model[3][0])
    assert outcome(model)[0] == ["0", "3.0"]


@pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")
def test_an_old_spectral_norm_that_can_be_copied_goes_on() -> None:
    model = net()
    nn.utils.spectral_norm(model[3][0])
    skipped = {"3.0": PARAMETRIZED, "3.1": "'3.0' before it is left alone"}
    assert outcome(model)[:2] == (["0"], skipped)


class NoCopy(nn.ReLU):
    def __deepcopy__(self, memo: dict[int, Any]) -> "NoCopy":
        raise TypeError("it holds a lock")


def test_what_cannot_be_copied_is_named() -> None:
    NoCopy.__module__ = "torch.nn.modules.activation"  # a leaf
    model = net()
    model[2] = NoCopy()
    assert refusal(model) == "Sequential cannot be copied: '2': it holds a lock"


def test_weights_shared_with_a_place_that_does_not_merge() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.a(m.first(x)))
        return y.relu() + m.b(y)

    layers = {name: nn.Conv2d(4, 4, 1) for name in ("a", "b")}
    layers["b"].weight = layers["a"].weight
    model = Written(forward, first=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), **layers)
    done, skipped, small = outcome(model)
    why = "'{}' is called more than once, or its weights are shared"
    assert (done, skipped) == (
        [],
        {"a": why.format("a"), "b": why.format("b"), "norm": "'a' before it is left alone"},
    )
    assert small.get_parameter("a.weight") is small.get_parameter("b.weight")


def test_what_is_changed_in_place_and_read_again() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = F.relu(y, inplace=True)
        return m.norm(y) + z

    model = Written(forward, conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4))
    done, _, small = outcome(model)  # who reads it afterwards reads what it was changed to, and the graph says so
    assert done == []
    assert isinstance(small.get_submodule("norm"), nn.BatchNorm2d)


@pytest.mark.parametrize("learns", [True, False])
def test_what_is_made_of_a_parameter_learns(learns: bool) -> None:
    weight = nn.Parameter(torch.randn(4, 3, 1, 1), learns)
    for forward in (lambda m, x: m.norm(F.conv2d(x, m.w * 2)), lambda m, x: m.norm(F.conv2d(x, m.w))):
        done, _, small = outcome(Written(forward, w=copy.deepcopy(weight), norm=nn.BatchNorm2d(4)))
        assert done == ["conv2d"]
        assert {p.requires_grad for p in small.parameters()} == {learns}
    linear = Written(
        lambda m, x: m.last(F.linear(x, m.w)), w=nn.Parameter(torch.randn(4, 5), learns), last=nn.Linear(4, 1)
    )
    assert {p.requires_grad for p in outcome(linear)[2].parameters()} == {learns}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Type a command in an empty folder that holds the factories of ``bad.py``."""
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("nbcompile")
    monkeypatch.setattr(log, "handlers", [])  # the command adds its own, and stops propagation
    monkeypatch.setattr(log, "propagate", log.propagate)

    def typed(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nbcompile", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run_cli()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, re.sub(r"\s+", " ", err)

    return typed


FACTORIES = """
import torch
from torch import nn
from torch.nn.utils import parametrizations

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout())

def nan():
    model = net()
    model[1].running_var[2] = torch.nan
    return model

def meta():
    return net().to("meta")

def eight():
    model = net()
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn))
    return model

def hooked():
    model = net()
    model[1].register_forward_hook(lambda m, a, y: 2 * y)
    return model

def normed():
    model = net()
    parametrizations.weight_norm(model[0])
    return model
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nan", "fuse: '1.running_var' holds NaN: training diverged; take an earlier checkpoint"),
        ("meta", "fuse: '0.weight' is on the meta device and has no values: load the weights first"),
        ("eight", "fuse: '0.weight' is quantized (float8_e4m3fn): fuse the float model first"),
    ],
)
def test_the_command_refuses(run: Callable[..., Any], name: str, said: str) -> None:
    Path("bad_networks.py").write_text(FACTORIES)
    code, out, err = run("fuse", f"bad_networks:{name}", "--input", "1x3x8x8", "-o", "x.pt")
    assert (code, out) == (1, "")
    assert said in err
    assert "Traceback" not in err
    assert not Path("x.pt").exists()


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        ("net", []),
        ("hooked", [{"name": "1", "reason": HOOKED}]),
        ("normed", [{"name": "0", "reason": PARAMETRIZED}, {"name": "1", "reason": "'0' before it is left alone"}]),
    ],
)
def test_the_command_merges_what_it_can(run: Callable[..., Any], name: str, skipped: list[dict[str, str]]) -> None:
    Path("bad_networks.py").write_text(FACTORIES)
    words = ("fuse", f"bad_networks:{name}", "--input", "1x3x8x8", "-o", "x.safetensors", "--json", "out.json")
    code, _, err = run(*words)
    assert code == 0, err
    passes = json.loads(Path("out.json").read_text())["passes"]
    merged = [one for one in passes if one["skipped"] or one["rewritten"]]
    assert [one["pass"] for one in merged] == ["remove-identity", "merge-affine"]
    assert [one["skipped"] for one in merged] == [[], skipped]
    assert [one["rewritten"] for one in merged] == [1, int(not skipped)]
