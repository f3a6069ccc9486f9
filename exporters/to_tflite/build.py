"""From a graph to a quantized ``.tflite`` file in memory, and how far its outputs are from PyTorch's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from nbcompile.core.example import Inputs, random_inputs, specs
from nbcompile.core.numerics import flatten
from nbcompile.core.progress import step
from nbcompile.core.running import output_of
from nbcompile.exporters.to_tflite.file.options import AS_IT_IS, CHECKED, Recipe
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.quantize.bias import corrected
from nbcompile.exporters.to_tflite.quantize.float_layers import left_in_float
from nbcompile.exporters.to_tflite.quantize.masks import with_lifted_masks
from nbcompile.exporters.to_tflite.quantize.quantize import quantize
from nbcompile.exporters.to_tflite.quantize.ranges import Ranges, measure_ranges
from nbcompile.exporters.to_tflite.quantize.shared_scales import with_shared_scales
from nbcompile.exporters.to_tflite.run.agreement import Agreement, compared
from nbcompile.exporters.to_tflite.run.interpreters import Sample
from nbcompile.exporters.to_tflite.run.output_parts import sources_of
from nbcompile.exporters.to_tflite.targets.micro_forms import with_micro_forms
from nbcompile.exporters.to_tflite.targets.micro_operators import FLOAT_ONLY, REMEDIES


@dataclass(frozen=True)
class Samples:
    """What a file is calibrated and checked on.

    Attributes:
        samples: they calibrate, at batch 1; none where none is needed.
        checked: inputs of the check.
        outputs: what PyTorch gives for them.
        drawn: whether those of the check are random numbers, for want of others.
    """

    samples: Sequence[Inputs]
    checked: Sequence[Inputs]
    outputs: Sequence[list[Tensor]]
    drawn: bool = False

    @classmethod
    def of(
        cls, reference: nn.Module, inputs: Inputs, samples: Sequence[Inputs], checked: Sequence[Inputs]
    ) -> "Samples":
        """With the outputs of ``reference``; without samples for the check, random ones like ``inputs``."""
        drawn = not checked
        if drawn:
            checked = [random_inputs(specs(inputs), seed=seed, batch=1) for seed in range(CHECKED)]
        outputs = []
        with step("running the network in PyTorch", len(checked)) as advance:
            for one in checked:
                outputs.append(flatten(output_of(reference, one)))
                advance()
        return cls(samples, checked, outputs, drawn)

    @property
    def unseen(self) -> int:
        """How many samples of the check do not calibrate."""
        calibrating = {id(one) for one in self.samples}
        return sum(id(one) not in calibrating for one in self.checked)

    def given(self, model: FloatModel) -> list[Sample]:
        """The inputs of the check as the file takes them."""
        return filed(model, self.checked)

    def expected(self, model: FloatModel) -> list[Sample]:
        """PyTorch's outputs as the file gives them."""
        return [tuple(p.to_file(y) for p, y in zip(model.outputs, one, strict=True)) for one in self.outputs]

    def agreement(self, model: FloatModel, content: bytes, kernels: str = "xnnpack") -> Agreement:
        """A file's outputs in one interpreter against PyTorch's; ``model`` is the float file that it was made from."""
        expected = self.expected(model)
        return compared(content, self.given(model), expected, kernels=kernels, sources=sources_of(model))


@dataclass(frozen=True)
class BuiltFile:
    """A file in memory.

    Attributes:
        how: what was done to the network before, in words.
        model: its float form, which says what its inputs and outputs are.
        content: the file.
        sqnr: signal over noise of its outputs against PyTorch's, dB.
        float_sqnr: the same of the float form: what was done to the network before, and float32's own rounding.
        notes: what the user should know, one sentence each.
        in_float: layers of a file for integers that compute in float32 all the same.
    """

    how: str
    model: FloatModel
    content: bytes
    sqnr: float
    float_sqnr: float
    notes: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()

    @property
    def mixed(self) -> str:
        """That a file for integers is not full-integer, in words; empty where it is."""
        return f"in float32, not in integers: {', '.join(self.in_float)}" if self.in_float else ""


def build_file(
    graph: nn.Module, inputs: Inputs, data: Samples, recipe: Recipe, *, micro: bool, how: str = AS_IT_IS
) -> BuiltFile:
    """Lower ``graph`` and quantize it.

    Args:
        graph: on the CPU, in eval mode, in deploy form.
        inputs: example, batch first.
        data: calibrates and checks it.
        recipe: how numbers are stored.
        micro: whether TFLite Micro is to run it: what that lacks is refused before anything is converted.
        how: for the result.

    Raises:
        ExportError: if the format, or the target, cannot express the graph.
        UsageError: if ``recipe`` names layers that are not there.
    """
    model = float_form(graph, inputs, micro)
    given = filed(model, data.samples)
    ranges: str | Ranges = recipe.ranges
    if recipe.calibrated:
        ranges = measure_ranges(model, given, recipe.ranges, levels=recipe.levels)
        model, ranges = with_lifted_masks(model, ranges)
    if isinstance(ranges, Ranges) and recipe.scheme == "int8":  # the quantizer of int16x8 takes care of that itself
        model, ranges = with_shared_scales(model, ranges)
    with step("quantizing"):
        content = quantize(
            model,
            given,
            scheme=recipe.scheme,
            io=recipe.io,
            ranges=ranges,
            per_channel=recipe.per_channel,
            dense_per_channel=recipe.dense_per_channel,
            float_layers=recipe.float_layers,
            float_kinds=FLOAT_ONLY if micro else (),
        )
    notes = ranges.notes if isinstance(ranges, Ranges) else ()
    in_float = left_in_float(model, content) if recipe.calibrated else ()
    with step("measuring its noise"):
        found, before = (data.agreement(model, file).sqnr for file in (content, model.content))
        return BuiltFile(how, model, content, found, before, notes, in_float)


def float_form(graph: nn.Module, inputs: Inputs, micro: bool) -> FloatModel:
    """The float form of ``graph``; with ``micro``, what TFLite Micro lacks is refused.

    Raises:
        ExportError: if the format, or the target, cannot express it.
    """
    return with_micro_forms(float_model(graph, inputs, forbidden=REMEDIES)) if micro else float_model(graph, inputs)


def with_corrected_bias(built: BuiltFile, data: Samples) -> BuiltFile:
    """``built`` with biases that take back the mean error of each channel (arXiv 1906.04721, sec. 4.2)."""
    content = corrected(built.model, built.content, filed(built.model, data.samples))
    how = "biases corrected" if built.how == AS_IT_IS else f"{built.how}, biases corrected"
    return replace(built, how=how, content=content, sqnr=data.agreement(built.model, content).sqnr)


def filed(model: FloatModel, samples: Sequence[Inputs]) -> list[Sample]:
    """``samples`` as the file takes them."""
    return [tuple(port.to_file(x) for port, x in zip(model.inputs, one, strict=True)) for one in samples]


Variants = Mapping[str, nn.Module]
"""Other graphs of the same function, by what was done to them; the one with the least noise is taken."""
