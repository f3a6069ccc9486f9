"""How the commands' results look in a terminal."""

from typing import Any

from rich.console import Console

from nbcompile.cli.show_device import show_device
from nbcompile.cli.terminal import add_row, new_table, say


def show_expand(found: dict[str, Any], console: Console) -> None:
    """The sites, and what they cost during training."""
    _sites(found["sites"], console)
    _costs({"original": found["original"], "giant": found["giant_cost"]}, console)
    say(console, f"written: {found['giant']}")


def show_widen(found: dict[str, Any], console: Console, *, explain: bool = False) -> None:
    """The groups of channels, and what the widest costs; with ``explain`` why the others keep their number."""
    _groups(found["groups"], console, explain=explain)
    _costs({"original": found["original"], "giant, widest": found["giant_cost"]}, console)
    say(console, f"written: {found['giant']}")


def show_fuse(
    found: dict[str, Any], console: Console, *, explain: bool = False, layers: bool = False, memory_plan: bool = False
) -> None:
    """Costs, checks and files; with ``explain`` what each pass did; of devices ``layers`` and ways to use memory."""
    if explain:
        _passes(found["passes"], console)
    _costs({name: found[name] for name in ("giant", "network", "tiny") if name in found}, console)
    _checks(found["checks"], console)
    for file in found["files"]:
        error = "" if file["error"] is None else f", relative error {file['error']:.1e} against torch"
        say(console, f"written: {file['path']} ({file['bytes']:,} bytes{error})")
        for note in file.get("notes", ()):
            say(console, f"  {note}")
        if "device" in file:
            show_device(file["device"], console, layers=layers, memory_plan=memory_plan)


def show_verify(found: dict[str, Any], console: Console) -> None:
    """One line a check, and what was not compared."""
    _checks(found["checks"], console)
    names = {check["name"] for check in found["checks"]}
    if not any(name.startswith("numbers") for name in names) and "input sizes" not in names and len(names) > 1:
        say(console, "     numbers: not compared, for want of weights: --against a trained file or a pretrained MODEL")


def show_train(found: dict[str, Any], console: Console) -> None:
    """Where the run ended."""
    metric = found.get("metric", "accuracy")
    say(console, f"{metric}: {found['accuracy']:.2%} ({found['method']} on {found['data']})")
    for key, what in (
        ("fused_accuracy", "the fused network"),
        ("simulated_accuracy", "the network with the rounding of its int8 file"),
        ("onnx_accuracy", "tiny.onnx in ONNX Runtime"),
        ("int8_accuracy", "tiny.tflite in LiteRT, int8"),
    ):
        if found.get(key) is not None:
            say(console, f"{metric} of {what}: {found[key]:.2%}")
    for note in found.get("notes", ()):
        say(console, note)
    say(console, f"written: {found['output']}, run folder {found['run_dir']}")
    say(console, f"this run cost {found['cost']['in_words']}")
    if found["teacher_cost"] is not None:
        say(console, f"its teacher's own training cost {found['teacher_cost']:.3g} MACs, which are not in that")
    if stored := found["stored_labels"]:
        share = f"runs that share them: {stored['runs']}"
        say(console, f"stored labels: {stored['views']} views, {stored['macs']:.3g} MACs, {share}")
    say(console, found["advice"])


def show_inspect(found: dict[str, Any], console: Console) -> None:
    """The layers, the sites or the candidates, and the totals."""
    table = new_table("layer", "kind", "MACs", "params")
    for layer in found["layers"]:
        name = layer["name"] or "(the model itself)"
        add_row(table, name, layer["kind"], f"{layer['macs']:,}", f"{layer['params']:,}")
    console.print(table)
    if found.get("sites"):
        _sites(found["sites"], console)
    if found.get("groups"):
        _groups(found["groups"], console, explain=True)
    if candidates := found.get("candidates"):
        names = candidates.get("names") or []
        what = candidates.get("why") or f"{len(names)} by pattern '{candidates['pattern']}': {', '.join(names)}"
        say(console, f"candidates for expansion: {what}")
    _costs({"total": found["cost"], "giant, widest": found.get("giant_cost")}, console)


def _passes(passes: list[dict[str, Any]], console: Console) -> None:
    for one in passes:
        skipped = one["skipped"]
        say(console, f"{one['pass']}: {one['rewritten']} rewritten, {len(skipped)} skipped")
        for line in one["how"]:
            say(console, f"  {line}")
        for skip in skipped:
            say(console, f"  skipped {skip['name']}: {skip['reason']}")


def _sites(sites: list[dict[str, Any]], console: Console) -> None:
    table = new_table("site", "pattern", "block", "ratio", "slope", left=3)
    for site in sites:
        block = site["block"] + (", preserved" if site["preserve"] else "")
        add_row(table, site["name"], site["pattern"], block, str(site["ratio"]), f"{site['slope']:.4g}")
    console.print(table)


def _groups(groups: list[dict[str, Any]], console: Console, *, explain: bool) -> None:
    """Those that grow, and a line for those that do not; with ``explain`` a line for each of these."""
    table = new_table("group of channels", "channels", "of", "factors", left=1)
    for group in groups:
        if group["frozen"] is None:
            factors = ", ".join(f"{factor:g}" for factor in group["factors"])
            add_row(table, group["name"], str(group["channels"]), "one block" if group["inner"] else "several", factors)
    console.print(table)
    kept = [group for group in groups if group["frozen"] is not None]
    if explain:
        for group in kept:
            say(console, f"{group['name']} keeps its {group['channels']} channels: {group['frozen']}")
    elif kept:
        say(console, f"{len(kept)} groups keep their number of channels; --explain says why")


def _costs(costs: dict[str, Any], console: Console) -> None:
    table = new_table("", "MACs", "FLOPs (2 × MACs)", "params", left=1)
    for name, cost in costs.items():
        if cost is not None:
            add_row(table, name, *(f"{cost[key]:,}" for key in ("macs", "flops", "params")))
    console.print(table)


def _checks(checks: list[dict[str, Any]], console: Console) -> None:
    for check in checks:
        mark = ("ok  ", "green") if check["passed"] else ("FAIL", "red")
        limit = "" if check["limit"] is None else f" (at most {check['limit']:.0e})"
        say(console, f" {check['name']}: {check['detail']}{limit}", *mark)
