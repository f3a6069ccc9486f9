"""What ``nbcompile fuse`` does."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from nbcompile.cli.run.rows import cost_json, groups_json, sites_json
from nbcompile.core.blocks import sites
from nbcompile.core.cost import cost
from nbcompile.core.errors import UsageError
from nbcompile.core.example import origin_of, random_inputs
from nbcompile.core.files import check_outputs, check_target, require_own_files
from nbcompile.core.input_files import require_written
from nbcompile.core.options import flag_of
from nbcompile.deploy.export import check_options, export
from nbcompile.deploy.options import DeviceOptions
from nbcompile.deploy.to_onnx_file import INT8_OPTIONS, int8_options
from nbcompile.exporters import FORMATS, ONNX, Format, format_of
from nbcompile.exporters.base import ExportResult, require_batch
from nbcompile.fusion import fused
from nbcompile.open_network import check_words, is_file, open_network, why_untrained
from nbcompile.passes import PassResult
from nbcompile.results.layer_costs import original_of
from nbcompile.verification import Verification, verify, verify_merged
from nbcompile.wide.giants import giant_cost, is_giant

if TYPE_CHECKING:
    from nbcompile.report import data

log = logging.getLogger("nbcompile")


def run_fuse(
    source: str,
    outputs: Sequence[Path],
    *,
    model: str | None,
    key: str | None,
    input_shape: str | None,
    force: bool,
    verify_each: bool,
    report: Path | None,
    command: str,
    device: Mapping[str, Any],
    batch: int | None = None,
    json: Path | None = None,
    shown: Sequence[str] = (),
) -> dict[str, Any]:
    """``nbcompile fuse``: a trained file, or a MODEL, becomes deploy files, each checked before it gets its name.

    ``device`` holds options of the pipeline that makes files for a device, `nbcompile.deploy.to_device.export_tflite`;
    ``batch`` is the one batch size of files that otherwise take any; ``json`` is another file that will be written;
    ``shown`` names what is to be shown of files for a device. All this is checked before anything is read or loaded.
    """
    forms = {path: format_of(path) for path in outputs}
    options = _options(forms, device, batch)
    for word in shown:
        _require_output(word, forms, [form for form in FORMATS.values() if form.verifier])
    beside, folders = _beside(source, forms, device)
    named = [*outputs, *beside, *(path for path in (report, json) if path is not None)]
    check_outputs(named, [source])
    for folder in folders:
        check_target(folder, folder=True)
    require_own_files([*named, *folders])
    check_words(source, model=model, key=key, input_shape=input_shape)
    for path, form in forms.items():
        check_options(form, options[path])  # imports what writes the file
    trained = open_network(source, model=model, key=key, input_shape=input_shape)
    if why := why_untrained(source, trained):
        log.warning("'%s' %s: this exports an untrained network", source, why)
    _require_ranges(trained, forms, device)
    tiny, reports = fused(trained, force=force, verify_each=verify_each)
    forced = force and not all(block.linear for block in sites(trained).values())
    giant = is_giant(trained)
    checked = verify(trained, tiny) if giant else verify_merged(trained, tiny)
    checked.raise_on_failure(tolerated=("numbers",) if forced else ())
    if not giant:
        _warn_of_keys(outputs)
    results = [export(tiny, path, **options[path]) for path in outputs]
    found = {
        "source": source,
        "sites": sites_json(trained),
        "groups": groups_json(trained),
        "giant" if giant else "network": cost_json(giant_cost(trained)),
        "tiny": cost_json(cost(tiny)),
        "passes": [_explained(report.piece, name, result) for report in reports for name, result in report.passes],
        "checks": [asdict(check) for check in checked.checks],
        "files": [_file(result) for result in results],
    }
    _require_own(results)
    if report is not None:
        _write_report(report, command, trained, tiny, checked, results)
    return found


def _require_own(results: Sequence[ExportResult]) -> None:
    """Check that the files are still those that were written: what is told of them is to be of them.

    Raises:
        ExportError: if another run has written one meanwhile.
    """
    for result in results:
        if result.sha256:  # others' formats may say none
            require_written(result.path, result.sha256)


def _options(forms: Mapping[Path, Format], device: Mapping[str, Any], batch: int | None) -> dict[Path, dict[str, Any]]:
    """What each file takes.

    Raises:
        UsageError: if no output takes an option, or a value is wrong.
    """
    devices = [form for form in FORMATS.values() if form.verifier]
    options = {path: dict(device) if form in devices else {} for path, form in forms.items()}
    onnx = [path for path, form in forms.items() if form is ONNX]
    alone = not any(form in devices for form in forms.values())
    if onnx and "quantize" in device and (alone or device["quantize"] == "int8"):
        taken = {name: value for name, value in device.items() if name in ("quantize", *INT8_OPTIONS)}
        options |= {path: dict(taken) for path in onnx}
        implied = ("dense_per_channel",) if device.get("per_channel") is False else ()
        device = {name: value for name, value in device.items() if name not in (*taken, *implied)}
    if onnx and alone and any(name in INT8_OPTIONS for name in device):
        name = flag_of(DeviceOptions, next(name for name in device if name in INT8_OPTIONS))
        raise UsageError(f"{name} goes with a .tflite output, or with --quantize int8 of .onnx")
    if device:
        _require_output(next(iter(device)), forms, devices)
    for path in onnx:
        int8_options(
            options[path].get("quantize", "float32"), {k: x for k, x in options[path].items() if k != "quantize"}
        )
    if batch is not None:
        _require_output("batch", forms, [form for form in FORMATS.values() if form.any_batch])
        require_batch(batch)
        for path, form in forms.items():
            options[path] |= {"batch": batch} if form.any_batch else {}
    return options


def _beside(source: str, forms: Mapping[Path, Format], device: Mapping[str, Any]) -> tuple[list[Path], list[Path]]:
    """The files and folders that are written beside the files for devices, if their options are right.

    Raises:
        UsageError: if they are not.
    """
    paths = [path for path, form in forms.items() if form.verifier]
    if not paths:
        return [], []
    wanted = DeviceOptions(**device)
    wanted.require_ranges(learned=is_file(source))  # a file may have recorded ranges
    files = [one for path in paths for one in wanted.beside(path)]
    return files, [folder for path in paths if (folder := wanted.folder(path))]


def _require_ranges(trained: nn.Module, forms: Mapping[Path, Format], device: Mapping[str, Any]) -> None:
    """Check that what was read has recorded ranges, if the files for devices need them; before it is fused."""
    if any(form.verifier for form in forms.values()):
        origin = origin_of(trained)
        DeviceOptions(**device).require_ranges(learned=origin is not None and bool(origin.int8))


def _require_output(option: str, forms: Mapping[Path, Format], takes: Sequence[Format]) -> None:
    """Check that an output is in one of the formats that take ``option``."""
    if not any(form in takes for form in forms.values()):
        suffixes = " or ".join(form.suffix for form in takes)
        raise UsageError(f"{flag_of(DeviceOptions, option)} goes with a {suffixes} output, and there is none")


def _explained(piece: str, name: str, result: PassResult) -> dict[str, Any]:
    """What a pass did, in names of the whole network."""
    prefix = f"{piece}." if piece else ""
    how = result.how or (", ".join(result.rewritten),)
    skipped = [{"name": prefix + skip.name, "reason": skip.reason} for skip in result.skipped]
    return {"pass": name, "rewritten": len(result.rewritten), "how": [prefix + x for x in how if x], "skipped": skipped}


def _file(result: ExportResult) -> dict[str, Any]:
    """A written file, with what a device needs of it."""
    from nbcompile.results.exported import device_of
    from nbcompile.results.numbers import json_ready

    device = device_of(result)
    row: dict[str, Any] = json_ready(result.to_json())
    return row if device is None else row | {"device": json_ready(asdict(device))}


def _warn_of_keys(outputs: Sequence[Path]) -> None:
    for path in outputs:
        if not format_of(path).graph:
            log.warning(
                "%s holds the merged layers' weights: its keys are those of nbcompile.fuse(model), not the model's",
                path,
            )


def file_check(result: ExportResult) -> "data.CheckRow":
    """The report's row of a file that was compared with PyTorch."""
    from nbcompile.report import data

    return data.CheckRow(
        name=f"{result.path.name} against torch",
        passed=result.error <= result.tolerance,
        measured=result.error,
        limit=result.tolerance,
    )


def _write_report(
    path: Path, command: str, trained: nn.Module, tiny: nn.Module, checked: Verification, results: Sequence[Any]
) -> None:
    from nbcompile.report import data
    from nbcompile.report.collect import report_on
    from nbcompile.report.html import write
    from nbcompile.results.exported import device_of

    origin = origin_of(trained)
    if origin is None:
        raise UsageError(f"--report {path} needs the shape of the input: --input 1x3x96x96")
    giant = trained if is_giant(trained) else None
    inputs = random_inputs(origin.inputs, batch=2)
    page = report_on(
        "A fused network",
        command,
        tiny,
        inputs,
        giant=giant,
        original=original_of(trained) if giant is not None else None,
    )
    checks = [
        data.CheckRow(name=c.name, passed=c.passed, measured=c.detail if c.limit is None else c.value, limit=c.limit)
        for c in checked.checks
    ]
    checks += [file_check(result) for result in results]
    files = [data.FileRow(path=str(r.path), what=r.format, bytes=r.bytes) for r in results]
    devices = tuple(device for r in results if (device := device_of(r)) is not None)
    write(replace(page, checks=tuple(checks), files=tuple(files), devices=devices), path)
