"""The accuracy of the deploy files, told by the recipe itself."""

import sys
from pathlib import Path

import pytest
from torch import nn

from nbcompile.training import TrainConfig, train

CONFIG = TrainConfig(
    method="netbooster", where="all", ratio=2, epochs=6, batch_size=64, giant_epochs=2, plt_epochs=2, accelerator="cpu"
)


@pytest.mark.slow
def test_onnx_and_int8_are_measured_on_the_same_images(net: nn.Module, tmp_path: Path) -> None:
    result = train(net, CONFIG, tmp_path / "trained.pt", check_export=True)
    assert result.notes == ()
    assert result.fused_accuracy is not None
    assert result.fused_accuracy > 0.5
    assert result.onnx_accuracy == pytest.approx(result.fused_accuracy, abs=1.5 / 360)
    assert result.int8_accuracy == pytest.approx(result.fused_accuracy, abs=0.03)
    assert {"tiny.onnx", "tiny.tflite"} <= {path.name for path in result.run_dir.iterdir()}


@pytest.mark.slow
def test_a_missing_extra_is_a_note(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("nbcompile.exporters.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    config = TrainConfig(method="vanilla", epochs=2, batch_size=64, accelerator="cpu")
    result = train(net, config, tmp_path / "trained.pt", check_export=True)
    assert result.onnx_accuracy == pytest.approx(result.accuracy, abs=1.5 / 360)
    assert result.int8_accuracy is None
    assert result.notes == (
        "tiny.tflite is not measured: writing .tflite files needs tensorflow, which is not installed: "
        "pip install 'nbcompile[tflite]'",
    )
