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
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from nbcompile.core.cost import cost
from nbcompile.core.errors import UsageError
from nbcompile.core.example import Inputs, change_tensors, origin_of
from nbcompile.core.files import atomic
from nbcompile.core.graph.channel_ranges import ChannelRanges, channel_ranges
from nbcompile.core.options import keywords_of
from nbcompile.core.progress import step
from nbcompile.core.serialization.own_ranges import has_own_ranges
from nbcompile.core.tracing.call import names_of_inputs
from nbcompile.deploy.calibration import Calibration, calibration
from nbcompile.deploy.calibration_images import inputs_of_bytes
from nbcompile.deploy.deploy_form import deploy
from nbcompile.deploy.options import DeviceOptions
from nbcompile.detection.cpp import OutputMap, boxes_header
from nbcompile.detection.decode import BoxCoding
from nbcompile.exporters import TFLITE
from nbcompile.exporters.base import ExportResult
from nbcompile.exporters.to_tflite.file.options import AS_IT_IS, Recipe, doubts_of_check, held_out
from nbcompile.exporters.to_tflite.targets.boards import board as board_of
from nbcompile.pass_runner import Maker, run_pipeline
from nbcompile.passes import DEVICE, AbsorbBias, Equalize, Pass, PassResult

if TYPE_CHECKING:
    from nbcompile.exporters.to_tflite.quantize.learned import LearnedRanges

log = logging.getLogger("nbcompile")

LEARNED_SQNR = 5.0
"""dB that an int8 file must reach whose rounding the network was trained with: without it, it is another network."""

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
    learned = _learned(model, wanted)
    wanted.require_ranges(learned=learned is not None)
    boxes = recorded.get("boxes")
    given = {name: value for name, value in given.items() if name != "boxes"}
    source = wanted.calibration
    data = Calibration((), ()) if source is None else calibration(source, inputs, given, names_of_inputs(model))
    samples, checked = held_out(data.samples)
    graph = deploy(model, inputs)
    notes = [*data.notes, *doubts_of_check(len(samples), len(checked))]
    for note in notes:
        log.warning("%s", note)
    if learned is not None:  # no other form of the network has been trained with them
        limits = limits if limits.sqnr is not None else replace(limits, sqnr=LEARNED_SQNR)
        notes.append("ranges and weights are those of the training with --int8: nothing is equalized or corrected")
        recipe = replace(recipe, ranges="minmax", dense_per_channel=True)
    graphs = PreparedGraphs(inputs, samples, recipe).variants(
        graph, wanted.when("equalize") if learned is None else "never"
    )
    if wanted.equalize == "always" and EQUALIZED in graphs:
        graphs = {EQUALIZED: graphs[EQUALIZED]}
    how, plain = next(iter(graphs.items()))
    result = TFLITE.exporter()(
        plain, inputs, path, reference=model, samples=samples, checked=checked, recipe=recipe,
        micro=wanted.micro, how=how, variants=graphs, limits=limits, notes=notes,
        correct_bias=wanted.when("correct_bias") if recipe.calibrated and learned is None else "never",
        learned=learned,
        prepared=f"Inputs are images prepared so: {dict(given)}" if given else "",
        pixels=inputs_of_bytes(inputs, given) if wanted.micro else None, project=wanted.project,
    )  # fmt: skip
    if wanted.quantize == "dynamic" and _is_float(result):
        log.warning("%s", _ALL_FLOAT)
        result = replace(result, notes=(*result.notes, _ALL_FLOAT))
    more: dict[str, Any] = {"macs": cost(graph, inputs).macs, "executed_macs": cost(plain, inputs).macs}
    if wanted.micro:
        more |= _estimate(result, wanted.board)
    if boxes is not None and wanted.micro:
        beside = getattr(result, "companions", ())
        sources = next(one.parent for one in beside if one.name == f"{path.stem}.h")
        more["companions"] = (*beside, _write_boxes(path, sources, boxes))
    return replace(result, **more)


_ALL_FLOAT = "TensorFlow stores large layers alone in int8, and there is none: all weights of the file are float32"


def _is_float(result: ExportResult) -> bool:
    """Whether no weight of the file is stored in fewer bits."""
    from nbcompile.exporters.to_tflite.file.flatbuffer import read_file  # as above
    from nbcompile.exporters.to_tflite.file.inspect import tflite_scheme

    return tflite_scheme(read_file(result.path.read_bytes())) == "float32"


def _estimate(result: ExportResult, name: str | None) -> dict[str, Any]:
    """How long the file takes on microcontrollers; why not on the board called ``name``, where there is no table."""
    from nbcompile.exporters.to_tflite.targets.cycles import estimated, why_no_latency  # as above

    board = None if name is None else board_of(name)
    why = None if board is None else why_no_latency(board)
    found = estimated(result.path.read_bytes(), board)
    return {"estimate": found, "notes": (*result.notes, why) if why else result.notes}


def _learned(model: nn.Module, wanted: DeviceOptions) -> "LearnedRanges | None":
    """The ranges that training found, where they are wanted.

    Raises:
        UsageError: if an option asks for another file than the one that was trained.
    """
    origin = origin_of(model)
    if origin is None or not origin.int8 or not wanted.takes_learned:
        return None
    if not has_own_ranges(model):
        raise UsageError(
            "the weights were changed since the training with --int8: train again with --int8, or give --calibration "
            "and --ranges minmax"
        )
    for name in ("equalize", "correct_bias"):
        if getattr(wanted, name) == "always":
            raise UsageError(
                f"{name}='always' would undo the training with --int8: leave it out, or say --ranges minmax"
            )
    if not wanted.per_channel or wanted.dense_per_channel is False:
        raise UsageError(
            "the training with --int8 was for weights per channel: leave --per-tensor out, or say --ranges minmax"
        )
    from nbcompile.exporters.to_tflite.quantize.learned import LearnedRanges

    return LearnedRanges.from_json(origin.int8)


def _write_boxes(path: Path, sources: Path, boxes: Mapping[str, Any]) -> Path:
    """``STEM_boxes.h`` in the folder ``sources``: what the outputs of the file mean."""
    from nbcompile.exporters.to_tflite.file.flatbuffer import read_file  # the file is written: all is installed
    from nbcompile.exporters.to_tflite.targets.micro_sources import comment, identifier

    file = read_file(path.read_bytes())
    ports = [file.tensors[index] for index in file.outputs]
    maps = [OutputMap(port.shape[-3:], port.quantization is not None) for port in ports]
    text = boxes_header(BoxCoding.from_json(boxes), maps, path.stem, identifier(path.stem), comment(path.stem))
    header = sources / f"{path.stem}_boxes.h"
    with atomic(header) as temporary:
        temporary.write_text(text)
    return header


def exact_forms(graph: fx.GraphModule, inputs: Inputs, samples: Sequence[Inputs]) -> dict[str, fx.GraphModule]:
    """``graph`` for int8, by what was done to it: as it is, and equalized exactly, where that changes anything."""
    job = PreparedGraphs(inputs, samples, Recipe())
    plain, _ = job.prepared(graph, AS_IT_IS, [Equalize, AbsorbBias])
    equal, done = job.prepared(graph, EQUALIZED, [AbsorbBias])
    return {AS_IT_IS: plain} | ({EQUALIZED: equal} if done[Equalize.name].modified else {})


@dataclass
class PreparedGraphs:
    """What all variants of one export share.

    Attributes:
        inputs: example, batch first.
        samples: they calibrate, at batch 1.
        recipe: how numbers will be stored.
    """

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
        graphs: dict[str, nn.Module] = {AS_IT_IS: self.prepared(graph, AS_IT_IS, [Equalize, AbsorbBias])[0]}
        if not self.recipe.calibrated or equalize == "never":
            return graphs
        exact, done = self.prepared(graph, EQUALIZED, [AbsorbBias])
        factors = done[Equalize.name]
        if factors.modified:
            graphs[EQUALIZED] = exact
        clipped, done = self.prepared(graph, CLIPPED, [AbsorbBias], {Equalize.name: self._through_clips})
        if set(done[Equalize.name].rewritten) != set(factors.rewritten):
            graphs[CLIPPED] = clipped
        absorbed, done = self.prepared(graph, ABSORBED, [])
        if done[AbsorbBias.name].modified:
            graphs[ABSORBED] = absorbed
        return graphs

    def prepared(
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
