"""The README and the pages of docs are run: their Python, their command lines, their links.

What stands before the first section of a page is shared; each section is a program of its own behind it.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import nbcompile
from nbcompile.cli.app import app
from nbcompile.core.blocks import sites
from nbcompile.deploy.on_device import command_line
from nbcompile.exporters.to_tflite.targets.boards import BOARDS
from nbcompile.models import build
from nbcompile.training.methods import METHODS

ROOT = Path(__file__).parent.parent
PAGES = {str(p.relative_to(ROOT)): p.read_text() for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
FRAMEWORKS = ("A plain PyTorch loop", "Lightning", "timm", "Accelerate")
OTHER_TOOLS = ("pip", "torchrun", "cmake", "ctest")


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def programs() -> Iterator[tuple[str, str, str]]:
    """Page, section and code of every program; those of the README and of docs/adding.md have tests of their own."""
    for page, text in PAGES.items():
        if page == "docs/adding.md":
            continue
        head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
        shared = "".join(blocks("python", head))
        for section in sections:
            title = section.partition("\n")[0]
            code = "".join(blocks("python", section))
            if code and not title.startswith("The story in"):
                yield page, title, shared + code


PROGRAMS = list(programs())


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning calls a name that torch deprecated
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")  # Lightning's advice on speed
@pytest.mark.parametrize(("page", "title", "code"), PROGRAMS, ids=[f"{page}: {title}" for page, title, _ in PROGRAMS])
def test_every_program_runs(page: str, title: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(compile(code, page, "exec"), space)
    if title in FRAMEWORKS:
        _is_trained(space)


def _is_trained(space: dict[str, Any]) -> None:
    """The giant is linear, and the tiny network is what it has become."""
    giant, tiny = space["giant"], space["tiny"]
    assert {float(block.slope) for block in sites(giant).values()} == {1.0}
    assert int(next(m for m in giant.modules() if isinstance(m, torch.nn.BatchNorm2d)).num_batches_tracked) > 0
    trained = space["ema"].module if "ema" in space else giant
    assert nbcompile.verify(trained, tiny).passed
    nbcompile.zoo.dscnn().load_state_dict(tiny.state_dict())


def test_the_frameworks_have_programs() -> None:
    assert [title for page, title, _ in PROGRAMS if page == "docs/training.md"][: len(FRAMEWORKS)] == list(FRAMEWORKS)


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Page and words of every ``$ nbcompile …``."""
    for page, text in PAGES.items():
        for code in blocks("console", text):
            for line in code.replace("\\\n", " ").splitlines():
                if line.startswith("$ nbcompile "):
                    yield page, shlex.split(line.removeprefix("$ nbcompile "), comments=True)


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def test_every_command_line_parses() -> None:
    """Up to where it would read files; its options are those of its command."""
    group: Any = typer.main.get_command(app)
    lines = list(command_lines())
    assert len(lines) >= 12
    for page, (name, *words) in lines:
        given = {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)}
        assert given <= options_of(group.commands[name]), f"{page}: nbcompile {name} {' '.join(words)}"
        parsed = CliRunner().invoke(app, [name, *words, "--no-such-option"])
        assert parsed.exit_code == 2
        assert "--no-such-option" in parsed.output, f"{page}: {words}: {parsed.output}"


def test_every_option_that_is_named_exists() -> None:
    """In the prose: `--option` is one of some command, or of the script that is named before it."""
    group: Any = typer.main.get_command(app)
    known = set().union(*map(options_of, (group, *group.commands.values())), ("--help",))
    known |= set(re.findall(r"--[a-z][\w-]*", command_line().format_help()))
    for page, text in PAGES.items():
        prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`([^`\n]+)`", prose):
            first = code.split()[0]
            if first in OTHER_TOOLS or "--" not in code:
                continue
            script = ROOT / "benchmarks" / first
            there = set(re.findall(r"--[a-z][\w-]*", script.read_text())) if first.endswith(".py") else known
            assert set(re.findall(r"--[a-z][\w-]*", code)) <= there, f"{page}: `{code}`"


def test_every_linked_file_is_there() -> None:
    found = 0
    for page, text in PAGES.items():
        for link in (*re.findall(r"\]\(([^)#\s]+)", text), *re.findall(r"^\[\w+\]: (\S+)$", text, re.MULTILINE)):
            if not re.match(r"https?:", link):
                found += 1
                assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"
    assert found > 80


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/adding.md"])
def test_every_file_of_the_house_that_is_named_is_there(page: str) -> None:
    created = re.findall(r"^--- /dev/null\n\+\+\+ b/(\S+)$", PAGES[page], re.MULTILINE)
    named = set(re.findall(r"`((?:nbcompile|passes|exporters|tests|benchmarks)/[\w./]*)`", PAGES[page])) - {*created}
    assert len(named) >= 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_architecture_has_every_room() -> None:
    page = PAGES["docs/architecture.md"]
    rooms = {p.parent for folder in ("nbcompile", "passes", "exporters") for p in (ROOT / folder).rglob("*.py")}
    assert [str(room) for room in sorted(rooms) if f"{room.name}/" not in page] == []


def test_every_result_file_is_linked() -> None:
    """A measurement that no page tells is lost."""
    told = PAGES["docs/accuracy.md"] + PAGES["docs/numbers.md"]
    assert [
        f.name for f in sorted((ROOT / "benchmarks" / "results").iterdir()) if f"results/{f.name})" not in told
    ] == []


def test_every_named_network_can_be_built() -> None:
    (sentence,) = re.findall(r"^- `nbcompile:NAME`: (.*?);$", PAGES["docs/index.md"], re.DOTALL | re.MULTILINE)
    names = re.findall(r"`([a-z0-9_]+)`", sentence)
    assert len(names) == 6
    for name in names:
        assert build(f"nbcompile:{name}").inputs


def test_the_boards_have_the_memory_that_is_said() -> None:
    rows = re.findall(
        r"^\| `([\w.-]+)` \| .* \| ([\d,]+) KiB \| ([\d,]+) KiB \|$", PAGES["docs/devices.md"], re.MULTILINE
    )
    assert len(rows) > 8
    for name, *sizes in rows:
        block, flash = (1024 * int(size.replace(",", "")) for size in sizes)
        assert (BOARDS[name].block, BOARDS[name].flash) == (block, flash)


def test_what_methods_say_of_themselves_is_on_the_page() -> None:
    said = [number for row in METHODS.values() for number in re.findall(r"[+-][\d.]+ ± [\d.]+", row.measured)]
    assert len(said) > 1
    assert [number for number in said if number not in PAGES["docs/accuracy.md"]] == []


def test_nothing_is_left_to_fill_in() -> None:
    for page, text in PAGES.items():
        assert not re.findall(r"@[A-Z]+@|TODO|FIXME", text), page
