"""What is damaged, and how it is read: a function for each kind gives both (`tests.fuzz.worker.Case`).

Whole files are in the folder NBCOMPILE_FUZZ_SEEDS; `tests.fuzz.test_fuzz` makes them.
"""

import os
import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.damage import damaged, flipped, rezipped

Case = tuple[Callable[[random.Random], None], Callable[[], Any]]


def _seed(name: str) -> Path:
    return Path(os.environ["NBCOMPILE_FUZZ_SEEDS"]) / name


def _inspected(path: Path) -> Any:
    """As ``nbcompile inspect`` does."""
    from nbcompile.cli.run.inspect import run_inspect

    return run_inspect(str(path), model=None, key=None, input_shape=None)


def _of_bytes(
    folder: Path, name: str, change: Callable[[bytes, random.Random], bytes], read: Callable[[Path], Any]
) -> Case:
    whole, path = _seed(name).read_bytes(), folder / name
    read(_seed(name))  # what is imported late is imported now
    return lambda rng: (path.write_bytes(change(whole, rng)), None)[1], lambda: read(path)


def records(folder: Path) -> Case:
    """Records with right checksums that say something else."""
    import torch

    import nbcompile
    from nbcompile.core import record
    from nbcompile.core.serialization.weight_files import RECORD
    from tests.fuzz.records import mutated
    from tests.fuzz.seeds import plain

    files = [torch.load(_seed(name)) for name in ("giant.pt", "plain.pt")]
    head = next(key for key in files[0]["state_dict"] if key.endswith("_extra_state"))
    path = folder / "a.pt"

    def make(rng: random.Random) -> None:
        plain = rng.random() < 0.5
        content = {key: dict(value) if isinstance(value, dict) else value for key, value in files[plain].items()}
        holder, key = (content, RECORD) if plain else (content["state_dict"], head)
        holder[key] = record.encode_record(mutated(record.decode_record(holder[key], key), rng))
        torch.save(content, path)

    def read() -> None:
        """Without the model, as a rule; with it, what the file describes is run."""
        model = plain() if path.stat().st_size % 4 == 0 else None
        if model is None:
            _inspected(path)
        else:
            nbcompile.load(path, model=model)

    for name in ("giant.pt", "plain.pt"):
        _inspected(_seed(name))
        nbcompile.load(_seed(name), model=plain())
    return make, read


def pt(folder: Path) -> Case:
    """A trained file of torch's."""

    def change(content: bytes, rng: random.Random) -> bytes:
        return rezipped(content, rng) if rng.random() < 0.5 else damaged(content, rng)

    return _of_bytes(folder, "giant.pt", change, _inspected)


def safetensors(folder: Path) -> Case:
    """A trained file of safetensors': its header is the smaller part."""

    def change(content: bytes, rng: random.Random) -> bytes:
        end = 8 + int.from_bytes(content[:8], "little")
        if rng.random() < 0.6:
            return damaged(content[:end], rng) + content[end:]
        return damaged(content, rng)

    return _of_bytes(folder, "giant.safetensors", change, _inspected)


def onnx(folder: Path) -> Case:
    """A deploy file, inspected and verified."""
    from nbcompile.cli.run.verify import run_verify

    def read(path: Path) -> Any:
        return _inspected(path), run_verify(str(path), str(_seed("plain.pt")), model=None, key=None, input_shape=None)

    return _of_bytes(folder, "tiny.onnx", damaged, read)


def tflite(folder: Path) -> Case:
    """A deploy file of a device."""
    return _of_bytes(folder, "tiny.tflite", damaged, _inspected)


def npz(folder: Path) -> Case:
    """A calibration set, also with right checksums around what is damaged."""
    import torch

    from nbcompile.deploy.calibration import calibration

    path, inputs = folder / "a.npz", (torch.zeros(1, 3, 8, 8),)
    array = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    wholes = []
    for write in (np.savez, np.savez_compressed):
        made = BytesIO()
        write(made, x=array)
        wholes.append(made.getvalue())

    def make(rng: random.Random) -> None:
        content = rng.choice(wholes)
        path.write_bytes(rng.choice((damaged, rezipped, _header_changed))(content, rng))

    path.write_bytes(wholes[0])
    calibration(path, inputs)
    return make, lambda: calibration(path, inputs)


def _header_changed(content: bytes, rng: random.Random) -> bytes:
    """An array of another shape, dtype or order than its bytes have, in a zip with right checksums."""
    import zipfile

    with zipfile.ZipFile(BytesIO(content)) as old:
        data = bytearray(old.read("x.npy"))
    head = {
        "descr": rng.choice(("<f4", ">f4", "|O", "<f8", "<U4", "<c16", "|V8", "x", [("a", "<f4")])),
        "fortran_order": rng.random() < 0.3,
        "shape": rng.choice(
            ((4, 3, 8, 8), (10**9, 3, 8, 8), (-1, 3, 8, 8), (4, 3, 8), (2**63, 3, 8, 8), (), (0, 3, 8, 8))
        ),
    }
    if rng.random() < 0.2:
        head = rng.choice(({}, {"shape": 5}, head | {"more": 1}, head | {"shape": ("a",)}, [1], "__import__('os')"))
    text = repr(head).encode().ljust(118)[:117] + b"\n"
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("x.npy", data[:10] + text + data[128:])
    return made.getvalue()


IMAGES = ("png", "jpeg", "bmp", "ppm", "tiff", "webp")


def images(folder: Path) -> Case:
    """Folders of images, one of them damaged, to calibrate with and to train on."""
    import torch
    from PIL import Image

    from nbcompile.deploy.calibration import calibration
    from nbcompile.training.data.load import load_data
    from nbcompile.training.options.config import TrainConfig

    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    wholes = []
    for form in IMAGES:
        made = BytesIO()
        Image.fromarray(pixels).save(made, form)
        wholes.append((form, made.getvalue()))
    for part in ("train/a", "train/b", "val/a", "val/b"):
        (folder / part).mkdir(parents=True)
        (folder / part / "whole.png").write_bytes(wholes[0][1])
    inputs = (torch.zeros(1, 3, 8, 8),)
    preprocessing = {"scale": 1 / 255, "mean": [0.5], "std": [0.5]}
    config = TrainConfig(data=f"imagefolder:{folder}", input_size=8)

    def make(rng: random.Random) -> None:
        for old in (folder / "train/a").glob("broken.*"):
            old.unlink()
        form, content = rng.choice(wholes)
        (folder / f"train/a/broken.{form}").write_bytes(rng.choice((damaged, flipped))(content, rng))

    def read() -> None:
        data = load_data(config)
        for index in range(len(data.train)):
            batch = data.train[[index]]
            if isinstance(batch, Exception):
                raise batch
        calibration(folder / "train", inputs, preprocessing)

    read()
    return make, read


def planted(folder: Path) -> Case:
    """What a reader must not do, one a case: the harness is to notice."""
    deeds: list[Callable[[], Any]] = [
        lambda: {}["x"],
        lambda: os.system("true"),
        lambda: (folder / "canary").write_text("here"),
        lambda: bytearray(2**30),
        lambda: os.kill(os.getpid(), 11),
        lambda: _say("two\nlines"),
        lambda: None,
        lambda: _say("a sentence"),
        _spin,
    ]
    chosen = []

    def make(rng: random.Random) -> None:
        first = {random.Random(number).random(): deed for number, deed in enumerate(deeds)}
        chosen[:] = [first[rng.random()]]

    return make, lambda: chosen[0]()


def _say(text: str) -> None:
    raise OSError(text)


def _spin() -> None:
    while True:
        pass
