import inspect
import json
import logging
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxsim
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nbcompile.core.errors import ExportError, UsageError
from nbcompile.core.numerics import flatten, relative_error
from nbcompile.exporters.to_onnx import export
from nbcompile.exporters.to_onnx.export import write_onnx


class Tiny(nn.Module):
    """A network in deploy form, with what mobile networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU6(inplace=True))
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Hardswish(inplace=True), nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class Two(nn.Module):
    """Two inputs, and outputs of any structure."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Linear(6, 4)
        self.pack = pack

    def forward(self, image: Tensor, vector: Tensor) -> Any:
        y = self.a(image) + self.b(vector)[:, :, None, None]
        return self.pack(y, y.mean((2, 3)))


def run_file(path: Path, *inputs: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, feed)), strict=True))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.onnx"


@pytest.fixture
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return Tiny().eval()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 17)])
def test_onnx_runtime_gives_the_same_outputs(tiny: nn.Module, path: Path, height: int, width: int) -> None:
    result = write_onnx(fx.symbolic_trace(tiny), (torch.randn(1, 3, height, width),), path)
    assert result.path == path
    assert (result.format, result.bytes, result.notes) == ("onnx", path.stat().st_size, ())
    assert result.error <= result.tolerance == 1e-5
    assert result.seconds > 0
    for batch in (1, 3, 7):
        x = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            assert relative_error(run_file(path, x)["output"], tiny(x)) <= 1e-5
    assert os.listdir(path.parent) == ["tiny.onnx"]


@pytest.mark.slow
def test_the_file_says_what_it_is(tiny: nn.Module, path: Path) -> None:
    result = write_onnx(tiny, (torch.randn(1, 3, 16, 16),), path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["input", "output"]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {tensor.name for tensor in model.graph.initializer} >= set(tiny.state_dict())
    assert model.producer_name == "nbcompile"
    assert model.opset_import[0].version == result.versions["opset"]
    assert model.ir_version == result.versions["ir"]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert set(properties) == {"nbcompile", "opset", "layers"}
    assert properties["opset"] == str(result.versions["opset"])
    assert json.loads(properties["layers"]) == ["stem.0", "block.0", "block.2", "head"]
    assert __file__.encode() not in path.read_bytes()
    assert json.loads(json.dumps(result.to_json()))["path"] == str(path)


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(tiny: nn.Module, path: Path) -> None:
    write_onnx(tiny, (torch.randn(1, 3, 16, 16),), path)
    first = path.read_bytes()
    write_onnx(tiny, (torch.randn(2, 3, 16, 16),), path)
    assert path.read_bytes() == first


def test_zero_biases_and_equal_weights_stay_with_their_layers(path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU()).eval()
    model[2].load_state_dict(model[0].state_dict())
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(tensor)
    write_onnx(model, (torch.randn(1, 3, 8, 8),), path)
    inputs = [list(node.input[1:]) for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    assert inputs == [["0.weight", "0.bias"], ["2.weight", "2.bias"]]


def test_transposed_weights_keep_their_names(path: Path) -> None:
    model = nn.Sequential(OrderedDict(up=nn.Linear(6, 12), act=nn.GELU(), down=nn.Linear(12, 6, bias=False))).eval()
    write_onnx(model, (torch.randn(1, 5, 6),), path)
    assert {tensor.name for tensor in onnx.load(path).graph.initializer} >= {"up.weight", "up.bias", "down.weight"}


@pytest.mark.parametrize(
    ("pack", "names"),
    [
        (lambda a, b: (a, b), ["output_0", "output_1"]),
        (lambda a, b: {"z": a, "a": b}, ["z", "a"]),
        (lambda a, b: {"input_0": a, "other": [b]}, ["output_0", "output_1"]),
        (lambda a, b: (a, None), ["output"]),
    ],
)
def test_several_inputs_and_outputs(path: Path, pack: Callable[[Tensor, Tensor], Any], names: list[str]) -> None:
    model = Two(pack).eval()
    result = write_onnx(model, (torch.randn(2, 3, 9, 7), torch.randn(2, 6)), path)
    assert result.error <= 1e-5
    assert [value.name for value in onnx.load(path).graph.input] == ["input_0", "input_1"]
    inputs = torch.randn(3, 3, 9, 7), torch.randn(3, 6)
    outputs = run_file(path, *inputs)
    assert list(outputs) == names
    with torch.no_grad():
        assert relative_error(list(outputs.values()), flatten(model(*inputs))) <= 1e-5


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        y: Tensor = self.head(self.table(tokens))
        return y * scale


def test_integer_inputs_and_inputs_without_a_batch(path: Path) -> None:
    model = Embed().eval()
    tokens, scale = torch.tensor([[3, 9], [1, 4]]), torch.tensor(2.0)
    write_onnx(model, (tokens, scale), path)
    many = torch.randint(0, 10, (5, 2))
    with torch.no_grad():
        assert relative_error(run_file(path, many, scale)["output"], model(many, scale)) <= 1e-5


class ReadsInPlace(nn.Module):
    """What is added is the input *after* the activation changed it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        z = y.flatten(1)
        F.relu6(y, inplace=True)
        return z + F.hardswish(F.leaky_relu(y * 2, inplace=True), inplace=True).flatten(1)


def test_in_place_activations_keep_their_meaning(path: Path) -> None:
    assert write_onnx(ReadsInPlace().eval(), (torch.randn(1, 3, 6, 5),), path).error <= 1e-5


class RefusesBatches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 12).relu()


class Specialises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * {1: 0.5, 2: 1.0, 3: 1.5}[int(x.shape[0])]


class Pairs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.shape[0] % 2 else x.unflatten(0, (-1, 2)).relu().flatten(0, 1)


class Unsymbolic(nn.Module):
    """What torch.export cannot do with a symbolic size, and the batch is to blame in no other way."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x.shape[0], torch.SymInt):
            raise NotImplementedError("no such kernel\nat a place")
        return x.relu()


def at(kind: type[nn.Module], line: int) -> str:
    """A line of its forward."""
    return f"{kind.__name__} cannot be dynamic at {__file__}:{inspect.getsourcelines(kind.forward)[1] + line}, because "


REFUSED = {
    Specialises: at(Specialises, 1) + "its forward uses it as a fixed number: write x.flatten(1) or "
    "x.shape[0] instead of that number",
    Pairs: at(Pairs, 1) + "its forward takes some batch sizes only (Not all values of batch = "
    "L['x'].size()[0] in the specified range satisfy the generated guard (L['x'].size()[0] % 2) == 0): "
    "write it for all",
    Unsymbolic: at(Unsymbolic, 2) + "torch.export stops at it (NotImplementedError: no such kernel): "
    "write that part of forward in another way",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_batch_that_cannot_be_dynamic_is_refused(path: Path, kind: type[nn.Module]) -> None:
    said = f"the batch size of {REFUSED[kind]}, or export at one batch size: batch=1, on the command line --batch 1"
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        write_onnx(kind().eval(), (torch.randn(2, 3, 4),), path)
    assert os.listdir(path.parent) == []


class OtherWayAtOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 1 else x.relu()


def test_a_file_that_is_right_at_some_batch_sizes_only_is_refused(path: Path) -> None:
    said = r"no file was kept\. It is right at batch 3 and wrong at 1: forward goes another way .* --batch 1$"
    with pytest.raises(ExportError, match=said):
        write_onnx(OtherWayAtOne().eval(), (torch.randn(2, 3, 4),), path)
    assert os.listdir(path.parent) == []


def test_what_differs_in_small_values_alone_is_not_blamed_on_the_batch(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat((x, 1e-4 * x), 1)

    scale, given = torch.tensor([1] * 3 + [1.001] * 3)[:, None], export.onnx_outputs
    monkeypatch.setattr(export, "onnx_outputs", lambda *args: [[y * scale for y in one] for one in given(*args)])
    with pytest.raises(ExportError, match=r"relative error of 0\.001 in channels 3 to 5 .* is allowed.*file was kept$"):
        write_onnx(Small().eval(), (torch.randn(2, 3, 4),), path)


def test_a_network_that_runs_on_one_batch_size_is_told_how(path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"does not run on inputs of shape \(1, 3, 4\).* on the command line --batch 1$"
    ):
        write_onnx(RefusesBatches().eval(), (torch.randn(2, 3, 4),), path)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("kind", [Specialises, RefusesBatches, Pairs, Unsymbolic])
def test_a_fixed_batch_can_be_asked_for(path: Path, kind: type[nn.Module]) -> None:
    write_onnx(kind().eval(), (torch.randn(2, 3, 4),), path, dynamic_batch=False)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


@pytest.mark.parametrize("batch", [1, 3])
def test_one_batch_size_can_be_named(path: Path, batch: int) -> None:
    x = torch.randn(2, 3, 4)
    write_onnx(Specialises().eval(), (x,), path, batch=batch)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == batch
    assert torch.equal(run_file(path, x[[0] * batch])["output"], x[[0] * batch] * batch / 2)
    with pytest.raises(UsageError, match=r"^batch=0 is no batch size: give 1 or more$"):
        write_onnx(Specialises().eval(), (x,), path, batch=0)


class TakesAnything(nn.Module):
    """As networks of which only parts were captured."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, *args: Tensor, **options: float) -> Tensor:
        y: Tensor = self.conv(args[0])
        return torch.cat(list(y.chunk(2, 1)), 1) * args[1].flatten(1).sum(1).view(-1, 1, 1, 1)


@pytest.mark.slow
def test_a_batch_may_be_dynamic_behind_star_args(path: Path) -> None:
    model = TakesAnything().eval()
    write_onnx(model, (torch.randn(1, 3, 7, 5), torch.randn(1, 4)), path)
    inputs = torch.randn(5, 3, 7, 5), torch.randn(5, 4)
    with torch.no_grad():
        assert relative_error(run_file(path, *inputs)["output"], model(*inputs)) <= 1e-5


@pytest.mark.slow
def test_the_opset_can_be_chosen(tiny: nn.Module, path: Path) -> None:
    assert write_onnx(tiny, (torch.randn(1, 3, 16, 16),), path, opset=18).versions["opset"] == 18
    assert onnx.load(path).opset_import[0].version == 18


class Differs(nn.Module):
    """Not the same function when it is exported: a planted mismatch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.mul(1.001) if torch.compiler.is_exporting() else y


def test_a_mismatch_is_refused_and_leaves_the_old_file(path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=r"relative error of 0\.001 on random inputs, and 1e-05 is allowed; no file"):
        write_onnx(Differs().eval(), (torch.randn(1, 3, 8, 8),), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["tiny.onnx"]


def test_another_reference_is_a_mismatch(tiny: nn.Module, path: Path) -> None:
    with pytest.raises(ExportError, match="no file was kept"):
        write_onnx(tiny, (torch.randn(1, 3, 8, 8),), path, reference=Tiny().eval())
    assert os.listdir(path.parent) == []


class Divides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x) / (x - x)


def test_nan_outputs_are_said(path: Path) -> None:
    with pytest.raises(ExportError, match=r"output 0 of the model has 12 NaN of 12 values on random inputs of shape"):
        write_onnx(Divides(), (torch.randn(1, 3, 4),), path)


def test_no_sample_is_refused(tiny: nn.Module, path: Path) -> None:
    with pytest.raises(UsageError, match="the example input holds no sample"):
        write_onnx(tiny, (torch.randn(0, 3, 8, 8),), path)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_a_graph_that_cannot_be_captured_is_refused(path: Path) -> None:
    line = inspect.getsourcelines(Branches.forward)[1] + 1
    with pytest.raises(
        ExportError,
        match=rf"torch.export cannot capture Branches at {re.escape(__file__)}:{line}: Python reads the values of a "
        "tensor there; make its code independent of the values of its inputs$",
    ):
        write_onnx(Branches(), (torch.randn(1, 3),), path)


class NoOperator(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.special.bessel_j0(x)
        return y


def test_an_operator_that_onnx_lacks_is_named(path: Path) -> None:
    with pytest.raises(ExportError, match=r"NoOperator cannot be expressed in ONNX: .*bessel_j0"):
        write_onnx(NoOperator(), (torch.randn(1, 3),), path)


def test_float64_is_refused_by_the_runtime(path: Path) -> None:
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot run the exported graph: .*Conv"):
        write_onnx(nn.Conv2d(3, 4, 3).double().eval(), (torch.randn(1, 3, 8, 8).double(),), path)
    assert os.listdir(path.parent) == []


@pytest.mark.slow
def test_without_onnxsim_the_file_is_written_and_it_is_said(
    tiny: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(model: onnx.ModelProto, **_: Any) -> Any:
        raise RuntimeError("planted crash")

    def damage(model: onnx.ModelProto, **_: Any) -> Any:
        damaged = onnx.ModelProto()
        damaged.CopyFrom(model)
        weight = next(tensor for tensor in damaged.graph.initializer if tensor.name == "stem.0.weight")
        weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * 1.01).tobytes()
        return damaged, True

    def unsure(model: onnx.ModelProto, **_: Any) -> Any:
        return model, False

    for planted, note in [
        (crash, "onnxsim failed (RuntimeError: planted crash), so the file is not simplified"),
        (damage, "what onnxsim made of the graph was not the same function, so the file is not simplified"),
        (unsure, "onnxsim's own check failed, so the file is not simplified"),
    ]:
        monkeypatch.setattr(onnxsim, "simplify", planted)
        result = write_onnx(tiny, (torch.randn(1, 3, 16, 16),), path)
        assert result.notes == (note,)
        assert result.error <= 1e-5
        assert __file__.encode() not in path.read_bytes()


class GivesNone(nn.Module):
    """PyTorch's exporter logs warnings about the output that is not there."""

    def forward(self, x: Tensor) -> Any:
        return x.relu(), None


def test_the_tools_do_not_chatter(
    path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_onnx(GivesNone(), (torch.randn(1, 3),), path)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.slow
def test_mobilenet_v2_has_the_operators_of_its_own_export(path: Path, tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(width_mult=0.35, num_classes=10).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in module.state_dict().values():
                if tensor.is_floating_point():
                    nn.init.uniform_(tensor, 0.5, 1.5)
    result = write_onnx(_folded(model), (torch.randn(1, 3, 65, 63),), path, reference=model)
    assert result.error <= 1e-5
    own = tmp_path / "own.onnx"
    torch.onnx.export(model, (torch.randn(1, 3, 65, 63),), own, dynamo=True, verbose=False)
    assert operators(path)["Conv"] == operators(own)["Conv"] == 52
    assert operators(path)["BatchNormalization"] == 0
    assert sum(operators(path).values()) <= sum(operators(own).values())


def _folded(model: nn.Module) -> fx.GraphModule:
    """The deploy form of a network of conv-norm pairs, by PyTorch's own folding."""
    gm = fx.symbolic_trace(model)
    modules: dict[Any, Any] = dict(gm.named_modules())
    for node in list(gm.graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], nn.BatchNorm2d):
            conv = node.args[0]
            gm.set_submodule(conv.target, fuse_conv_bn_eval(modules[conv.target], modules[node.target]))
            node.replace_all_uses_with(conv)
            gm.graph.erase_node(node)
    gm.recompile()
    return gm
