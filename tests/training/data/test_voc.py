"""Pascal VOC's layout: what is read, what is shown, and what is refused."""

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from nbcompile.core.errors import UsageError
from nbcompile.training import TrainConfig
from nbcompile.training.data.base import Data
from nbcompile.training.data.boxes.views_of_boxes import WHOLE, View, boxes_in, drawn_view, shown
from nbcompile.training.data.load import load_data
from nbcompile.training.tasks.detection import Detection
from tests.boxes import annotation, write_voc

RED = ("red", (1.0, 1.0, 20.0, 30.0))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "data", train=3, val=2) / "VOCdevkit" / "VOC2007"


def loaded(root: Path, options: str = "", **config: object) -> Data:
    return load_data(TrainConfig(data=f"voc:{root}{options}", **{"input_size": 64, **config}))  # type: ignore[arg-type]


def test_boxes_are_shares_of_the_image(voc: Path) -> None:
    (voc / "Annotations" / "train0.xml").write_text(annotation([RED, ("blue", (80.0, 64.0, 80.0, 64.0))]))
    data = loaded(voc)
    images, labels = data.train[[0, 2]]  # type: ignore[misc]
    assert images.shape == (2, 3, 64, 64)
    assert (data.classes, data.shape) == (("blue", "red"), (3, 64, 64))
    expected = [[1, 0, 0, 20 / 80, 30 / 64], [0, 79 / 80, 63 / 64, 1, 1]]
    assert data.train.labels.shape == (3, 2, 5)
    torch.testing.assert_close(data.train.labels[0], torch.tensor(expected))
    assert data.train.labels[2].tolist() == [[-1, 0, 0, 0, 0]] * 2
    assert labels.shape == (2, 2, 5)


def test_what_a_trained_file_keeps_is_there(voc: Path) -> None:
    data = loaded(voc)
    assert isinstance(data.task, Detection)
    assert data.task.boxes_per_image == pytest.approx(4 / 3)
    assert data.preprocessing["boxes"] == data.task.coding.to_json()
    assert data.preprocessing["boxes"]["classes"] == ["blue", "red"]
    areas = [w * h for one in data.task.coding.anchors for w, h in one]
    assert areas == sorted(areas)
    assert len(areas) == 6


@pytest.mark.parametrize("name", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_the_folder_or_what_it_holds_is_named(voc: Path, name: str) -> None:
    root = voc.parents[1] / name
    if name == "VOCdevkit":  # holds VOC2007
        assert len(loaded(root).train) == 3
    assert len(loaded(root).val) == 2


def test_other_parts_and_classes_are_named(voc: Path) -> None:
    (voc / "ImageSets" / "Main" / "all.txt").write_text("train0 1\ntrain1 -1\nval0  1\n")
    data = loaded(voc, "?train=all&val=train&classes=red,blue,green")
    assert (len(data.train), len(data.val), data.classes) == (3, 3, ("red", "blue", "green"))
    assert data.train.labels[0, :, 0].tolist() == [0, 1]


def test_one_class_is_enough(voc: Path) -> None:
    for name in ("train0", "train1", "val0"):
        (voc / "Annotations" / f"{name}.xml").write_text(annotation([RED]))
    assert loaded(voc).classes == ("red",)


def test_so_many_training_images(voc: Path) -> None:
    data = loaded(voc, train_images=2)
    assert len(data.train) == 2
    assert data.train[[0]][1].shape == (1, 2, 5)  # type: ignore[index, union-attr]


def test_images_without_objects_are_background_and_said(voc: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "nbcompile"):
        loaded(voc)
    assert [record.getMessage() for record in caplog.records] == [
        f"voc:{voc}, train: 1 of 3 images have no objects, such as train2.jpg: they are background",
        f"voc:{voc}, val: 1 of 2 images have no objects, such as val1.jpg: they are background",
    ]


BAD = {
    "outside": (
        [("red", (1.0, 1.0, 81.0, 20.0))],
        r"the box \(1, 1\) to \(81, 20\) of 'red' is outside the image of 80×64",
    ),
    "above": (
        [("red", (1.0, -2.0, 5.0, 20.0))],
        r"the box \(1, -2\) to \(5, 20\) of 'red' is outside the image of 80×64",
    ),
    "turned": (
        [("red", (9.0, 1.0, 5.0, 20.0))],
        r"the box .* of 'red' is empty: its first corner is the left upper one",
    ),
    "no name": ([(" ", (1.0, 1.0, 5.0, 20.0))], "an object has no name"),
    "no number": ([("red", ("x", 1.0, 5.0, 20.0))], "bndbox/xmin is 'x', not a number"),
    "infinite": ([("red", ("nan", 1.0, 5.0, 20.0))], "bndbox/xmin is 'nan', not a number"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_box_that_cannot_be_is_refused(voc: Path, what: str) -> None:
    objects, why = BAD[what]
    file = voc / "Annotations" / "train1.xml"
    file.write_text(annotation(objects))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=rf"^{file}: {why}; --skip-broken"):
        loaded(voc)
    assert len(loaded(voc, skip_broken=True).train) == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<annotation><size>", r" is malformed: no element found"),
        ("", " is malformed: no element found"),
        ("<annotation></annotation>", ": size/width is None, not a number"),
        (annotation([RED], (0, 64)), ": size is 0×64, not the image's width and height"),
    ],
)
def test_a_malformed_annotation_is_refused(voc: Path, text: str, why: str) -> None:
    file = voc / "Annotations" / "train1.xml"
    file.write_text(text)
    with pytest.raises(UsageError, match=rf"^{file}{why}"):
        loaded(voc)


def test_what_is_missing_is_named(voc: Path) -> None:
    (voc / "Annotations" / "train1.xml").unlink()
    with pytest.raises(UsageError, match=r"train1.xml cannot be read: No such file or directory"):
        loaded(voc)
    (voc / "JPEGImages" / "train0.jpg").unlink()
    with pytest.raises(UsageError, match=r"JPEGImages has no image train0.jpg, which a part names"):
        loaded(voc)
    (voc / "ImageSets" / "Main" / "train.txt").unlink()
    with pytest.raises(UsageError, match=r"train.txt cannot be read \(.*\); parts that are there: val$"):
        loaded(voc)
    (voc / "JPEGImages").rename(voc / "Images")
    with pytest.raises(UsageError, match=r"holds no VOCdevkit/VOC2007 with Annotations, ImageSets/Main, JPEGImages"):
        loaded(voc)


def test_an_image_of_another_size_or_damaged_is_refused_when_it_is_read(voc: Path) -> None:
    Image.new("RGB", (64, 80)).save(voc / "JPEGImages" / "train0.jpg")
    (voc / "JPEGImages" / "train1.jpg").write_bytes(b"no image")
    data = loaded(voc)
    assert str(data.train[[0]]).endswith(
        "train0.jpg has 64×80 pixels, and the boxes of its annotation are for 80×64; --skip-broken "
        "(skip_broken=True) passes over such images"
    )
    assert "train1.jpg cannot be read as an image" in str(data.train[[2, 1]])


def test_parts_are_checked(voc: Path) -> None:
    main = voc / "ImageSets" / "Main"
    (main / "val.txt").write_text("\n")
    with pytest.raises(UsageError, match=r"val.txt names no image$"):
        loaded(voc)
    (main / "val.txt").write_text("val0\nval0\n")
    with pytest.raises(UsageError, match=r"val.txt names val0 twice$"):
        loaded(voc)
    (main / "val.txt").write_text("val1\n")
    with pytest.raises(UsageError, match=r", val has no boxes: there is nothing to detect$"):
        loaded(voc)


def test_classes_that_differ_are_refused(voc: Path) -> None:
    (voc / "Annotations" / "val0.xml").write_text(annotation([RED, ("green", RED[1])]))
    with pytest.raises(
        UsageError, match=r"must have the same classes; only one has blue, green \(\?classes=NAME,NAME says"
    ):
        loaded(voc)
    with pytest.raises(UsageError, match=r"the annotations have green, which classes=red,blue lacks$"):
        loaded(voc, "?classes=red,blue")
    with pytest.raises(UsageError, match=r"classes=red,red names one twice, or none$"):
        loaded(voc, "?classes=red,red")
    with pytest.raises(UsageError, match=r"option 'part' is not train=PART, val=PART or classes=NAME,NAME$"):
        loaded(voc, "?part=x")


def test_the_task_must_be_that_of_the_labels(voc: Path) -> None:
    with pytest.raises(UsageError, match=r"^task classification: the labels of voc:.* are for detection$"):
        loaded(voc, task="classification")
    with pytest.raises(UsageError, match=r"^task detection: the labels of digits are for classification$"):
        load_data(TrainConfig(task="detection"))
    assert loaded(voc, task="detection").task.name == "detection"


def test_several_years_are_not_guessed(voc: Path) -> None:
    (voc.parent / "VOC2012").symlink_to(voc, target_is_directory=True)
    with pytest.raises(UsageError, match=r"holds VOC2007, VOC2012: name one, as voc:.*VOC2007$"):
        loaded(voc.parents[1])


def test_a_view_shows_what_it_should() -> None:
    """A white square on black, at places that are whole pixels: its box in the view is where it is white."""
    image = Image.new("RGB", (128, 96))
    image.paste((255, 255, 255), (32, 24, 96, 72))
    labels = torch.tensor([[1.0, 0.25, 0.25, 0.75, 0.75], [-1, 0, 0, 0, 0]])
    for view in (
        WHOLE,
        View(0.125, 0.0, 1.125, 1.0, False),
        View(0.0, 0.25, 1.0, 0.75, True),
        View(-0.5, -0.5, 1.5, 1.5, True),
    ):
        pixels = torch.tensor(list(shown(image, view, 64).convert("L").tobytes())).view(64, 64) > 180
        rows, columns = pixels.any(1).nonzero(), pixels.any(0).nonzero()
        found = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        said = boxes_in(labels, view)
        assert said[0, 0] == 1
        assert found == pytest.approx((64 * said[0, 1:]).tolist(), abs=0.51), view
        assert said[1].tolist() == [-1, 0, 0, 0, 0]


def test_a_box_that_is_hardly_shown_is_none() -> None:
    labels = torch.tensor([[0.0, 0.0, 0.0, 0.2, 1.0], [1.0, 0.6, 0.2, 0.8, 0.4]])
    seen = boxes_in(labels, View(0.15, 0.0, 1.15, 1.0, False))
    assert seen[:, 0].tolist() == [1, -1]
    torch.testing.assert_close(seen[0, 1:], torch.tensor([0.45, 0.2, 0.65, 0.4]))


def test_drawn_views_hold_or_lie_in_the_image() -> None:
    torch.manual_seed(0)
    for _ in range(200):
        view = drawn_view()
        for low, high in ((view.left, view.right), (view.top, view.bottom)):
            assert 0.6 < high - low < 1.5
            assert low >= -1e-9 if high - low <= 1 else (low <= 1e-9 and high >= 1 - 1e-9)
        assert shown(Image.new("RGB", (31, 17)), view, 64).size == (64, 64)
