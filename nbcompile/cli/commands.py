"""What the commands do, without parsing and printing: each returns what it found, JSON-able."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from nbcompile.checkpoint import check_output, load, save
from nbcompile.core.blocks import sites
from nbcompile.core.cost import cost
from nbcompile.core.errors import CaptureError, CheckpointError, PreconditionError, UsageError, VerificationError
from nbcompile.core.example import origin_of, random_inputs
from nbcompile.core.files import check_target
from nbcompile.core.serialization.weight_files import EXTRA, choose, find, read_weights
from nbcompile.deploy.export import check_options, export
from nbcompile.expansion import candidates, expand
from nbcompile.exporters import FORMATS, format_of, known_format
from nbcompile.exporters.base import ExportResult
from nbcompile.fusion import fused
from nbcompile.layer_costs import holding, original_of
from nbcompile.models import build
from nbcompile.open_network import is_file, open_network
from nbcompile.passes import PassResult
from nbcompile.verification import Check, Verification, verify, verify_merged

log = logging.getLogger("nbcompile")


def run_expand(
    spec: str,
    output: Path,
    *,
    where: str,
    block: str,
    ratio: int,
    preserve: bool,
    verify_each: bool,
    weights: Path | None,
    input_shape: str | None,
) -> dict[str, Any]:
    """``nbcompile expand``: a MODEL becomes ``giant.pt``."""
    check_output(output)
    if verify_each and not preserve:
        raise UsageError("--verify-each of expand needs --preserve: without it the giant is another function")
    model = build(spec, input_shape).model
    if weights is not None:
        model = load(weights, model=model).train()
    original = cost(model)
    giant = expand(model, where=where, block=block, ratio=ratio, preserve=preserve, verify_each=verify_each)
    if weights is not None and not preserve:
        names = list(sites(giant))
        log.warning(
            "the trained weights of %d expanded layers are discarded (the first: '%s'); --preserve keeps them",
            len(names),
            names[0],
        )
    save(giant, output)
    return {
        "giant": str(output),
        "sites": _sites(giant),
        "original": _totals(original),
        "giant_cost": _totals(cost(giant)),
    }


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
) -> dict[str, Any]:
    """``nbcompile fuse``: a trained file, or a MODEL, becomes deploy files, each checked before it gets its name.

    ``device`` holds options of the pipeline that makes files for a device, `nbcompile.deploy.to_device.export_tflite`.
    """
    forms = {path: format_of(path) for path in outputs}
    options = {path: device if form.pipeline else {} for path, form in forms.items()}
    if device and not any(options.values()):
        devices = " or ".join(form.suffix for form in FORMATS.values() if form.pipeline)
        raise UsageError(f"--{next(iter(device)).replace('_', '-')} goes with a {devices} output, and there is none")
    for path, form in forms.items():
        check_options(form, options[path])
    for path in (*outputs, *([report] if report else [])):
        check_target(path)
    trained = open_network(source, model=model, key=key, input_shape=input_shape)
    if not is_file(source):
        log.warning("'%s' is built without weights: this exports an untrained network", source)
    tiny, reports = fused(trained, force=force, verify_each=verify_each)
    forced = force and not all(block.linear for block in sites(trained).values())
    checked = verify(trained, tiny) if sites(trained) else verify_merged(trained, tiny)
    checked.raise_on_failure(tolerated=("numbers",) if forced else ())
    if not sites(trained):
        _warn_of_keys(outputs)
    results = [export(tiny, path, **options[path]) for path in outputs]
    found = {
        "source": source,
        "sites": _sites(trained),
        "giant" if sites(trained) else "network": _totals(cost(trained)),
        "tiny": _totals(cost(tiny)),
        "passes": [_explained(report.piece, name, result) for report in reports for name, result in report.passes],
        "checks": [asdict(check) for check in checked.checks],
        "files": [_file(result) for result in results],
    }
    if report is not None:
        _write_report(report, command, trained, tiny, checked, results)
    return found


def run_verify(
    candidate: str, against: str, *, model: str | None, key: str | None, input_shape: str | None
) -> Verification:
    """``nbcompile verify``: structure and cost against a MODEL, and numbers too against a file."""
    path = Path(candidate)
    forms = known_format(path), known_format(against)
    for form in forms:
        if form is not None and form.graph and not form.comparable:
            *most, last = (row.suffix for row in FORMATS.values() if row.comparable or not row.graph)
            raise UsageError(
                f"verify compares {', '.join(most)} and {last} files: a {form.suffix} file is compared when it is "
                "written, and nbcompile inspect shows its layers; verify the .onnx or .pt of the same network"
            )
    from_file = is_file(against)
    if (form := forms[0]) is not None and form.graph:
        if not path.is_file():
            raise CheckpointError(f"{path} cannot be read: there is no such file")
        shape = input_shape or ",".join("x".join(map(str, size)) for size in form.read_input_sizes(path))
        reference = open_network(against, model=model, key=key, input_shape=None if "," in shape else shape)
        if input_shape is not None or _runs(reference):
            return verify(reference, path, numbers=from_file)
        return _verify_at_own_size(path, shape, against, model, key)
    reference = open_network(against, model=model, key=key, input_shape=input_shape)
    if not is_file(candidate):
        return verify(reference, build(candidate, input_shape).model, numbers=False)
    return verify(reference, _filled(reference, path), numbers=from_file)


def run_inspect(source: str, *, model: str | None, key: str | None, input_shape: str | None) -> dict[str, Any]:
    """``nbcompile inspect``: layers, sites, slopes, candidates, MACs and params."""
    path = Path(source)
    form = known_format(path)
    if form is not None and form.layers is not None:
        layers = [asdict(layer) for layer in form.read_layers(path)]
        totals = {name: sum(layer[name] for layer in layers) for name in ("macs", "params")}
        return {"source": source, "cost": totals | {"flops": 2 * totals["macs"]}, "layers": layers}
    network = open_network(source, model=model, key=key, input_shape=input_shape)
    found = cost(network)
    origin = origin_of(network)
    return {
        "source": source,
        "class": type(network).__name__,
        "inputs": [list(spec.shape) for spec in origin.inputs] if origin else [],
        "cost": _totals(found),
        "sites": _sites(network),
        "candidates": _candidates(network),
        "layers": [asdict(layer) for layer in found.layers],
    }


def _runs(network: nn.Module) -> bool:
    """Whether it runs on the input that it remembers."""
    try:
        cost(network)
    except UsageError:
        return False
    return True


def _verify_at_own_size(path: Path, shape: str, against: str, model: str | None, key: str | None) -> Verification:
    """The layers of an original that does not run on the file's input, at its own size: the first to differ has a name.

    Args:
        path: a file that holds a graph.
        shape: of its input.
        against: the original.
        model: as for :func:`open_network`.
        key: as for :func:`open_network`.
    """
    misfit = Check("input sizes", False, f"{against} does not run on {shape}, the input of {path}")
    try:
        reference = open_network(against, model=model, key=key, input_shape=None)
    except UsageError:  # it could be opened with a size: a factory, which has none of its own
        return Verification((misfit,), ())
    found = verify(reference, path, numbers=False)
    return replace(found, checks=(*found.checks, misfit))


def _filled(reference: nn.Module, path: Path) -> nn.Module:
    """The reference's architecture with the weights in ``path``; where they do not fit, as empty as they are."""
    weights, _ = choose(find(read_weights(path), path), None, path, reference.state_dict())
    blocks = [name for name in weights.tensors if name.endswith(EXTRA)]
    if blocks:
        raise VerificationError(
            f"{path} still has {len(blocks)} expansion blocks (the first: '{blocks[0].removesuffix('.' + EXTRA)}'): "
            "fuse it first"
        )
    return holding(original_of(reference), weights.tensors)


def _explained(piece: str, name: str, result: PassResult) -> dict[str, Any]:
    """What a pass did, in names of the whole network."""
    prefix = f"{piece}." if piece else ""
    how = result.how or (", ".join(result.rewritten),)
    skipped = [{"name": prefix + skip.name, "reason": skip.reason} for skip in result.skipped]
    return {"pass": name, "rewritten": len(result.rewritten), "how": [prefix + x for x in how if x], "skipped": skipped}


def _file(result: ExportResult) -> dict[str, Any]:
    """A written file, with what a device needs of it."""
    from nbcompile.results.device import device_of
    from nbcompile.results.numbers import json_ready

    device = device_of(result)
    found: dict[str, Any] = json_ready(result.to_json())
    return found if device is None else found | {"device": json_ready(asdict(device))}


def _warn_of_keys(outputs: Sequence[Path]) -> None:
    for path in outputs:
        if not format_of(path).graph:
            log.warning(
                "%s holds the merged layers' weights: its keys are those of nbcompile.fuse(model), not the model's",
                path,
            )


def _sites(network: nn.Module) -> list[dict[str, Any]]:
    return [
        {"name": name, "slope": float(block.slope), "step": [int(v) for v in block.ramp], **block.spec.to_json()}
        for name, block in sites(network).items()
    ]


def _candidates(network: nn.Module) -> dict[str, Any] | None:
    if sites(network):
        return None
    try:
        pattern, names = candidates(network)
    except (CaptureError, PreconditionError, UsageError) as error:
        return {"pattern": None, "why": str(error)}
    return {"pattern": pattern or None, "names": list(names)}


def _totals(found: Any) -> dict[str, int]:
    names = ("macs", "flops", "params", "norm_params", "bias_params", "norm_elements", "unread_params")
    return {name: getattr(found, name) for name in names}


def _write_report(
    path: Path, command: str, trained: nn.Module, tiny: nn.Module, checked: Verification, results: Sequence[Any]
) -> None:
    from nbcompile.report import data
    from nbcompile.report.collect import report_on
    from nbcompile.report.html import write
    from nbcompile.results.device import device_of

    origin = origin_of(trained)
    if origin is None:
        raise UsageError(f"--report {path} needs the shape of the input: --input 1x3x96x96")
    giant = trained if sites(trained) else None
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
    checks += [
        data.CheckRow(name=f"{r.path.name} against torch", passed=True, measured=r.error, limit=r.tolerance)
        for r in results
    ]
    files = [data.FileRow(path=str(r.path), what=r.format, bytes=r.bytes) for r in results]
    devices = tuple(device for r in results if (device := device_of(r)) is not None)
    write(replace(page, checks=tuple(checks), files=tuple(files), devices=devices), path)
