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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import fx, nn

from nbcompile.core.cost import cost
from nbcompile.core.errors import UsageError
from nbcompile.core.example import Inputs, change_tensors, origin_of
from nbcompile.core.graph.channel_ranges import channel_ranges
from nbcompile.core.options import keywords_of
from nbcompile.deploy.calibration import Calibration
from nbcompile.deploy.calibration import calibration as calibration_of
from nbcompile.deploy.calibration_images import KEYS
from nbcompile.deploy.deploy_form import deploy
from nbcompile.deploy.fit_memory import fit
from nbcompile.deploy.options import DeviceOptions
from nbcompile.exporters import TFLITE
from nbcompile.exporters.base import ExportResult
from nbcompile.exporters.to_tflite.file.options import AS_IT_IS, Limits, Recipe, held_out
from nbcompile.passes import AbsorbBias, Equalize, EvenPadding, SplitChannels

log = logging.getLogger("nbcompile")

EQUALIZED = "equalized"


@keywords_of(DeviceOptions)
def export_tflite(model: nn.Module, inputs: Inputs, path: Path, **options: Any) -> ExportResult:
    """Write ``model`` as TFLite, checked in the interpreters of its devices.

    Args:
        model: without expansion blocks, on the CPU, in eval mode; left as it is.
        inputs: example, batch first; the file takes one sample at a time.
        path: the output file; for ``mcu`` C++ sources are written beside it.
        **options: the fields of `nbcompile.deploy.options.DeviceOptions`.

    Raises:
        UsageError: if an option is not known, or the calibration set is missing or does not fit.
        PreconditionError: if the calibration set gives values that are not finite.
        ExportError: if the format or the target cannot express the model, or a limit or budget cannot be kept.
    """
    wanted = DeviceOptions(**options)
    recipe, limits = wanted.recipe(), wanted.limits()
    inputs = change_tensors(lambda x: x[:1] if x.ndim else x, inputs)
    origin = origin_of(model)
    recorded = origin.preprocessing if origin else {}
    given = recorded if wanted.preprocessing is None else _mapping(wanted.preprocessing)
    calibration = wanted.calibration
    data = calibration_of(calibration, inputs, given) if calibration is not None else Calibration((), ())
    if recipe.calibrated and calibration is None:
        raise UsageError(
            f"quantize='{wanted.quantize}' needs a calibration set, some 100 images as the network will see them: "
            "--calibration FOLDER (calibration=… in Python); quantize='float32' needs none"
        )
    samples, checked = held_out(data.samples)
    job = _Job(inputs, samples, recipe, wanted.micro, limits)
    graph = deploy(model, inputs)
    notes = list(data.notes)
    for note in notes:
        log.warning("%s", note)
    graphs = {AS_IT_IS: job.fitted(graph, notes)}
    if recipe.calibrated and wanted.equalize != "never":
        graphs |= job.equalized(graph, notes)
    if wanted.equalize == "always" and EQUALIZED in graphs:
        graphs = {EQUALIZED: graphs[EQUALIZED]}
    how, plain = next(iter(graphs.items()))
    result = TFLITE.exporter()(
        plain, inputs, path, reference=model, samples=samples, checked=checked, recipe=recipe,
        micro=wanted.micro, how=how, variants=graphs, limits=limits, notes=notes,
        correct_bias=wanted.correct_bias if recipe.calibrated else "never",
        prepared=f"Inputs are images prepared so: {dict(given)}" if given else "",
    )  # fmt: skip
    macs = {"macs": cost(graph, inputs).macs, "executed_macs": cost(plain, inputs).macs}
    return replace(result, **macs)  # type: ignore[arg-type]


def _mapping(preprocessing: Any) -> Mapping[str, Any]:
    if not isinstance(preprocessing, Mapping):
        raise UsageError(f"preprocessing={preprocessing!r} is no mapping: give {{'scale': …, 'mean': […], 'std': […]}}")
    if unknown := [str(key) for key in preprocessing if key not in KEYS]:
        raise UsageError(f"preprocessing: {', '.join(unknown)} is not known; there are {', '.join(KEYS)}")
    return preprocessing


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
