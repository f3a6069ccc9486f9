import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.errors import ExportError
from nbcompile.core.numerics import relative_error
from nbcompile.exporters.program import place
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.lower import lowering
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from tests.exporters.to_tflite.lowered import Net, lowered, names, operators, outputs
from tests.slow import one_in


class Block(nn.Module):
    """An inverted residual with a shortcut."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, 8, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, stride, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.project = nn.Conv2d(8, channels, 1)
        self.shortcut = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.Hardswish())
        self.blocks = nn.Sequential(Block(4), Block(4, 2))
        self.classifier = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1), 1))
        return y


@pytest.fixture(scope="module")
def tiny() -> tuple[FloatModel, float]:
    torch.manual_seed(0)
    return lowered(Tiny(), torch.randn(1, 3, 18, 13))


def test_a_small_network_gives_what_pytorch_gives(tiny: tuple[FloatModel, float]) -> None:
    model, error = tiny
    assert error < 1e-6
    assert [(port.name, port.shape, port.channels_last) for port in (*model.inputs, *model.outputs)] == [
        ("input", (1, 18, 13, 3), True),
        ("classifier", (1, 5), False),
    ]


def test_activations_are_part_of_the_convolutions_and_nothing_is_transposed(tiny: tuple[FloatModel, float]) -> None:
    assert operators(tiny[0]) == {
        "PAD": 1,  # 18 is even: stride 2 pads where SAME does not; 9 and 7 are odd
        "CONV_2D": 5,
        "HARD_SWISH": 1,
        "DEPTHWISE_CONV_2D": 2,
        "ADD": 1,
        "MEAN": 1,
        "FULLY_CONNECTED": 1,
    }


def test_tensors_have_the_names_of_their_layers(tiny: tuple[FloatModel, float]) -> None:
    model, _ = tiny
    assert names(model) == [
        "stem.0/pad",
        "stem.0",
        "stem.2",
        "blocks.0.expand.0",
        "blocks.0.depthwise.0",
        "blocks.0.project",
        "blocks.0/add",
        "blocks.1.expand.0",
        "blocks.1.depthwise.0",
        "blocks.1.project",
        "adaptive_avg_pool2d",
        "classifier",
    ]
    assert model.layers["blocks.0.expand.0"] == "blocks.0.expand.2"  # the ReLU6 is part of it
    assert "stem.0/pad" not in model.layers  # no layer's result


def test_one_of_several_results_has_the_name_of_its_operator() -> None:
    model, _ = lowered(Net(lambda m, x: x.topk(2, 1)[0] + x.max(1, keepdim=True)[0]), torch.randn(1, 5))
    assert [name for name in names(model) if "built-in" in name] == []
    assert names(model)[0] == "topk"
    places = float_model(Net(lambda m, x: x.topk(2, 1)[1]).eval(), (torch.randn(1, 5),))
    assert [port.name for port in places.outputs] == ["topk/indices"]


def test_layers_of_a_part_that_was_compiled_by_itself_keep_their_names() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            return y.sigmoid() if x.shape[-1] == y.shape[-1] else y  # tracing ends here

    model, error = lowered(nn.Sequential(Part(), nn.Conv2d(4, 2, 1)), torch.randn(1, 3, 5, 4))
    assert error < 1e-6
    assert names(model) == ["0.body.0", "0/sigmoid", "1"]


def test_layers_keep_parameters_of_their_own_where_they_are_equal() -> None:
    network = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3)))
    for x in network.parameters():
        nn.init.zeros_(x)
    file = read_file(float_model(network, (torch.randn(1, 3, 5, 4),)).content)
    assert sorted(t.name for t in file.tensors if t.data is not None) == sorted(network.state_dict())


def test_the_same_layer_called_twice_is_numbered() -> None:
    network = Net(lambda m, x: m[0](m[1](m[0](m[1](x)))), nn.Conv2d(3, 3, 1), nn.Hardswish())
    assert names(float_model(network, (torch.randn(1, 3, 5, 4),))) == [
        "layers.1",
        "layers.0",
        "layers.1_2",
        "layers.0_2",
    ]


def test_inputs_and_outputs_keep_their_order() -> None:
    network = Net(
        lambda m, x, v: {"b": m[0](x), "a": (m[1](v), x.mean((2, 3))), "again": m[0](x), "none": None},
        nn.Conv2d(3, 4, 1),
        nn.Linear(6, 2),
    )
    x, v = torch.randn(1, 3, 5, 4), torch.randn(1, 6)
    model, error = lowered(network, x, v)
    assert error < 1e-6
    assert [port.name for port in model.inputs] == ["input_0", "input_1"]
    assert [port.shape for port in model.outputs] == [(1, 5, 4, 4), (1, 2), (1, 3), (1, 5, 4, 4)]


def test_one_rule_says_how_inputs_and_outputs_are_stored() -> None:
    """Four dimensions and more are channels-last, whatever the network does with them; all else is as in PyTorch."""
    network = Net(
        lambda m, x, y: (m[0](y), m[1](x), x.flatten(2), x[:, :, None], m[1].weight.view(1, 2, 4, 1)),
        nn.Conv1d(3, 4, 3),
        nn.Linear(4, 2, bias=False),
    )
    x, y = torch.randn(1, 3, 5, 4), torch.randn(1, 3, 9)
    model, error = lowered(network, x, y)
    assert error < 1e-6
    assert [port.shape for port in model.inputs] == [(1, 5, 4, 3), (1, 3, 9)]
    assert [port.shape for port in model.outputs] == [
        (1, 4, 7),
        (1, 5, 2, 3),
        (1, 3, 20),
        (1, 1, 5, 4, 3),
        (1, 4, 1, 2),
    ]
    assert [port.channels_last for port in (*model.inputs, *model.outputs)] == [
        len(port.shape) > 3 for port in (*model.inputs, *model.outputs)
    ]


def test_outputs_that_nothing_computes() -> None:
    """An input, a constant, one tensor twice."""
    network = Net(lambda m, x: (x, m[0](x), m[0].weight * 2, m[0](x)), nn.Conv2d(3, 2, 1))
    model, error = lowered(network, torch.randn(1, 3, 5, 4))
    assert error < 1e-6
    assert [port.name for port in model.outputs] == ["input", *("layers.0/" + x for x in ("conv2d", "mul", "conv2d"))]


def test_of_a_batch_one_sample_is_looked_at() -> None:
    model = float_model(nn.Conv2d(3, 4, 1), (torch.randn(5, 3, 7, 6),))
    assert model.inputs[0].shape == (1, 7, 6, 3)


def test_what_does_not_depend_on_the_input_is_a_constant() -> None:
    position = torch.randn(1, 4, 6)
    network = Net(lambda m, x: m[0](x + torch.arange(6.0).sin() * position), nn.Linear(6, 2))
    model, error = lowered(network, torch.randn(1, 4, 6))
    assert error < 1e-6
    assert operators(model) == {"ADD": 1, "FULLY_CONNECTED": 1}


def test_a_network_that_computes_nothing() -> None:
    weight = torch.randn(1, 3)
    for network in (Net(lambda m, x: weight), Net(lambda m, x: x), nn.Identity()):
        assert lowered(network, torch.randn(1, 3, 5, 4))[1] == 0


def test_half_precision_becomes_float32() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).half()
    x = torch.randn(1, 3, 7, 6)
    model = float_model(network, (x.half(),))
    assert torch.allclose(outputs(model, x)[0], network.float()(x), atol=1e-5)


def test_a_flatten_permutes_the_columns_of_the_next_layer() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(4 * 5 * 4, 7))
    model, error = lowered(network, torch.randn(1, 3, 7, 6))
    assert error < 1e-6
    assert operators(model) == {"CONV_2D": 1, "RESHAPE": 1, "FULLY_CONNECTED": 1}


def test_shuffled_channels_are_transposed_as_tflite_micro_can() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 16, 3, groups=8), nn.PixelShuffle(2), nn.Conv2d(4, 3, 1)
    )
    model, error = lowered(network, torch.randn(1, 4, 7, 5))
    file = read_file(model.content)
    (moved,) = [op for op in file.ops if op.name == "TRANSPOSE"]
    assert len(file.tensors[moved.outputs[0]].shape) <= 5
    assert error < 1e-5


def test_attention_transposes_heads_and_nothing_else() -> None:
    network = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, activation="gelu", norm_first=True)
    model, error = lowered(network, torch.randn(1, 5, 6))
    assert error < 1e-6
    assert operators(model)["TRANSPOSE"] == 4  # query, key, value, result
    assert operators(model)["GELU"] == 1


def test_patches_become_tokens_without_a_transpose() -> None:
    network = Net(lambda m, x: m[1](m[0](x).flatten(2).transpose(1, 2)), nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6))
    model, error = lowered(network, torch.randn(1, 3, 12, 8))
    assert error < 1e-6
    assert operators(model)["TRANSPOSE"] == 0


ERRORS = {
    "no such operator": (
        lambda m, x: m[0](x).cumprod(1),
        r"aten\.cumprod in the network itself.*: nbcompile has no TFLite form of it; replace it, or export to \.onnx",
    ),
    "random numbers": (lambda m, x: x + torch.rand(4), r"aten\.rand.*: it draws random numbers; remove it, or make"),
    "a value that Python reads": (
        lambda m, x: x * x.max().item(),
        r"aten\._local_scalar_dense in .*: Python reads the value of a tensor there; make its code independent of",
    ),
    "data-dependent size": (
        lambda m, x: x[x > 0],
        r"aten\.(index|nonzero).*: the size of its result depends on the values of its input.*multiply with a mask",
    ),
    "dilated pool": (
        lambda m, x: F.max_pool2d(x, 2, 1, 0, 2),
        r"max_pool2d.*its windows are dilated \(\[2, 2\]\); use dilation=1",
    ),
    "computed kernel": (
        lambda m, x: F.conv2d(x, x),
        r"conv2d.*its kernel is computed from the input; make the weights",
    ),
    "computed weight": (
        lambda m, x: F.linear(x, x[0, 0]),
        r"linear.*its weight is computed from the input; use torch\.m",
    ),
    "no batch": (
        lambda m, x: m[0](x[0]),
        r"conv2d in layer 'layers\.0'.*: its input \(3, 5, 4\) has no batch dimension",
    ),
    "crooked size": (
        lambda m, x: F.interpolate(x, scale_factor=1.3),
        r"upsample_nearest2d.*scale_factor=\(1\.3, 1\.3\) makes no whole size of \(5, 4\); call .* size=\(6, 5\)",
    ),
    "shared heads": (
        lambda m, x: F.scaled_dot_product_attention(x[:, [0, 0, 0, 0]], x[:, :2], x[:, :2], enable_gqa=True),
        r"index|heads share keys \(enable_gqa\); repeat the keys",
    ),
    "an effect": (
        lambda m, x: torch.linalg.inv(x[..., :4, :4]),
        r"^Net calls aten\._linalg_check_errors at .*, which does more than give a result: replace it, or export to",
    ),
    "windows that move in two dimensions": (
        lambda m, x: F.avg_pool3d(x[:, None], (1, 2, 2)),
        r"aten\.avg_pool3d in the network itself.*: nbcompile has no TFLite form of it; replace it, or export to",
    ),
    "whole numbers towards zero": (
        lambda m, x: x.argmax(1).div(2, rounding_mode="trunc"),
        r"aten\.div\.\w+_mode in .*: it divides whole numbers towards zero; use rounding_mode='floor'$",
    ),
    "another distance": (
        lambda m, x: torch.cdist(x, x, p=3),
        r"aten\._cdist_forward in the network itself.*: nbcompile has no TFLite form of it; replace it, or export",
    ),
    "computed places": (
        lambda m, x: x[:, x[0, :, 0, 0].argsort()],
        r"index\.Tensor.*at places that it computes; choose with slices, or at constant places",
    ),
    "gathered from computed places": (
        lambda m, x: x.gather(1, x.sort(1)[1]),
        r"gather.*at places that it computes; choose with slices, or at constant places",
    ),
    "written at places": (
        lambda m, x: x.index_put((torch.tensor([0]), torch.tensor([1])), x[0, 0]),
        r"index_put.*it writes many numbers where numbers say; write slices, or one number where a mask of all",
    ),
    "written at computed places": (
        lambda m, x: x.index_put((x[0, :, 0, 0].argsort(),), torch.tensor(1.0)),
        r"index_put.*it writes where numbers say; write slices, or one number where a mask of all elements is set",
    ),
    "repeated so often as it computes": (
        lambda m, x: x.repeat_interleave((x[0, :, 0, 0] > 0).long(), 1),
        r"repeat_interleave.*: the size of its result depends on the values of its input, and TFLite's sizes are fixed",
    ),
    "integers": (lambda m, x: x.int(), r"_to_copy.*it makes integers of floating-point values \(torch\.int32\); keep"),
    "early line": (
        lambda m, x: F.softplus(x, 2, 3),
        r"softplus in the network itself.*: from threshold=3 on it is a line; leave out threshold, or use ReLU",
    ),
    "nothing": (lambda m, x: x[:, 3:], r"slice.*it takes no element of dimension 1; remove the empty slice"),
}


@pytest.mark.parametrize("name", one_in(3, ERRORS))
def test_what_cannot_be_lowered_is_named_with_its_layer_and_what_to_do(name: str) -> None:
    function, message = ERRORS[name]
    with pytest.raises(ExportError, match=message):
        float_model(Net(function, nn.Conv2d(3, 4, 1)).eval(), (torch.randn(1, 3, 5, 4),))


def test_whole_numbers_are_not_rounded_unasked() -> None:
    with pytest.raises(ExportError, match=r"_to_copy.*it turns whole numbers into booleans; call \.float\(\) on them"):
        float_model(Net(lambda _, x: x.bool().float()), (torch.tensor([[1, 5, 3]]),))


def test_whole_numbers_become_floating_point_where_pytorch_makes_them() -> None:
    network = Net(lambda _, x: [x / 2, 0.5 + x, x * torch.tensor(1.5), x / (x + 1), (x > 1) * 0.5])
    _, error = lowered(network, torch.tensor([[1, 5, 3]]))
    assert error < 1e-6


def test_the_place_in_the_code_is_the_users() -> None:
    class Mine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumprod(1)

    with pytest.raises(ExportError, match=re.escape(f"in layer '0' at {Path(__file__)}:")):
        float_model(nn.Sequential(Mine()), (torch.randn(1, 3),))


def test_the_place_in_the_code_is_not_torchs_on_windows_either() -> None:
    node = torch.fx.Graph().placeholder("x")
    node.meta["stack_trace"] = (
        '  File "C:\\mine\\net.py", line 12, in forward\n    x = F.relu(x)\n'
        '  File "C:\\env\\torch\\nn\\functional.py", line 34, in relu\n    return torch.relu(x)\n'
    )
    assert place(node) == r" at C:\mine\net.py:12"


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (lambda x: x.with_dim(1), "it is lowered to shape (1, 1, 3), where PyTorch has (1, 3); replace it, or export"),
        (lambda x: x.arranged([0]), "it is called in a way that cannot be lowered (dimensions {1} have no axis); "),
        (
            lambda x: x.like(x.tensor[:, :2]),
            "it is called in a way that cannot be lowered (stored as (1, 2), not (1, 3)); ",
        ),
    ],
)
def test_a_handler_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, handler: Any, said: str) -> None:
    monkeypatch.setattr(lowering, "HANDLERS", {**lowering.HANDLERS, "relu": handler})
    with pytest.raises(ExportError, match=r"aten\.relu in layer '0': " + re.escape(said)):
        float_model(nn.Sequential(nn.ReLU()), (torch.randn(1, 3),))


def test_a_network_that_keeps_what_it_reads_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1)
            return x + self.seen

    line = inspect.getsourcelines(Counting.forward)[1] + 1
    with pytest.raises(
        ExportError,
        match=rf"Counting keeps 'seen' from one run to the next, and reads it at {re.escape(__file__)}:{line}: .*keeps "
        "nothing; take that value as an input, and return it as an output$",
    ):
        float_model(Counting(), (torch.randn(1, 3),))


def test_what_is_written_and_never_read_is_left_out() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            self.seen.add_(1)
            x.mul_(3)
            return x + y

    x, y = torch.randn(2, 1, 3)
    model = float_model(Counting(), (x, y))
    (found,) = outputs(model, x, y)
    assert relative_error(found, 3 * x + y) < 1e-6


def test_a_network_that_looks_at_values_is_refused() -> None:
    network = Net(lambda _, x: x * 2 if x.sum() > 0 else x)
    with pytest.raises(
        ExportError,
        match=rf"torch\.export cannot capture Net with fixed sizes, which TFLite needs at {re.escape(__file__)}:\d+: "
        "Python reads the values of a tensor there; make its code independent of the values of its inputs",
    ):
        float_model(network, (torch.randn(1, 3),))


def test_what_the_converter_refuses_is_said_by_layer() -> None:
    network = nn.Sequential(nn.Linear(3, 128), Net(lambda _, x: x.reshape(1, *(2,) * 7).permute(0, *range(7, 0, -1))))
    with pytest.raises(ExportError, match=r"TensorFlow's converter refuses .*TFLite has no tf\.Transpose; replace it"):
        float_model(network, (torch.randn(1, 3),))


REMEDY = {"GELU": "use nn.GELU(approximate='tanh') or nn.Hardswish"}


def test_an_operator_that_the_target_lacks_is_refused_with_the_remedy() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    with pytest.raises(
        ExportError,
        match=re.escape(f"aten.gelu in layer '1': it needs GELU, which the target lacks; {REMEDY['GELU']}"),
    ):
        float_model(network, (torch.randn(1, 3),), forbidden=REMEDY)


def test_the_tanh_form_does_without_it() -> None:
    network, x = nn.Sequential(nn.Linear(3, 3), nn.GELU("tanh")), torch.randn(1, 3)
    model = float_model(network, (x,), forbidden=REMEDY)
    assert "GELU" not in operators(model)
    assert torch.allclose(outputs(model, x)[0], network(x), atol=1e-6)
    assert operators(float_model(network, (x,)))["GELU"] == 1


def test_an_operator_that_only_the_file_shows_is_refused_too() -> None:
    with pytest.raises(ExportError, match=r"layer '0' needs SOFTMAX, which the target lacks: use argmax"):
        float_model(nn.Sequential(nn.Softmax(1)), (torch.randn(1, 3),), forbidden={"SOFTMAX": "use argmax"})
