import builtins
import json
import os
import pickle
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import get_overridable_functions

import nbcompile
from nbcompile.core.errors import CheckpointError
from nbcompile.core.serialization import allow_list

FUNCTIONS = allow_list._functions()[0]
OVERRIDABLE = {id(f) for functions in get_overridable_functions().values() for f in functions}


def test_the_list_has_what_networks_call() -> None:
    for name in (
        "torch.cat",
        "torch.flatten",
        "torch.nn.functional.conv2d",
        "torch.nn.functional.dropout",
        "operator.add",
        "operator.getitem",
        "operator.setitem",
        "torch.arange",
        "torch.relu_",
        "torch.nn.functional.leaky_relu_",
        "round",
        "math.sqrt",
        "torch._assert",
        "getattr",
        "torch.linalg.vector_norm",
        "torch.einsum",
        "torchvision.models.swin_transformer.shifted_window_attention",
        "torchvision.ops.stochastic_depth.stochastic_depth",
    ):
        function = allow_list.function(name)
        assert allow_list.function(str(allow_list.function_name(function))) is function


def test_every_torch_function_is_a_function_of_tensors() -> None:
    written = allow_list.CREATORS | allow_list.IN_PLACE | {*allow_list.ACTIVATIONS_IN_PLACE, *allow_list.UNLISTED}
    names = [name for name in FUNCTIONS if name.startswith("torch.")]
    assert len(names) > 500
    others = [name for name in names if id(FUNCTIONS[name]) not in OVERRIDABLE]
    assert [name for name in others if name.rpartition(".")[2] not in written | {"_assert", "Size"}] == []


def test_the_others_are_the_written_ones() -> None:
    others = {n for n in FUNCTIONS if not n.startswith("torch.")}
    named = (
        {f"operator.{n}" for n in allow_list._OPERATORS}
        | {f"math.{n}" for n in allow_list._MATH}
        | {"getattr", "round", "collections.OrderedDict", "nbcompile.require_same_choice", "nbcompile.require_sizes"}
    )
    assert others == named


@pytest.mark.parametrize("name", sorted(allow_list.DENIED))
def test_denied(name: str) -> None:
    for space in ("torch", "torch.nn.functional", "torch.linalg", "torch.special", "torch.Tensor"):
        with pytest.raises(CheckpointError, match=rf"^the graph calls '{re.escape(space)}\.{name}', which no graph"):
            allow_list.function(f"{space}.{name}")
    with pytest.raises(
        CheckpointError, match=rf"^the graph calls the method '{name}', which no graph in a file may call$"
    ):
        allow_list.method(name)


@pytest.mark.parametrize("part", allow_list.DENIED_PARTS)
def test_denied_parts(part: str) -> None:
    assert not [n for n in (*FUNCTIONS, *allow_list._methods()) if part in n]
    assert any(part in getattr(f, "__name__", "") for fs in get_overridable_functions().values() for f in fs)


@pytest.mark.parametrize("name", [*sorted(allow_list.IN_PLACE), *allow_list.ACTIVATIONS_IN_PLACE])
def test_in_place_are_forms_of_what_is_allowed(name: str) -> None:
    """Each writes what a permitted function gives, or nothing but what it is given."""
    assert name in ("copy_", "fill_", "zero_") or allow_list._permitted(name.removesuffix("_"))
    assert name in {tail.rpartition(".")[2] for tail in FUNCTIONS} | allow_list._methods()


@pytest.mark.parametrize("name", sorted(allow_list.CREATORS))
def test_creators_always_make_the_same(name: str) -> None:
    arguments = {
        "as_tensor": ([1, 2],),
        "arange": (3,),
        "full": ((2,), 1.5),
        "linspace": (0, 1, 4),
        "scalar_tensor": (2,),
        "tensor": ([1, 2],),
    }
    make, given = allow_list.function(f"torch.{name}"), arguments.get(name, (3, 3))
    assert torch.equal(make(*given), make(*given))


def test_nothing_underscored_or_in_place() -> None:
    tails = [
        n.rpartition(".")[2]
        for n in FUNCTIONS
        if n not in ("torch._assert", "operator.and_", "operator.or_", "operator.not_")
    ]
    names = {*tails, *allow_list._methods()} - allow_list.IN_PLACE - {*allow_list.ACTIVATIONS_IN_PLACE}
    assert not [n for n in names if n.startswith("_") or n.endswith("_")]


# Nothing may reach files, processes, devices, global state, other objects' attributes, or memory as such.
REACHING = re.compile(
    r"(^|_)(file|load|save|open|exec|eval|compile|import|hub|jit|package|serial|pickle|storage|ptr|pointer|memory|"
    r"pin|share|stream|cuda|device|seed|rng|rand|randn|randint|randperm|generator|hook|grad|thread|default|backend|"
    r"empty|resize|set|strided|numpy|dlpack|script|trace_module|deterministic)(_|$)"
)


def test_no_name_that_reaches_beyond_values() -> None:
    values = {"torch.affine_grid_generator"}  # generates a grid, not random numbers
    assert not [n for n in {*FUNCTIONS, *allow_list._methods()} - values if REACHING.search(n.rpartition(".")[2])]
    for library in ("timm", "torchvision"):
        functions, modules = allow_list._library(library)
        assert not [n for n in (*functions, *modules) if REACHING.search(n.rpartition(".")[2])]
        assert all(f.__module__.startswith(f"{library}.") for f in functions.values())


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "builtins.open",
        "builtins.__import__",
        "subprocess.run",
        "eval",
        "torch.load",
        "torch.save",
        "torch.hub.load",
        "torch.jit.load",
        "torch.jit.script",
        "torch.compile",
        "torch.Tensor.numpy",
        "torch.Tensor.__reduce__",
        "torch.ops.load_library",
        "torch._C._set_deterministic_algorithms",
        "torch.set_default_device",
        "torch.manual_seed",
        "torch.from_file",
        "torch.frombuffer",
        "torch.nn.Module.apply",
        "torch.utils.data.DataLoader",
        "torch.fx.symbolic_trace",
        "torch.package.PackageImporter",
        "torch.empty",
        "operator.attrgetter",
        "operator.methodcaller",
        "operator.delitem",
        "operator.lshift",
        "torch.rand",
        "torch.uniform_",
        "torch.resize_",
        "operator.call",
        "math.factorial",
        "math.comb",
        "setattr",
        "delattr",
        "vars",
        "__import__",
        "pickle.loads",
        "numpy.load",
        "timm.create_model",
        "timm.models.load_checkpoint",
        "timm.models._helpers.load_checkpoint",
        "torchvision.io.read_image",
        "torchvision.models.get_model",
        "torchvision.ops.os.system",
        "",
        ".",
        "torch.",
        "torch.nn.functional",
    ],
)
def test_refused_functions(name: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"^the graph calls '{re.escape(name)}', which no graph in a file may call$"
    ):
        allow_list.function(name)


@pytest.mark.parametrize(
    "function",
    [
        os.system,
        builtins.eval,
        builtins.open,
        subprocess.run,
        pickle.loads,
        torch.load,
        torch.save,
        torch.hub.load,
        torch.jit.load,
        torch.compile,
        torch.manual_seed,
        torch.empty,
        setattr,
    ],
)
def test_refused_functions_are_not_written(function: object) -> None:
    assert allow_list.function_name(function) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "__reduce__",
        "__class__",
        "__getattribute__",
        "_make_subclass",
        "apply_",
        "map_",
        "set_",
        "resize_",
        "uniform_",
        "normal_",
        "bernoulli_",
        "t_",
        "squeeze_",
        "detach_",
        "to_",
        "requires_grad_",
        "data",
        "grad",
        "new",
        "new_empty",
        "format",
        "mro",
        "append",
        "pop",
        "",
        "numpy()",
    ],
)
def test_refused_methods(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"^the graph calls the method '.*', which no graph in a file may call$"):
        allow_list.method(name)


@pytest.mark.parametrize(
    "name", ["__class__", "__globals__", "__dict__", "_modules", "data", "grad", "grad_fn", "is_cuda"]
)
def test_refused_attributes(name: str) -> None:
    assert name not in allow_list.ATTRIBUTES


@pytest.mark.parametrize(
    "name",
    [
        *(f"torch.nn.{name}" for name in sorted(allow_list.DENIED_MODULES)),
        *(f"torch.nn.{name}" for name in dir(nn) if name.startswith("Lazy")),
        "torch.nn.modules.module.Module",
        "torch.nn.modules.Linear",
        "torch.nn.Parameter",
        "torch.nn.Buffer",
        "torch.nn.functional",
        "torch.nn.init",
        "torch.nn.parallel.DistributedDataParallel",
        "torch.fx.GraphModule",
        "torch.jit.ScriptModule",
        "torch.nn._reduction",
        "torch.nn.modules",
        "os.system",
        "builtins.eval",
        "Linear",
        "nbcompile.core.blocks.Expanded",
        "timm.models.vision_transformer.VisionTransformer",
        "torchvision.models.resnet.ResNet",
        "torchvision.datasets.MNIST",
        "",
    ],
)
def test_refused_module_classes(name: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"^the graph holds a module of class '{re.escape(name)}', which no graph"
    ):
        allow_list.module_class(name)


def test_module_classes_by_name() -> None:
    for module in (nn.Conv2d(1, 1, 1), nn.LSTM(2, 2), nn.MultiheadAttention(2, 1), nn.Hardswish()):
        name = allow_list.module_class_name(module)
        assert name == f"torch.nn.{type(module).__name__}"
        assert allow_list.module_class(name) is type(module)

    class Own(nn.Conv2d):
        pass

    Own.__name__ = "Conv2d"
    assert allow_list.module_class_name(Own(1, 1, 1)) is None


def test_what_a_library_does_not_declare_has_no_name() -> None:
    """Functions and modules of torchvision and timm, but none that fx calls whole."""
    assert allow_list.function_name(torchvision.ops.nms) == "torchvision.ops.boxes.nms"
    for function in (torchvision.models.resnet18, timm.create_model, json.dumps):
        assert allow_list.function_name(function) is None
    frozen = torchvision.ops.FrozenBatchNorm2d(3)
    name = allow_list.module_class_name(frozen)
    assert name == "torchvision.ops.misc.FrozenBatchNorm2d"
    assert allow_list.module_class(name) is torchvision.ops.FrozenBatchNorm2d
    block = torchvision.models.resnet.BasicBlock(4, 4)
    assert allow_list.module_class_name(block) is None
    for absent in ("torchvision.models.resnet.BasicBlock", "json.JSONDecoder", "timm.Linear", "torchvision.Conv2d"):
        with pytest.raises(
            CheckpointError, match=f"^the graph holds a module of class '{re.escape(absent)}', which no"
        ):
            allow_list.module_class(absent)


@pytest.mark.parametrize(
    "function", [nn.functional.hardswish, nn.functional.hardsigmoid, lambda x: x.unflatten(1, (2, 4)).flatten(1, 2)]
)
def test_what_torch_does_not_list_is_recorded_too(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return function(super().forward(x))

    model, x = Net(nn.Conv2d(3, 8, 3)).eval(), torch.randn(2, 3, 7, 5)
    nbcompile.save(model, tmp_path / "it.pt", x)
    with torch.no_grad():
        assert torch.equal(nbcompile.load(tmp_path / "it.pt")(x), model(x))
