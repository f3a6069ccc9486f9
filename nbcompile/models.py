"""The MODEL argument: a network named in one string; without weights, and without a download, unless it asks for them.

::

    torchvision:mobilenet_v2?width_mult=0.5     a builder of torchvision.models
    timm:resnet18?in_chans=1                    a timm model
    nbcompile:mcunet?num_classes=10             one of nbcompile.zoo
    nbcompile:yolo?backbone=timm:resnet18&num_classes=3   a detector on any of these; in the backbone's own options,
                                                & is written as ;
    package.module:factory?depth=3              any function or class; the current directory is searched first
    timm:resnet18?pretrained=true               with the library's weights, see `nbcompile.pretrained`
    torchvision:resnet18?weights=IMAGENET1K_V1  with those, of several

Values after ``?`` are Python literals (``0.5``, ``True`` or ``true``, ``(1,2)``); what is none is a string.
"""

import inspect
import logging
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nbcompile.core.errors import UsageError, missing_extra
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.core.progress import step
from nbcompile.detection.network import PROBE, Detector
from nbcompile.pretrained import fetch_torchvision, preprocessing_of, timm_weights, torchvision_weights, wants_weights
from nbcompile.spec_strings import DETECTOR, close_to, installed, is_pretrained, named_factory, parse, said
from nbcompile.zoo import NETWORKS

log = logging.getLogger("nbcompile")

MAX_INPUT_ELEMENTS = 2**28
_DOWNLOADS = ("weights_backbone", "pretrained_backbone", "checkpoint_path")


@dataclass(frozen=True)
class Built:
    """A network and what is known about its input.

    Attributes:
        model: as its factory left it, in train mode as a rule; it remembers the other fields.
        inputs: one spec per positional input of ``forward``.
        spec: the MODEL string.
        preprocessing: how images become inputs (mean, std, ...), if known.
    """

    model: nn.Module
    inputs: tuple[TensorSpec, ...]
    spec: str
    preprocessing: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Made:
    model: nn.Module
    shape: tuple[int, ...]
    preprocessing: dict[str, Any] = field(default_factory=dict)


@step("building the network")
def build(spec: str, input_shape: str | None = None) -> Built:
    """The network that ``spec`` names.

    Args:
        spec: a MODEL string, see the head of this file.
        input_shape: such as ``1x3x96x96``, of several inputs ``1x3x96x96,1x5``; None for the size of its source
            (torchvision 224, timm its own, nbcompile the paper's).

    Raises:
        UsageError: if the string, a name, an option or the shape is wrong, the package is not installed, or
            the factory fails.
    """
    home, name, options = parse(spec)
    given = None if input_shape is None else parse_inputs(input_shape)
    known = {"torchvision": _torchvision, "timm": _timm, "nbcompile": _nbcompile}.get(home)
    if known is not None:
        made = known(spec, name, options)
    elif given is not None:
        made = _Made(_call(spec, named_factory(spec, home, name), options), given[0].shape)
    else:
        raise UsageError(f"'{spec}' needs --input, such as --input 1x3x96x96: the input size of a factory is not known")
    inputs = given or (TensorSpec(made.shape),)
    remember(made.model, Origin(inputs, spec, made.preprocessing))
    return Built(made.model, inputs, spec, made.preprocessing)


def parse_inputs(text: str) -> tuple[TensorSpec, ...]:
    """``1x3x96x96`` as the spec of a float32 tensor, ``1x3x96x96,1x5`` as those of two.

    Raises:
        UsageError: if one is not positive sizes joined by ``x``, or has more than ``MAX_INPUT_ELEMENTS`` elements.
    """
    return tuple(map(_parse_input, text.split(",")))


def _parse_input(text: str) -> TensorSpec:
    sizes = tuple(map(int, text.split("x"))) if re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})*", text) else (0,)
    if 0 in sizes:
        raise UsageError(
            f"input '{text}' is no shape: write positive sizes joined by x, such as 1x3x96x96, and of several inputs "
            "commas between them"
        )
    if math.prod(sizes) > MAX_INPUT_ELEMENTS:
        raise UsageError(f"input '{text}' has {math.prod(sizes):,} elements; the limit is {MAX_INPUT_ELEMENTS:,}")
    return TensorSpec(sizes)


def _torchvision(spec: str, name: str, options: dict[str, Any]) -> _Made:
    models = installed("torchvision.models", missing_extra("train", f"'{spec}'", "torchvision"))
    _refuse_downloads(spec, options)
    _check_name(spec, "torchvision", name, models.list_models())
    builder = models.get_model_builder(name)
    without = {key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters}
    weights = torchvision_weights(spec, models, name, options)
    size = options.get("image_size", 224)
    if weights is None:
        return _Made(_call(spec, builder, {**without, **options}), (1, 3, size, size))
    fetch_torchvision(spec, weights)
    model = _call(spec, builder, {**without, **options, "weights": weights})
    sides = getattr(weights.transforms(), "crop_size", [size])
    return _Made(model, (1, 3, sides[0], sides[-1]), preprocessing_of(weights))


def _timm(spec: str, name: str, options: dict[str, Any]) -> _Made:
    absent = UsageError(f"'{spec}' needs timm, which is not installed: pip install timm")
    timm, data = installed("timm", absent), installed("timm.data", absent)
    _refuse_downloads(spec, options)
    _check_name(spec, "timm", name.partition(".")[0], timm.list_models())
    pretrained = wants_weights(spec, options)
    if pretrained and not (timm.is_model_pretrained(name) or "pretrained_cfg_overlay" in options):
        raise UsageError(f"'{spec}': timm has no weights of '{name}'")
    model = _call(spec, timm.create_model, {**options, "model_name": name})
    if pretrained:
        model = timm_weights(spec, lambda: timm.create_model(name, pretrained=True, **options))
        if options.get("num_classes") not in (None, 0, timm.get_pretrained_cfg(name).num_classes):
            log.warning("'%s': its last layer is new, and has learnt nothing yet", spec)
    preprocessing = data.resolve_data_config(model=model)
    channels, height, width = preprocessing.pop("input_size")
    preprocessing |= {"scale": 1 / 255, "crop": preprocessing.get("crop_pct", 1.0)}  # in our words
    if options.get("in_chans", channels) != channels:  # the mean and std of three channels mean nothing then
        channels, preprocessing = options["in_chans"], {}
    size = options.get("img_size", (height, width))
    height, width = (size, size) if isinstance(size, int) else size
    return _Made(model, (1, channels, height, width), preprocessing)


def _nbcompile(spec: str, name: str, options: dict[str, Any]) -> _Made:
    if name == DETECTOR:
        return _detector(spec, options)
    _check_name(spec, "nbcompile.zoo", name, [*NETWORKS, DETECTOR])
    factory, (batch, channels, *sizes) = NETWORKS[name]
    channels = options.get("in_channels", options.get("in_features", channels))
    return _Made(_call(spec, factory, options), (batch, channels, *sizes))


def _detector(spec: str, options: dict[str, Any]) -> _Made:
    """A detector; a trained file names it, so that its backbone is a library's and nothing is downloaded for it."""
    inside = str(options.pop("backbone", "")).replace(";", "&")
    home = inside.partition(":")[0]
    if home not in ("torchvision", "timm", "nbcompile") or inside.startswith(f"nbcompile:{DETECTOR}"):
        raise UsageError(
            f"'{spec}' stands on a backbone of torchvision, timm or nbcompile: write "
            f"nbcompile:{DETECTOR}?backbone=timm:mobilenetv2_035&num_classes=3"
        )
    if is_pretrained(inside):
        raise UsageError(
            f"'{spec}': a detector is built without weights; nbcompile train {inside} --data voc:DIR puts one on a "
            f"pretrained backbone"
        )
    backbone = build(inside)
    channels = backbone.inputs[0].shape[1]
    try:
        made = Detector(backbone.model, in_channels=channels, **{"num_classes": 20, **options})
    except TypeError as error:  # an option that it does not have
        raise UsageError(f"building '{spec}' failed: {said(error)}") from error
    return _Made(made, (1, channels, 2 * PROBE, 2 * PROBE))


def _call(spec: str, factory: Callable[..., Any], options: dict[str, Any]) -> nn.Module:
    if isinstance(factory, nn.Module) or not callable(factory):
        raise UsageError(f"'{spec}' is a {type(factory).__name__}, not a function or class that makes a model")
    try:
        model = factory(**options)
    except Exception as error:
        raise UsageError(f"building '{spec}' failed: {said(error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"'{spec}' made a {type(model).__name__}, not a torch.nn.Module")
    return model


def _refuse_downloads(spec: str, options: dict[str, Any]) -> None:
    if named := [key for key in _DOWNLOADS if key in options]:
        raise UsageError(
            f"'{spec}': option '{named[0]}' is not taken: a MODEL is built without weights, and nothing is "
            f"downloaded; save the weights to a file and name that"
        )


def _check_name(spec: str, home: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        raise UsageError(f"'{spec}': {home} has no model '{name}'{close_to(name, names)}")
