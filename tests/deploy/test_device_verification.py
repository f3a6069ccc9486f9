"""``verify`` of ``.tflite`` files: against networks and other files, in LiteRT and TFLite Micro."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.cli.run.verify import run_verify
from nbcompile.core.errors import CheckpointError, UsageError, VerificationError
from nbcompile.exporters.to_tflite.file.flatbuffer import pack, read_file, unpack
from nbcompile.exporters.to_tflite.file.inspect import tflite_input_sizes, tflite_scheme, tflite_weights
from nbcompile.results.numbers import json_ready
from tests.exporters.to_tflite.small_networks import small

NAMES = ["inputs and outputs", "MACs", "params", "numbers in LiteRT, XNNPACK", "numbers in TFLite Micro"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 file, its float form, the weights and the images."""
    path = tmp_path_factory.mktemp("files")
    model, images = small((7, 5))
    quick: dict[str, Any] = {"equalize": "never", "correct_bias": "never"}
    nbcompile.export(model, path / "tiny.tflite", images[:1], calibration=images, **quick)
    torch.save(model.state_dict(), path / "tiny.pt")
    np.savez(path / "images.npz", x=images.numpy())
    return path


@pytest.fixture
def images() -> Tensor:
    return small((7, 5))[1]


@pytest.fixture
def model() -> nn.Module:
    return small((7, 5))[0]


def nudged(content: bytes, by: int) -> bytes:
    """The file with another bias in its last layer: all outputs are another number of steps."""
    changed = unpack(content)
    op = changed.subgraphs[0].operators[-1]
    buffer = changed.buffers[changed.subgraphs[0].tensors[op.inputs[2]].buffer]
    buffer.data = (np.frombuffer(bytes(buffer.data), np.int32) + by).view(np.uint8)
    return pack(changed)


def failures(found: nbcompile.Verification) -> dict[str, str]:
    return {check.name: check.detail for check in found.checks if not check.passed}


def test_against_its_network(folder: Path, model: nn.Module, images: Tensor) -> None:
    found = nbcompile.verify(model, folder / "tiny.tflite", images[:1], calibration=images)
    assert (found.passed, [check.name for check in found.checks]) == (True, NAMES)
    ports, macs, weights, litert, micro = found.checks
    assert ports.detail == "1 × 7 × 5 × 3 to 1 × 5"
    assert macs.value == nbcompile.cost(model, images[:1]).macs
    assert weights.value == sum(x.numel() for x in model.parameters() if x.ndim > 1)
    assert litert.value is not None
    assert micro.value is not None
    assert min(litert.value, micro.value) > 15
    assert "on 64 calibration samples" in litert.detail
    assert json.loads(json.dumps(json_ready(found.to_json())))["passed"] is True


def test_weights_that_are_not_its_own_are_found(folder: Path, model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        model[-1].weight[0] += 1.0
    found = nbcompile.verify(model, folder / "tiny.tflite", images[:1], calibration=images)
    assert list(failures(found)) == NAMES[3:]
    with pytest.raises(
        VerificationError, match=r"^numbers in LiteRT, XNNPACK differ: .* dB .*; 15.0 dB are asked for$"
    ):
        found.raise_on_failure()
    assert nbcompile.verify(model, folder / "tiny.tflite", images[:1], numbers=False).passed


@pytest.mark.slow
def test_a_giant_stands_for_its_outputs_and_its_originals_cost(tmp_path: Path) -> None:
    x = torch.randn(1, 1, 7, 5)
    giant = nbcompile.expand(nbcompile.zoo.dscnn(), x, preserve=True)
    nbcompile.PLT(giant, steps=1).step()
    nbcompile.export(nbcompile.fuse(giant), tmp_path / "tiny.tflite", x, quantize="float32")
    found = nbcompile.verify(giant, tmp_path / "tiny.tflite")
    assert found.passed, failures(found)
    assert "on 8 random inputs" in found.checks[3].detail  # no images: a float file takes any


def test_two_files_to_the_bit(folder: Path, tmp_path: Path, images: Tensor) -> None:
    content = (folder / "tiny.tflite").read_bytes()
    (tmp_path / "same.tflite").write_bytes(pack(unpack(content)))
    found = nbcompile.verify(folder / "tiny.tflite", tmp_path / "same.tflite", calibration=images)
    assert [(check.passed, check.value) for check in found.checks[3:]] == [(True, 0.0)] * 2
    assert found.checks[3].detail == "equal to the bit on 64 calibration samples"
    file = read_file(content)
    bias, out = file.tensors[file.ops[-1].inputs[2]], file.tensors[file.outputs[0]]
    assert bias.quantization is not None
    assert out.quantization is not None
    one_step = round(float(out.quantization.scale[0] / bias.quantization.scale.max()))
    (tmp_path / "other.tflite").write_bytes(nudged(content, 2 * one_step))
    different = nbcompile.verify(folder / "tiny.tflite", tmp_path / "other.tflite")
    assert list(failures(different)) == NAMES[3:]
    assert "8 random inputs; 0 steps are allowed" in failures(different)[NAMES[3]]
    steps = max(int(check.value or 0) for check in different.checks[3:])
    assert steps >= 2
    assert nbcompile.verify(folder / "tiny.tflite", tmp_path / "other.tflite", steps=steps).passed
    assert not nbcompile.verify(folder / "tiny.tflite", tmp_path / "other.tflite", steps=1).passed


def test_an_integer_file_and_a_float_one(folder: Path, images: Tensor) -> None:
    whole, integers = folder / "tiny_float32.tflite", folder / "tiny.tflite"
    for reference, candidate in ((whole, integers), (integers, whole)):
        found = nbcompile.verify(reference, candidate, calibration=images)
        assert found.passed, failures(found)
        assert "dB of signal over noise" in found.checks[3].detail
        assert not nbcompile.verify(reference, candidate, calibration=images, min_sqnr=79).passed
    agreed = nbcompile.verify(whole, integers, calibration=images, min_sqnr=0, min_agreement=0.0)
    assert agreed.passed
    with pytest.raises(UsageError, match=r"steps=1 is of integers, and .*tiny_float32.tflite gives floats"):
        nbcompile.verify(integers, whole, steps=1)


def test_integers_are_compared_on_images(folder: Path, model: nn.Module, images: Tensor) -> None:
    with pytest.raises(UsageError, match="random inputs say little: give images as the network will see them"):
        nbcompile.verify(model, folder / "tiny.tflite", images[:1])
    given = nbcompile.verify(model, folder / "tiny.tflite", images[:1], inputs=[images[3:4]])
    assert "on 1 given inputs" in given.checks[3].detail
    drawn = nbcompile.verify(model, folder / "tiny.tflite", images[:1], min_sqnr=-100)
    assert "on 8 random inputs" in drawn.checks[3].detail


class Two(nn.Module):
    """As many inputs as a file of one has not."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + y).mean((2, 3))


def test_other_inputs_and_outputs(folder: Path, model: nn.Module, images: Tensor) -> None:
    file = folder / "tiny.tflite"
    wider = nbcompile.verify(nn.Sequential(*model, nn.Linear(5, 6)), file, images[:1])
    assert failures(wider) == {NAMES[0]: "the candidate has outputs of 1 × 5, the original of 1 × 6"}
    larger = nbcompile.verify(model, file, torch.randn(1, 3, 8, 5))
    assert failures(larger) == {NAMES[0]: "the candidate has inputs of 1 × 7 × 5 × 3, the original of 1 × 3 × 8 × 5"}
    two = nbcompile.verify(Two(), file, (images[:1], images[:1]))
    assert "the original of 1 × 7 × 5 × 3, 1 × 3 × 7 × 5" in failures(two)[NAMES[0]]
    with pytest.raises(VerificationError, match=r"^inputs and outputs differ: the candidate has outputs of 1 × 5"):
        wider.raise_on_failure()


def test_a_file_that_costs_more(folder: Path, model: nn.Module, images: Tensor) -> None:
    light = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    found = nbcompile.verify(light, folder / "tiny.tflite", images[:1], numbers=False)
    assert list(failures(found)) == ["MACs", "params"]
    assert failures(found)["MACs"].endswith("in the candidate, 15 in the original")


def test_what_is_read_of_a_file(folder: Path) -> None:
    assert tflite_input_sizes(folder / "tiny.tflite") == ((1, 3, 7, 5),)
    files = [read_file((folder / name).read_bytes()) for name in ("tiny.tflite", "tiny_float32.tflite")]
    assert [tflite_scheme(file) for file in files] == ["int8", "float32"]
    assert tflite_weights(files[0]) == tflite_weights(files[1])


def typed(folder: Path, candidate: str, against: str, **words: Any) -> nbcompile.Verification:
    known: dict[str, Any] = {"model": None, "key": None, "input_shape": None, "options": {}}
    return run_verify(str(folder / candidate), against, **{**known, **words})


def network() -> nn.Module:
    """A factory, as a user has one."""
    return small((7, 5))[0]


HERE = "tests.deploy.test_device_verification:network"


def test_as_a_user_types_it(folder: Path) -> None:
    images = {"calibration": folder / "images.npz"}
    weights = typed(folder, "tiny.tflite", str(folder / "tiny.pt"), model=HERE, options=images, input_shape="1x3x7x5")
    assert (weights.passed, len(weights.checks)) == (True, 5), failures(weights)
    structure = typed(folder, "tiny.tflite", HERE)  # at the size of the file's input
    assert (structure.passed, len(structure.checks)) == (True, 3)
    files = typed(folder, "tiny.tflite", str(folder / "tiny_float32.tflite"), options=images)
    assert files.passed, failures(files)


@pytest.mark.parametrize(
    ("candidate", "against", "words", "error", "sentence"),
    [
        ("none.tflite", "tiny.tflite", {}, CheckpointError, "none.tflite cannot be read: there is no such file"),
        ("tiny.tflite", "none.tflite", {}, CheckpointError, "none.tflite cannot be read: No such file"),
        ("text.tflite", "tiny.tflite", {}, CheckpointError, "text.tflite cannot be read: this is no .tflite file"),
        ("tiny.tflite", "text.tflite", {}, CheckpointError, "text.tflite cannot be read: this is no .tflite file"),
        ("cut.tflite", "tiny.tflite", {}, CheckpointError, "cut.tflite cannot be read: this .tflite file is damaged"),
        ("tiny.pt", "tiny.tflite", {}, UsageError, "the original of another .tflite file only: name it as CANDIDATE"),
        ("tiny.tflite", "tiny.tflite", {"key": "ema"}, UsageError, "--model, --key and --input are of trained files"),
        ("tiny.tflite", "tiny.tflite", {"options": {"steps": -1}}, UsageError, "steps=-1 is no number of steps"),
        ("tiny.tflite", "tiny.tflite", {"options": {"min_sqnr": float("nan")}}, UsageError, "min_sqnr=nan is no limit"),
        ("tiny.tflite", "tiny.tflite", {"options": {"min_agreement": 2.0}}, UsageError, "min_agreement=2.0 is not a"),
        (
            "tiny.tflite",
            "tiny.tflite",
            {"options": {"calibration": "none"}},
            UsageError,
            "calibration none is not there",
        ),
        ("tiny.tflite", "tiny.tflite", {"options": {"preprocessing": {}}}, UsageError, "give them, too (calibration)"),
        ("tiny.pt", HERE, {"options": {"steps": 1}}, UsageError, "--steps goes with a CANDIDATE that is a .tflite or"),
    ],
)
def test_bad_input(
    folder: Path, candidate: str, against: str, words: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    (folder / "text.tflite").write_text("this is no file of a network")
    (folder / "cut.tflite").write_bytes((folder / "tiny.tflite").read_bytes()[:3000])
    there = against if ":" in against else str(folder / against)
    with pytest.raises(error) as raised:
        typed(folder, candidate, there, **words)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_python_says_which_options_go_with_files(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(UsageError, match=r"verify: steps goes with a candidate that is a .tflite or an int8 .onnx"):
        nbcompile.verify(model, model, images[:1], steps=1)
    with pytest.raises(UsageError, match=r"verify: the original a.tflite goes with a candidate that is a .tflite file"):
        nbcompile.verify("a.tflite", model, images[:1])


class Rows(nn.Module):
    """Of a table, by inputs that are whole numbers; what all samples have in common is most of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        nn.init.constant_(self.head.bias, 400.0)

    def forward(self, words: Tensor) -> Tensor:
        y: Tensor = self.head(self.rows(words).mean(1))
        return y


def test_two_files_of_whole_numbers_and_one_that_names_other_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, words = Rows().eval(), torch.randint(0, 20, (40, 9), dtype=torch.int32)
    for name, ranges in (("one.tflite", "minmax"), ("two.tflite", "mse")):
        nbcompile.export(model, tmp_path / name, words[:1], calibration=words, fast=True, ranges=ranges)
    found = nbcompile.verify(tmp_path / "one.tflite", tmp_path / "two.tflite", calibration=words)
    assert [check.passed for check in found.checks[:3]] == [True] * 3
    caplog.clear()
    assert nbcompile.verify(model, tmp_path / "one.tflite", words[:1], calibration=words).passed
    said = (
        r"^the largest output of .*one\.tflite is the same in [\d.]+% of the inputs only: if it stands for a class, ask"
    )
    assert any(re.search(said, message) for message in caplog.messages)
    caplog.clear()
    nbcompile.verify(model, tmp_path / "one.tflite", words[:1], calibration=words, min_agreement=0.01)
    assert "largest output of" not in caplog.text


def test_what_tflite_micro_refuses_is_not_compared_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 7, 5)
    nbcompile.export(model, tmp_path / "half.tflite", x, quantize="float16")
    found = nbcompile.verify(model, tmp_path / "half.tflite", x)
    assert (found.passed, [check.name for check in found.checks]) == (True, NAMES[:4])
    assert re.search(
        r"half\.tflite is not run in TFLite Micro: .* failed to prepare .*\(layer '0\.weight'\)", caplog.text
    )


@pytest.mark.parametrize("quantize", ["float32", "float16"])
def test_a_layer_that_is_called_twice_is_stored_once(quantize: str, tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self, calls: int) -> None:
            super().__init__()
            self.conv, self.calls = nn.Conv2d(16, 16, 3, padding=1), calls

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.conv(x[:, :, i:]) for i in range(self.calls))

    x, sizes = torch.randn(1, 16, 9, 7), []
    for calls in (1, 2):
        model = Twice(calls).eval()
        nbcompile.export(model, tmp_path / "it.tflite", x, quantize=quantize)
        assert nbcompile.verify(model, tmp_path / "it.tflite", x).passed
        sizes.append((tmp_path / "it.tflite").stat().st_size)
    assert sizes[1] - sizes[0] < 2000  # of 2,320 numbers
