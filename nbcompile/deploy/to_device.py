"""``nbcompile.export`` to ``.tflite``: the passes of a target, the calibration set and the budgets, then the exporter.

=============  ====================================================================================================
target         what it is
=============  ====================================================================================================
raspberrypi    LiteRT: the network as it is
mcu            TFLite Micro: no PAD operator for strided convolutions at even sizes (`EvenPadding`), layers computed in
               channel groups where a budget asks for it (`nbcompile.deploy.fit_memory`), C++ sources beside the file
=============  ====================================================================================================
"""

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import fx, nn

from nbcompile.core.cost import cost
from nbcompile.core.errors import UsageError
from nbcompile.core.example import Inputs, change_tensors, origin_of
from nbcompile.core.graph.channel_ranges import channel_ranges
from nbcompile.deploy.calibration import Calibration
from nbcompile.deploy.calibration import calibration as calibration_of
from nbcompile.deploy.calibration_images import KEYS
from nbcompile.deploy.deploy_form import deploy
from nbcompile.deploy.fit_memory import fit
from nbcompile.exporters import TFLITE
from nbcompile.exporters.base import ExportResult
from nbcompile.exporters.to_tflite.file.options import AS_IT_IS, Limits, Recipe, held_out, require_choice
from nbcompile.exporters.to_tflite.targets.boards import board as board_of
from nbcompile.passes import AbsorbBias, Equalize, EvenPadding, SplitChannels

log = logging.getLogger("nbcompile")

TARGETS = ("raspberrypi", "mcu")
WHEN = ("auto", "always", "never")
EQUALIZED = "equalized"


def export_tflite(
    model: nn.Module,
    inputs: Inputs,
    path: Path,
    *,
    calibration: Any = None,
    target: str = "raspberrypi",
    quantize: str = "int8",
    io: str = "int8",
    ranges: str = "minmax",
    per_channel: bool = True,
    dense_per_channel: bool = True,
    float_layers: str | Sequence[str] = (),
    equalize: str = "auto",
    correct_bias: str = "auto",
    board: str | None = None,
    sram: int | str | None = None,
    flash: int | str | None = None,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> ExportResult:
    """Write ``model`` as TFLite, checked in the interpreters of its devices.

    Args:
        model: without expansion blocks, on the CPU, in eval mode; left as it is.
        inputs: example, batch first; the file takes one sample at a time.
        path: the output file; for ``mcu`` C++ sources are written beside it.
        calibration: a folder of images, an ``.npz``, a tensor ``(N, C, H, W)`` or an iterable of batches.
        target: one of ``TARGETS``.
        quantize: one of `tflite_options.SCHEMES`.
        io: ``int8`` or ``float``: inputs and outputs of an integer file.
        ranges: one of `tflite_options.RANGES`: how ranges are taken from the calibration set.
        per_channel: whether convolutions have a scale per output channel.
        dense_per_channel: the same of linear layers.
        float_layers: names and globs of layers that stay float32; one by itself, or several.
        equalize: cross-layer equalization: ``auto`` (where it raises the SQNR), ``always`` or ``never``.
        correct_bias: of biases, the same.
        board: gives the budgets that ``sram`` and ``flash`` do not.
        sram: bytes that the arena may take, such as ``196608`` or ``"192K"``.
        flash: bytes that the file may take.
        min_sqnr: dB that the outputs must reach against PyTorch's; None: by ``quantize``.
        min_agreement: share of the samples, in [0, 1], whose largest output must be PyTorch's.
        preprocessing: how images become inputs; None: what ``model`` remembers.

    Raises:
        UsageError: if an option is not known, or the calibration set is missing or does not fit.
        PreconditionError: if the calibration set gives values that are not finite.
        ExportError: if the format or the target cannot express the model, or a limit or budget cannot be kept.
    """
    recipe = Recipe(quantize, io, ranges, per_channel, dense_per_channel, _names(float_layers))
    require_choice("target", target, TARGETS)
    require_choice("equalize", equalize, WHEN)
    require_choice("correct_bias", correct_bias, WHEN)
    micro = target == "mcu"
    if micro and quantize in ("dynamic", "float16"):
        raise UsageError(
            f"quantize='{quantize}' makes files that TFLite Micro cannot run: use int8, int16x8 or float32"
        )
    limits = _limits(board, sram, flash, min_sqnr, min_agreement)
    inputs = change_tensors(lambda x: x[:1] if x.ndim else x, inputs)
    origin = origin_of(model)
    given = _mapping(preprocessing) if preprocessing is not None else origin.preprocessing if origin else {}
    data = calibration_of(calibration, inputs, given) if calibration is not None else Calibration((), ())
    if recipe.calibrated and calibration is None:
        raise UsageError(
            f"quantize='{quantize}' needs a calibration set, some 100 images as the network will see them: "
            "--calibration FOLDER (calibration=… in Python); quantize='float32' needs none"
        )
    samples, checked = held_out(data.samples)
    job = _Job(inputs, samples, recipe, micro, limits)
    graph = deploy(model, inputs)
    notes = list(data.notes)
    for note in notes:
        log.warning("%s", note)
    graphs = {AS_IT_IS: job.fitted(graph, notes)}
    if recipe.calibrated and equalize != "never":
        graphs |= job.equalized(graph, notes)
    if equalize == "always" and EQUALIZED in graphs:
        graphs = {EQUALIZED: graphs[EQUALIZED]}
    how, plain = next(iter(graphs.items()))
    result = TFLITE.exporter()(
        plain, inputs, path, reference=model, samples=samples, checked=checked, recipe=recipe, micro=micro, how=how,
        variants=graphs, correct_bias=correct_bias if recipe.calibrated else "never", limits=limits, notes=notes,
        prepared=f"Inputs are images prepared so: {dict(given)}" if given else "",
    )  # fmt: skip
    macs = {"macs": cost(graph, inputs).macs, "executed_macs": cost(plain, inputs).macs}
    return replace(result, **macs)  # type: ignore[arg-type]


def _limits(
    board: str | None, sram: int | str | None, flash: int | str | None, sqnr: float | None, agreement: float | None
) -> Limits:
    """Budgets as numbers; a board gives those that are not given."""
    known = board_of(board) if board is not None else None
    given = {"sram": size_in_bytes(sram, "sram"), "flash": size_in_bytes(flash, "flash")}
    if known is not None:
        given = {"sram": given["sram"] or known.block, "flash": given["flash"] or known.flash}
    if agreement is not None and not 0 <= agreement <= 1:
        raise UsageError(f"min_agreement={agreement} is not a share: give a number from 0 to 1, such as 0.99")
    return Limits(sqnr=sqnr, agreement=agreement, **given)


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    """One name by itself is no sequence of letters."""
    return (given,) if isinstance(given, str) else tuple(given)


def _mapping(preprocessing: Any) -> Mapping[str, Any]:
    if not isinstance(preprocessing, Mapping):
        raise UsageError(f"preprocessing={preprocessing!r} is no mapping: give {{'scale': …, 'mean': […], 'std': […]}}")
    if unknown := [str(key) for key in preprocessing if key not in KEYS]:
        raise UsageError(f"preprocessing: {', '.join(unknown)} is not known; there are {', '.join(KEYS)}")
    return preprocessing


_UNITS = {"": 1, "K": 1024, "M": 1024**2}


def size_in_bytes(value: int | str | None, option: str) -> int | None:
    """A number of bytes: ``196608``, ``"192K"`` or ``"1M"`` (of 1,024 and 1,048,576).

    Raises:
        UsageError: if it is none; ``option`` is named.
    """
    if value is None or (isinstance(value, int) and value > 0):
        return value
    found = re.fullmatch(r"(\d+)\s*([KM]?)(?:i?B)?", str(value).strip(), re.IGNORECASE)
    if not found or not int(found[1]):
        raise UsageError(f"{option}={value!r} is not a size: give bytes, such as 196608, 192K or 1M")
    return int(found[1]) * _UNITS[found[2].upper()]


@dataclass
class _Job:
    """What all steps of one export need; ``parts`` is what the budget took."""

    inputs: Inputs
    samples: Sequence[Inputs]
    recipe: Recipe
    micro: bool
    limits: Limits
    parts: Mapping[str, int] | None = None

    def fitted(self, graph: nn.Module, notes: list[str]) -> nn.Module:
        """For a microcontroller: without PAD operators, and in as many parts as the budget asks for."""
        if not self.micro or not isinstance(graph, fx.GraphModule):
            return graph
        graph = _copied(graph)
        EvenPadding(self.inputs)(graph)
        if self.limits.sram is None:
            return graph
        if self.parts is None:
            found = fit(graph, self.inputs, self.limits.sram, self._arena)
            self.parts = {name: count for name, count in found.chosen.parts.items() if count > 1}
            if self.parts:
                notes.append(f"fits {self.limits.sram:,} bytes of SRAM: {found.chosen}")
        if self.parts:
            SplitChannels(self.parts)(graph)
        return graph

    def _arena(self, graph: fx.GraphModule) -> int:
        """Bytes that the file of ``graph`` needs under TFLite Micro."""
        TFLITE.exporter()  # says which package is missing
        from nbcompile.exporters.to_tflite.export import arena_of

        return arena_of(graph, self.inputs, self.samples, self.recipe)

    def equalized(self, graph: nn.Module, notes: list[str]) -> dict[str, nn.Module]:
        """The network with the ranges of its channels equalized, exactly, and through clips as the data allow."""
        if not isinstance(graph, fx.GraphModule):
            return {}
        found: dict[str, nn.Module] = {}
        exact = _copied(graph)
        factors = Equalize(self.inputs)(exact)
        if factors.modified:
            found[EQUALIZED] = self.fitted(_copied(exact), notes)
        clipped = _copied(graph)
        seen = channel_ranges(clipped, self.samples)
        if set(Equalize(self.inputs, seen)(clipped).rewritten) != set(factors.rewritten):
            found["equalized, also where no clip is reached on the calibration set"] = self.fitted(clipped, notes)
        absorbed = exact
        if AbsorbBias(channel_ranges(absorbed, self.samples))(absorbed).modified:
            found["equalized, biases absorbed"] = self.fitted(absorbed, notes)
        return found


def _copied(graph: fx.GraphModule) -> fx.GraphModule:
    return copy.deepcopy(graph)
