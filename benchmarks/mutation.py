"""Small faults planted one at a time in ``nbcompile/core`` and ``passes/``: how many do the tests notice?

mutmut writes all mutants of a function beside it; for each mutant a process is forked in which torch and the tests are
imported already, and runs the tests that reach the function until one fails: those of the module's own file first, then
the fastest. mutmut wants a package where it is imported from: a commit is laid out under ``build/mutation`` as it is
installed, with an environment that has mutmut and sees the packages of this one. Of all mutants a sample is drawn, so
many of each module as it has; the same seed draws the same, in an order in which any first part is a sample, too: stop
when you like, what was tried is not tried again. A second run with more ``--seconds`` goes on with the survivors.

A mutant is killed where a test fails; one that runs far too long counts apart. What runs when a module is imported is
out of reach: it has run before a mutant is switched on. What people found about a survivor (``why``) stays in the
result file as long as the mutant is what it was.
"""

import argparse
import gc
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MUTMUT = "3.8.1"
MUTATED = ("nbcompile/core/*", "nbcompile/passes/*")
OWN = ("tests/core/", "tests/passes/")
OTHERS = ("any_network", "bad_networks", "checkpoint", "collapse", "expansion", "fusion", "hostile_files", "models")
OTHERS += ("pass_runner", "plt", "silent_wrongness", "transposed_sites", "untraceable", "verification", "zoo")
PATIENCE = 30
"""At least so many seconds may one test compute, and 20 times what it takes without a fault."""
STATUS = {0: "survived", 1: "killed", 2: "killed", 3: "killed", 36: "timeout"}
"""By exit code of pytest: 2 and 3 are a test that breaks pytest itself, 36 is ours."""


def lay_out(tree: Path, commit: str) -> None:
    """The files of ``commit`` as they are installed, with mutmut's settings; nothing where they are there."""
    if (tree / "pyproject.toml").exists():
        return
    tree.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tree, filter="data")
    for package in ("passes", "exporters"):
        (tree / package).rename(tree / "nbcompile" / package)
    counting = tree / "nbcompile" / "core" / "macs.py"  # torch asks this while the class is made: too early for mutmut
    text = counting.read_text()
    at = text.index("return False", text.index("def _should_skip_dynamo"))
    counting.write_text(f"{text[: at + 12]}  # pragma: no mutate{text[at + 12 :]}")
    settings = {"source_paths": ["nbcompile"], "only_mutate": list(MUTATED), "use_setproctitle": False}
    settings["also_copy"] = ["README.md", "LICENSE", "docs", "benchmarks"]
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    with (tree / "pyproject.toml").open("a") as file:
        file.write("\n".join(["\n[tool.mutmut]", *lines, ""]))


def environment(build: Path) -> tuple[str, str]:
    """An interpreter that has mutmut, and where it finds the packages of this environment, our own not among them."""
    venv = build / "venv"
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", f"mutmut=={MUTMUT}"], check=True)
    here = next(p for p in sys.path if p.endswith("site-packages"))  # a path in PYTHONPATH has no editable installs
    return str(python), here


def generate(mutmut: Any) -> list[str]:
    """Write the mutants where they are not written yet; their names."""
    from mutmut.utils import file_utils

    Path("mutants").mkdir(exist_ok=True)
    mutmut.set_mutant_under_test("mutant_generation")
    file_utils.copy_src_dir()
    mutmut.copy_also_copy_files()
    file_utils.setup_source_paths()
    mutmut.create_mutants(1)
    return [name for _, name, _ in mutmut.collect_source_file_mutation_data(mutant_names=())[0]]


def sampled(names: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` of ``names``, in proportion to what each module has, at least one of each; shuffled."""
    draw = random.Random(seed)
    modules: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        modules[name.rpartition(".")[0]].append(name)
    share = min(1.0, count / len(names))
    chosen = [name for of in modules.values() for name in draw.sample(of, max(1, round(share * len(of))))]
    draw.shuffle(chosen)
    return chosen


def reached(mutmut: Any) -> dict[str, float]:
    """Seconds of every test that passes with mutants in place but none switched on; which functions it reaches."""
    from mutmut.runners.harness import PytestRunner

    kept = Path("mutants/durations.json")
    if mutmut.load_stats() and kept.exists():
        return json.loads(kept.read_text())

    class Runner(PytestRunner):
        def _pytest_args_regular_run(self, tests: Any) -> list[str]:
            return [*(f"tests/test_{name}.py" for name in OTHERS), *OWN, "-q", "-p", "no:cacheprovider"]

        def execute_pytest(self, params: list[str], **kwargs: Any) -> int:
            kwargs["plugins"].append(failures)
            return super().execute_pytest(params, **kwargs)

    failures = _Failures()
    mutmut.set_mutant_under_test("stats")
    os.environ["MUTMUT_DEPENDENCY_DEPTH"] = "-1"
    Runner().run_stats(tests=[])
    mutmut.save_stats()
    taken = mutmut.state().duration_by_test
    kept.write_text(json.dumps({test: taken[test] for test in taken if test not in failures.found}))
    return reached(mutmut)


class _Failures:
    """Tests that read source, frames or bytecode, and so fail where mutmut has been."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.found.add(report.nodeid)


class _Patience:
    """Ends the process at a test that takes far too long."""

    def __init__(self, taken: dict[str, float]) -> None:
        self.taken = taken

    def pytest_runtest_setup(self, item: Any) -> None:
        signal.signal(signal.SIGPROF, lambda *_: os._exit(36))
        signal.setitimer(signal.ITIMER_PROF, PATIENCE + 20 * self.taken.get(item.nodeid, 0))


def ordered(mutmut: Any, mutant: str, taken: dict[str, float]) -> list[str]:
    """The tests that reach the mutated function: those in the file of its module, then the fastest first."""
    reaching = mutmut.state().tests_by_mangled_function_name.get(mutmut.mangled_name_from_mutant_name(mutant), ())
    module = mutant.rpartition(".")[0].rpartition(".")[2]
    return sorted((t for t in reaching if t in taken), key=lambda t: (f"/test_{module}.py::" not in t, taken[t]))


def verdict(mutmut: Any, mutant: str, tests: list[str], taken: dict[str, float]) -> str:
    """What becomes of a mutant; forks."""
    if not tests:
        return "no tests"
    child = os.fork()
    if not child:
        import pytest

        os.chdir("mutants")
        mutmut.set_mutant_under_test(mutant)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        options = ["--rootdir=.", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        os._exit(int(pytest.main([*options, *tests], plugins=[_Patience(taken)])))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return STATUS.get(code, f"exit {code}")


def tried(args: argparse.Namespace) -> None:
    """Inside: try the mutants that are drawn; each a line of ``tried.jsonl``."""
    import mutmut.__main__ as mutmut
    import pytest

    names = generate(mutmut)
    taken = reached(mutmut)
    (args.build / "modules.json").write_text(json.dumps(Counter(map(module_of, names))))
    known = rows(args.build)
    os.chdir("mutants")
    pytest.main(["--collect-only", "-qqq", *OWN, *(f"tests/test_{name}.py" for name in OTHERS)])
    os.chdir("..")
    gc.collect()
    gc.freeze()  # pytest collects garbage as it ends: in every child, all that the tests have imported
    for mutant in sampled(names, args.mutants, args.seed):
        row = known.get(mutant)
        if row is not None and (row["status"] not in ("survived", "no tests") or row["seconds"] >= args.seconds):
            continue
        every = ordered(mutmut, mutant, taken)
        tests = [t for t, end in zip(every, accumulate(map(taken.get, every)), strict=True) if end < args.seconds]
        row = {"mutant": mutant, "status": verdict(mutmut, mutant, tests, taken), "seconds": args.seconds}
        if row["status"] != "killed":
            row["diff"] = mutmut.get_diff_for_mutant(mutant)
        with (args.build / "tried.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row["status"], mutant, flush=True)


def rows(build: Path) -> dict[str, dict[str, Any]]:
    """What was tried, by mutant; the last word on each."""
    log = build / "tried.jsonl"
    return {row["mutant"]: row for row in map(json.loads, log.read_text().splitlines())} if log.exists() else {}


def module_of(mutant: str) -> str:
    return mutant.rpartition(".")[0].removeprefix("nbcompile.")


def summary(build: Path, out: Path) -> dict[str, Any]:
    """Scores, and the survivors with what is known about them."""
    every = sorted(rows(build).values(), key=lambda row: row["mutant"])
    counts = Counter(row["status"] for row in every)
    old = json.loads(out.read_text())["results"]["survivors"] if out.exists() else []
    why = {(row["mutant"], *row["diff"]): row["why"] for row in old}
    survivors = []
    for row in every:
        if row["status"] in ("survived", "no tests"):
            diff = changed(row["diff"])
            survivors.append({"mutant": row["mutant"], "diff": diff, "why": why.get((row["mutant"], *diff), "")})
    modules = {
        module: {"mutants": count, **Counter(row["status"] for row in every if module_of(row["mutant"]) == module)}
        for module, count in sorted(json.loads((build / "modules.json").read_text()).items())
    }
    kinds = Counter(row["why"].partition(":")[0] for row in survivors)
    killed, survived = counts["killed"], len(survivors)
    return {
        "mutants": sum(row["mutants"] for row in modules.values()),
        "tried": len(every),
        "killed": killed,
        "survived": survived,
        "timeout": counts["timeout"],
        "score": round(killed / (killed + survived), 4),
        "score_without_equivalent": round(killed / (killed + survived - kinds["equivalent"]), 4),
        "why": dict(kinds),
        "modules": modules,
        "survivors": survivors,
    }


def changed(diff: str) -> list[str]:
    return [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commit", default="HEAD", help="whose sources and tests they are; of the first run")
    parser.add_argument("--mutants", type=int, default=1300, help="about so many are drawn")
    parser.add_argument("--seconds", type=float, default=8, help="of tests, at most, that are tried on a mutant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "mutation")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutation.json")
    parser.add_argument("--summary", action="store_true", help="write the result of what was tried, and try nothing")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return tried(args)
    from _common import write  # not inside: there it is mutmut's environment that counts

    args.build = args.build.resolve()
    tree = args.build / "tree"
    if not args.summary:
        lay_out(tree, args.commit)
        python, packages = environment(args.build)
        # -P: this folder has a module called coverage, which mutmut would take for the package
        command = [python, "-P", str(Path(__file__).resolve()), "--inside", *sys.argv[1:], "--build", str(args.build)]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tree / 'mutants'}{os.pathsep}{packages}"}
        subprocess.run(command, cwd=tree, env=environ, check=True)
    units = {"mutants": "count", "score": "killed / (killed + survived)", "why": "count, by the word before the colon"}
    args.mutmut = MUTMUT
    write(args, args.seed, units, summary(args.build, args.out))


if __name__ == "__main__":
    main()
