"""``verify``: what must pass passes, and every single difference is found and named."""

import copy
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.core.errors import UsageError, VerificationError
from nbcompile.results.layer_costs import holding, original_of, shapes
from nbcompile.testing import scramble_
from nbcompile.verification import verify_merged


@pytest.fixture
def giant() -> nn.Module:
    giant = nbcompile.expand(nbcompile.zoo.dscnn(), torch.randn(1, 1, 8, 8), preserve=True)
    nbcompile.PLT(giant, steps=1).step()
    return scramble_(giant)


@pytest.fixture
def tiny(giant: nn.Module) -> nn.Module:
    return nbcompile.fuse(giant)


def failures(result: nbcompile.Verification) -> dict[str, str]:
    return {check.name: check.detail for check in result.checks if not check.passed}


def test_a_fused_network_passes(giant: nn.Module, tiny: nn.Module) -> None:
    result = nbcompile.verify(giant, tiny, inputs=[torch.ones(2, 1, 8, 8)])
    result.raise_on_failure()
    assert result.passed
    assert [check.name for check in result.checks] == ["keys and shapes", "layers", "MACs", "params", "numbers"]
    numbers = result.checks[-1]
    assert numbers.value is not None
    assert 0 < numbers.value <= 1e-5 == numbers.limit
    assert "on 5 inputs" in numbers.detail
    assert result.to_json()["passed"] is True
    assert len(result.layers) == sum(1 for m in tiny.modules() if next(m.parameters(recurse=False), None) is not None)


def test_reference_and_candidate_are_left_alone(giant: nn.Module, tiny: nn.Module) -> None:
    giant.train()
    before = {key: value.clone() for key, value in giant.state_dict().items()}
    nbcompile.verify(giant, tiny)
    assert giant.training
    assert all(torch.equal(value, before[key]) for key, value in giant.state_dict().items())


def test_other_weights_fail_by_numbers(giant: nn.Module, tiny: nn.Module) -> None:
    with torch.no_grad():
        tiny.get_parameter("classifier.weight")[0, 0] += 0.1
    result = nbcompile.verify(giant, tiny)
    assert list(failures(result)) == ["numbers"]
    with pytest.raises(VerificationError, match=r"numbers differ: largest relative error .* on 4 inputs"):
        result.raise_on_failure()
    assert nbcompile.verify(giant, tiny, numbers=False).passed


def test_nan_is_no_match(giant: nn.Module, tiny: nn.Module) -> None:
    with torch.no_grad():
        tiny.get_parameter("classifier.bias").fill_(torch.nan)
    assert list(failures(nbcompile.verify(giant, tiny))) == ["numbers"]


def test_nan_proves_nothing() -> None:
    model = nbcompile.zoo.dscnn()
    with torch.no_grad():
        model.get_parameter("classifier.bias").fill_(torch.nan)
    result = nbcompile.verify(model, model, torch.zeros(1, 1, 8, 8))
    assert failures(result) == {"numbers": "the reference itself gives NaN or Inf on 4 of 4 inputs"}


class OneSize(nn.Module):
    """Takes one sample at once, as some exported code does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.view(1, 4))
        return y


def test_a_network_of_one_batch_size_is_compared_at_that() -> None:
    other = OneSize()
    assert nbcompile.verify(OneSize(), OneSize(), torch.randn(1, 4)).passed
    other.layer.bias.data[0] += 0.1
    assert list(failures(nbcompile.verify(OneSize(), other, torch.randn(1, 4)))) == ["numbers"]


def test_a_file_of_one_batch_size_is_compared_at_that(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 2)), torch.randn(1, 4)
    nbcompile.export(model, tmp_path / "tiny.onnx", x, batch=5)
    result = nbcompile.verify(model, tmp_path / "tiny.onnx", x)
    assert result.passed, failures(result)


def test_rows_of_a_table_are_told_apart() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter("0.weight")[1] += 1
    tokens = torch.zeros(1, 3, dtype=torch.long)
    assert nbcompile.verify(model, model, tokens).passed
    assert list(failures(nbcompile.verify(model, other, tokens))) == ["numbers"]


def test_named_failures_are_tolerated_and_no_others(giant: nn.Module, tiny: nn.Module) -> None:
    with torch.no_grad():
        tiny.get_parameter("classifier.weight")[0, 0] += 0.1
    nbcompile.verify(giant, tiny).raise_on_failure(tolerated=("numbers",))
    wider = nbcompile.verify(giant, nbcompile.zoo.dscnn(num_classes=11))
    with pytest.raises(VerificationError, match="keys and shapes differ"):
        wider.raise_on_failure(tolerated=("numbers",))


def test_a_missing_an_added_and_a_reshaped_tensor_are_named(giant: nn.Module, tiny: nn.Module) -> None:
    added = copy.deepcopy(tiny)
    added.register_buffer("extra", torch.zeros(2))
    assert failures(nbcompile.verify(giant, added)) == {
        "keys and shapes": "the candidate has 'extra', which the original lacks"
    }
    assert failures(nbcompile.verify(added, tiny, torch.zeros(1, 1, 8, 8))) == {
        "keys and shapes": "'extra' (2,) is missing in the candidate"
    }
    wider = nbcompile.zoo.dscnn(num_classes=11)
    assert failures(nbcompile.verify(giant, wider)) == {
        "keys and shapes": "'classifier.weight' is (11, 16) in the candidate, (10, 16) in the original"
    }


def test_same_keys_at_another_cost_are_named(giant: nn.Module, tiny: nn.Module) -> None:
    stem = tiny.get_submodule("features.stem.conv")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (2, 2)
    result = nbcompile.verify(giant, tiny, numbers=False)
    assert list(failures(result)) == ["layers", "MACs"]
    assert failures(result)["layers"].startswith("'features.stem.conv' has ")


def test_a_giant_is_no_candidate(giant: nn.Module) -> None:
    with pytest.raises(VerificationError, match=r"still has 3 expansion blocks .*fuse it first"):
        nbcompile.verify(giant, giant)


def test_a_deploy_file_passes_and_a_changed_one_does_not(giant: nn.Module, tiny: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    nbcompile.export(tiny, path)
    good = nbcompile.verify(giant, path)
    assert good.passed, failures(good)
    assert [check.name for check in good.checks] == ["layers", "MACs", "params", "numbers"]

    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if t.name == "classifier.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 0.1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    assert list(failures(nbcompile.verify(giant, path))) == ["numbers"]

    wrong = nbcompile.verify(nbcompile.zoo.dscnn(num_classes=12), path, torch.zeros(1, 1, 8, 8), numbers=False)
    assert failures(wrong)["layers"].startswith(
        "'classifier' has 160 MACs and 170 params in the candidate, 192 and 204"
    )


def test_attention_is_compared_in_total(tmp_path: Path) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)
            for parameter in self.parameters():  # a zero bias would be dropped from the file
                nn.init.normal_(parameter)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.attention(x, x, x, need_weights=False)[0])

    model, x = Attends().eval(), torch.randn(1, 5, 8)
    nbcompile.export(model, tmp_path / "attends.onnx", x)
    result = nbcompile.verify(model, tmp_path / "attends.onnx", x)
    assert result.passed, failures(result)
    assert {pair.name for pair in result.layers} == {"head", "(other matrix products)"}


def test_other_extensions_are_refused(giant: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"verify: .*x\.pt is no \.onnx file"):
        nbcompile.verify(giant, tmp_path / "x.pt")


def test_the_skeleton_is_the_original_without_its_weights(giant: nn.Module) -> None:
    bare = original_of(giant)
    original = nbcompile.zoo.dscnn()
    assert shapes(bare) == shapes(original)
    assert not bare.get_parameter("features.block0.expand.conv.weight").any()


def test_tensors_that_do_not_fit_are_held_as_they_are() -> None:
    held = holding(nbcompile.zoo.dscnn(), {"a.b": torch.zeros(3), "c": torch.zeros(1)})
    assert shapes(held) == {"c": (1,), "a.b": (3,)}


def test_a_network_that_rounds_a_lot_is_measured_by_its_own_rounding(tmp_path: Path) -> None:
    """Differences of nearly equal sums: two exact float32 runs of such a network differ by far more than 1e-5."""

    class Cancels(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.bn = nn.Conv2d(1, 8, 1, bias=False), nn.BatchNorm2d(8)
            self.bn.running_mean = torch.full((8,), shift)
            self.shift = shift

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn(self.conv(x) + self.shift)
            return y.mean((2, 3))

    x = torch.randn(1, 1, 4, 4)
    network = Cancels(4e2).eval()
    result = nbcompile.export(network, tmp_path / "cancels.onnx", x)
    assert result.error is not None
    assert 1e-5 < result.error <= result.tolerance < 1e-3
    assert re.fullmatch(r"its outputs may differ from PyTorch's by \de-04: the network's own run .*", result.notes[0])
    verified = nbcompile.verify(network, tmp_path / "cancels.onnx", x)
    assert "numbers" not in failures(verified)  # onnxsim merges the sum into a bias, which is a difference of its own
    assert "the network's own run is" in verified.checks[-1].detail
    sentence = r"and 1e-03 \(the network's own run .* more is not told from a fault\) is allowed; no file was kept$"
    with pytest.raises(nbcompile.ExportError, match=sentence):
        nbcompile.export(Cancels(3e4).eval(), tmp_path / "cancels.onnx", x)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.conv.weight[0] += 0.5
    assert list(failures(nbcompile.verify(network, other, x))) == ["numbers"]


class Constants(nn.Module):
    """Makes constants in forward: 4 numbers that merge into a layer, 4 + 4 that do not, and keeps 4 as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.plain = torch.linspace(0.5, 2, 4).view(1, 4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = (self.conv(x) + torch.arange(4.0).view(1, 4, 1, 1))[:, torch.tensor([2, 1, 0, 3])]
        return y.relu() * self.plain + torch.arange(4.0).view(1, 4, 1, 1).sin()


class StoresMore(nn.Module):
    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.fused = fused
        self.register_buffer("zero", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fused(x) + self.zero
        return y


def test_constants_that_forward_makes_count_on_both_sides() -> None:
    model, x = Constants().eval(), torch.randn(2, 3, 7, 5)
    fused = nbcompile.fuse(model, example_input=x)
    stored = "124 merged, 124 before"
    assert {check.name: check.detail for check in verify_merged(model, fused, x).checks}["stored numbers"] == stored
    more = verify_merged(model, StoresMore(fused), x)
    assert failures(more) == {"stored numbers": "125 merged, 124 before"}


class Restless(nn.Module):
    """Its outputs are no measure, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how, self.calls = nn.Conv2d(3, 4, 3), how, 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "noise":
            return y + torch.randn_like(y)
        if self.how == "dropout":
            return nn.functional.dropout(y, 0.5, training=True)
        if self.how == "bernoulli":
            return y * torch.bernoulli(torch.full_like(y, 0.5))
        if self.how == "calls":
            self.calls += 1
            return y * self.calls
        if self.how == "outside":
            return y + float(np.random.rand())
        x.sub_(0.5)
        return y + x.mean()


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("noise", "the reference draws random numbers in eval mode at"),
        ("dropout", "the reference draws random numbers in eval mode at"),
        ("bernoulli", "the reference draws random numbers in eval mode at"),
        ("calls", "it keeps 'calls' from call to call: there are no numbers to compare with"),
        ("outside", "it keeps something outside its modules from call to call"),
        ("writes", "largest relative error"),
    ],
)
def test_nothing_passes_for_a_network_that_gives_other_outputs_each_time(how: str, sentence: str) -> None:
    x = torch.randn(1, 3, 7, 5)
    reference, other = Restless(how).eval(), Restless(how).eval()
    found = failures(nbcompile.verify(reference, other, x))
    assert sentence in found["numbers"]
    if how == "writes":  # into a copy of what it is called with
        before = x.clone()
        assert nbcompile.verify(reference, copy.deepcopy(reference), x).passed
        assert torch.equal(x, before)
