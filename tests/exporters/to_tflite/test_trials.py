"""A way to quantize that the device cannot run is not taken; what the user asks for is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import ExportError
from nbcompile.exporters.to_tflite.build import Samples, build_file
from nbcompile.exporters.to_tflite.export import write_tflite
from nbcompile.exporters.to_tflite.file.options import Recipe
from nbcompile.exporters.to_tflite.trials import Trials, proved

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
    second = replace(second, how="with GELU", sqnr=first.sqnr + 1)
    chosen, _, _, notes = proved(Trials([first, second], []), data, micro=True, correct_bias="never")
    assert chosen is first
    assert any(note.startswith("not taken: with GELU: TFLite Micro lacks GELU") for note in notes)
    assert proved(Trials([first, second], []), data, micro=False, correct_bias="never")[0] is second
    with pytest.raises(ExportError, match="TFLite Micro lacks GELU"):
        proved(Trials([first, second], []), data, micro=True, correct_bias="always")
