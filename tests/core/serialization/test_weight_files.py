import argparse
import collections
import pathlib
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nbcompile.core.errors import CheckpointError
from nbcompile.core.serialization.weight_files import read_weights

W = torch.zeros(2)


def test_inert_objects_are_read(tmp_path: Path) -> None:
    content = {
        "args": argparse.Namespace(a=1, path=tmp_path),
        "paths": [pathlib.PurePosixPath("x"), tmp_path],
        "numpy": [np.float32(1), np.int64(2), np.bool_(True), np.arange(3), np.dtype("float16"), np.str_("x")],
        "collections": [
            collections.OrderedDict(a=1),
            collections.defaultdict(list),
            collections.Counter("a"),
            collections.deque(),
        ],
        "plain": [
            {1, 2},
            (1, None),
            1j,
            slice(1),
            range(3),
            frozenset({1}),
            "x",
            b"x",
            1.5,
            torch.float16,
            torch.device("cpu"),
            torch.Size([1]),
        ],
        "model": {"w": W},
    }
    torch.save(content, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt")
    assert found["args"] == content["args"]
    assert list(found) == list(content)
    assert list(found["model"]) == ["w"]


@pytest.mark.parametrize("home", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_values_of_either_numpy_are_read(tmp_path: Path, home: str) -> None:
    """numpy 2 renamed the module whose functions build what is unpickled; a file says the name of its own time."""
    torch.save({"numpy": [np.float32(1.5), np.arange(3)], "w": W}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as own, zipfile.ZipFile(tmp_path / "b.pt", "w") as other:
        for entry in own.infolist():
            content = own.read(entry)
            if entry.filename.endswith("data.pkl"):
                content, count = re.subn(rb"numpy\._?core\.multiarray", home.encode(), content)
                assert count == 2
            other.writestr(entry, content)
    value, array = read_weights(tmp_path / "b.pt")["numpy"]
    assert (value, array.tolist()) == (1.5, [0, 1, 2])


def test_safetensors_by_name_and_by_content(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.bin"):
        save_file({"w": W}, tmp_path / name)
        assert list(read_weights(tmp_path / name)) == ["w"]


@pytest.mark.parametrize(("name", "why"), [("x" * 300, "File name too long"), ("a\0b", "embedded null byte")])
def test_a_name_that_no_file_can_have(name: str, why: str) -> None:
    with pytest.raises(CheckpointError, match=rf" cannot be read: {why}$"):
        read_weights(Path(name))
