import math

import pytest
import torch

from nbcompile.core.errors import UsageError
from nbcompile.detection.decode import BoxCoding, decode

CODING = BoxCoding(("a", "b"), (((0.1, 0.2), (0.2, 0.1), (0.3, 0.3)), ((0.5, 0.4), (0.6, 0.6), (0.9, 0.8))))


def silent_maps() -> list[torch.Tensor]:
    maps = [torch.zeros(1, 21, 7, 5), torch.zeros(1, 21, 3, 2)]
    for x in maps:
        x[:, 4::7] = -20
    return maps


def say(maps: list[torch.Tensor], which: int, anchor: int, row: int, column: int, numbers: list[float]) -> None:
    maps[which][0, anchor * 7 : anchor * 7 + 7, row, column] = torch.tensor(numbers)


def test_a_box_is_what_the_formula_says() -> None:
    maps = silent_maps()
    say(maps, 0, 1, 4, 3, [0.3, -0.7, 0.2, -0.1, 2.0, 3.0, -1.0])
    found = decode(maps, CODING, score=0.2)[0]
    sigmoid = [1 / (1 + math.exp(-x)) for x in (0.3, -0.7, 2.0, 3.0, -1.0)]
    x, y = (3 + sigmoid[0]) / 5, (4 + sigmoid[1]) / 7
    w, h = 0.2 * math.exp(0.2) / 2, 0.1 * math.exp(-0.1) / 2
    assert found.boxes.tolist() == [[pytest.approx(v) for v in (x - w, y - h, x + w, y + h)]] * 2
    assert found.scores.tolist() == pytest.approx([sigmoid[2] * sigmoid[3], sigmoid[2] * sigmoid[4]])
    assert found.classes.tolist() == [0, 1]


def test_of_boxes_that_overlap_the_surest_of_each_class_is_kept() -> None:
    maps = silent_maps()
    for column, sure in ((1, 2.0), (2, 1.0)):
        say(maps, 0, 2, 3, column, [-3 if column == 2 else 3, 0, 0, 0, sure, 9.0, -20.0])
    assert len(decode(maps, CODING, score=0.2)[0].boxes) == 1
    say(maps, 0, 2, 3, 2, [-3, 0, 0, 0, 1.0, -20.0, 9.0])
    found = decode(maps, CODING, score=0.2)[0]
    assert found.classes.tolist() == [0, 1]
    assert found.scores[0] > found.scores[1]
    assert len(decode(maps, CODING, score=0.2, kept=1)[0].boxes) == 1
    assert len(decode(maps, CODING, score=0.2, candidates=1)[0].boxes) == 1


def test_boxes_end_at_the_border_and_nothing_is_infinite() -> None:
    maps = silent_maps()
    say(maps, 1, 2, 0, 0, [-9, -9, 80, 80, 9, 9, -20])
    found = decode(maps, CODING, score=0.2)[0]
    assert found.boxes.tolist() == [[0, 0, 1, 1]]


def test_nothing_is_found_on_silent_maps() -> None:
    (found,) = decode(silent_maps(), CODING)
    assert found.boxes.shape == (0, 4)


def test_what_a_file_holds_is_read_again() -> None:
    assert BoxCoding.from_json(CODING.to_json()) == CODING


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"classes": ["a"], "anchors": [[[1, 2]]]},
        {"classes": ["a"], "anchors": 3},
        {"classes": [], "anchors": CODING.to_json()["anchors"]},
        {"classes": ["a"], "anchors": [[[0.1, 0.1], [0.2, 0.0], [0.1, 0.1]]]},
    ],
)
def test_what_is_malformed_is_refused(found: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"^the detector's boxes are malformed in its file"):
        BoxCoding.from_json(found)
