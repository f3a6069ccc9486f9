"""What is written beside a ``.tflite`` file: a microcontroller's sources, or what a Raspberry Pi needs to choose."""

from pathlib import Path

from nbcompile.exporters.to_tflite.build import BuiltFile
from nbcompile.exporters.to_tflite.file.options import names_beside
from nbcompile.exporters.to_tflite.run.arena import Arena
from nbcompile.exporters.to_tflite.targets.micro_read_back import require_same
from nbcompile.exporters.to_tflite.targets.micro_sources import sources
from nbcompile.exporters.to_tflite.targets.raspberrypi import benchmark_script


def files_beside(
    built: BuiltFile, path: Path, arena: Arena, micro: bool, scheme: str, prepared: str
) -> tuple[dict[Path, bytes], list[str]]:
    """What is written beside ``path``, and what the user should know of it.

    The program to start from is the user's to change: one that is there and differs is kept.

    Args:
        built: the file.
        path: of the file.
        arena: what it needs.
        micro: for TFLite Micro: ``STEM.h``, ``STEM.cc``, ``STEM_ops.h``, ``STEM_main.cc``; else, for schemes other than
            float32, the float file and a script that times both.
        scheme: one of `file.options.SCHEMES`.
        prepared: how inputs are made of images, for the C++ header.
    """
    names = names_beside(path, micro, scheme)
    if micro:
        computed = f"Not full-integer: {built.mixed}" if built.mixed else ""
        size = arena.needed or arena.head
        texts = sources(built.content, path.stem, size, [note for note in (prepared, computed) if note])
        require_same(texts, built.content, path.stem, size)
        files = {name: texts[name.name].encode() for name in names}
        program = names[-1]
        if not program.exists() or program.read_bytes() == files[program]:
            return files, []
        del files[program]
        return files, [f"{program.name} was there and is kept as it is: delete it to get a new one"]
    if not names:
        return {}, []
    whole, script = names
    text = benchmark_script({path.name: built.content, whole.name: built.model.content})
    return {whole: built.model.content, script: text.encode()}, []
