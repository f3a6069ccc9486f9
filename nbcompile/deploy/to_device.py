"""``nbcompile.export`` to ``.tflite``: the passes of a target, the calibration set and the budgets, then the exporter.

=============  ====================================================================================================
target         what it is
=============  ====================================================================================================
raspberrypi    LiteRT: the network as it is
mcu            TFLite Micro: memory is arranged (`exporters/to_tflite/memory`), C++ sources are written beside the file
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
from nbcompile.core.example import Inputs, change_tensors, origin_of
from nbcompile.core.files import atomic
from nbcompile.core.graph.channel_ranges import ChannelRanges, channel_ranges
from nbcompile.core.options import keywords_of
from nbcompile.core.progress import step
from nbcompile.deploy.calibration import Calibration, calibration
from nbcompile.deploy.deploy_form import deploy
from nbcompile.deploy.options import DeviceOptions
from nbcompile.detection.cpp import OutputMap, boxes_header
from nbcompile.detection.decode import BoxCoding
from nbcompile.exporters import TFLITE
from nbcompile.exporters.base import ExportResult
from nbcompile.exporters.to_tflite.file.options import AS_IT_IS, Recipe, held_out
from nbcompile.pass_runner import Maker, run_pipeline
from nbcompile.passes import DEVICE, AbsorbBias, Equalize, Pass, PassResult

log = logging.getLogger("nbcompile")

EQUALIZED = "equalized"
CLIPPED = "equalized, also where no clip is reached on the calibration set"
ABSORBED = "equalized, biases absorbed"

_NO_MAKERS: Mapping[str, Maker] = {}


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
    given = recorded if wanted.preprocessing is None else wanted.preprocessing
    boxes = recorded.get("boxes")
    given = {name: value for name, value in given.items() if name != "boxes"}
    source = wanted.calibration
    data = Calibration((), ()) if source is None else calibration(source, inputs, given)
    samples, checked = held_out(data.samples)
    graph = deploy(model, inputs)
    notes = list(data.notes)
    for note in notes:
        log.warning("%s", note)
    graphs = _Job(inputs, samples, recipe).variants(graph, wanted.equalize)
    if wanted.equalize == "always" and EQUALIZED in graphs:
        graphs = {EQUALIZED: graphs[EQUALIZED]}
    how, plain = next(iter(graphs.items()))
    result = TFLITE.exporter()(
        plain, inputs, path, reference=model, samples=samples, checked=checked, recipe=recipe,
        micro=wanted.micro, how=how, variants=graphs, limits=limits, notes=notes,
        correct_bias=wanted.correct_bias if recipe.calibrated else "never",
        prepared=f"Inputs are images prepared so: {dict(given)}" if given else "",
    )  # fmt: skip
    more: dict[str, Any] = {"macs": cost(graph, inputs).macs, "executed_macs": cost(plain, inputs).macs}
    if boxes is not None and wanted.micro:
        more["companions"] = (*getattr(result, "companions", ()), _write_boxes(path, boxes))
    return replace(result, **more)


def _write_boxes(path: Path, boxes: Mapping[str, Any]) -> Path:
    """``STEM_boxes.h``: what the outputs of the file mean."""
    from nbcompile.exporters.to_tflite.file.flatbuffer import read_file  # the file is written: all is installed
    from nbcompile.exporters.to_tflite.targets.micro_sources import comment, identifier

    file = read_file(path.read_bytes())
    ports = [file.tensors[index] for index in file.outputs]
    maps = [OutputMap(port.shape[-3:], port.quantization is not None) for port in ports]
    text = boxes_header(BoxCoding.from_json(boxes), maps, path.stem, identifier(path.stem), comment(path.stem))
    header = path.with_name(f"{path.stem}_boxes.h")
    with atomic(header) as temporary:
        temporary.write_text(text)
    return header


@dataclass
class _Job:
    """What all variants of one export share."""

    inputs: Inputs
    samples: Sequence[Inputs]
    recipe: Recipe

    def variants(self, graph: nn.Module, equalize: str) -> dict[str, nn.Module]:
        """The network for the target, by what was done to it: as it is, and with the ranges of its channels equalized.

        Equalized exactly; through clips as the data allow; and exactly, with biases absorbed. Those that would be the
        same as one before them are left out.
        """
        if not isinstance(graph, fx.GraphModule):
            return {AS_IT_IS: graph}
        graphs: dict[str, nn.Module] = {AS_IT_IS: self._prepared(graph, AS_IT_IS, [Equalize, AbsorbBias])[0]}
        if not self.recipe.calibrated or equalize == "never":
            return graphs
        exact, done = self._prepared(graph, EQUALIZED, [AbsorbBias])
        factors = done[Equalize.name]
        if factors.modified:
            graphs[EQUALIZED] = exact
        clipped, done = self._prepared(graph, CLIPPED, [AbsorbBias], {Equalize.name: self._through_clips})
        if set(done[Equalize.name].rewritten) != set(factors.rewritten):
            graphs[CLIPPED] = clipped
        absorbed, done = self._prepared(graph, ABSORBED, [])
        if done[AbsorbBias.name].modified:
            graphs[ABSORBED] = absorbed
        return graphs

    def _prepared(
        self, graph: fx.GraphModule, how: str, without: Sequence[type[Pass]], makers: Mapping[str, Maker] = _NO_MAKERS
    ) -> tuple[fx.GraphModule, dict[str, PassResult]]:
        """A copy of ``graph`` after the pipeline ``DEVICE`` without some passes, and what the others did."""
        left_out = {cls.name for cls in without}
        gm = copy.deepcopy(graph)
        with step(f"preparing the network {how}"):
            return gm, run_pipeline(
                [name for name in DEVICE if name not in left_out],
                gm,
                {"inputs": self.inputs},
                {AbsorbBias.name: self._absorbing, **makers},
            )

    def _through_clips(self, gm: fx.GraphModule) -> Equalize:
        return Equalize(self.inputs, self._ranges(gm))

    def _absorbing(self, gm: fx.GraphModule) -> AbsorbBias:
        return AbsorbBias(self._ranges(gm))

    def _ranges(self, gm: fx.GraphModule) -> ChannelRanges:
        with step("finding the ranges of its channels"):
            return channel_ranges(gm, self.samples)
