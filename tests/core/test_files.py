import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbcompile.core.errors import UsageError
from nbcompile.core.files import atomic, atomic_folder, check_outputs, check_target
from tests.full_disk import full_disk

POSIX_ONLY = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "readline", "crypt")
OLD, NEW = b"old" * 1000, b"new!" * 100_000

WRITER = """
import sys, time
from nbcompile.core.files import atomic
with atomic(sys.argv[1]) as temporary:
    with open(temporary, "wb") as f:
        f.write(b"new!" * 50_000); f.flush()
        print("half", flush=True)
        time.sleep(float(sys.argv[2]))
        f.write(b"new!" * 50_000)
"""


def writer(path: Path, pause: float) -> subprocess.Popen[str]:
    """A real process that stops for ``pause`` seconds in the middle of writing ``NEW`` to ``path``."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, path, str(pause)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if ".nbcompile-" in p.name)


def test_the_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    with atomic(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".tiny.onnx.nbcompile-")
        assert temporary.suffix == ".onnx"
        temporary.write_bytes(NEW)
        assert not path.exists()
    assert path.read_bytes() == NEW
    assert os.listdir(tmp_path) == ["tiny.onnx"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_bytes_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "tiny.pt"
    path.write_bytes(OLD)

    def write() -> None:
        with atomic(path) as temporary:
            temporary.write_bytes(NEW)
            raise error

    with pytest.raises(error):
        write()
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["tiny.pt"]


def test_a_writer_may_replace_its_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    with atomic(path) as temporary:
        temporary.unlink()
        temporary.write_bytes(NEW)
    assert path.read_bytes() == NEW


def test_killed_in_the_middle_the_old_bytes_stay_and_the_next_run_sweeps(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(OLD)
    (tmp_path / ".other.onnx.nbcompile-0.onnx").write_bytes(b"of another name")
    kill(writer(path, pause=600))
    assert path.read_bytes() == OLD
    assert len(leftovers(tmp_path)) == 3  # the last is the lock of the run
    check_target(path)
    assert leftovers(tmp_path) == [".other.onnx.nbcompile-0.onnx"]
    assert path.read_bytes() == OLD


def test_killed_at_any_moment_the_bytes_are_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    pick = random.Random(0)
    for _ in range(6):
        path.write_bytes(OLD)
        process = writer(path, pause=0)
        time.sleep(pick.uniform(0, 0.01))
        kill(process)
        assert path.read_bytes() in (OLD, NEW)


def test_a_run_that_is_alive_is_not_swept(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    process = writer(path, pause=600)
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(b"quick")
        assert [name.removeprefix(".tiny.onnx.nbcompile-")[8:] for name in leftovers(tmp_path)] == ["-lock", ".onnx"]
    finally:
        kill(process)
    assert path.read_bytes() == b"quick"


def test_many_runs_write_one_name_at_once(tmp_path: Path) -> None:
    """A run sweeps before it writes: no temporary of another run that is alive may be swept, nothing is left behind."""
    path = tmp_path / "tiny.onnx"
    writing = f"""if True:
        from nbcompile.core.files import atomic
        for _ in range(60):
            with atomic({str(path)!r}) as temporary:
                temporary.write_bytes({NEW[:4]!r} * 1000)
    """
    runs = [subprocess.Popen([sys.executable, "-W", "error", "-c", writing]) for _ in range(4)]
    assert [run.wait() for run in runs] == [0] * 4
    assert os.listdir(tmp_path) == ["tiny.onnx"]
    assert path.read_bytes() == NEW[:4] * 1000


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny"])
def test_whatever_a_killed_run_leaves_is_swept(tmp_path: Path, name: str) -> None:
    """Killed after the lock was made, after the file got its name, or by a version that locked the file itself."""
    (tmp_path / f".{name}.nbcompile-01234567-lock").touch()
    (tmp_path / f".{name}.nbcompile-89abcdef{Path(name).suffix}").touch()
    check_target(tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_without_the_modules_of_posix(tmp_path: Path) -> None:
    """Windows has none of them; there, filelock locks in its own way."""
    path = tmp_path / "tiny.onnx"
    blocked = f"""if True:
        import sys, warnings
        sys.modules |= dict.fromkeys({POSIX_ONLY!r})
        warnings.filterwarnings("ignore", "only soft file lock")  # what filelock says on a system without locks
        import nbcompile, nbcompile.core.files, nbcompile.cli.app
        for name in nbcompile.__all__: getattr(nbcompile, name)
        with nbcompile.core.files.atomic({str(path)!r}) as temporary:
            temporary.write_bytes(b"whole")
    """
    subprocess.run([sys.executable, "-c", blocked], check=True)
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["tiny.onnx"]


def test_permissions_are_the_old_files_or_the_umasks(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    before = os.umask(0o027)
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    with atomic(path) as temporary:
        temporary.write_bytes(OLD)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_permissions_are_those_whatever_the_writer_makes_of_them(tmp_path: Path) -> None:
    """Some writers make a file of their own, for their user alone, and put it in the temporary's place."""
    path = tmp_path / "tiny.pt"
    for mode in (0o644, 0o604):
        with atomic(path) as temporary:
            other = tmp_path / "other"
            other.write_bytes(NEW)
            other.chmod(0o600)
            other.rename(temporary)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        path.chmod(0o604)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_full_disk_is_one_sentence(tmp_path: Path, hidden: bool) -> None:
    """Libraries raise errors of their own while they handle the system's."""
    path, other = tmp_path / "tiny.pt", tmp_path / "other.pt"
    path.write_bytes(OLD)

    def write() -> None:
        with atomic(other), atomic(path) as temporary, full_disk(1000):
            try:
                temporary.write_bytes(NEW)
            except OSError:
                if hidden:
                    raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  # as torch does
                raise

    with pytest.raises(UsageError, match=rf"^cannot write {path}: File too large; it is as it was$"):
        write()
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["tiny.pt"]


def test_outputs_are_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("giant.pt").write_bytes(OLD)
    Path("link.pt").symlink_to("giant.pt")
    Path("hard.pt").hardlink_to("giant.pt")
    Path("dangling.pt").symlink_to("new.pt")
    Path("folder").mkdir()
    sources = ["giant.pt", "timm:resnet18", "folder", "missing.pt", "x" * 300]
    check_outputs([Path("tiny.pt"), Path("folder/tiny.pt"), Path("tiny.onnx")], sources)
    absolute = tmp_path / "folder" / ".." / "giant.pt"
    for output, how in (("giant.pt", ""), (absolute, r" \(giant.pt\)"), ("link.pt", r" \("), ("hard.pt", r" \(")):
        with pytest.raises(UsageError, match=rf"^cannot write .*: it is what is read{how}.*; give it another name$"):
            check_outputs([Path("tiny.pt"), Path(output)], sources)
    for one, other in (("new.pt", "new.pt"), ("new.pt", "folder/../new.pt"), ("dangling.pt", "new.pt")):
        with pytest.raises(UsageError, match=rf"^cannot write {other}: another output is the same file.*; give it ano"):
            check_outputs([Path(one), Path("tiny.onnx"), Path(other)])
    with pytest.raises(UsageError, match="nope does not exist"):
        check_outputs([Path("nope/tiny.pt")])
    assert Path("giant.pt").read_bytes() == OLD


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "latest.pt").symlink_to(Path("store") / "tiny.pt")
    for data in (OLD, NEW):  # first a dangling link, then one to a file
        with atomic(tmp_path / "latest.pt") as temporary:
            assert temporary.parent == tmp_path / "store"
            temporary.write_bytes(data)
        assert (tmp_path / "latest.pt").is_symlink()
        assert (tmp_path / "store" / "tiny.pt").read_bytes() == data


def test_a_bare_name_is_written_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic("tiny") as temporary:
        temporary.write_bytes(NEW)
    assert (tmp_path / "tiny").read_bytes() == NEW


def test_check_target_leaves_no_trace(tmp_path: Path) -> None:
    check_target(tmp_path / "tiny.onnx")
    assert os.listdir(tmp_path) == []


def test_unusable_targets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    os.mkfifo(tmp_path / "pipe")
    for path, reason in [
        (tmp_path / "pipe", "it is no file, but a device, a pipe or a socket; name a file"),
        (tmp_path / ("x" * 300), r"File name too long \(.*x\)"),
        (tmp_path, "it is a folder; name a file in it"),
        (tmp_path / "missing" / "tiny.onnx", "missing does not exist; create it first"),
        (tmp_path / "file" / "tiny.onnx", "file is a file, not a folder"),
        (tmp_path / ("x" * 250), r"no file can be created in .* \(File name too long\)"),
        (tmp_path / f"x.{'y' * 150}", r"no file can be created in .* \(File name too long\)"),  # its lock can be
    ]:
        with pytest.raises(UsageError, match=f"^cannot write {path}: .*{reason}"):
            check_target(path)
        with pytest.raises(UsageError, match=reason), atomic(path):
            pytest.fail("a block without a file must not run")
    with pytest.raises(UsageError, match=r"a\\x00b: it is no name of a file \(embedded null byte\)$"):
        check_target(tmp_path / "a\0b")
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "tiny_cmake"
    killed = """if True:
        import os, sys
        from pathlib import Path
        from nbcompile.core.files import atomic_folder
        with atomic_folder(Path(sys.argv[1])) as temporary:
            (temporary / "half").write_text("half")
            os._exit(9)
    """
    assert subprocess.run([sys.executable, "-c", killed, path], check=False).returncode == 9
    assert not path.exists()
    assert len(leftovers(tmp_path)) == 2  # the last is the lock of the run
    path.mkdir()
    with atomic_folder(path) as temporary:
        assert leftovers(tmp_path)[1:] == [f"{temporary.name}-lock"]
        (temporary / "main").mkdir()
        (temporary / "main" / "tiny.cc").write_bytes(NEW)
        assert os.listdir(path) == []
    assert (path / "main" / "tiny.cc").read_bytes() == NEW
    assert os.listdir(tmp_path) == ["tiny_cmake"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.cc").write_bytes(OLD)
    for name in ("full", "full/mine.cc"):
        with pytest.raises(
            UsageError, match=f"^cannot write the folder {tmp_path / name}: it is there, and no empty fo"
        ):
            check_target(tmp_path / name, folder=True)
    with (
        pytest.raises(UsageError, match="missing does not exist; create it first"),
        atomic_folder(tmp_path / "missing/x"),
    ):
        pytest.fail("a block without a folder must not run")

    def write(path: Path, error: type[BaseException] | None) -> None:
        with atomic_folder(path) as temporary, full_disk(1000):
            (temporary / "a").write_bytes(b"a")
            if error is not None:
                raise error
            (temporary / "b").write_bytes(NEW)

    with pytest.raises(UsageError, match=rf"^cannot write {tmp_path / 'new'}: File too large; it is as it was$"):
        write(tmp_path / "new", None)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "new", KeyboardInterrupt)
    assert os.listdir(tmp_path) == ["full"]
    assert (tmp_path / "full" / "mine.cc").read_bytes() == OLD


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may write anywhere: be an ordinary user for the length of a test."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that everybody may look into and nobody may change."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "closed").mkdir(mode=0o000)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def test_a_read_only_folder_is_refused(read_only: Path, nobody: None) -> None:
    with pytest.raises(UsageError, match=r"no file can be created in .* \(Permission denied\)"):
        check_target(read_only / "tiny.onnx")


def test_a_folder_that_may_not_be_entered_is_refused(read_only: Path, nobody: None) -> None:
    with pytest.raises(UsageError, match=r"^cannot write .*closed.tiny.onnx: Permission denied"):
        check_target(read_only / "closed" / "tiny.onnx")
