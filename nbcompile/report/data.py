"""What a report holds. Every section may be empty: ``fuse`` alone knows no training history.

Numbers that are not known are None, and those that came out as NaN stay NaN: the page shows both as a dash.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nbcompile.results.device import Device
from nbcompile.results.numbers import json_ready


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One network of the story: ``original``, ``giant``, ``tiny`` or an exported file.

    Attributes:
        name: what it is called in the table.
        params: parameters (learned values, norms included).
        macs: multiply-accumulates of one forward pass on one example.
        flops: 2 × ``macs``.
        layers: convolutions and linear layers.
        accuracy: on the validation set, a fraction in [0, 1].
        bytes: size of its file.
        latency: time of one forward pass over that of the original's, no unit.
    """

    name: str
    params: int | None = None
    macs: int | None = None
    flops: int | None = None
    layers: int | None = None
    accuracy: float | None = None
    bytes: int | None = None
    latency: float | None = None


@dataclass(frozen=True, kw_only=True)
class SiteRow:
    """One layer of the original that an expansion replaced.

    Attributes:
        name: the layer's qualified name.
        pattern: the graph pattern that found it.
        block: what took its place, such as ``inverted-residual``.
        ratio: hidden width over the layer's input channels.
        preserve: whether the layer stayed as a parallel branch.
        activation: the inserted activation, such as ``ReLU6``.
        slope: of that activation when it was fused; 1 is the identity.
        shift: where the merged shift went: ``bias``, or ``running_mean of NORM``.
        params_before: parameters of the layer in the original.
        params_giant: parameters of the block in the giant.
        params_after: parameters of the layer in the tiny network.
    """

    name: str
    pattern: str = ""
    block: str = ""
    ratio: float | None = None
    preserve: bool | None = None
    activation: str = ""
    slope: float | None = None
    shift: str = ""
    params_before: int | None = None
    params_giant: int | None = None
    params_after: int | None = None


@dataclass(frozen=True, kw_only=True)
class WidthRow:
    """A group of channels of a giant in width.

    Attributes:
        name: of the tensor that writes its first channels.
        channels: of the original.
        widest: at the widest.
        inner: whether they are born and read within one block of the network.
        frozen: why they keep their number; None where they grow.
    """

    name: str
    channels: int
    widest: int
    inner: bool = False
    frozen: str | None = None


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer, in the original and in the tiny network.

    Attributes:
        name: qualified name, the same in both.
        kind: such as ``conv 1×1 16→96``.
        macs_original, macs_tiny: multiply-accumulates on one example.
        params_original, params_tiny: parameters of the layer itself.
        error: largest difference of its output over the giant's largest output, no unit.
        difference: largest difference of its output, in units of the output.
        measured_at: the norm behind which both were measured, where the layer's own output differs by design
            (its shift moved into that norm); empty: at the layer itself.
    """

    name: str
    kind: str = ""
    macs_original: int | None = None
    macs_tiny: int | None = None
    params_original: int | None = None
    params_tiny: int | None = None
    error: float | None = None
    difference: float | None = None
    measured_at: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One training run.

    Attributes:
        label: such as ``vanilla`` or ``NetBooster``.
        history: one mapping per epoch. Keys, all but the first optional: ``epoch`` (1, 2, …), ``loss``,
            ``train_accuracy`` and ``val_accuracy`` (fractions), ``slope``, ``lr``, ``phase`` (a short name).
        metric: what accuracies are, such as ``AP50`` of a detector.
    """

    label: str
    history: tuple[Mapping[str, Any], ...] = ()
    metric: str = "accuracy"


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One claim with its measured value; ``limit`` is the largest value that passes, in the same unit."""

    name: str
    passed: bool
    measured: float | str | None = None
    limit: float | str | None = None


@dataclass(frozen=True, kw_only=True)
class Box:
    """One box of a drawn graph: a layer with the norm and activation that follow it.

    Attributes:
        name: qualified name of the layer.
        label: what it is, such as ``conv 1×1 16→96``.
        detail: what follows inside the same box, such as ``norm · ReLU6``.
        highlighted: whether the box is part of a site.
    """

    name: str
    label: str
    detail: str = ""
    highlighted: bool = False


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A network to draw; ``edges`` are pairs of indices into ``nodes``, which stand in execution order."""

    title: str
    nodes: tuple[Box, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """A file that was written; ``bytes`` is its size."""

    path: str
    what: str = ""
    bytes: int | None = None
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything a page shows.

    Attributes:
        title: such as ``mcunet, fused``.
        created: date and time, ISO 8601.
        command: the command line that made it.
        versions: package name → version.
        machine: one line: processor, cores, system.
        notes: sentences a reader should know, such as which weights of the file were taken.
        devices: files for devices, each with its layers and its memory.
    """

    title: str
    created: str
    command: str
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    models: tuple[ModelRow, ...] = ()
    sites: tuple[SiteRow, ...] = ()
    widths: tuple[WidthRow, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    runs: tuple[TrainingRun, ...] = ()
    checks: tuple[CheckRow, ...] = ()
    graphs: tuple[Graph, ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[FileRow, ...] = ()
    devices: tuple[Device, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same as plain dicts and lists for :func:`json.dumps`; NaN and infinities become None."""
        fields: dict[str, Any] = json_ready(asdict(self))
        return fields
