"""What a block is to be: the record of it, which a file may have changed, and its layers."""

import json
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from nbcompile.core.activations import Activation
from nbcompile.core.layers import LayerSpec
from nbcompile.core.site_spec import SiteSpec, planned_layers


def spec_for(layer: nn.Module, **options: Any) -> SiteSpec:
    chosen = {"block": "inverted-residual", "ratio": 3, "preserve": False, "inner": "bias", **options}
    return SiteSpec(name="a.site", layer=LayerSpec.of(layer), activation=Activation("leaky_relu", 0.1), **chosen)


def test_a_spec_with_other_options_is_another_spec() -> None:
    spec = spec_for(nn.Conv2d(4, 8, 1))
    assert replace(spec, ratio=4) != spec


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 8, (3, 1), padding="same"), nn.ConvTranspose1d(4, 8, 3), nn.Linear(4, 8)]
)
def test_json_and_back(layer: nn.Module) -> None:
    spec = spec_for(layer, absorbers=("norm.running_mean",), momentum=None, sync=True, pad_first=True, preserve=True)
    assert SiteSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "changed",
    [
        {"name": 1}, {"pattern": None}, {"absorbers": [1]}, {"block": "conv"}, {"inner": "none"}, {"ratio": 2.0},
        {"ratio": True}, {"ratio": 0}, {"preserve": 1}, {"sync": "no"}, {"pad_first": None}, {"eps": "1"},
        {"momentum": True},
    ],
)  # fmt: skip
def test_a_block_that_cannot_be_is_refused(changed: dict[str, Any]) -> None:
    said = spec_for(nn.Conv2d(4, 8, 3)).to_json() | changed
    sentence = f"^no block is '{said['block']}' with inner '{said['inner']}' and ratio {said['ratio']}$"
    with pytest.raises(ValueError, match=sentence):
        SiteSpec.from_json(said)


@pytest.mark.parametrize("preserve", [False, True])
def test_a_preserved_layer_keeps_the_bias(preserve: bool) -> None:
    for layer in (nn.Linear(4, 8), nn.Conv2d(4, 8, 3)):
        *inner, last = planned_layers(spec_for(layer, preserve=preserve))
        assert [one.bias for one in inner] == [True] * len(inner)
        assert last.bias == (not preserve)
        assert (inner[0].inputs, last.inputs, last.outputs) == (4, 12, 8)
