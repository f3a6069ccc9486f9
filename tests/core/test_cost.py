import contextlib
import json

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nbcompile.core.cost import LayerCost, cost
from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.example import Origin, TensorSpec, remember


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3), (2, 3, 7, 5), 5 * 3 * 8 * 3 * 9),
        (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), groups=2), (1, 4, 7, 6), 4 * 6 * 6 * 2 * 15),
        (nn.Conv2d(4, 4, 3, dilation=2, padding=1, groups=4), (1, 4, 9, 8), 7 * 6 * 4 * 9),
        (nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect"), (1, 3, 7, 5), 7 * 5 * 8 * 3 * 9),
        (nn.Conv1d(3, 5, 4, stride=3), (1, 3, 11), 3 * 5 * 3 * 4),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 3, 5), 3 * 2 * 4 * 3 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 7), 5 * 7 * 4 * 3 * 9),
        (nn.Linear(5, 7), (3, 4, 5), 4 * 5 * 7),  # per sample
        (nn.Linear(5, 7, bias=False), (3, 5), 5 * 7),
        (nn.LSTM(5, 4, num_layers=2, batch_first=True), (1, 6, 5), 6 * (16 * 5 + 16 * 4 + 16 * 4 + 16 * 4)),
        (nn.GRU(5, 4, bidirectional=True, batch_first=True), (1, 6, 5), 6 * 2 * (12 * 5 + 12 * 4)),
        (nn.Identity(), (1, 3), 0),
    ],
)
def test_layers(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    counted = cost(layer, torch.randn(shape))
    assert (counted.macs, counted.flops) == (macs, 2 * macs)
    assert counted.params == sum(p.numel() for p in layer.parameters())
    assert counted.bias_params == sum(p.numel() for name, p in layer.named_parameters() if "bias" in name)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.ReLU())
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.table = nn.Parameter(torch.randn(25, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(F.conv2d(x, self.weight))  # (4, 5, 5)
        return y.flatten(2) @ self.table  # (4, 25) @ (25, 6)


def test_functional_calls_belong_to_the_module_that_makes_them() -> None:
    counted = cost(nn.Sequential(Functional()), torch.randn(2, 3, 7, 7))
    macs = 25 * 4 * 27 + 4 * 25 * 6
    assert counted.layers == (
        LayerCost("0", "Functional", macs, 4 * 27 + 150, norm_params=0, bias_params=0, norm_elements=0, calls=1),
    )


class Products(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # (1, 3, 4, 5)
        batch, vector = x[0], x[0, 0, 0]
        return (
            batch @ batch.mT,  # 3 * 4 * 5 * 4
            torch.baddbmm(batch.new_zeros(()), batch, batch.mT),  # the same
            torch.addbmm(batch.new_zeros(4, 4), batch, batch.mT),  # the same
            torch.addmm(batch.new_zeros(4), batch[0], batch[1].mT),  # 4 * 5 * 4
            torch.einsum("bchw,dw->bdch", x, batch[0]),  # 12 * 5 * 4
            batch[0] @ vector,  # 4 * 5
            torch.addmv(batch.new_zeros(4), batch[0], vector),  # 4 * 5
            vector @ vector,  # 5
        )


def test_matrix_products() -> None:
    assert cost(Products(), torch.randn(1, 3, 4, 5)).macs == 3 * 240 + 80 + 240 + 20 + 20 + 5


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(need_weights: bool) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 4, batch_first=True)  # even: has a fused fast path

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=need_weights)[0]

    counted = cost(Attends(), torch.randn(2, 7, 12))
    projections, attention = 7 * 12 * 36 + 7 * 12 * 12, 4 * 7 * 7 * (3 + 3)
    assert counted.macs == projections + attention
    assert counted.params == 4 * 12 * 12 + 4 * 12
    assert counted.unread_params == 0
    assert {layer.name: layer.macs for layer in counted.layers} == {
        "attention": projections + attention,
        "attention.out_proj": 0,  # its weight is read by the attention itself
    }


def test_encoder_layer_is_not_hidden_by_its_fast_path() -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    layer = nn.TransformerEncoderLayer(12, 4, 20, batch_first=True)
    assert cost(layer, torch.randn(1, 7, 12)).macs == 7 * 12 * 48 + 4 * 49 * 6 + 2 * 7 * 12 * 20
    assert torch.backends.mha.get_fastpath_enabled() is fast


@pytest.mark.parametrize("backend", [None, SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("causal", [True, False])
def test_scaled_dot_product_attention(backend: SDPBackend | None, causal: bool) -> None:
    class Attends(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if backend is None:
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    q, k, v = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 7, 6), torch.randn(2, 3, 7, 6)
    assert cost(Attends(), (q, k, v)).macs == 3 * 5 * 7 * (6 + 6)


def test_grouped_query_attention_counts_every_query_head() -> None:
    class Attends(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    assert cost(Attends(), (torch.randn(1, 4, 5, 8), torch.randn(1, 2, 7, 8))).macs == 4 * 5 * 7 * 16


def test_shared_layer_and_shared_tensor() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.first.weight
            self.alias = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.tied(self.first(self.alias(x)))

    counted = cost(Shares(), torch.randn(1, 4))
    assert counted.layers == (
        LayerCost("first", "Linear", 32, 20, norm_params=0, bias_params=4, norm_elements=0, calls=2),
        LayerCost("tied", "Linear", 16, 4, norm_params=0, bias_params=4, norm_elements=0, calls=1),
    )
    assert (counted.macs, counted.params, counted.unread_params) == (48, 24, 0)


def test_norms_have_columns_of_their_own() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Flatten(), nn.RMSNorm(20),
        nn.LayerNorm(20),
    )  # fmt: skip
    counted = cost(model, torch.randn(3, 3, 5, 1))
    assert counted.norm_elements == 5 * 20
    assert counted.norm_params == 8 + 8 + 0 + 20 + 40
    assert (counted.macs, counted.bias_params, counted.params) == (60, 4, 12 + 4 + 76)
    assert [layer.name for layer in counted.layers] == ["0", "1", "2", "3", "5", "6"]


def test_auxiliary_heads_are_unread() -> None:
    model = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=10)
    heads = sum(p.numel() for head in (model.aux1, model.aux2) for p in head.parameters())
    counted = cost(model, torch.randn(1, 3, 64, 64))
    assert counted.unread_params == heads > 0
    assert counted.params == sum(p.numel() for p in model.parameters())


def test_a_detached_parameter_is_read() -> None:
    class Detaches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.data_used = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
            self.unused = nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.used.detach() + self.data_used.data

    assert cost(Detaches(), torch.ones(1, 3)).unread_params == 5


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext_tiny", "swin_t"])
def test_agrees_with_torchs_own_counter(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, 64, 64)
    with FlopCounterMode(display=False) as torchs, torch.no_grad():
        model(x)
    assert cost(model, x).flops == torchs.get_total_flops() > 0


class Untidy(nn.Module):
    """Draws random numbers and changes its buffers, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("last", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 3:
            raise ValueError("three, please")
        self.seen += 1
        self.last = x.sum()
        return self.frozen(self.layer(F.dropout(x, training=True)))


@pytest.mark.parametrize("width", [3, 4])
def test_leaves_the_model_as_it_was(width: int) -> None:
    model = Untidy()
    modes = [module.training for module in model.modules()]
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    if width == 3:
        assert cost(model, torch.ones(2, width)).macs == 9
    else:
        sentence = r"cost could not run Untidy on an input of shape \(1, 4\): ValueError: three, please"
        with pytest.raises(UsageError, match=sentence):
            cost(model, torch.ones(2, width))
    assert [module.training for module in model.modules()] == modes == [True, True, False]
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(*buffers[name])
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_runs_the_eval_branch() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.training_only = nn.Linear(3, 3), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.training_only(self.always(x)) if self.training else self.always(x)

    counted = cost(Branches(), torch.ones(1, 3))
    assert (counted.macs, counted.unread_params) == (9, 20)


def test_attributes_rightly_after_an_error_that_the_model_catches() -> None:
    class Recovers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fails, self.works = nn.Linear(9, 9), nn.Parameter(torch.ones(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            with contextlib.suppress(RuntimeError):
                self.fails(x)
            return x @ self.works

    counted = cost(Recovers(), torch.ones(1, 3))
    assert {layer.name: layer.macs for layer in counted.layers} == {"": 6, "fails": 0}


def test_under_inference_mode_and_on_meta() -> None:
    model, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2)),
        torch.randn(1, 3, 5, 5),
    )
    expected = cost(model, x)
    with torch.inference_mode():
        assert cost(model, x) == expected
    assert cost(model.to("meta"), x) == expected


def test_compiled_parts_are_counted() -> None:
    model = nn.Sequential(torch.compile(nn.Linear(4, 8), backend="eager"), nn.Linear(8, 2))
    assert cost(model, torch.ones(1, 4)).macs == 48


def test_a_model_that_remembers_needs_no_example() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(UsageError, match="cost needs an example_input: Linear does not remember"):
        cost(model)
    remember(model, Origin((TensorSpec((8, 3)),)))
    assert cost(model).macs == 6


def test_refuses_an_empty_batch_and_lazy_parameters() -> None:
    with pytest.raises(UsageError, match=r"cost needs at least one sample; the first .* has shape \(0, 3\)"):
        cost(nn.Linear(3, 2), torch.ones(0, 3))
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(PreconditionError, match=r"'0\.weight' of Sequential has no shape yet: run the model once"):
        cost(lazy, torch.ones(1, 3))


def test_json() -> None:
    counted = cost(nn.Sequential(nn.Conv2d(3, 1000, 1), nn.BatchNorm2d(1000)), torch.ones(1, 3, 2, 2))
    data = json.loads(json.dumps(counted.to_json()))
    assert {key: data[key] for key in data if key != "layers"} == {
        "macs": 12_000,
        "flops": 24_000,
        "params": 6_000,
        "norm_params": 2_000,
        "bias_params": 1_000,
        "norm_elements": 4_000,
        "unread_params": 0,
    }
    assert [layer["name"] for layer in data["layers"]] == ["0", "1"]


def test_what_is_never_read_is_counted_apart() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.spare = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(1234))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    counted = cost(Bare(), torch.ones(1, 3))
    assert counted.unread_params == 1234
    assert [layer.name for layer in counted.layers] == [""]  # the model itself


def test_the_inputs_are_left_as_they_were() -> None:
    x = torch.randn(1, 3, 4, 4)
    before = x.clone()
    cost(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1)), x)
    assert torch.equal(x, before)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, factor: Tensor, more: list[Tensor]) -> Tensor:
        y: Tensor = self.linear(x) * factor + sum(one.mean() for one in more)
        return y


def test_one_sample_of_every_input_that_has_samples() -> None:
    """A scalar has none, and a list of images is a batch by itself."""
    inputs = (torch.ones(5, 3), torch.tensor(2.0), [torch.ones(2, 2), torch.ones(3)])
    assert cost(Scaled(), inputs).macs == 3 * 2


class MakesConstants(nn.Module):
    """Reads a weight twice, a buffer, a plain tensor and literals; a head, and a counter, are never read."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 9)
        self.plain = torch.linspace(0, 1, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.fc(x)) * self.plain + self.fc.weight.sum()
        y = y[:, torch.tensor([2, 1, 0, 3])] + y.new_zeros(4) + torch.ones(4).cumsum(0)
        return y @ torch.eye(4)


def test_stored_numbers_are_what_a_run_reads_and_depends_on_no_input() -> None:
    counted = cost(MakesConstants(), torch.randn(2, 3))
    assert counted.stored == 20 + 4 * 5 + 5 + 4 + 4 + 16
    assert cost(nn.Identity(), torch.randn(2, 3)).stored == 0
