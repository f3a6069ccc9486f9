"""``verify``: is this the network it should be? Keys, layers, MACs, params, and numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from nbcompile.core.blocks import sites
from nbcompile.core.copies import working_copy
from nbcompile.core.cost import cost
from nbcompile.core.errors import PreconditionError, UsageError, VerificationError
from nbcompile.core.example import ExampleInput, Inputs, as_inputs, inputs_for
from nbcompile.core.input_files import of_one_state
from nbcompile.core.judging.drawn_inputs import DRAWS, drawn_cases
from nbcompile.core.judging.judgment import Judgment, judge
from nbcompile.core.judging.rounding import unchanged
from nbcompile.core.numerics import TOLERANCE, flatten, is_finite, stacked
from nbcompile.core.progress import step
from nbcompile.core.running import output_of
from nbcompile.core.wrappers import require_loaded, unwrap
from nbcompile.deploy.comparison_options import ComparisonOptions
from nbcompile.deploy.deploy_form import deploy
from nbcompile.deploy.int8_onnx_verification import int8_numbers
from nbcompile.deploy.repeatable import why_unrepeatable
from nbcompile.deploy.single_precision import in_float32
from nbcompile.exporters import FORMATS, format_of, known_format
from nbcompile.results.checks import Check, LayerPair, Verification
from nbcompile.results.layer_costs import ModuleCost, deploy_rows, file_rows, original_of, rows, shapes
from nbcompile.wide.giants import is_giant
from nbcompile.wide.widths import widths_of

__all__ = ["Verification", "verify", "verify_merged"]


@step("verifying")
@of_one_state
def verify(
    reference: nn.Module | str | Path,
    candidate: nn.Module | str | Path,
    example_input: ExampleInput | None = None,
    *,
    inputs: Sequence[ExampleInput] = (),
    numbers: bool = True,
    **options: Any,
) -> Verification:
    """Compare ``candidate`` with what ``reference`` stands for.

    A giant as ``reference`` stands for its original's architecture (as ``expand`` recorded it) and for its own
    outputs. Two modules are compared as they stand: keys, shapes, MACs and params of every layer. Against a deploy
    file (such as ``.onnx``) both are compared in deploy form, the layers matched by their names. A ``.tflite`` file
    is run in the interpreters of its devices, see `nbcompile.deploy.device_verification`.

    Args:
        reference: a giant or any network; for a ``.tflite`` file another one may stand here.
        candidate: a module, or the path of a deploy file whose format can be compared: ``.onnx``, ``.tflite``.
        example_input: what they are called with; may be left out where ``reference`` remembers.
        inputs: more inputs to compare outputs on, beside seeded random ones.
        numbers: whether to compare outputs; False where the weights of ``reference`` mean nothing.
        options: of ``.tflite`` and int8 ``.onnx`` files: the fields of
            `nbcompile.deploy.comparison_options.ComparisonOptions`.

    Raises:
        UsageError: if the candidate's extension is unknown, an option does not fit, or there is no example input.
        VerificationError: if the candidate is a giant still.
        CheckpointError: if the file cannot be read.
    """
    form = known_format(candidate) if isinstance(candidate, (str, Path)) else None
    if form is not None and form.verifier is not None:
        found: Verification = form.comparison()(
            reference, candidate, example_input, inputs=inputs, numbers=numbers, **options
        )
        return found
    quantized = form is not None and form.is_quantized(cast("str | Path", candidate))
    if options and not quantized:
        raise UsageError(f"verify: {', '.join(options)} goes with a candidate that is a .tflite or an int8 .onnx file")
    if isinstance(reference, (str, Path)) and (named := known_format(reference)) and named.verifier:
        raise UsageError(f"verify: the original {reference} goes with a candidate that is a .tflite file")
    reference = unwrap(reference)
    require_loaded(reference, "verify")
    example = inputs_for(reference, example_input, who="verify")
    coarsest = 0.0
    if not isinstance(candidate, (str, Path)):
        candidate = _contracted(candidate)
        wanted = _architecture(reference)
        checks = [_keys(shapes(wanted), shapes(candidate))]
        if not checks[0].passed:  # it may not even run; the first difference says it all
            return Verification(tuple(checks), ())
        with step("counting MACs and params"):
            pairs = _pairs(rows(wanted, example), rows(candidate, example))
    else:
        candidate = Path(candidate)
        if form is None or not form.comparable:
            suffixes = " or ".join(row.suffix for row in FORMATS.values() if row.comparable)
            raise UsageError(f"verify: {candidate} is no {suffixes} file; load it first (nbcompile.load)")
        coarsest = max((TOLERANCE.get(x.dtype, 0.0) for x in reference.parameters()), default=0.0)
        reference, example, _ = in_float32(reference, example)
        deployed = deploy(_architecture(reference), example)
        with step("counting MACs and params"):
            lowered = deploy_rows(deployed, example)
            held = ((layer.name, ModuleCost(layer.macs, layer.params)) for layer in form.read_layers(candidate))
            pairs = _pairs(lowered, file_rows(held, lowered))
        checks = []
    checks += _costs(pairs)
    if numbers and quantized:
        allowed = ComparisonOptions(**options)
        checks.append(int8_numbers(reference, Path(str(candidate)), example, [as_inputs(x) for x in inputs], allowed))
    elif numbers:
        checks.append(_numbers(reference, candidate, example, [as_inputs(x) for x in inputs], coarsest))
    return Verification(tuple(checks), tuple(pairs))


def _contracted(candidate: nn.Module) -> nn.Module:
    """The network itself, which must be loaded, and no giant.

    Raises:
        VerificationError: if it is one still.
    """
    candidate = unwrap(candidate)
    require_loaded(candidate, "verify")
    if blocks := sites(candidate):
        raise VerificationError(
            f"verify: the candidate still has {len(blocks)} expansion blocks (the first: '{next(iter(blocks))}'): "
            "fuse it first"
        )
    if widths_of(candidate) is not None:
        raise VerificationError("verify: the candidate is a giant in width: fuse it first")
    return candidate


@step("verifying")
def verify_merged(
    reference: nn.Module, candidate: nn.Module, example_input: ExampleInput | None = None
) -> Verification:
    """Compare a deploy form with the network it was made from: the same outputs, and nothing costs more.

    Args:
        reference: any network without expansion blocks.
        candidate: what ``fuse(reference, scope="all")`` gave.
        example_input: as of :func:`verify`.
    """
    reference = unwrap(reference)
    example = inputs_for(reference, example_input, who="verify")
    with step("counting MACs"):
        before, after = cost(reference, example), cost(candidate, example)
    checks = (
        Check("MACs", after.macs <= before.macs, f"{after.macs:,} merged, {before.macs:,} before", after.macs),
        Check(
            "stored numbers",
            after.stored <= before.stored,
            f"{after.stored:,} merged, {before.stored:,} before",
            after.stored,
        ),
        _numbers(reference, candidate, example, ()),
    )
    return Verification(checks, ())


def _architecture(reference: nn.Module) -> nn.Module:
    """What the candidate is to look like."""
    return original_of(reference) if is_giant(reference) else reference


def _keys(wanted: Mapping[str, tuple[int, ...]], held: Mapping[str, tuple[int, ...]]) -> Check:
    for key, shape in wanted.items():
        if key not in held:
            return Check("keys and shapes", False, f"'{key}' {shape} is missing in the candidate")
        if held[key] != shape:
            return Check("keys and shapes", False, f"'{key}' is {held[key]} in the candidate, {shape} in the original")
    for key in held:
        if key not in wanted:
            return Check("keys and shapes", False, f"the candidate has '{key}', which the original lacks")
    return Check("keys and shapes", True, f"{len(wanted)} tensors, all of the same shape")


def _pairs(wanted: Mapping[str, ModuleCost], held: Mapping[str, ModuleCost]) -> list[LayerPair]:
    return [LayerPair(name, wanted.get(name), held.get(name)) for name in dict.fromkeys((*wanted, *held))]


def _costs(pairs: Sequence[LayerPair]) -> list[Check]:
    checks = [Check("layers", True, f"{len(pairs)} layers, each with the same MACs and params")]
    for pair in pairs:
        if pair.reference != pair.candidate:
            checks = [Check("layers", False, _difference(pair))]
            break
    for name, field in (("MACs", "macs"), ("params", "params")):
        totals = [
            sum(getattr(row, field) for pair in pairs if (row := getattr(pair, side)) is not None)
            for side in ("reference", "candidate")
        ]
        checks.append(
            Check(
                name,
                totals[0] == totals[1],
                f"{totals[1]:,} in the candidate, {totals[0]:,} in the original",
                totals[1],
            )
        )
    return checks


def _difference(pair: LayerPair) -> str:
    name = f"'{pair.name}'" if pair.name else "the model itself"
    if pair.candidate is None:
        return f"{name} is missing in the candidate"
    if pair.reference is None:
        return f"the candidate has a layer {name}, which the original lacks"
    return (
        f"{name} has {pair.candidate.macs:,} MACs and {pair.candidate.params:,} params in the candidate, "
        f"{pair.reference.macs:,} and {pair.reference.params:,} in the original"
    )


def _numbers(
    reference: nn.Module, candidate: nn.Module | Path, example: Inputs, more: Sequence[Inputs], least: float = 0.0
) -> Check:
    """The largest relative error over all inputs; a giant is the reference for the outputs, too.

    ``least`` is allowed in any case.
    """
    reference = working_copy(reference, training=False)
    batch = format_of(candidate).read_batch(candidate) if isinstance(candidate, Path) else None
    cases = drawn_cases(reference, example, more, batch)
    if bad := sum(not is_finite(output) for _, output in cases):  # NaN equals NaN: it would prove nothing
        return Check("numbers", False, f"the reference itself gives NaN or Inf on {bad} of {len(cases)} inputs")
    if why := why_unrepeatable(reference, cases[0][0]):
        return Check("numbers", False, f"the reference {why}: there are no numbers to compare with")
    if not any(x.numel() for _, output in cases for x in flatten(output)):
        return Check("numbers", False, "the reference gives no numbers: there is nothing to compare with")
    try:
        with step("running the candidate"):
            made = _candidate_outputs(candidate, [inputs for inputs, _ in cases])
        with step("comparing them"):
            judgments = _judged(reference, candidate, cases, made, least)
    except PreconditionError as error:
        return Check("numbers", False, str(error))
    worst = min(judgments, key=lambda one: (one.passed, -one.error))
    loosest = max(judgments, key=lambda one: one.limit.error) if worst.passed else worst
    said = [f"largest relative error {worst.error:.2e}{worst.place} on {len(cases)} inputs", loosest.limit.why]
    if all(bool((y == y[:1]).all()) for y in stacked([output for _, output in cases]).values()):
        said.append("the reference gives the same output for all of them, which shows little of its layers")
    return Check("numbers", worst.passed, "; ".join(filter(None, said)), worst.error, loosest.limit.error)


def _candidate_outputs(candidate: nn.Module | Path, calls: Sequence[Inputs]) -> list[Any]:
    """What the candidate gives for the inputs of each call.

    Raises:
        PreconditionError: if it is a module that does not run on them.
        ExportError: if it is a file that does not.
    """
    if isinstance(candidate, Path):
        return format_of(candidate).outputs(candidate, calls)
    running = working_copy(candidate, training=False)
    try:
        return [output_of(running, inputs) for inputs in calls]
    except Exception as error:
        raise PreconditionError(
            f"the candidate does not run on what the reference runs on: {type(error).__name__}: {error}"
        ) from error


def _judged(
    reference: nn.Module, candidate: nn.Module | Path, cases: list[tuple[Inputs, Any]], made: list[Any], least: float
) -> list[Judgment]:
    """Inputs of another size of values by themselves: the wide ones, and each that was given."""
    read = unchanged
    if isinstance(candidate, Path):
        read, least = flatten, max(least, TOLERANCE[torch.float32])  # in which a file computes
    cases = [(inputs, read(output)) for inputs, output in cases]
    plain = len(DRAWS) - 1
    groups = [slice(plain), *(slice(i, i + 1) for i in range(plain, len(cases)))]
    return [judge(reference, cases[group], made[group], least=least, read=read) for group in groups]
