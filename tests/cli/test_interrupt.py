"""Ctrl-C in a real process: one line, exit code 130, no traceback, no half-written file; in whatever phase it comes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slow import one_in

LINE = "nbcompile: error: stopped; every output file is as it was, or new and whole\n"
DSCNN = "nbcompile:dscnn"
AT_AN_EVENT = """
import os, signal, sys
def hook(event, args):
    if {condition}:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
from nbcompile.__main__ import main
main()
"""


def run(folder: Path, *command: str, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def stopped_when(condition: str, folder: Path, **options) -> subprocess.CompletedProcess[str]:
    """The signal comes at an exact event of the interpreter, which a person's finger cannot hit."""
    (folder / "tiny.onnx").write_text("old bytes")
    return run(folder, "-c", AT_AN_EVENT.format(condition=condition), "fuse", DSCNN, "-o", "tiny.onnx", **options)


def importing(module: str) -> str:
    return f"event == 'import' and args[0] == {module!r}"


@pytest.mark.parametrize("module", ["nbcompile.cli.ctrl_c", "threading"])
def test_before_anything_is_there_to_say_so(tmp_path: Path, module: str) -> None:
    """Nothing is: no line, and no traceback either."""
    done = stopped_when(importing(module), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_nothing_comes_before(tmp_path: Path) -> None:
    """What Python itself imports when it starts is not ours to shorten; behind it there is next to nothing."""
    told = "import importlib, sys; known = {*sys.modules}; import nbcompile.__main__; print(*{*sys.modules} - known)"
    assert set(run(tmp_path, "-c", told).stdout.split()) == {"nbcompile", "nbcompile.__main__"}


MODULES = ["nbcompile.cli.app", "typer", "nbcompile.deploy.options", "torch", "torch.fx", "nbcompile.fusion"]


@pytest.mark.parametrize("module", one_in(2, MODULES))
def test_while_importing(tmp_path: Path, module: str) -> None:
    done = stopped_when(importing(module), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]
    assert (tmp_path / "tiny.onnx").read_text() == "old bytes"


@pytest.mark.slow
def test_before_the_new_file_gets_its_name(tmp_path: Path) -> None:
    done = stopped_when("event == 'os.rename' and str(args[1]).endswith('tiny.onnx')", tmp_path)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[1:] == [LINE.strip()]  # behind the warning that the network is untrained
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]
    assert (tmp_path / "tiny.onnx").read_text() == "old bytes"


@pytest.mark.slow
def test_in_the_users_own_code(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, signal\n"
        "def make():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except BaseException: raise RuntimeError('what a library makes of it')\n"
    )
    done = run(tmp_path, "-m", "nbcompile", "expand", "slow:make", "-o", "giant.pt", "--input", "1x3x8x8")
    assert (done.returncode, done.stderr) == (130, LINE)
    assert not (tmp_path / "giant.pt").exists()


@pytest.mark.slow
def test_where_the_interruption_is_swallowed(tmp_path: Path) -> None:
    """As torch's C++ does, where it looks for numpy; what the command says until it is ended is not wrong."""
    done = stopped_when(importing("numpy"), tmp_path)
    assert done.returncode == 130
    assert done.stderr.endswith(LINE)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "tiny.onnx").read_text() == "old bytes" or "written: tiny.onnx" in done.stdout


@pytest.mark.slow
def test_twice_is_once(tmp_path: Path) -> None:
    twice = "event == 'os.rename' and [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]"
    done = stopped_when(twice, tmp_path)
    assert done.returncode == 130
    assert done.stderr.splitlines()[1:] == [LINE.strip()]


def test_of_several_training_processes_one_tells(tmp_path: Path) -> None:
    assert stopped_when(importing("torch"), tmp_path, env={"LOCAL_RANK": "0"}).stderr == LINE
    silent = stopped_when(importing("torch"), tmp_path, env={"LOCAL_RANK": "1"})
    assert (silent.returncode, silent.stderr) == (0, "")  # Lightning kills all where one fails


@pytest.mark.slow
def test_an_error_is_no_interruption(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "nbcompile", "inspect", "nope.pt")
    assert done.returncode == 2
    assert done.stderr.startswith("nbcompile: error: nope.pt cannot be read")


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.3, 2.1, 3.4, 5.5])
def test_whenever_it_comes(tmp_path: Path, after: float) -> None:
    """To the whole group, as a terminal sends it; a process that was done before has written its file."""
    code = "from nbcompile.__main__ import main; print('it begins', flush=True); main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "fuse", "nbcompile:mobilenetv2_tiny", "-o", "tiny.onnx"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "it begins\n"
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    if process.returncode == 0:
        assert (tmp_path / "tiny.onnx").stat().st_size > 1_000_000
        return
    assert process.returncode == 130
    assert errors.endswith(LINE)
    assert "Traceback" not in errors
    assert all(path.name == "tiny.onnx" and path.stat().st_size > 1_000_000 for path in tmp_path.iterdir())


@pytest.mark.slow
def test_code_that_does_not_hear(tmp_path: Path) -> None:
    """C++ that runs on, or waits for a process that is gone: it is ended from outside, and the line is said."""
    (tmp_path / "deaf.py").write_text(
        "import os, signal, time\n"
        "from nbcompile.cli import ctrl_c\n"
        "def make():\n"
        "    ctrl_c.UNRAISED = 0.1\n"
        "    signal.signal(signal.SIGINT, lambda *_: None)\n"  # as if no bytecode ran
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(600)\n"
    )
    done = run(tmp_path, "-m", "nbcompile", "expand", "deaf:make", "-o", "giant.pt", "--input", "1x3x8x8")
    assert (done.returncode, done.stderr) == (130, LINE)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["deaf.py"]


BENEATH_TORCH = """
import os, signal, sys, types
from pathlib import Path
from nbcompile.cli.ctrl_c import one_line
from nbcompile.core.files import atomic

torch = types.ModuleType("torch.nn")  # a library whose C++ calls Python, as far as anybody can see
exec("def forward(call): call()", torch.__dict__)

def press():
    os.kill(os.getpid(), signal.SIGINT)
    print("not raised here", flush=True)

def wait():
    while True: pass
"""


def test_it_is_raised_where_no_cpp_has_called(tmp_path: Path) -> None:
    """And what is to be done at the end is done."""
    code = BENEATH_TORCH + (
        "with one_line(), atomic('a.pt'):\n"
        "    try:\n        torch.forward(press)\n        wait()\n    finally: print('done at the end', flush=True)\n"
    )
    done = run(tmp_path, "-c", code)
    assert (done.returncode, done.stderr) == (130, LINE)
    assert done.stdout == "not raised here\ndone at the end\n"
    assert not [*tmp_path.iterdir()]


def test_a_library_that_does_not_come_back(tmp_path: Path) -> None:
    """It is ended from outside, and what is half-written is removed."""
    code = f"{BENEATH_TORCH}\nwith one_line(), atomic('a.pt'): torch.forward(lambda: (press(), wait()))"
    done = run(tmp_path, "-c", code)
    assert (done.returncode, done.stderr, done.stdout) == (130, LINE, "not raised here\n")
    assert not [*tmp_path.iterdir()]


def test_work_that_is_done_before_it_can_be_raised(tmp_path: Path) -> None:
    """The file is new and whole, and whoever pressed is heard."""
    code = f"{BENEATH_TORCH}\nwith one_line(): torch.forward(lambda: (press(), Path('a.pt').write_text('whole')))"
    done = run(tmp_path, "-c", code)
    assert (done.returncode, done.stderr) == (130, LINE)


@pytest.mark.slow
def test_inside_of_torchs_dispatcher(tmp_path: Path) -> None:
    """Whose C++ ends the process where Python that it calls raises anything."""
    code = (
        "import os, signal, sys, torch\n"
        "from nbcompile.cli.ctrl_c import one_line\n"
        "def press(frame, event, arg):\n"
        "    if event == 'call' and frame.f_code.co_name == 'find_torch_dispatch_rule':\n"
        "        sys.setprofile(None)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "with one_line():\n"
        "    sys.setprofile(press)\n"
        "    torch.export.export(torch.nn.Linear(3, 3), (torch.ones(2, 3),)).run_decompositions()\n"
    )
    done = run(tmp_path, "-c", code)
    assert (done.returncode, done.stderr) == (130, LINE)


def test_without_a_standard_error(tmp_path: Path) -> None:
    words = [sys.executable, "-c", AT_AN_EVENT.format(condition=importing("torch")), "inspect", DSCNN]
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *words], cwd=tmp_path, check=False)
    assert done.returncode == 130


def test_inside_of_code_that_was_made_of_a_string(tmp_path: Path) -> None:
    """Where Python itself, started with -m, would end by the signal, whatever is raised behind it."""
    (tmp_path / "made.py").write_text(
        "from nbcompile.cli.ctrl_c import one_line\n"
        "with one_line():\n"
        "    exec('import os, signal; os.kill(os.getpid(), signal.SIGINT)\\nwhile True: pass')\n"
    )
    done = run(tmp_path, "-m", "made")
    assert done.returncode == 130
    assert done.stderr == LINE
