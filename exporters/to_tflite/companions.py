"""What is written beside a ``.tflite`` file: a microcontroller's sources, or what a Raspberry Pi needs to choose."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nbcompile.core.files import alone_in, atomic, atomic_folder
from nbcompile.exporters.to_tflite.build import BuiltFile
from nbcompile.exporters.to_tflite.file.options import names_beside, project_folder
from nbcompile.exporters.to_tflite.run.arena import Arena
from nbcompile.exporters.to_tflite.run.interpreters import Sample
from nbcompile.exporters.to_tflite.run.on_device import on_device, stated_arena
from nbcompile.exporters.to_tflite.targets.check_vector import check_vector
from nbcompile.exporters.to_tflite.targets.kept_program import why_kept
from nbcompile.exporters.to_tflite.targets.micro_read_back import require_same
from nbcompile.exporters.to_tflite.targets.micro_sources import identifier, sources
from nbcompile.exporters.to_tflite.targets.projects import laid_out
from nbcompile.exporters.to_tflite.targets.raspberrypi import benchmark_script


@dataclass(frozen=True, eq=False)
class Companions:
    """What is wanted beside a file.

    Attributes:
        path: of the file.
        micro: for TFLite Micro: ``STEM.h``, ``STEM.cc``, ``STEM_ops.h``, ``STEM_check.h``, ``STEM_main.cc``; else, for
            schemes other than float32, the float file and a script that times both.
        scheme: one of `file.options.SCHEMES`.
        project: a tool that is to build the sources, one of `file.options.PROJECTS`.
        prepared: how inputs are made of images, for the C++ header.
        pixels: what each byte of an image becomes for the network, ``(C, 256)``; None where that is not known.
    """

    path: Path
    micro: bool
    scheme: str
    project: str | None = None
    prepared: str = ""
    pixels: np.ndarray | None = None

    @property
    def names(self) -> tuple[Path, ...]:
        """The files beside it."""
        return names_beside(self.path, self.micro, self.scheme, self.project)

    @property
    def folder(self) -> Path | None:
        """The folder beside it that a tool builds."""
        return None if self.project is None else project_folder(self.path, self.project)


def files_beside(
    built: BuiltFile, arena: Arena, wanted: Companions, samples: Sequence[Sample]
) -> tuple[dict[Path, bytes], list[str]]:
    """What is written beside a file, and what the user should know of it.

    The program to start from is the user's to change: one that is there and was changed is kept.

    Args:
        built: the file.
        arena: what it needs.
        wanted: beside it.
        samples: inputs of the check, as the file takes them.
    """
    path, names = wanted.path, wanted.names
    if wanted.micro:
        texts = _sources(built, arena, wanted, samples)
        if wanted.project is not None and wanted.folder is not None:
            folder = wanted.folder
            placed = laid_out(wanted.project, folder.name, path.stem, identifier(path.stem), texts)
            note = f"its sources are in {folder}, whose README.md says how to build them"
            return {folder / name: text.encode() for name, text in placed.items()}, [note]
        files = {name: texts[name.name].encode() for name in names}
        program = names[-1]
        kept = why_kept(program, texts[program.name])
        if kept:
            del files[program]
        return files, [kept] if kept else []
    if not names:
        return {}, []
    whole, script = names
    text = benchmark_script({path.name: built.content, whole.name: built.model.content}, samples)
    return {whole: built.model.content, script: text.encode()}, []


def _sources(built: BuiltFile, arena: Arena, wanted: Companions, samples: Sequence[Sample]) -> dict[str, str]:
    computed = f"Not full-integer: {built.mixed}" if built.mixed else ""
    stem = wanted.path.stem
    size, helium = (stated_arena(built.content, arena, helium=helium) for helium in (False, True))
    vector = check_vector(built.content, samples, wanted.pixels)
    texts = sources(
        built.content,
        stem,
        size,
        [note for note in (wanted.prepared, computed, *_there(built.content, arena)) if note],
        vector,
        helium,
    )
    require_same(texts, built.content, stem, size, vector, helium)
    return texts


def _there(content: bytes, arena: Arena) -> list[str]:
    """What the arena takes on a Cortex-M, for the C++ header."""
    cores = {"Cortex-M4, -M7 or -M33": False, "Cortex-M55": True}
    found = {core: on_device(content, arena, helium=helium) for core, helium in cores.items()}
    return [
        f"By computation the arena takes {one.total:,} B on a {core} with CMSIS-NN: {one.head:,} of activations and "
        f"scratch memory, {one.tail:,} that stay."
        for core, one in found.items()
        if one is not None
    ]


def write_together(files: Mapping[Path, bytes], folder: Path | None) -> None:
    """Write ``files``, each whole or not at all; those in ``folder``, which must be new, all or none.

    Raises:
        UsageError: if one cannot be written.
    """
    with alone_in(next(iter(files)).parent), ExitStack() as stack:
        temporary = None if folder is None else stack.enter_context(atomic_folder(folder))
        for file, content in files.items():
            if folder is None or temporary is None or folder not in file.parents:
                stack.enter_context(atomic(file)).write_bytes(content)
                continue
            target = temporary / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
