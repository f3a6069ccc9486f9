"""Sets of weights in a file, wherever they stand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nbcompile.core import record
from nbcompile.core.serialization.weight_sets import Weights, find, fitting

PATH = Path("a.pt")
HEAD = record.encode_record({"site": {"name": "a"}, "model": {}})
OTHER = record.encode_record({"site": {"name": "b.c"}})
W = torch.zeros(2)


def places(content: Any) -> list[tuple[str, str | None, list[str]]]:
    return [(w.place, w.described, list(w.tensors)) for w in find(content, PATH)]


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
        (":ema_model.", True),
        ("ema.shadow_params", True),
        ("ema:online_model.", False),
        ("ema.collected_params", False),
        ("online:ema_model.", True),
    ],
)
def test_what_counts_as_an_average(place: str, averaged: bool) -> None:
    assert Weights(place, {}).averaged is averaged


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_what_wrappers_put_into_keys_is_dropped(wrapper: str) -> None:
    content = {f"{wrapper}.a.{wrapper}.b.w": W, f"a.my{wrapper}.w": W, "c.w": W, f"c.{wrapper}.w": W}
    assert places(content) == [("", None, ["a.b.w", f"a.my{wrapper}.w", "c.w", f"c.{wrapper}.w"])]


def test_every_prefix_that_fits_is_found() -> None:
    tensors = {f"{prefix}{key}": W for prefix in ("teacher.", "", "x.y.") for key in ("w", "a.w")}
    found = [(w.place, list(w.tensors)) for w in fitting([Weights("d", tensors | {"other": W})], ["w", "a.w"])]
    assert found == [
        ("d:teacher.", ["w", "a.w"]),
        ("d", ["w", "a.w", "other"]),
        ("d:x.y.", ["w", "a.w"]),
    ]
