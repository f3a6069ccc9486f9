"""Other tools' int8 files of the network of ``int8.py``, which compares them with ours.

Runs in an environment of its own (see README.md): it imports nothing of nbcompile. Reads ``FOLDER/network.pt``, which
``int8.py --save FOLDER`` wrote, and writes into the same folder a ``.tflite`` for each tool, int8 in and out, channels
last, weights per channel, calibrated on the same samples, with the tools' defaults in all else:

- ``litert-torch.tflite``: litert-torch, then ai-edge-quantizer;
- ``onnxsim.tflite``: ``torch.onnx``, onnxsim, and its export through TensorFlow's converter and quantizer;

and the versions, ``versions.json``.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import litert_torch
import numpy as np
import onnx
import onnxsim
import torch
import torchvision
from ai_edge_quantizer import quantizer, recipe
from torch import Tensor, nn

PACKAGES = ("torch", "torchvision", "litert-torch", "ai-edge-quantizer", "onnx", "onnxsim", "tensorflow-cpu", "numpy")


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, help="with network.pt; gets the files")
    folder = made.parse_args().folder
    saved = torch.load(folder / "network.pt")
    model = torchvision.models.mobilenet_v2(width_mult=saved["width"]).eval()
    model.load_state_dict(saved["weights"])
    for name, tool in TOOLS.items():
        with tempfile.TemporaryDirectory() as scratch:
            content = tool(model, saved["calibration"], Path(scratch))
        (folder / f"{name}.tflite").write_bytes(content)
        print(f"{name}: {len(content):,} B", flush=True)
    (folder / "versions.json").write_text(json.dumps({name: version(name) for name in PACKAGES}, indent=1) + "\n")


def by_litert_torch(model: nn.Module, calibration: Tensor, scratch: Path) -> bytes:
    written = scratch / "float32.tflite"
    sample = next(images(calibration))
    litert_torch.convert(litert_torch.to_channel_last_io(model, args=[0]), (torch.from_numpy(sample),)).export(written)
    made = quantizer.Quantizer(str(written), recipe.static_wi8_ai8())
    ranges = made.calibrate({"serving_default": [{"args_0": image} for image in images(calibration)]})
    return bytes(made.quantize(ranges).quantized_model)


def by_onnxsim(model: nn.Module, calibration: Tensor, scratch: Path) -> bytes:
    written = scratch / "network.onnx"
    torch.onnx.export(model, (calibration[:1],), written, dynamo=False)
    simplified, _ = onnxsim.simplify(onnx.load(written))
    content: bytes = onnxsim.export_tflite(
        simplified,
        int8_quantize=True,
        representative_dataset=lambda: ([image] for image in images(calibration)),
        inference_io_dtype="int8",
        io_layout="nhwc",
    )
    return content


def images(calibration: Tensor) -> Iterator[np.ndarray]:
    """One by one, channels last."""
    for image in calibration.movedim(1, -1).numpy():
        yield np.ascontiguousarray(image[None])


TOOLS: dict[str, Callable[[nn.Module, Tensor, Path], bytes]] = {"litert-torch": by_litert_torch, "onnxsim": by_onnxsim}


if __name__ == "__main__":
    main()
