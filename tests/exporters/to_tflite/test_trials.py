"""A way to quantize that the device cannot run is not taken; what the user asks for is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import ExportError
from nbcompile.exporters.to_tflite.build import BuiltFile, Samples, build_file
from nbcompile.exporters.to_tflite.export import write_tflite
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import Recipe
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.trials import WORTH, Trials, best, proved

SAMPLES: list[tuple[Tensor]] = [(x[None],) for x in torch.randn(20, 3, 3, 3, generator=torch.manual_seed(0))]


def pair() -> tuple[nn.Module, nn.Module]:
    """Two forms of one function; the second has weights a million times its results, which XNNPACK refuses."""
    torch.manual_seed(0)
    shared, head = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(9, 3)
    forms = [nn.Sequential(shared, nn.Tanh(), nn.Conv2d(2, 1, 1), nn.Flatten(), head).eval() for _ in range(2)]
    with torch.no_grad():
        shared.weight[1] = shared.weight[0]
        for form, weights in zip(forms, ((1e-3, 0.0), (1000.0, -1000 + 1e-3)), strict=True):
            form[2].weight.copy_(torch.tensor(weights).view(1, 2, 1, 1))
            form[2].bias.zero_()
    return forms[0], forms[1]


def test_a_variant_that_does_not_run_is_not_taken(tmp_path: Path) -> None:
    good, bad = pair()
    path = tmp_path / "x.tflite"
    options = {"reference": good, "samples": SAMPLES[4:], "checked": SAMPLES[:4], "correct_bias": "never"}
    result = write_tflite(good, SAMPLES[0], path, variants={"otherwise": bad}, **options)
    assert (result.chosen, [trial.how for trial in result.tried]) == ("as it is", ["as it is"])
    assert any(note.startswith("not taken: otherwise: LiteRT (xnnpack) cannot run the file") for note in result.notes)
    content = path.read_bytes()
    with pytest.raises(ExportError, match=r"LiteRT \(xnnpack\) cannot run the file"):
        write_tflite(bad, SAMPLES[0], path, variants={"otherwise": good}, **options)
    assert path.read_bytes() == content


@pytest.mark.slow
def test_nor_one_that_another_interpreter_of_the_device_refuses() -> None:
    good, _ = pair()
    gelu = nn.Sequential(*good[:2], nn.GELU(), *good[2:]).eval()
    data = Samples.of(good, SAMPLES[0], SAMPLES[4:], SAMPLES[:4])
    first, second = (build_file(one, SAMPLES[0], data, Recipe(), micro=False) for one in (good, gelu))
    second = replace(second, how="with GELU", sqnr=first.sqnr + 1, unseen=first.unseen)
    chosen, _, _, notes = proved(Trials([first, second], []), data, micro=True, correct_bias="never")
    assert chosen is first
    assert any(note.startswith("not taken: with GELU: TFLite Micro lacks GELU") for note in notes)
    assert proved(Trials([first, second], []), data, micro=False, correct_bias="never")[0] is second
    with pytest.raises(ExportError, match="TFLite Micro lacks GELU"):
        proved(Trials([first, second], []), data, micro=True, correct_bias="always")


def built(sqnr: float, thrifty: bool = False, unseen: float = 30.0, corrected: bool = False) -> BuiltFile:
    other = {"thrifty": thrifty, "unseen": unseen, "corrected": corrected}
    return BuiltFile(str(sqnr), FloatModel(b"", (), ()), b"", sqnr, 99.0, **other)


def test_a_change_must_gain_and_less_memory_may_cost_a_little() -> None:
    first = built(30.0)
    assert best([first, built(30.0 + WORTH)], "auto") is first
    assert best([first, better := built(30.11)], "auto") is better
    assert best([first, thrifty := built(29.91, thrifty=True)], "auto") is thrifty
    assert best([first, built(29.89, thrifty=True)], "auto") is first
    assert best([first, better, built(29.95, thrifty=True)], "auto") is better
    assert best([first, built(33.0, unseen=29.89)], "auto") is first  # it suits what calibrated alone
    assert best([first, built(29.95, thrifty=True, unseen=29.89)], "auto") is first
    assert best([first, better := built(33.0, unseen=29.91)], "auto") is better
    asked = built(20.0, corrected=True)
    assert best([first, asked], "always") is asked
    assert best([first, asked, built(19.0, corrected=True), built(40.0)], "always") is asked


class Dense(nn.Module):
    """Two linear layers; the rows of the first are of one size, or of very different ones.

    Of one size, one scale is what each of them has; of different ones, the second layer makes up for it.
    """

    def __init__(self, spread: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(7, 40), nn.Linear(40, 30)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight[:, 0] = layer.weight.abs().max()
            sizes = torch.logspace(0, -spread, 40)
            self.first.weight.mul_(sizes[:, None])
            self.first.bias.mul_(sizes)
            self.second.weight.div_(sizes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu())
        return y


def way(model: nn.Module, path: Path, recipe: Recipe, micro: bool) -> tuple[str, list[str], set[int]]:
    """What was taken, what was tried, and the numbers of scales of weights in the file."""
    drawn = torch.randn(24, 7, generator=torch.manual_seed(1))
    data = [(x[None],) for x in drawn]
    options = {"samples": data[6:], "checked": data[:6], "recipe": recipe, "micro": micro, "correct_bias": "never"}
    result = write_tflite(model.eval(), data[0], path, **options)
    file = read_file(path.read_bytes())
    weights = [file.tensors[op.inputs[1]].quantization for op in file.ops if op.name == "FULLY_CONNECTED"]
    return result.chosen, [one.how for one in result.tried], {len(one.scale) for one in weights if one}


def test_linear_layers_have_one_scale_where_that_is_as_good(tmp_path: Path) -> None:
    free, path = Recipe(dense_per_channel=None), tmp_path / "x.tflite"
    per_tensor = "linear layers per tensor"
    assert way(Dense(0), path, free, micro=True) == (per_tensor, ["as it is", per_tensor], {1})
    assert path.stat().st_size < 6000
    chosen, tried, scales = way(Dense(1.5), path, free, micro=True)
    assert (chosen, tried, max(scales)) == ("as it is", ["as it is", per_tensor], 40)
    assert way(Dense(0), path, free, micro=False)[1] == ["as it is"]


def test_ranges_are_tried(tmp_path: Path) -> None:
    """Of values with a long tail the least error clips; the file is the one of who asks for it."""
    model, path = Dense(0), tmp_path / "x.tflite"
    chosen, tried, _ = way(model, path, Recipe(ranges="auto"), micro=False)
    assert tried == ["as it is", "mse ranges"]
    content = path.read_bytes()
    asked = {"as it is": "minmax"}.get(chosen, chosen.removesuffix(" ranges"))
    assert way(model, path, Recipe(ranges=asked), micro=False)[:2] == ("as it is", ["as it is"])
    assert path.read_bytes() == content
