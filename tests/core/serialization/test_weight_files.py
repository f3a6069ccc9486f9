import argparse
import collections
import pathlib
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nbcompile.core import record
from nbcompile.core.errors import CheckpointError
from nbcompile.core.serialization.weight_files import Weights, choose, find, read_weights

PATH = Path("a.pt")
HEAD = record.encode_record({"site": {"name": "a"}, "model": {}})
OTHER = record.encode_record({"site": {"name": "b.c"}})
W = torch.zeros(2)


def places(content: Any) -> list[tuple[str, str | None, list[str]]]:
    return [(w.place, w.described, list(w.tensors)) for w in find(content, PATH)]


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
    assert places(found) == [("model", None, ["w"])]


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


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"w": W}, [("", None, ["w"])]),
        ({"model": {"w": W}, "epoch": 3}, [("model", None, ["w"])]),
        ({"a": [{"w": W}, {"b": {"v": W}}]}, [("a.0", None, ["w"]), ("a.1.b", None, ["v"])]),
        ({"a._extra_state": HEAD, "a.w": W}, [("", "a._extra_state", ["a._extra_state", "a.w"])]),
        (
            {"x": {"m.a._extra_state": HEAD, "m.a.w": W, "n": W}},
            [("x:m.", "a._extra_state", ["a._extra_state", "a.w"])],
        ),
        (
            {"module._orig_mod.a._extra_state": HEAD, "module._orig_mod.a.w": W, "n_averaged": W},
            [(":module.", "a._extra_state", ["a._extra_state", "a.w"])],
        ),
        # two models in one dict, as a LightningModule with an EMA inside has them
        (
            {"net.a._extra_state": HEAD, "net.a.w": W, "ema.a._extra_state": HEAD, "ema.a.w": W},
            [
                (":net.", "a._extra_state", ["a._extra_state", "a.w"]),
                (":ema.", "a._extra_state", ["a._extra_state", "a.w"]),
            ],
        ),
        # an alias of the first block carries the same record
        (
            {"a._extra_state": HEAD, "b._extra_state": HEAD},
            [("", "a._extra_state", ["a._extra_state", "b._extra_state"])],
        ),
        (
            {"xa._extra_state": HEAD, "a._extra_state": HEAD},
            [("", "a._extra_state", ["xa._extra_state", "a._extra_state"])],
        ),
        (
            {"first": {"w": W}, "giant": {"a._extra_state": HEAD}},
            [("giant", "a._extra_state", ["a._extra_state"]), ("first", None, ["w"])],
        ),
        ({"b.c._extra_state": OTHER, "w": W}, [("", None, ["b.c._extra_state", "w"])]),
        ({"te._extra_state": torch.zeros(30), "w": W}, [("", None, ["te._extra_state", "w"])]),
    ],
)
def test_where_weights_are_found(content: Any, expected: list[Any]) -> None:
    assert places(content) == expected


@pytest.mark.parametrize(
    ("place", "averaged"),
    [
        ("state_dict_ema", True),
        ("model_ema", True),
        ("ema", True),
        ("x.ema:module.", True),
        ("EMA", True),
        ("ema-weights", True),
        ("state_dict", False),
        ("schema", False),
        ("cinema", False),
        ("", False),
        ("temas", False),
    ],
)
def test_what_counts_as_an_average(place: str, averaged: bool) -> None:
    assert Weights(place, {}).averaged is averaged


def test_the_average_is_taken_and_said() -> None:
    found = [Weights("state_dict", {}, "a"), Weights("state_dict_ema:module.", {}, "a"), Weights("optimizer", {})]
    chosen, note = choose(found, None, PATH)
    assert chosen is found[1]
    assert note == (
        "a.pt holds weights at 'state_dict', 'state_dict_ema:module.': "
        "'state_dict_ema:module.' was taken (--key chooses)"
    )
    for key in ("state_dict_ema", "state_dict_ema:module.", "state_dict_ema.module", "state_dict_ema.module."):
        assert choose(found, key, PATH) == (found[1], None)
    assert choose(found, "optimizer", PATH) == (found[2], None)
    with pytest.raises(
        CheckpointError, match=r"^a\.pt has no weights at 'x'; it has them at 'state_dict', 'state_dict_ema:module\.'$"
    ):
        choose(found, "x", PATH)


def test_the_set_that_fits_the_model_is_taken_without_its_prefix() -> None:
    state = [Weights(f"optimizer.{i}", {"exp_avg": W, "step": W, "a": W, "b": W}) for i in range(20)]
    found = [*state, Weights("net", {"module.w": W, "module.b.w": W})]
    chosen, note = choose(found, None, PATH, ["w", "b.w"])
    assert (chosen.place, list(chosen.tensors), note) == ("net:module.", ["w", "b.w"], None)
    with pytest.raises(CheckpointError, match=r"at 'optimizer\.0', .*'optimizer\.7' and 13 more$"):
        choose(found, "x", PATH, ["other"])


def test_a_damaged_set_is_refused_when_it_is_chosen() -> None:
    broken = HEAD.clone()
    broken[-2] ^= 1
    found = find({"model": {"a._extra_state": HEAD, "a.w": W}, "ema": {"a._extra_state": broken, "a.w": W}}, PATH)
    with pytest.raises(
        CheckpointError, match=r"^a\.pt: the checksum of .*; the weights at 'model' are sound \(--key\)$"
    ):
        choose(found, None, PATH)
    assert choose(found, "model", PATH)[0].described == "a._extra_state"
