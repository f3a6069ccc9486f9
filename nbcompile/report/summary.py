"""What the page says first: the result in a few plain sentences, from the report's own numbers and nothing else."""

from collections.abc import Iterator
from pathlib import PurePath

from nbcompile.report.data import ModelRow, Page, TrainingRun
from nbcompile.results.device import Device, first_out_of_band, verdict
from nbcompile.results.numbers import bytes_in_unit, count, exact, known, percent, small


def summary(report: Page) -> tuple[str, ...]:
    """One sentence per thing that is known; nothing is said about what is not."""
    return (*_cost(report), *_accuracy(report), *_error(report), *_checks(report), *_devices(report), *_files(report))


def _cost(report: Page) -> Iterator[str]:
    original, giant, tiny = (_model(report, name) for name in ("original", "giant", "tiny"))
    if tiny is None or tiny.macs is None or tiny.params is None:
        return
    cost = f"The tiny network needs {count(tiny.macs)} MACs and has {count(tiny.params)} parameters"
    if original is None or original.macs is None or original.params is None:
        yield f"{cost}."
    elif (original.macs, original.params) == (tiny.macs, tiny.params):
        yield f"{cost}, exactly as many as the original: the expansion costs nothing on the device."
    else:
        yield f"{cost}; the original {count(original.macs)} and {count(original.params)}."
    if giant is not None and giant.macs and tiny.macs:
        sites = len(report.sites)
        where = f" with {sites} expanded layer{'s' if sites > 1 else ''}" if sites else ""
        ratio = f"{giant.macs / tiny.macs:.2f}"
        yield f"It was fused from a giant{where}: {count(giant.macs)} MACs, {ratio} times as many."


def _accuracy(report: Page) -> Iterator[str]:
    tiny, original = _model(report, "tiny"), _model(report, "original")
    reached = None if tiny is None else tiny.accuracy
    baseline = None if original is None else original.accuracy
    if known(reached) and known(baseline):
        yield _compared("The tiny network", reached, "the original, trained by itself,", baseline)
    elif known(reached):
        yield f"The tiny network is right on {percent(reached)} of the validation set."
    else:
        for run in report.runs:
            final = _final_accuracy(run)
            if known(final):
                yield f"After its last epoch, {run.label} is right on {percent(final)} of the validation set."


def _compared(who: str, reached: float, other: str, baseline: float) -> str:
    points = 100 * (reached - baseline)
    verdict = "as good" if points == 0 else f"{abs(points):.2f} points {'better' if points > 0 else 'worse'}"
    return f"{who} is right on {percent(reached)} of the validation set, {other} on {percent(baseline)}: {verdict}."


def _final_accuracy(run: TrainingRun) -> float | None:
    return run.history[-1].get("val_accuracy") if run.history else None


def _error(report: Page) -> Iterator[str]:
    measured = [(row.error, row) for row in report.layers if known(row.error)]
    if not measured:
        return
    error, row = max(measured, key=lambda pair: pair[0])
    if error == 0:
        yield "Every layer gives exactly the giant's output."
    else:
        place = row.measured_at or row.name
        yield f"No layer's output differs from the giant's by more than {small(error)} of its largest ({place})."


def _checks(report: Page) -> Iterator[str]:
    failed = [check.name for check in report.checks if not check.passed]
    total = len(report.checks)
    if failed:
        yield f"{len(failed)} of {total} checks failed: {', '.join(failed)}."
    elif total:
        yield "The one check passed." if total == 1 else f"All {total} checks passed."


def _devices(report: Page) -> Iterator[str]:
    for device in report.devices:
        yield from _device(device)


def _device(device: Device) -> Iterator[str]:
    ran = [row for row in device.interpreters if known(row.sqnr)]
    if ran:
        worst = min(ran, key=lambda row: row.sqnr or 0.0)
        where = f"in {worst.name}" + (", the worst of its interpreters" if len(ran) > 1 else "")
        yield f"{device.file} gives torch's outputs with an SQNR of {worst.measured} {where}."
    budgets = [("flash", device.bytes, device.flash_budget), ("arena", device.arena_total, device.arena_budget)]
    needs = [(name, value, verdict(value, budget)[1]) for name, value, budget in budgets if known(value)]
    if needs:
        said = [f"{exact(value)} of {name}{f' ({words})' if words else ''}" for name, value, words in needs]
        yield f"{device.file} needs {' and '.join(said)}."
    if first := first_out_of_band(device.layers):
        yield f"{first.name} is the first layer of {device.file} with a larger error than expected."


def _files(report: Page) -> Iterator[str]:
    written = [
        PurePath(file.path).name + (f" ({bytes_in_unit(file.bytes)})" if known(file.bytes) else "")
        for file in report.files
    ]
    if written:
        yield f"Written: {', '.join(written)}."


def _model(report: Page, name: str) -> ModelRow | None:
    return next((row for row in report.models if row.name == name), None)
