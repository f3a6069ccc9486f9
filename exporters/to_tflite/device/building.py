"""Compiling the sources that nbcompile wrote, and linking them with tflite-micro's library."""

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbcompile.core.errors import ExportError
from nbcompile.core.progress import step
from nbcompile.exporters.to_tflite.device.machines import Machine

_COMMON = ("-O2", "-ffunction-sections", "-fdata-sections", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables")
_CPP = ("-std=c++17", "-fno-rtti", "-fno-exceptions", "-fno-threadsafe-statics")

_AS_THE_LIBRARY = ("-DTF_LITE_STATIC_MEMORY",)
"""Its structures have other fields without."""

STRICT = ("-Wall", "-Wextra", "-Werror")
"""For sources that nbcompile wrote: a warning is an error."""


@dataclass(frozen=True)
class Builder:
    """Compiles for one machine.

    Attributes:
        machine: what for.
        folder: of the objects.
        includes: folders of headers that are not ours: their warnings are not ours either.
    """

    machine: Machine
    folder: Path
    includes: Sequence[Path]

    def objects(self, sources: Iterable[Path], flags: Sequence[str]) -> list[Path]:
        """Objects of ``sources``, compiled with ``flags``.

        Raises:
            ExportError: if the compiler refuses one; with its first complaint.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        sources = list(sources)
        with step("compiling", len(sources)) as advance:
            made = []
            for source in sources:
                made.append(self._object(source, flags))
                advance()
            return made

    def program(self, objects: Sequence[Path], libraries: Sequence[Path], path: Path, flags: Sequence[str]) -> None:
        """Link ``objects`` and what they need of ``libraries`` to a program.

        Raises:
            ExportError: if that cannot be linked, with the linker's first complaint.
        """
        command = [self.machine.cpp, *self.machine.flags, *map(str, objects), "-Wl,--gc-sections", *flags]
        _run([*command, "-Wl,--start-group", *map(str, libraries), "-lm", "-Wl,--end-group", "-o", str(path)], path)

    def _object(self, source: Path, flags: Sequence[str]) -> Path:
        is_c, made = source.suffix == ".c", self.folder / f"{source.stem}.o"
        command = [self.machine.cc if is_c else self.machine.cpp, *self.machine.flags, *_COMMON, *_AS_THE_LIBRARY]
        command += ["-std=c17"] if is_c else _CPP
        command += [*(f"-isystem{folder}" for folder in self.includes), *flags]
        _run([*command, "-c", str(source), "-o", str(made)], source)
        return made


def _run(command: Sequence[str], what: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines()
        said = next((line for line in lines if "error" in line or "undefined" in line or "overflowed" in line), "")
        raise ExportError(
            f"{command[0]} refuses {what.name}: {said.strip() or ' '.join(lines[:1]) or 'no reason given'}"
        )
