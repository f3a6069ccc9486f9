"""Runs a Raspberry Pi benchmark script under emulation of its processors: are the outputs those of this computer?

The script is what ``nbcompile export ... --target raspberrypi`` writes next to its files. It runs as it is, in Debian's
Python for arm64 with ai-edge-litert's wheel for aarch64, under QEMU's user-mode emulation. Times under emulation say
nothing about a Pi and are not kept.

What is fetched into ``--work`` (about 100 MB), by apt-get and pip as they are set up here; nothing is installed:

- ``qemu-user-static``, unpacked;
- ``python3`` and ``libstdc++6`` with what they depend on, for arm64, unpacked into a folder ``root``;
- the wheels of ai-edge-litert and numpy for that Python on aarch64, unpacked into a folder ``site``.

Two things that cost time to find out:

- cpuinfo, a library in LiteRT, crashes when it reads the host's ``/proc/cpuinfo`` on an x86 machine. QEMU reads files
  in ``root`` first, so one that describes a Pi is put there.
- ``-cpu max`` gives wrong outputs in QEMU 7.2: XNNPACK uses SVE there. No Pi has SVE; name the processor.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from _common import parser, write

PROCESSORS = {
    "cortex-a53": "Raspberry Pi 3, Zero 2 W",
    "cortex-a72": "Raspberry Pi 4",
    "cortex-a76": "Raspberry Pi 5",
}
"""As QEMU calls them, and the boards that have them."""

CPUINFO = "".join(
    f"processor\t: {i}\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    f"CPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"
    for i in range(4)
)
"""``/proc/cpuinfo`` of a Raspberry Pi 4, as far as LiteRT reads it."""

PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")


def fetch(work: Path) -> None:
    """Fill ``work`` as the head of this file says, unless it was."""
    if (work / "site" / "ai_edge_litert").exists():
        return
    qemu, root, apt = work / "qemu", work / "root", work / "apt"
    for folder in (qemu, root, work / "site", apt / "lists" / "partial", apt / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "qemu-user-static"], cwd=qemu, check=True)
    unpack(qemu, qemu)
    # A list of installed packages of its own, which is empty: apt-get then fetches all that Python depends on.
    (apt / "status").touch()
    (apt / "apt.conf").write_text(f"""
        APT::Architecture "arm64"; APT::Architectures {{ "arm64"; }}; APT::Sandbox::User "root";
        Dir::State "{apt}"; Dir::State::lists "{apt}/lists"; Dir::State::status "{apt}/status";
        Dir::Cache "{apt}"; Dir::Cache::archives "{apt}/archives";
    """)
    private = os.environ | {"APT_CONFIG": str(apt / "apt.conf")}
    subprocess.run(["apt-get", "update"], env=private, check=False)  # sources without arm64 fail, and are not needed
    install = ["apt-get", "install", "--yes", "--no-install-recommends", "--download-only", "python3", "libstdc++6"]
    subprocess.run(install, env=private, check=True)
    unpack(apt / "archives", root)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(CPUINFO)
    asked = emulated(work, "cortex-a72", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary=:all:", "--target", str(work / "site")]
    platforms = [f"--platform={name}" for name in PLATFORMS]
    version = f"--python-version={asked.stdout.strip()}"
    subprocess.run([*pip, *platforms, version, "ai-edge-litert", "numpy"], check=True)


def unpack(packages: Path, folder: Path) -> None:
    """Unpack the Debian packages in ``packages`` into ``folder``."""
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)


def emulated(work: Path, processor: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Python with ``arguments`` on an emulated processor."""
    qemu, root = work / "qemu" / "usr" / "bin" / "qemu-aarch64-static", work / "root"
    command = [qemu, "-cpu", processor, "-L", root, (root / "usr" / "bin" / "python3").resolve(), *arguments]
    environment = os.environ | {"PYTHONPATH": str(work / "site")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def main() -> None:
    made = parser("aarch64", "Run a Raspberry Pi benchmark script under emulation of its processors.")
    made.add_argument("script", type=Path, help="written by nbcompile, its files beside it")
    made.add_argument("--work", type=Path, default=Path("build/aarch64"), help="folder for what is fetched")
    args = made.parse_args()
    work = args.work.resolve()
    fetch(work)
    found, results = work / "found.json", []
    for processor, boards in PROCESSORS.items():
        found.unlink(missing_ok=True)
        options = ["--runs", "1", "--threads", "1", "--json", str(found)]
        done = emulated(work, processor, str(args.script.resolve()), *options)
        if not found.exists():
            sys.exit(f"{processor}: {args.script} did not run:\n{done.stderr}")
        for row in json.loads(found.read_text())["checks"]:
            results.append({"processor": processor, "boards": boards} | row)
            print(f"{processor} ({boards}): {row['file']}: {row['agreement_db']}")
    units = {"bytes": "B", "agreement_db": "dB, outputs on this computer over their difference; or 'equal', bit by bit"}
    args.script, args.work = args.script.name, args.work.name  # where they lie says nothing
    write(args, 0, units, results)


if __name__ == "__main__":
    main()
