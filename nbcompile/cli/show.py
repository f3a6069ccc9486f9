"""How the commands' results look in a terminal."""

from typing import Any

from rich.console import Console

from nbcompile.cli.show_device import new_table, show_device


def show_expand(found: dict[str, Any], console: Console) -> None:
    """The sites, and what they cost during training."""
    _sites(found["sites"], console)
    _costs({"original": found["original"], "giant": found["giant_cost"]}, console)
    console.print(f"written: {found['giant']}", highlight=False, soft_wrap=True)


def show_fuse(found: dict[str, Any], console: Console, *, explain: bool = False, layers: bool = False) -> None:
    """Costs, checks and files; with ``explain`` what each pass did, with ``layers`` the error of every layer."""
    if explain:
        _passes(found["passes"], console)
    _costs({name: found[name] for name in ("giant", "network", "tiny") if name in found}, console)
    _checks(found["checks"], console)
    for file in found["files"]:
        error = "" if file["error"] is None else f", relative error {file['error']:.1e} against torch"
        console.print(f"written: {file['path']} ({file['bytes']:,} bytes{error})", highlight=False, soft_wrap=True)
        for note in file.get("notes", ()):
            console.print(f"  {note}", highlight=False, soft_wrap=True)
        if "device" in file:
            show_device(file["device"], console, layers=layers)


def show_verify(found: dict[str, Any], console: Console) -> None:
    """One line a check."""
    _checks(found["checks"], console)


def show_train(found: dict[str, Any], console: Console) -> None:
    """Where the run ended."""
    console.print(f"accuracy: {found['accuracy']:.2%} ({found['method']} on {found['data']})", highlight=False)
    for key, what in (
        ("fused_accuracy", "the fused network"),
        ("onnx_accuracy", "tiny.onnx in ONNX Runtime"),
        ("int8_accuracy", "tiny.tflite in LiteRT, int8"),
    ):
        if found.get(key) is not None:
            console.print(f"accuracy of {what}: {found[key]:.2%}", highlight=False)
    for note in found.get("notes", ()):
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    console.print(f"written: {found['output']}, run folder {found['run_dir']}", highlight=False, soft_wrap=True)
    console.print(f"this run cost {found['cost']['in_words']}", highlight=False, soft_wrap=True)
    console.print(found["advice"], highlight=False, soft_wrap=True, markup=False)


def show_inspect(found: dict[str, Any], console: Console) -> None:
    """The layers, the sites or the candidates, and the totals."""
    table = new_table("layer", "kind", "MACs", "params")
    for layer in found["layers"]:
        table.add_row(
            layer["name"] or "(the model itself)", layer["kind"], f"{layer['macs']:,}", f"{layer['params']:,}"
        )
    console.print(table)
    if found.get("sites"):
        _sites(found["sites"], console)
    elif candidates := found.get("candidates"):
        names = candidates.get("names") or []
        what = candidates.get("why") or f"{len(names)} by pattern '{candidates['pattern']}': {', '.join(names)}"
        console.print(f"candidates for expansion: {what}", highlight=False, soft_wrap=True)
    _costs({"total": found["cost"]}, console)


def _passes(passes: list[dict[str, Any]], console: Console) -> None:
    for one in passes:
        skipped = one["skipped"]
        console.print(f"{one['pass']}: {one['rewritten']} rewritten, {len(skipped)} skipped", highlight=False)
        for line in one["how"]:
            console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)
        for skip in skipped:
            console.print(f"  skipped {skip['name']}: {skip['reason']}", highlight=False, soft_wrap=True, markup=False)


def _sites(sites: list[dict[str, Any]], console: Console) -> None:
    table = new_table("site", "pattern", "block", "ratio", "slope", left=3)
    for site in sites:
        block = site["block"] + (", preserved" if site["preserve"] else "")
        table.add_row(site["name"], site["pattern"], block, str(site["ratio"]), f"{site['slope']:.4g}")
    console.print(table)


def _costs(costs: dict[str, Any], console: Console) -> None:
    table = new_table("", "MACs", "FLOPs (2 × MACs)", "params", left=1)
    for name, cost in costs.items():
        if cost is not None:
            table.add_row(name, *(f"{cost[key]:,}" for key in ("macs", "flops", "params")))
    console.print(table)


def _checks(checks: list[dict[str, Any]], console: Console) -> None:
    for check in checks:
        mark = "[green]ok[/]  " if check["passed"] else "[red]FAIL[/]"
        limit = "" if check["limit"] is None else f" (at most {check['limit']:.0e})"
        console.print(f"{mark} {check['name']}: {check['detail']}{limit}", highlight=False, soft_wrap=True)
