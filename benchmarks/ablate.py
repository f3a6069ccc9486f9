"""Does it make tiny networks better? NetBooster's forms and switches against vanilla runs of the same budget.

A study (``--studies``; see ``_studies.py``) trains one network by several settings and seeds, and each setting stands
beside two vanilla runs of the same seed: one of the same epochs and the same learning-rate schedule, restarts included;
one of the same training compute (MACs × images; a foreign teacher's answers count, its own training does not) or up to
a quarter of a run more, on a schedule stretched likewise. Seeds are paired: the same initial weights, batches and
augmentation where networks are the same.

Printed as the paper prints it: the giant's accuracy at the end of its phase (``expanded``), and that of the fused
network at the end of the run (``final``). Differences are means over the seeds of paired differences, in points of
accuracy on the held-out images, ± one standard error; only beyond two of them is a difference a finding.

Every run is a folder of ``--runs``, by what it was told. Runs that are done are not repeated, killed ones go on, and
``--jobs`` processes share them; one vanilla run serves all studies.
"""

import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _common import difference, parser, text, write
from _runs import Run, Triple, by_seed, carried_out, compute, controls
from _studies import NETWORKS, RECIPE, STUDIES, Options, Setting
from _suite_table import run_suite
from _suites import SUITES
from rich.console import Console
from rich.table import Table

import nbcompile

SEED = 0
TEACHER_SEED = 100


def main() -> None:
    made = parser("ablate", __doc__.partition("\n")[0])
    made.add_argument("--data", required=True, help="as of nbcompile train; colour images of 32 pixels, ten classes")
    made.add_argument("--studies", nargs="+", default=["forms"], choices=list(STUDIES))
    made.add_argument("--settings", nargs="+", help="only these of the studies, or rows of the suite, by name")
    made.add_argument("--network", default="17k", choices=list(NETWORKS))
    made.add_argument("--epochs", type=int, default=50)
    made.add_argument("--images", type=int, help="train on so many")
    made.add_argument("--seeds", type=int, default=8)
    made.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    made.add_argument("--teacher", default="60k", choices=list(NETWORKS), help="trained likewise, plainly, for table 2")
    made.add_argument("--no-compute", action="store_true", help="no vanilla runs of equal compute beside the others")
    made.add_argument("--compile", action="store_true", help="the networks that expand, which takes a C++ compiler")
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    made.add_argument("--suite", choices=list(SUITES), help="a whole table, in place of studies; see _suites.py")
    made.add_argument("--networks", nargs="+", help="with --suite: only these of its networks")
    made.add_argument("--at", type=int, help="with --suite: rows of so many epochs, wherever a network is at its limit")
    made.add_argument("--plan", action="store_true", help="with --suite: print hours per row and what is done already")
    made.add_argument("--minutes", type=float, help="with --suite: of this sitting; another one goes on")
    made.add_argument("--accelerator", default="cpu", help="with --suite: as of nbcompile train; cuda shares one GPU")
    args = made.parse_args()
    rows = SUITES[args.suite].rows if args.suite else [setting for study in args.studies for setting in STUDIES[study]]
    known = {row.name for row in rows}
    if unknown := set(args.settings or ()) - known:
        made.error(f"no setting of these is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if args.suite:
        run_suite(args)
        return
    if args.quick:
        args.epochs, args.seeds, args.images = 5, 2, 600
    teacher = teacher_run(args) if any(s.taught for study in args.studies for s in STUDIES[study]) else None
    carried_out([teacher] if teacher else [], 1)
    cells = {study: list(planned(args, STUDIES[study])) for study in args.studies}
    carried_out(
        by_seed([run for rows in cells.values() for _, triples in rows for triple in triples for run in triple if run]),
        args.jobs,
    )
    tables = {study: [row(setting, triples) for setting, triples in rows] for study, rows in cells.items()}
    for rows in tables.values():
        for one in rows[1:]:
            one["over_first"] = difference(one["finals"], rows[0]["finals"])
    for study, rows in tables.items():
        show(study, rows, args)
    units = {
        "expanded, final, vanilla": "accuracy on the held-out images, %: mean and standard deviation over seeds",
        "over_same, over_compute": "paired difference of final from vanilla, points: mean and standard error",
        "over_first": "likewise from the study's first setting",
        "compute": "of a run, in epochs of the vanilla network",
        "epochs_compute": "epochs of the vanilla run of at least that compute",
    }
    found = {"network": cost_of(args.network), "recipe": RECIPE, "studies": tables}
    if teacher:
        found["teacher"] = cost_of(args.teacher) | {"accuracy": 100 * _found(teacher)["final"]}
    write(args, SEED, units, found)


def told(args: Any) -> Options:
    """What all runs are told."""
    return {
        "data": args.data, "train_images": args.images, "epochs": args.epochs, **RECIPE, "accelerator": "cpu",
        "channels_last": True,
    }  # fmt: skip


def teacher_run(args: Any) -> Run:
    """The plain run of the foreign teacher, which all seeds have in common."""
    return Run.of(args.teacher, {**told(args), "method": "vanilla", "seed": TEACHER_SEED}, args.runs)


def planned(args: Any, settings: Sequence[Setting]) -> Iterator[tuple[Setting, list[Triple]]]:
    """The runs of a study: by setting and seed the run itself and its controls."""
    shared = {**told(args), "compile": args.compile}
    run, teacher = partial(Run.of, args.network, root=args.runs), teacher_run(args)
    for setting in settings:
        if args.settings and setting.name not in args.settings:
            continue
        options = {"method": "netbooster", **shared, **setting.options(args.epochs)}
        if setting.taught:
            options["teacher"] = str(teacher.folder / "trained.pt")
        same, more = controls(args.network, options)
        triples = []
        for seed in range(args.seeds):
            mine, paired, longer = (run({**told, "seed": seed}) for told in (options, same, more))
            triples.append((mine, paired, None if args.no_compute else longer))
        yield setting, triples


def row(setting: Setting, triples: Sequence[Triple]) -> dict[str, Any]:
    """What a setting came to, over its seeds."""
    mine = [_found(run) for run, _, _ in triples]
    same = [_found(run)["final"] for _, run, _ in triples]
    more = [_found(run)["final"] for _, _, run in triples if run]
    final = [one["final"] for one in mine]
    longer = triples[0][2]
    return {
        "setting": setting.name,
        "seeds": len(triples),
        "expanded": _spread([one["expanded"] for one in mine if one["expanded"] is not None]),
        "final": _spread(final),
        "vanilla": _spread(same),
        "vanilla_compute": _spread(more),
        "compute": compute(triples[0][0].network, triples[0][0].config),
        "epochs_compute": longer.config.epochs if longer else None,
        "over_same": difference(final, same),
        "over_compute": difference(final, more) if longer else None,
        "finals": final,
        "seconds": sum(one["seconds"] for one in mine),
    }


def _found(run: Run) -> dict[str, Any]:
    found = run.found()
    assert found is not None, f"{run.folder} is not done"
    return found


def _spread(values: Sequence[float]) -> dict[str, float | None] | None:
    if not values:
        return None
    return {"mean": 100 * statistics.mean(values), "std": 100 * statistics.stdev(values) if len(values) > 1 else None}


def show(study: str, rows: Sequence[dict[str, Any]], args: Any) -> None:
    """Print one study."""
    means = ("expanded", "final", "vanilla")
    names = ("setting", *means, "final - vanilla", "final - vanilla of equal compute", "final - first setting")
    table = Table(*names, title=f"{study}: {args.network}, {args.epochs} epochs, {args.seeds} seeds")
    for one in rows:
        longer = f"{text(one['over_compute'], '+')} ({one['epochs_compute']} epochs)" if one["over_compute"] else ""
        over = (text(one["over_same"], "+"), longer, text(one.get("over_first"), "+"))
        table.add_row(one["setting"], *(text(one[name]) for name in means), *over)
    Console().print(table)


def cost_of(network: str) -> dict[str, Any]:
    """What the network costs on one image of 32 pixels."""
    found = nbcompile.cost(NETWORKS[network](), torch.zeros(1, 3, 32, 32))
    return {"name": network, "macs": found.macs, "params": found.params}


if __name__ == "__main__":
    main()
