"""``nbcompile.export`` to ``.tflite``: targets, budgets, limits and bad input, with the devices' own interpreters."""

import inspect
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import nbcompile
from nbcompile.core.errors import ExportError, PreconditionError, UsageError
from nbcompile.core.progress import StepEvent, listening
from nbcompile.deploy import to_device
from nbcompile.deploy.options import DeviceOptions, size_in_bytes
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import Limits, doubts_of_check, held_out
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.proof import require_limits
from nbcompile.exporters.to_tflite.run.agreement import Agreement
from nbcompile.exporters.to_tflite.run.arena import modelled
from nbcompile.exporters.to_tflite.run.interpreters import run_file
from nbcompile.exporters.to_tflite.run.on_device import stated_arena
from nbcompile.passes import FUSE, PASSES, Pass, PassResult
from nbcompile.results.device import Device
from nbcompile.results.exported import device_of
from nbcompile.results.numbers import json_ready
from tests.exporters.to_tflite.small_networks import small, wide


def ops(path: Path) -> Counter[str]:
    return Counter(op.name for op in read_file(path.read_bytes()).ops)


def tflite_of(model: nn.Module) -> bytes:
    return float_model(model, (torch.randn(1, 3, 16, 16),)).content


def exported(path: Path, model: nn.Module, images: Tensor, **options: Any) -> Any:
    quick = {"equalize": "never", "correct_bias": "never", "ranges": "minmax", "dense_per_channel": True}
    return nbcompile.export(model, path, images[:1], calibration=images, **{**quick, **options})


def test_for_a_raspberry_pi(tmp_path: Path) -> None:
    model, images = small()
    result = exported(tmp_path / "tiny.tflite", model, images, equalize="auto", correct_bias="auto")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.tflite", "tiny_benchmark.py", "tiny_float32.tflite"]
    assert [one.kernels for one in result.agreements] == ["xnnpack", "reference", "micro"]
    assert all(one.sqnr > 25 and one.top1 is not None for one in result.agreements)
    file = read_file((tmp_path / "tiny.tflite").read_bytes())
    assert file.tensors[file.inputs[0]].dtype == np.int8
    assert file.tensors[file.inputs[0]].shape == (1, 16, 16, 3)
    assert ops(tmp_path / "tiny.tflite")["PAD"] == 1
    assert result.tried[0].how == "as it is"
    assert [trial.how for trial in result.tried[1:]] != []
    assert (
        min(trial.float_sqnr for trial in result.tried if "clip" not in trial.how and "absorbed" not in trial.how) > 90
    )
    assert result.executed_macs == result.macs
    ours, theirs = ([model(x[None]).detach().numpy() for x in images[:4]] for _ in range(2))
    assert np.array_equal(ours, theirs)


def test_the_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    """The result's SQNR, measured anew from the file and PyTorch."""
    model, images = small()
    result = exported(tmp_path / "tiny.tflite", model, images)
    held_out = images[::4]
    samples = [(x.permute(1, 2, 0)[None].contiguous().numpy(),) for x in held_out]
    found = np.concatenate([y for (y,) in run_file((tmp_path / "tiny.tflite").read_bytes(), samples)])
    with torch.no_grad():
        expected = model(held_out).numpy()
    noise = 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum())
    assert result.agreements[0].sqnr == pytest.approx(noise, abs=1e-3)
    assert result.agreements[0].samples == 16


def test_for_a_microcontroller(tmp_path: Path) -> None:
    model, images = small()
    prepared = {"scale": 1 / 64, "mean": [2.0, 1.9, 1.8], "std": 1.0}
    result = exported(tmp_path / "tiny.tflite", model, images, target="mcu", preprocessing=prepared)
    assert f"// Inputs are images prepared so: {prepared}\n" in (tmp_path / "tiny.h").read_text()
    names = ["tiny.cc", "tiny.h", "tiny.tflite", "tiny_check.h", "tiny_main.cc", "tiny_ops.h"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert result.executed_macs == result.macs
    assert read_file((tmp_path / "tiny.tflite").read_bytes()).plan
    assert result.ways[0].regions == ()
    assert result.arena.needed >= result.arena.head + result.arena.tail
    stated = stated_arena((tmp_path / "tiny.tflite").read_bytes(), result.arena)
    assert f"{stated}" in (tmp_path / "tiny.h").read_text()
    assert "tiny_input_0_of_byte[3][256];" in (tmp_path / "tiny.h").read_text()
    assert "static const uint8_t tiny_check_input_0[768]" in (tmp_path / "tiny_check.h").read_text()


@pytest.mark.slow
def test_it_says_what_it_does(tmp_path: Path) -> None:
    """Whoever listens hears of every part that may take seconds; those of many samples count them."""
    model, images = wide(activation=nn.ReLU)
    events: list[StepEvent] = []
    options: dict[str, Any] = {"target": "mcu", "sram": "20K", "ranges": "mse"}
    with listening(events.append):
        exported(tmp_path / "x.tflite", model, images, equalize="auto", correct_bias="auto", **options)
    built = ["capturing the graph", "converting it to TFLite", "calibrating", "counting values", "quantizing"]
    measured = ["measuring its noise", *["running samples"] * 2]
    equalized = "preparing the network equalized"
    begun = [
        event.path[-1] for event in events if not event.done and not event.ended and "loading" not in event.path[-1]
    ]
    assert begun == [
        *("writing x.tflite", "reading the calibration set"),
        *("making the deploy form", "tracing the network", *FUSE),
        "preparing the network as it is",
        *(equalized, "equalize"),
        f"{equalized}, also where no clip is reached on the calibration set",
        *("finding the ranges of its channels", "equalize"),
        *(f"{equalized}, biases absorbed", "equalize", "finding the ranges of its channels", "absorb-bias"),
        "running the network in PyTorch",
        *("trying: as it is (1 of 4)", *built, *measured),
        *("trying: equalized (2 of 4)", *built, *measured),
        *("trying: equalized, biases absorbed (3 of 4)", *built, *measured),
        *("trying: biases corrected (4 of 4)", "averaging channels", "correcting biases", "running samples"),
        *("comparing it with PyTorch in LiteRT, XNNPACK", "running samples"),
        *("comparing it with PyTorch in LiteRT, reference kernels", "running samples"),
        *("comparing it with PyTorch in TFLite Micro", "running samples", "comparing kernels"),
        *("measuring its memory in TFLite Micro", "finding the error of every layer", "arranging its memory"),
        *("comparing it with the file as it was", *["running samples"] * 4, "making what goes beside it"),
        *["running samples"] * 2,
    ]
    assert all(event.done == event.total for event in events if event.ended and event.total is not None)
    assert {event.total for event in events if event.path[-1] == "calibrating"} == {48}


@pytest.mark.slow
def test_a_project_is_written_or_nothing(tmp_path: Path) -> None:
    model, images = small()
    model = model.requires_grad_(False)
    folder = tmp_path / "tiny_esp_idf"
    result = exported(tmp_path / "tiny.tflite", model, images, target="mcu", project="esp-idf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.tflite", "tiny_esp_idf"]
    assert sorted(result.companions) == sorted(p for p in folder.rglob("*") if p.is_file())
    assert f"its sources are in {folder}, whose README.md says how to build them" in result.notes
    content = (tmp_path / "tiny.tflite").read_bytes()
    with pytest.raises(
        UsageError, match=f"^cannot write the folder {folder}: it is there, and no empty folder; move it"
    ):
        exported(tmp_path / "tiny.tflite", model, images, target="mcu", project="esp-idf", io="float")
    assert (tmp_path / "tiny.tflite").read_bytes() == content


@pytest.mark.slow
def test_a_program_that_was_changed_is_kept(tmp_path: Path) -> None:
    model, images = small()
    program = tmp_path / "tiny_main.cc"
    exported(tmp_path / "tiny.tflite", model, images, target="mcu")
    program.write_text("mine")
    result = exported(tmp_path / "tiny.tflite", model, images, target="mcu", io="float")
    assert program.read_text() == "mine"
    assert "tiny_main.cc was there and is kept as it is: delete it to get a new one" in result.notes
    assert [path.name for path in result.companions] == ["tiny.h", "tiny.cc", "tiny_ops.h", "tiny_check.h"]


class Single(nn.Module):
    """One number for a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3))).squeeze()  # type: ignore[no-any-return]


def test_an_output_without_dimensions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Single().eval(), torch.randn(40, 3, 8, 8)
    exported(tmp_path / "one.tflite", model, images, target="mcu", correct_bias="always")
    content = (tmp_path / "one.tflite").read_bytes()
    with torch.no_grad():
        expected = float(model(images[:1]))
    for kernels in ("xnnpack", "micro"):
        ((y,),) = run_file(content, [(images[:1].permute(0, 2, 3, 1).numpy(),)], kernels=kernels)
        assert y.shape == ()
        assert float(y) == pytest.approx(expected, abs=0.02)


class Causal(nn.Module):
    """One head of attention in which no position sees those behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(y)  # type: ignore[no-any-return]


def test_masked_attention_in_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Causal().eval(), 2 * torch.randn(40, 7, 6)
    result = exported(tmp_path / "causal.tflite", model, x, target="mcu")
    assert {one.kernels: one.sqnr > 25 for one in result.agreements} == dict.fromkeys(
        ("xnnpack", "reference", "micro"), True
    )


@pytest.mark.slow
def test_targets_and_budgets_compute_the_same(tmp_path: Path) -> None:
    model, images = wide()
    samples = [(x.permute(1, 2, 0)[None].contiguous().numpy(),) for x in images[:8]]
    outputs, results = {}, {}
    for_micro = {"target": "mcu"}
    cases: dict[str, dict[str, Any]] = {"plain": {}, "mcu": for_micro, "least": {**for_micro, "sram": "least"}}
    for name, options in cases.items():
        path = tmp_path / f"{name}.tflite"
        results[name] = exported(path, model, images, **options)
        outputs[name] = np.concatenate([y for (y,) in run_file(path.read_bytes(), samples, raw=True)]).astype(int)
    needed = {name: result.arena.needed for name, result in results.items()}
    assert needed["least"] < needed["mcu"] <= needed["plain"]
    assert np.array_equal(outputs["least"], outputs["mcu"])
    assert abs(outputs["mcu"] - outputs["plain"]).max() <= 1
    assert np.ptp(outputs["plain"]) > 50
    within = exported(tmp_path / "within.tflite", model, images, target="mcu", sram=needed["mcu"] - 1)
    assert needed["least"] <= within.arena.needed < needed["mcu"]
    assert any(note.startswith("computed in strips of rows, to need less memory: '") for note in within.notes)
    assert within.way in within.ways
    rows = device_of(within).ways  # type: ignore[union-attr]
    assert [row.taken for row in rows] == [way == within.way for way in within.ways]


@dataclass(frozen=True)
class Halved(Pass):
    """Halves the last layer: a rewrite that is seen in the outputs."""

    name: ClassVar[str] = "halved"
    inputs: tuple[Tensor, ...]

    def call(self, gm: fx.GraphModule) -> PassResult:
        layer = cast(nn.Linear, gm.get_submodule("11"))
        with torch.no_grad():
            assert gm(*self.inputs).shape == (1, 5)
            layer.weight.mul_(0.5)
        return PassResult(gm, ("11",))


def test_a_pass_is_added_by_its_place_in_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, Halved.name, Halved)
    monkeypatch.setattr(to_device, "DEVICE", (*to_device.DEVICE, Halved.name))
    model, images = small()
    with pytest.raises(ExportError, match=r"of signal over noise against PyTorch's, and 80\.0 dB are asked for"):
        nbcompile.export(model, tmp_path / "x.tflite", images[:1], quantize="float32")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (torch.log, r"^Of gives NaN on random inputs: give samples that it takes as its calibration set$"),
        (
            lambda x: nn.functional.binary_cross_entropy(x, torch.ones_like(x), reduction="none"),
            r"^Of does not run on random inputs \(RuntimeError: all elements .*\): give samples that it takes as",
        ),
    ],
)
def test_a_network_that_does_not_take_random_inputs(tmp_path: Path, function: Any, said: str) -> None:
    class Of(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return function(x)

    images, path = torch.rand(40, 5, 3) * 0.8 + 0.1, tmp_path / "x.tflite"
    with pytest.raises(PreconditionError, match=said):
        nbcompile.export(Of(), path, images[:1], quantize="float32")
    assert not path.exists()
    if function is torch.log:
        nbcompile.export(Of(), path, images[:1], quantize="float32", calibration=images)


def test_a_dynamic_file_says_whether_anything_is_stored_in_int8(tmp_path: Path) -> None:
    for width, said in ((4, True), (64, False)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, width))
        result = nbcompile.export(model.eval(), tmp_path / "x.tflite", torch.randn(1, 4, 4, 4), quantize="dynamic")
        assert any("all weights of the file are float32" in note for note in result.notes) == said  # type: ignore[attr-defined]


@pytest.mark.parametrize(("quantize", "least"), [("float32", 100), ("float16", 55), ("dynamic", 25), ("int16x8", 35)])
@pytest.mark.slow
def test_other_schemes(tmp_path: Path, quantize: str, least: float) -> None:
    model, images = small()
    path = tmp_path / "tiny.tflite"
    needed = {"calibration": images} if quantize == "int16x8" else {}
    result = nbcompile.export(model, path, images[:1], quantize=quantize, **needed)
    assert result.agreements[0].sqnr > least  # type: ignore[attr-defined]
    assert read_file(path.read_bytes()).tensors[0].dtype == (np.int16 if quantize == "int16x8" else np.float32)


def test_a_broken_limit_leaves_the_old_file(tmp_path: Path) -> None:
    model, images = small()
    path = tmp_path / "tiny.tflite"
    path.write_bytes(b"old")
    message = r"in LiteRT, XNNPACK the outputs have \d+\.\d dB of signal over noise against PyTorch's, and 90\.0 dB are"
    with pytest.raises(ExportError, match=message):
        exported(path, model, images, min_sqnr=90)
    with pytest.raises(ExportError, match=r"the file takes [\d,]+ B, [\d,]+ B more than the 1,024 B of flash; no file"):
        exported(path, model, images, flash="1K")
    with pytest.raises(
        ExportError,
        match=r"the tensor arena takes [\d,]+ B, [\d,]+ B more than the 2,048 B of SRAM\. It is the least of \d+ ar",
    ):
        exported(path, model, images, target="mcu", sram="2K")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_agreement_is_a_limit_in_the_interpreters_of_the_device() -> None:
    arena = modelled(tflite_of(small()[0]))
    limits = Limits(agreement=0.95)
    low = {name: Agreement(name, 16, 30.0, 1.0, 0.1, 0.9) for name in ("xnnpack", "reference", "micro")}
    require_limits(Path("x"), [low["reference"], low["micro"]], arena, "int8", limits, micro=False)
    require_limits(Path("x"), [low["micro"]], arena, "int8", Limits(agreement=0.9), micro=True)
    with pytest.raises(
        ExportError, match=r"x: in TFLite Micro 90.0% of the samples have PyTorch's largest output, and"
    ):
        require_limits(Path("x"), [low["micro"]], arena, "int8", limits, micro=True)
    with pytest.raises(ExportError, match=r"x: in LiteRT, XNNPACK 90.0% of the samples"):
        require_limits(Path("x"), [low["xnnpack"]], arena, "int8", limits, micro=False)


def test_what_may_help_depends_on_the_scheme() -> None:
    arena = modelled(tflite_of(small()[0]))
    low = [Agreement("xnnpack", 16, 10.0, 1.0, 0.1, 0.9)]
    helps = {
        "int8": r"Calibrate on more images, try quantize='int16x8' or float_layers=…",
        "int16x8": r"Calibrate on more images, try ranges='mse'",
        "dynamic": r"Try quantize='float16' or float_layers=…",
        "float16": r"Try quantize='float32'",
        "float32": r"Train the network: float32 sums in another order, and random weights may amplify that",
    }
    for scheme, sentence in helps.items():
        with pytest.raises(ExportError, match=rf"no file was kept\. {sentence}, or allow less with min_sqnr$"):
            require_limits(Path("x"), low, arena, scheme, Limits(), micro=False)


@pytest.mark.parametrize(
    ("count", "calibrating", "checking"), [(1, 1, 1), (2, 1, 1), (16, 12, 4), (64, 48, 16), (99, 84, 15)]
)
def test_many_samples_are_held_out(count: int, calibrating: int, checking: int) -> None:
    samples = [(torch.tensor(i),) for i in range(count)]
    calibrate, check = held_out(samples)
    assert (len(calibrate), len(check)) == (calibrating, checking)
    assert count == 1 or not {id(x) for x in check} & {id(x) for x in calibrate}
    assert held_out([]) == ([], [])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target": "arduino"}, "target='arduino' is not known; known are raspberrypi, mcu"),
        ({"quantize": "int4"}, "quantize='int4' is not known; known are int8, int16x8, dynamic, float16, float32"),
        ({"io": "uint8"}, "io='uint8' is not known; known are int8, float"),
        ({"ranges": "kl"}, "ranges='kl' is not known; known are auto, minmax, mse, percentile"),
        ({"equalize": "yes"}, "equalize='yes' is not known; known are auto, always, never"),
        ({"correct_bias": 1}, "correct_bias='1' is not known; known are auto, always, never"),
        ({"sram": "lots"}, "sram='lots' is not a size: give bytes, such as 196608, 192K or 1M"),
        ({"sram": "least"}, "sram='least' goes with target='mcu': what LiteRT needs is not arranged here"),
        ({"flash": -1}, "flash=-1 is not a size: give bytes, such as 196608, 192K or 1M"),
        (
            {"project": "make", "target": "mcu"},
            "project='make' is not known; known are arduino, esp-idf, zephyr, cmake",
        ),
        ({"project": "cmake"}, "project='cmake' goes with target='mcu': no sources are written for others"),
        ({"board": "pica"}, "the board 'pica' is not in the table (did you mean pico?): it has "),
        ({"min_agreement": 99}, "min_agreement=99 is not a share: give a number from 0 to 1, such as 0.99"),
        ({"min_sqnr": float("nan")}, "min_sqnr=nan is no limit: give a number of dB, such as 20"),
        ({"calibration": "nowhere"}, "calibration nowhere is not there: give a folder of images, or an .npz"),
        ({"target": "mcu", "quantize": "dynamic"}, "quantize='dynamic' makes files that TFLite Micro cannot run: use "),
        (
            {"calibration": None},
            "quantize='int8' needs a calibration set, some 100 images as the network will see them",
        ),
        ({"preprocessing": 5}, "preprocessing=5 is no mapping: give {'scale': …, 'mean': […], 'std': […]}"),
        ({"preprocessing": {"Crop": 1}}, "preprocessing: Crop is not known; there are scale, mean, std, crop, size"),
        ({"quality": 3}, "'quality' is not an option of .tflite files; they have calibration, target, quantize, io, "),
    ],
)
def test_options_are_checked(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    model, images = small()
    with pytest.raises(UsageError) as refused:
        nbcompile.export(model, tmp_path / "x.tflite", images[:1], **{"calibration": images, **options})
    assert str(refused.value).startswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_what_fast_leaves_out() -> None:
    def left(**options: Any) -> tuple[str, str, str, bool | None]:
        wanted = DeviceOptions(calibration=torch.zeros(1), target="mcu", **options)
        recipe = wanted.recipe()
        return wanted.when("equalize"), wanted.when("correct_bias"), recipe.ranges, recipe.dense_per_channel

    assert left() == ("auto", "auto", "auto", None)
    assert left(fast=True) == ("never", "never", "minmax", True)
    assert left(fast=True, ranges="mse", equalize="always") == ("always", "never", "mse", True)
    assert left(fast=True, correct_bias="always", dense_per_channel=False) == ("never", "always", "minmax", False)
    assert left(quantize="int16x8") == ("auto", "auto", "minmax", True)  # 65,536 steps are enough for any range
    assert DeviceOptions(calibration=torch.zeros(1)).recipe().dense_per_channel is True


def test_sizes() -> None:
    assert [size_in_bytes(x, "sram") for x in (None, 5, "196608", "192K", "192k", "192 KiB", "1M")] == [
        None, 5, 196608, 196608, 196608, 196608, 1048576,
    ]  # fmt: skip


def test_what_a_target_lacks_is_said_first(tmp_path: Path) -> None:
    model, images = small(activation=nn.GELU)
    with pytest.raises(ExportError, match="GELU, which the target lacks"):
        exported(tmp_path / "x.tflite", model, images, target="mcu")
    result = exported(tmp_path / "x.tflite", model, images)
    assert any(note.startswith("not run in TFLite Micro: TFLite Micro lacks GELU") for note in result.notes)
    assert result.arena.tail is None


def test_few_samples_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, images = small()
    result = exported(tmp_path / "x.tflite", model, images[:5])
    assert any("5 " in note and "32" in note for note in result.notes)
    assert (result.unseen, result.agreements[0].samples) == (2, 2)
    rests_on = (
        r"the SQNR is of 2 samples that did not calibrate, ± \d\.\d dB \(standard error\); the worst has \d\d\.\d dB, "
        "which at least 22% of others"
    )
    assert any(re.match(rests_on, note) for note in result.notes)
    said = "2 samples are left to check the file on: its SQNR says little of others; give some 100 samples"
    assert said in result.notes
    assert said in caplog.messages
    device = device_of(result)
    assert device is not None
    (first, *_) = device.interpreters
    assert (first.samples, first.lowest, first.error) == (2, *_of_part(result.agreements[0]))


def _of_part(found: Agreement) -> tuple[float, float | None]:
    return found.parts[0].low, found.parts[0].error


def test_how_many_are_enough_to_check_on() -> None:
    assert [len(doubts_of_check(*map(len, held_out([()] * count)))) for count in (1, 28, 29, 100)] == [1, 1, 0, 0]
    assert doubts_of_check(1, 1)[0].startswith(
        "one sample is left to check the file on, which calibrates, too: its SQNR"
    )
    assert doubts_of_check(0, 0) == []  # of a file that is not calibrated


class Mixed(nn.Module):
    """Boxes in pixels and scores, in one output or in two."""

    def __init__(self, join: bool) -> None:
        super().__init__()
        self.conv, self.join = nn.Conv2d(3, 8, 3), join

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.conv(x).flatten(2)
        boxes, scores = y[:, :4].sigmoid() * 640, y[:, 4:].sigmoid()
        return torch.cat([boxes, scores], 1) if self.join else (boxes, scores)


def test_an_output_of_values_that_one_scale_cannot_hold(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Mixed(True).eval(), torch.randn(20, 3, 6, 6)
    message = (
        r"in LiteRT, XNNPACK 'sigmoid_2' has \S+ dB of signal over noise against PyTorch's, and 15\.0 dB are asked "
        r"for; no file was kept\. It is in one output, 'cat', with 'mul' \(\S+ dB\), and an output has one scale: "
        r"return it as an output of its own, or use float_layers='cat' with io='float'$"
    )
    with pytest.raises(ExportError, match=message):
        exported(tmp_path / "x.tflite", model, images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_remedies_for_such_an_output_help(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Mixed(True).eval(), torch.randn(20, 3, 6, 6)
    kept = exported(tmp_path / "x.tflite", model, images, float_layers="cat", io="float")
    model.join = False
    apart = exported(tmp_path / "x.tflite", model, images)
    assert all(part.sqnr > 40 for result in (kept, apart) for one in result.agreements for part in one.parts)
    alone = exported(tmp_path / "x.tflite", model, images[:1])
    assert any(note.endswith("of 1 sample that calibrated, too: it says little of others") for note in alone.notes)


@pytest.mark.slow
def test_what_the_report_says(tmp_path: Path) -> None:
    model, images = small()
    result = exported(tmp_path / "tiny.tflite", model, images, target="mcu", correct_bias="auto", board="pico")
    device = device_of(result)
    assert device is not None
    assert (device.file, device.target, device.scheme, device.bytes) == ("tiny.tflite", "mcu", "int8", result.bytes)
    assert (device.arena_budget, device.flash_budget) == (264 * 1024, 2 * 1024**2)
    assert (device.arena_head, device.arena_total) == (result.arena.head, result.arena.needed)
    assert [row.name for row in device.interpreters] == ["LiteRT, XNNPACK", "LiteRT, reference kernels", "TFLite Micro"]
    assert [row.name for row in device.layers] == ["0/pad", "2", "4", "7", "8", "9", "11"]
    assert all(row.in_band and row.scale and row.sqnr and row.sqnr > 20 for row in device.layers)
    assert max(row.end for row in device.tensors) == device.arena_head
    assert device.macs_executed == device.macs_logical
    assert len([note for note in device.notes if note.endswith(", taken")]) == 1
    assert json.loads(json.dumps(json_ready(result.to_json())))["chosen"] == result.chosen


@pytest.mark.slow
def test_a_file_for_no_device_has_no_rows(tmp_path: Path) -> None:
    model, images = small()
    assert device_of(nbcompile.export(model, tmp_path / "tiny.onnx", images[:1])) is None


@pytest.mark.slow
def test_always_and_never(tmp_path: Path) -> None:
    model, images = small(activation=nn.ReLU)
    plain_file = exported(tmp_path / "plain.tflite", model, images)
    equalized = exported(tmp_path / "equal.tflite", model, images, equalize="always")
    both = exported(tmp_path / "both.tflite", model, images, equalize="always", correct_bias="always")
    assert [len(result.tried) for result in (plain_file, equalized, both)] == [1, 1, 2]
    assert [result.chosen for result in (plain_file, equalized)] == ["as it is", "equalized"]
    assert both.chosen == both.tried[-1].how
    assert (tmp_path / "plain.tflite").read_bytes() != (tmp_path / "equal.tflite").read_bytes()
    assert (tmp_path / "both.tflite").read_bytes() != (tmp_path / "equal.tflite").read_bytes()


@pytest.mark.slow
def test_layers_kept_in_float_are_said(tmp_path: Path) -> None:
    model, images = small()
    result = exported(tmp_path / "tiny.tflite", model, images, float_layers=["11"])
    assert "in float32, not in integers: 11" in result.notes
    assert result.in_float == ("11",)
    alone = exported(tmp_path / "tiny.tflite", model, images, float_layers="11")
    assert alone.recipe.float_layers == ("11",)
    with pytest.raises(UsageError, match="int16x8 cannot keep layers in float"):
        exported(tmp_path / "tiny.tflite", model, images, float_layers=["11"], quantize="int16x8")
    with pytest.raises(UsageError, match="int16x8 has weights per channel"):
        exported(tmp_path / "tiny.tflite", model, images, per_channel=False, quantize="int16x8")


def test_a_file_that_is_not_full_integer_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 2)).eval()
    result = exported(tmp_path / "x.tflite", norm, torch.randn(20, 3, 6, 6), target="mcu")
    said = f"in float32, not in integers: {', '.join(result.in_float)}"
    assert all(name.startswith("1") for name in result.in_float)
    assert (
        f"the file is not full-integer, a microcontroller without an FPU is slow at what is {said}" in caplog.messages
    )
    assert said in result.notes
    assert f"// Not full-integer: {said}\n" in (tmp_path / "x.h").read_text()
    assert cast(Device, device_of(result)).scheme == "int8, in part float32"


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).cumprod(1)


def test_an_operator_without_handler_is_named_with_its_place_in_the_code(tmp_path: Path) -> None:
    line = inspect.getsourcelines(Sums.forward)[1] + 1
    place = rf"at .*test_to_device\.py:{line}"
    message = rf"aten\.cumprod in the network itself {place}: nbcompile has no TFLite form of it; replace it"
    with pytest.raises(ExportError, match=message):
        nbcompile.export(Sums().eval(), tmp_path / "x.tflite", torch.randn(1, 3, 7, 5), quantize="float32")
    assert list(tmp_path.iterdir()) == []
