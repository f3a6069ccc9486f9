"""Pascal VOC's layout on disk: ``Annotations/NAME.xml``, ``JPEGImages/NAME.jpg``, ``ImageSets/Main/PART.txt``.

Corners count pixels from 1, and the last one belongs to the box: a box from 1 to 640 is the whole of 640 pixels. Sets
that count from 0 are read, too: a 0 stays at the border. A box that is marked as difficult is a box like others.

Source: Everingham et al. 2010, "The Pascal Visual Object Classes (VOC) Challenge", and its development kit.
"""

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from nbcompile.core.errors import UsageError

_PARTS = ("Annotations", "ImageSets/Main", "JPEGImages")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


class Annotation(NamedTuple):
    """What is said of one image.

    Attributes:
        image: its file.
        size: width and height that the boxes are for, in pixels.
        objects: class, and left, top, right, bottom in shares of the sides.
    """

    image: Path
    size: tuple[int, int]
    objects: tuple[tuple[str, tuple[float, float, float, float]], ...]


def voc_root(folder: Path) -> Path:
    """The folder that holds the three parts: ``folder``, ``VOCdevkit/VOC2007`` in it, or ``VOC2007``.

    Raises:
        UsageError: if there is none, or several.
    """
    found = [
        root for root in (folder, *sorted(folder.glob("VOCdevkit/VOC*")), *sorted(folder.glob("VOC2*"))) if _is(root)
    ]
    if not found:
        raise UsageError(f"{folder} holds no VOCdevkit/VOC2007 with {', '.join(_PARTS)}, and none of these itself")
    if len(found) > 1:
        raise UsageError(f"{folder} holds {', '.join(root.name for root in found)}: name one, as voc:{found[0]}")
    return found[0]


def _is(root: Path) -> bool:
    return all((root / part).is_dir() for part in _PARTS)


def names_in(root: Path, part: str) -> list[str]:
    """The images of ``part``, such as ``train``, in the order of its file.

    Raises:
        UsageError: if there is no such part, or it names no image or one twice.
    """
    file = root / "ImageSets" / "Main" / f"{part}.txt"
    try:
        names = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        there = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt"))) or "none"
        raise UsageError(f"{file} cannot be read ({error}); parts that are there: {there}") from None
    if not names:
        raise UsageError(f"{file} names no image")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UsageError(f"{file} names {twice} twice")
    return names


def read_annotation(root: Path, name: str) -> Annotation:
    """What is said of the image ``name``; no objects are none.

    Raises:
        UsageError: if the annotation or the image is missing, or it cannot be read or is not possible.
    """
    file = root / "Annotations" / f"{name}.xml"
    image = next((path for s in _SUFFIXES if (path := root / "JPEGImages" / f"{name}{s}").is_file()), None)
    if image is None:
        raise UsageError(f"{root / 'JPEGImages'} has no image {name}{_SUFFIXES[0]}, which a part names")
    try:
        tree = ElementTree.parse(file).getroot()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{file} is malformed: {error}") from error
    width, height = (int(_number(tree, f"size/{side}", file)) for side in ("width", "height"))
    if width < 1 or height < 1:
        raise UsageError(f"{file}: size is {width}×{height}, not the image's width and height")
    objects = tuple(_object(one, (width, height), file) for one in tree.findall("object"))
    return Annotation(image, (width, height), objects)


def _object(
    one: ElementTree.Element, size: tuple[int, int], file: Path
) -> tuple[str, tuple[float, float, float, float]]:
    name = (one.findtext("name") or "").strip()
    if not name:
        raise UsageError(f"{file}: an object has no name")
    left, top, right, bottom = (_number(one, f"bndbox/{key}", file) for key in ("xmin", "ymin", "xmax", "ymax"))
    width, height = size
    box = f"{file}: the box ({left:g}, {top:g}) to ({right:g}, {bottom:g}) of '{name}'"
    if left < 0 or top < 0 or right > width or bottom > height:
        raise UsageError(f"{box} is outside the image of {width}×{height}")
    if left > right or top > bottom or right <= 0 or bottom <= 0:
        raise UsageError(f"{box} is empty: its first corner is the left upper one")
    corners = max(left - 1, 0) / width, max(top - 1, 0) / height, right / width, bottom / height
    return name, corners


def _number(tree: ElementTree.Element, path: str, file: Path) -> float:
    text = tree.findtext(path)
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:
        raise UsageError(f"{file}: {path} is {text!r}, not a number")
    return value
