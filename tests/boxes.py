"""A folder in Pascal VOC's layout with coloured rectangles, and a backbone that is trained in a second."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
SIDES = (80, 64)


def annotation(objects: list[tuple[str, tuple[float, ...]]], sides: tuple[int, int] = SIDES) -> str:
    rows = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for name, (a, b, c, d) in objects
    )
    width, height = sides
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{rows}</annotation>"


def write_voc(folder: Path, train: int = 8, val: int = 4) -> Path:
    """``train`` and ``val`` images of 80 × 64 pixels, each with a red and a blue rectangle; the last one has none."""
    root = folder / "VOCdevkit" / "VOC2007"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / part).mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", train), ("val", val)):
        names = [f"{part}{i}" for i in range(count)]
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            image = Image.new("RGB", SIDES, (110, 120, 110))
            objects = []
            for colour, fill in COLOURS.items() if name != names[-1] else ():
                x, y, w, h = (int(torch.randint(low, high, (), generator=generator)) for low, high in RANGES)
                ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill)
                objects.append((colour, (x + 1, y + 1, x + w, y + h)))
            image.save(root / "JPEGImages" / f"{name}.jpg")
            (root / "Annotations" / f"{name}.xml").write_text(annotation(objects))
    return folder


RANGES = ((0, 50), (0, 36), (12, 28), (12, 28))


class Tower(nn.Module):
    """A classifier of stride 32, as others have it: narrow blocks, a wide last layer."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in ((3, 8), (8, 8), (8, 12), (12, 12), (12, 16)):
            layers += [nn.Conv2d(c_in, c_in, 3, 2, 1, groups=c_in, bias=False), nn.BatchNorm2d(c_in), nn.ReLU()]
            layers += [nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Conv2d(16, 64, 1), nn.ReLU(), nn.Dropout(0.1))
        self.classifier = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits
