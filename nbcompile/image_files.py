"""Opening an image, to train on or to calibrate with: in one place, so that both see the same pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from nbcompile.core.errors import UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What counts as an image in a folder; other files are left."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """What reading an image called ``name`` raises becomes one sentence."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # Pillow and zipfile raise what comes: of damaged bytes also TypeError, struct.error
        raise UsageError(f"{name} cannot be read as an image: {error}") from error


def opened(source: str | Path | BytesIO, name: str, mode: str = "RGB") -> Any:
    """An image of Pillow, decoded.

    Args:
        source: what ``PIL.Image.open`` takes.
        name: what messages call it.
        mode: ``RGB`` or ``L``; grey, palette and CMYK images are converted, transparency is dropped.

    Raises:
        UsageError: if it cannot be read, or has more than 8 bits per channel: Pillow would clip those to white.
    """
    from PIL import Image

    with naming(name), Image.open(source) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise UsageError(f"{name} has more than 8 bits per channel (mode {image.mode}): convert it to 8 bits")
        return image.convert(mode)
