"""A checkout of tflite-micro in which its library is built, by its own Makefile: headers and library, nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nbcompile.core.errors import UsageError

_MARK = Path("tensorflow/lite/micro/micro_interpreter.h")
_DOWNLOADS = Path("tensorflow/lite/micro/tools/make/downloads")
_LIBRARY = "libtensorflow-microlite.a"
_OF_CMSIS_NN = b"arm_convolve_wrapper_s8"

DOWNLOADED = {
    "flatbuffers": Path("include/flatbuffers/flatbuffers.h"),
    "gemmlowp": Path("fixedpoint/fixedpoint.h"),
    "ruy": Path("ruy/profiler/instrumentation.h"),
}
"""What tflite-micro's headers include of others, and a file that each has."""


@dataclass(frozen=True)
class Checkout:
    """A checkout, and what belongs to it.

    Attributes:
        root: of the checkout.
        parts: folders by names in ``DOWNLOADED``.
        library: tflite-micro, built for the machine that is to run it.
    """

    root: Path
    parts: Mapping[str, Path]
    library: Path

    @property
    def kernels(self) -> str:
        """Those of the library: ``CMSIS-NN`` or ``reference``."""
        return "CMSIS-NN" if _OF_CMSIS_NN in self.library.read_bytes() else "reference"

    @property
    def includes(self) -> list[Path]:
        """Folders of headers."""
        return [self.root, self.parts["flatbuffers"] / "include", self.parts["gemmlowp"], self.parts["ruy"]]


def find_checkout(root: Path, folders: Mapping[str, Path], library: Path | None = None) -> Checkout:
    """The checkout at ``root``.

    Args:
        root: a folder.
        folders: of parts that are not where tflite-micro's Makefile downloads them to.
        library: where it is, if the checkout has not exactly one.

    Raises:
        UsageError: if ``root`` is no checkout, or a part or the library is not there.
    """
    if not (root / _MARK).is_file():
        raise UsageError(
            f"'{root}' is no checkout of tflite-micro: it has no {_MARK}; clone https://github.com/tensorflow/tflite-micro"
        )
    parts = {}
    for name, inside in DOWNLOADED.items():
        folder = folders.get(name, root / _DOWNLOADS / name)
        if not (folder / inside).is_file():
            raise UsageError(
                f"{name} is not in '{folder}', which has no {inside}: tflite-micro's Makefile downloads it; or say "
                f"where it is with --{name}"
            )
        parts[name] = folder.resolve()
    return Checkout(root.resolve(), parts, _library(root, library))


def _library(root: Path, named: Path | None) -> Path:
    if named is not None:
        if not named.is_file():
            raise UsageError(f"'{named}' is no file; it should be tflite-micro's library, {_LIBRARY}")
        return named.resolve()
    found = sorted(root.glob(f"gen/*/lib/{_LIBRARY}"))
    if len(found) != 1:
        raise UsageError(
            f"'{root / 'gen'}' has {len(found)} libraries, not one: build tflite-micro's target microlite for the "
            "machine, or choose one with --library"
        )
    return found[0].resolve()
