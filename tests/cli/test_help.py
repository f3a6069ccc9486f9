"""The help pages: every option has words, a panel and a readable metavar; every example parses; nothing is cut."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import nbcompile
from nbcompile import zoo
from nbcompile.cli.app import COMMANDS, app
from nbcompile.cli.options import ZOO
from nbcompile.cli.table_options import takes
from nbcompile.core.options import READ, WRITE, option, options_of
from nbcompile.core.site_spec import BLOCKS
from nbcompile.deploy.options import DeviceOptions
from nbcompile.training import TrainConfig

NAMES = ["", *COMMANDS]
GROUP: Any = typer.main.get_command(app)
METAVARS = {
    *("FILE", "DIR", "DIR|FILE", "MODEL", "FILE|MODEL", "FILE|MODEL|self", "CANDIDATE", "SHAPE", "BYTES", "N", "N,N"),
    *("FLOAT", "DB", "SHARE", "KEY", "NAMES", "JSON", "TARGET", "SCHEME", "TYPE", "METHOD", "WHEN", "BOARD", "DATA"),
    *("WHERE", "BLOCK", "NAME"),
}


def page(name: str, columns: int = 80) -> str:
    shown = CliRunner().invoke(app, [*([name] if name else []), "--help"], env={"COLUMNS": str(columns)})
    assert shown.exit_code == 0
    return shown.output


def parameters(name: str) -> list[Any]:
    command = GROUP.commands[name]
    with typer.Context(command) as context:
        return [one for one in command.get_params(context) if "--help" not in one.opts]


def examples(text: str) -> list[list[str]]:
    _, found, lines = text.partition("Examples:\n")
    assert found
    return [shlex.split(line.strip().removeprefix("$ ")) for line in lines.replace("\\\n", " ").strip().splitlines()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    for one in parameters(name):
        assert one.help, one.name
        assert one.help.rstrip("]").endswith((".", *"0123456789")) or "[default: " in one.help, one.help
        assert one.rich_help_panel, one.name
        assert getattr(one, "is_flag", False) or one.metavar in METAVARS, (one.name, one.metavar)


@pytest.mark.parametrize("name", NAMES)
def test_no_word_is_cut_in_80_columns(name: str) -> None:
    text = page(name)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "<" not in text
    assert "..." not in text.replace("[ARGS]...", "")
    for one in parameters(name) if name else ():
        for opt in one.opts if one.param_type_name == "option" else ():
            assert re.search(rf"^  (-\w, )?{opt}(,| [A-Z]|  |$)", text, re.MULTILINE), opt
        for word in one.help.split():
            assert word in text.split(), word


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_gets_what_a_terminal_gets(name: str) -> None:
    """But for bold type; also where the terminal is narrow, or its width unknown."""
    assert "\033" not in page(name)
    assert page(name, columns=60).split() == page(name).split()


@pytest.mark.parametrize("name", NAMES)
def test_examples_parse(name: str) -> None:
    lines = examples(page(name))
    assert len(lines) >= 2
    for program, command, *words in lines:
        assert program == "nbcompile"
        assert name in ("", command)
        with GROUP.commands[command].make_context(command, words) as context:
            assert context.params


def test_the_first_page_lists_the_commands() -> None:
    text = page("")
    for name, summary in COMMANDS.items():
        assert f"  {name:12}{summary}" in text
    for form in ("torchvision:NAME", "timm:NAME", "nbcompile:NAME", "package.module:factory", "MODEL?pretrained=true"):
        assert f"\n  {form} " in text


def test_without_words_the_first_page_is_shown() -> None:
    shown = CliRunner().invoke(app, [], env={"COLUMNS": "80"})
    assert shown.output.rstrip() == page("").rstrip()


def test_version() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"nbcompile {nbcompile.__version__}\n")


def test_an_unknown_command_is_named() -> None:
    shown = CliRunner().invoke(app, ["fues"])
    assert shown.exit_code == 2
    assert "No such command 'fues'. Did you mean 'fuse'?" in shown.output


def test_panels_follow_what_options_are_for() -> None:
    headings = re.findall(r"^(\w.*):$", page("fuse"), re.MULTILINE)
    assert headings == [
        *(READ, WRITE, "Checks", "Quantization (.tflite, and .onnx with --quantize int8)", "Device (.tflite)"),
        *("Other", "Examples"),
    ]  # fmt: skip


@pytest.mark.parametrize(("command", "table"), [("train", TrainConfig), ("fuse", DeviceOptions)])
def test_a_field_is_an_option(command: str, table: type[Any]) -> None:
    """With its words, its default, and its values for the shell."""
    found = {one.name: one for one in parameters(command)}
    defaults = {one.name: one.default for one in dataclasses.fields(table)}
    for name, said in options_of(table).items():
        shown = found[name]
        assert shown.opts == [said.flag or f"--{name.replace('_', '-')}"]
        assert shown.help.startswith(said.text())
        assert shown.rich_help_panel == said.panel
        assert shown.required == said.required
        if defaults[name] is not None and not isinstance(defaults[name], (bool, tuple)) and not said.required:
            told = re.search(r"\[default: (.*)\]$", shown.help)
            assert told
            assert type(defaults[name])(told[1]) == defaults[name]


def test_what_a_command_gets_of_a_table() -> None:
    @dataclasses.dataclass
    class Table:
        size: int | None = option(None, "A", panel="P", unset="what fits")
        rate: float = option(0.5, "B")
        deep: bool = option(False, "C")
        open: bool = option(True, "D", flag="--shut")
        names: tuple[str, ...] = option((), "E", metavar="NAMES", read=lambda text: tuple(text.split(",")))
        kind: str = option("a", "F", metavar="KIND", choices=("a", "b"))
        must: str = option("x", "G", metavar="WORD", required=True)

    got: dict[str, Any] = {}

    @takes(Table)
    def command(file: str, options: dict[str, Any]) -> None:
        """Do."""
        got.update(options)

    alone = typer.Typer(add_completion=False)
    alone.command()(command)
    run = CliRunner()
    assert run.invoke(alone, ["f", "--must", "y"]).exit_code == 0
    assert got == {"must": "y"}  # what is not given is not there: the table has its default
    words = "--size 3 --rate 1e-2 --deep --shut --names p,q --kind b"
    assert run.invoke(alone, ["f", "--must", "y", *words.split()]).exit_code == 0
    assert got == {"size": 3, "rate": 0.01, "deep": True, "open": False, "names": ("p", "q"), "kind": "b", "must": "y"}
    assert run.invoke(alone, ["f", "--must", "y", "--size", "many"]).exit_code == 2
    assert "--must" in run.invoke(alone, ["f"]).output
    shown = {one.name: one.help for one in typer.main.get_command(alone).params}
    assert shown["size"] == "A.  [default: what fits]"
    assert shown["kind"] == "F: a or b.  [default: a]"
    assert shown["must"] == "G."


def test_words_that_are_told_twice_are_the_same() -> None:
    """Tables behind which torch stands are told without it."""
    assert set(ZOO) == set(zoo.NETWORKS)
    assert set(options_of(TrainConfig)["block"].offers) == set(BLOCKS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, tmp_path: Path) -> None:
    """Shown for the shell that the command is run in, by a process of that name."""
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "nbcompile", "--show-completion", shell],
        env=environment, capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "COMPLETE" in done.stdout


def completed(words: str, tmp_path: Path) -> list[str]:
    """What bash is told, with the cursor behind ``words``."""
    listed = words.split(" ")
    environment = {"COMP_WORDS": words, "COMP_CWORD": str(len(listed) - 1), "_NBCOMPILE_COMPLETE": "complete_bash"}
    code = (
        "import sys; sys.argv[0] = 'nbcompile'\n"
        "from nbcompile.__main__ import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'numpy', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("nbcompile f", ["fuse"]),
        ("nbcompile fuse nbcompile:mc", ["nbcompile:mcunet"]),
        ("nbcompile fuse ti", ["timm:", "tiny.pt"]),
        ("nbcompile fuse x.pt --quantize int", ["int8", "int16x8"]),
        ("nbcompile fuse x.pt --board pico", ["pico", "pico-2"]),
        ("nbcompile train x.pt --method netb", ["netbooster", "netbooster+kd"]),
        ("nbcompile train x.pt --plt", ["--plt-epochs"]),
    ],
)
def test_completion(words: str, found: list[str], tmp_path: Path) -> None:
    (tmp_path / "tiny.pt").touch()
    assert [word for word in completed(words, tmp_path) if not word.startswith("pico-2-")][: len(found)] == found
