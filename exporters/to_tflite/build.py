"""From a graph to a quantized ``.tflite`` file in memory, and how far its outputs are from PyTorch's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from nbcompile.core.errors import NBCompileError, PreconditionError
from nbcompile.core.example import Inputs, random_inputs, specs
from nbcompile.core.numerics import flatten
from nbcompile.core.progress import step
from nbcompile.core.running import output_of
from nbcompile.core.words import first_line
from nbcompile.exporters.to_tflite.file.edit import stored_once
from nbcompile.exporters.to_tflite.file.options import AS_IT_IS, CHECKED, Recipe
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.once import once
from nbcompile.exporters.to_tflite.quantize.bias import corrected
from nbcompile.exporters.to_tflite.quantize.float_layers import left_in_float
from nbcompile.exporters.to_tflite.quantize.int16_forms import with_int16_forms
from nbcompile.exporters.to_tflite.quantize.learned import LearnedRanges, with_learned_ranges
from nbcompile.exporters.to_tflite.quantize.masks import with_lifted_masks
from nbcompile.exporters.to_tflite.quantize.quantize import quantize
from nbcompile.exporters.to_tflite.quantize.ranges import Ranges, measure_ranges
from nbcompile.exporters.to_tflite.quantize.shared_scales import with_shared_scales
from nbcompile.exporters.to_tflite.run.agreement import Agreement, compared
from nbcompile.exporters.to_tflite.run.interpreters import Sample
from nbcompile.exporters.to_tflite.run.output_parts import sources_of
from nbcompile.exporters.to_tflite.targets.micro_forms import with_micro_forms
from nbcompile.exporters.to_tflite.targets.micro_operators import FLOAT_ONLY, REMEDIES

JUDGING = 112
"""Samples that calibrate and judge, too, at most: with those of the check they are 128."""


@dataclass(frozen=True)
class Samples:
    """What a file is calibrated and checked on.

    Attributes:
        samples: they calibrate, at batch 1; none where none is needed.
        checked: inputs of the check.
        outputs: what PyTorch gives for them.
        drawn: whether those of the check are random numbers, for want of others.
        judging: further samples, by which one of several files is chosen; they calibrate, too.
        of_judging: what PyTorch gives for those.
    """

    samples: Sequence[Inputs]
    checked: Sequence[Inputs]
    outputs: Sequence[list[Tensor]]
    drawn: bool = False
    judging: Sequence[Inputs] = ()
    of_judging: Sequence[list[Tensor]] = ()

    @classmethod
    def of(
        cls,
        reference: nn.Module,
        inputs: Inputs,
        samples: Sequence[Inputs],
        checked: Sequence[Inputs],
        learned: LearnedRanges | None = None,
        choosing: bool = False,
    ) -> "Samples":
        """With the outputs of ``reference``; without samples for the check, random ones like ``inputs``.

        These lie in the ranges of the inputs that training has ``learned``: beyond them is nothing that it has seen.
        With ``choosing``, samples that calibrate are to judge files, too.

        Raises:
            PreconditionError: if it does not run on one, or gives NaN: that would be compared with nothing.
        """
        drawn = not checked
        if drawn:
            checked = [random_inputs(specs(inputs), seed=seed, batch=1) for seed in range(CHECKED)]
            checked = checked if learned is None else [learned.within(one) for one in checked]
        seen = {id(one) for one in checked}
        others = [one for one in samples if id(one) not in seen] if choosing else []
        judging = [others[i * len(others) // JUDGING] for i in range(JUDGING)] if len(others) > JUDGING else others
        outputs = []
        with step("running the network in PyTorch", len(checked) + len(judging)) as advance:
            for one in (*checked, *judging):
                outputs.append(_outputs(reference, one, "random inputs" if drawn else "a calibration sample"))
                advance()
        count = len(checked)
        return cls(samples, checked, outputs[:count], drawn, judging, outputs[count:])

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
        return _given(model, self.outputs)

    def agreement(self, model: FloatModel, content: bytes, kernels: str = "xnnpack") -> Agreement:
        """A file's outputs in one interpreter against PyTorch's; ``model`` is the float file that it was made from."""
        expected = self.expected(model)
        return compared(content, self.given(model), expected, kernels=kernels, sources=sources_of(model))

    def judged(self, model: FloatModel, content: bytes) -> float:
        """Signal over noise of a file's outputs in LiteRT, dB, over the samples of the check and those that judge.

        The few of the check alone choose badly: what is gained is often less than what their noise differs by.
        """
        given = [*self.given(model), *filed(model, self.judging)]
        expected = [*self.expected(model), *_given(model, self.of_judging)]
        return compared(content, given, expected, sources=sources_of(model)).sqnr


def _outputs(reference: nn.Module, inputs: Inputs, what: str) -> list[Tensor]:
    name, remedy = type(reference).__name__, "give samples that it takes as its calibration set"
    try:
        outputs = flatten(output_of(reference, inputs))
    except NBCompileError:
        raise
    except Exception as error:  # networks may refuse values in any way
        raise PreconditionError(f"{name} does not run on {what} ({first_line(error)}): {remedy}") from error
    if any(bool(y.isnan().any()) for y in outputs if y.is_floating_point()):
        raise PreconditionError(f"{name} gives NaN on {what}: {remedy}")
    return outputs


def _given(model: FloatModel, outputs: Sequence[list[Tensor]]) -> list[Sample]:
    return [tuple(port.to_file(y) for port, y in zip(model.outputs, one, strict=True)) for one in outputs]


CORRECTED = "biases corrected"
"""What was done to a file with corrected biases."""


@dataclass(frozen=True)
class BuiltFile:
    """A file in memory.

    Attributes:
        how: what was done to the network before, in words.
        model: its float form, which says what its inputs and outputs are.
        content: the file.
        sqnr: signal over noise of its outputs against PyTorch's, dB, over all samples that judge it.
        float_sqnr: the same of the float form: what was done to the network before, and float32's own rounding.
        notes: what the user should know, one sentence each.
        in_float: layers of a file for integers that compute in float32 all the same.
        thrifty: whether it needs less memory than those before it: it is taken unless they have less noise.
        corrected: whether its biases are.
        unseen: what ``sqnr`` is over the samples of the check alone.
    """

    how: str
    model: FloatModel
    content: bytes
    sqnr: float
    float_sqnr: float
    notes: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()
    thrifty: bool = False
    corrected: bool = False
    unseen: float = 0.0

    @property
    def mixed(self) -> str:
        """That a file for integers is not full-integer, in words; empty where it is."""
        return f"in float32, not in integers: {', '.join(self.in_float)}" if self.in_float else ""


def build_file(
    graph: nn.Module,
    inputs: Inputs,
    data: Samples,
    recipe: Recipe,
    *,
    micro: bool,
    how: str = AS_IT_IS,
    learned: LearnedRanges | None = None,
) -> BuiltFile:
    """Lower ``graph`` and quantize it.

    Args:
        graph: on the CPU, in eval mode, in deploy form.
        inputs: example, batch first.
        data: calibrates and checks it.
        recipe: how numbers are stored.
        micro: whether TFLite Micro is to run it: what that lacks is refused before anything is converted.
        how: for the result.
        learned: ranges that training found; they are taken in place of those of a calibration set.

    Raises:
        ExportError: if the format, or the target, cannot express the graph.
        UsageError: if ``recipe`` names layers that are not there, or ``learned`` does not fit.
    """
    model, ranges, content = quantized_form(graph, inputs, data.samples, recipe, micro=micro, learned=learned)
    notes = ranges.notes if isinstance(ranges, Ranges) else ()
    in_float = left_in_float(model, content) if recipe.calibrated else ()
    with step("measuring its noise"):
        before, unseen = (data.agreement(model, file).sqnr for file in (model.content, content))
        found = data.judged(model, content)
        return BuiltFile(how, model, content, found, before, notes, in_float, unseen=unseen)


def quantized_form(
    graph: nn.Module,
    inputs: Inputs,
    samples: Sequence[Inputs],
    recipe: Recipe,
    *,
    micro: bool = False,
    learned: LearnedRanges | None = None,
) -> tuple[FloatModel, str | Ranges, bytes]:
    """The float form that is quantized, the ranges of its tensors, and the file; else as `build_file`."""
    plain = plain_form(graph, inputs, micro)
    model = with_micro_forms(plain) if micro else plain
    model = with_int16_forms(model) if recipe.scheme == "int16x8" else model
    given = filed(model, samples)
    ranges: str | Ranges = recipe.estimator
    if learned is not None:
        model, ranges = with_learned_ranges(model, learned.by_name(plain))
    elif recipe.calibrated:
        ranges = measure_ranges(model, given, recipe.estimator, levels=recipe.levels)
        model, ranges = with_lifted_masks(model, ranges)
        if recipe.scheme == "int8":  # the quantizer of int16x8 takes care of that itself
            model, ranges = with_shared_scales(model, ranges)
    with step("quantizing"):
        content = quantize(
            model,
            given,
            scheme=recipe.scheme,
            io=recipe.io,
            ranges=ranges,
            per_channel=recipe.per_channel,
            dense_per_channel=recipe.dense_per_channel is not False,
            float_layers=recipe.float_layers,
            float_kinds=FLOAT_ONLY if micro else (),
        )
    return model, ranges, stored_once(content)


@once
def float_form(graph: nn.Module, inputs: Inputs, micro: bool) -> FloatModel:
    """The float form of ``graph``; with ``micro``, what TFLite Micro lacks is refused.

    Raises:
        ExportError: if the format, or the target, cannot express it.
    """
    model = plain_form(graph, inputs, micro)
    return with_micro_forms(model) if micro else model


def plain_form(graph: nn.Module, inputs: Inputs, micro: bool) -> FloatModel:
    """As `float_form`, before what TFLite Micro has is put together of other operators."""
    return float_model(graph, inputs, forbidden=REMEDIES) if micro else float_model(graph, inputs)


def with_corrected_bias(built: BuiltFile, data: Samples) -> BuiltFile:
    """``built`` with biases that take back the mean error of each channel (arXiv 1906.04721, sec. 4.2)."""
    content = corrected(built.model, built.content, filed(built.model, data.samples))
    unseen, found = data.agreement(built.model, content).sqnr, data.judged(built.model, content)
    how = also(built.how, CORRECTED)
    return replace(built, how=how, content=content, sqnr=found, unseen=unseen, corrected=True, thrifty=False)


def also(how: str, more: str) -> str:
    """What was done to a network to which ``more`` is done, in words."""
    return more if how == AS_IT_IS else f"{how}, {more}"


@once
def filed(model: FloatModel, samples: Sequence[Inputs]) -> list[Sample]:
    """``samples`` as the file takes them."""
    return [tuple(port.to_file(x) for port, x in zip(model.inputs, one, strict=True)) for one in samples]


Variants = Mapping[str, nn.Module]
"""Other graphs of the same function, by what was done to them; the one with the least noise is taken."""
