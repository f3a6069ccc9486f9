"""``--sizes``: images of a run that grow, or shrink."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile import UsageError
from nbcompile.core.example import origin_of
from nbcompile.training import TrainConfig, train
from nbcompile.training.compute import training_cost
from nbcompile.training.data.digits import load_digits
from nbcompile.training.data.load import load_data

RUN: dict[str, Any] = {"epochs": 3, "batch_size": 256, "warmup_epochs": 0, "accelerator": "cpu", "train_images": 512}


class Watched(nn.Module):
    """Notes the sides of the batches that it is given to train on, and to be measured on."""

    seen: list[tuple[bool, int]] = []  # noqa: RUF012  of all copies

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 99:  # else it is tried, or counted
            self.seen.append((self.training, x.shape[-1]))
        out: Tensor = self.inner(x)
        return out


@pytest.mark.parametrize(
    ("sizes", "epochs", "sides"),
    [
        ((8, 12), 4, [8, 8, 12, 12]),
        ((8, 12), 5, [8, 8, 8, 12, 12]),
        ((24, 8, 16), 3, [24, 8, 16]),
        ((32, 40, 48), 7, [32, 32, 32, 40, 40, 48, 48]),
        ((), 2, [None, None]),
    ],
)
def test_each_size_has_an_equal_part_of_the_run(sizes: tuple[int, ...], epochs: int, sides: list[int | None]) -> None:
    config = TrainConfig(epochs=epochs, sizes=sizes)
    assert [config.side_in(epoch) for epoch in range(epochs)] == sides
    assert config.side == sides[-1]
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(("sizes", "workers"), [((6, 12, 8), 1), ((8, 10, 12), 0)])
def test_trains_on_each_size_and_measures_at_the_last(
    net_for: Callable[..., nn.Module], tmp_path: Path, sizes: tuple[int, ...], workers: int
) -> None:
    Watched.seen.clear()
    result = train(Watched(net_for()), TrainConfig(**RUN, sizes=sizes, num_workers=workers), tmp_path / "trained.pt")
    assert dict.fromkeys(side for training, side in Watched.seen if not training) == {sizes[-1]: None}
    trained = [side for training, side in Watched.seen if training][
        -6:
    ]  # two steps an epoch; before them, it was tried
    assert trained == [side for side in sizes for _ in range(2)]
    assert [epoch.phase for epoch in result.history] == [f"train, {side} px" for side in sizes]
    origin = origin_of(result.model)
    assert origin is not None
    assert tuple(origin.inputs[0].shape) == (1, 1, sizes[-1], sizes[-1])


@pytest.mark.parametrize("augment", ["light", "none", "crops", "mixup"])
@pytest.mark.parametrize("memory", [0, 1])
def test_images_of_a_folder_change_their_size(folder: Path, augment: str, memory: int) -> None:
    about: dict[str, Any] = {"data": f"imagefolder:{folder}", "augment": augment, "memory": memory, "train_images": 4}
    data = load_data(TrainConfig(**about, sizes=(24, 16, 12)), 8)
    assert data.shape == (3, 12, 12)
    assert data.resize is not None
    for side in (12, 24, 16, 12):
        data.resize(side)
        assert data.train[[0, 1]][0].shape == (2, 3, side, side)  # type: ignore[index]
        assert data.val[[0, 1]][0].shape == (2, 3, 12, 12)  # type: ignore[index]


def test_a_view_is_the_same_at_every_size() -> None:
    data = load_digits(16)
    assert data.resize is not None
    drawn = torch.zeros(1, 2, dtype=torch.int16)
    large = data.train.view([3], drawn)[0]  # type: ignore[attr-defined]
    data.resize(8)
    small = data.train.view([3], drawn)[0]  # type: ignore[attr-defined]
    resized = nn.functional.interpolate(large, size=(8, 8), mode="bilinear", antialias=True)
    assert torch.corrcoef(torch.stack([resized.flatten(), small.flatten()]))[0, 1] > 0.9


def test_images_are_held_as_large_as_the_largest_size_needs_them(folder: Path) -> None:
    about: dict[str, Any] = {"data": f"imagefolder:{folder}", "augment": "none"}
    held = [load_data(TrainConfig(**about, sizes=sizes)).train for sizes in ((16, 24, 8), (8, 24))]
    assert [images.pixels.shape[-1] for images in held] == [24, 24]  # type: ignore[attr-defined]


def test_the_cost_is_that_of_each_size(net: nn.Module) -> None:
    example, teacher = torch.zeros(1, 1, 16, 16), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 10))
    at = {side: (side // 2) ** 2 * (8 * 9 + 16 * 8) + 64 * 10 for side in (8, 12, 16)}
    spent = training_cost(net, TrainConfig(method="vanilla", epochs=6, sizes=(8, 12, 16)), example, 100)
    assert spent.network == 2 * 3 * 100 * sum(at.values())
    assert spent.plain_epoch == 3 * 100 * at[16]
    assert spent.over_plain == pytest.approx(sum(at.values()) / 3 / at[16])
    taught = TrainConfig(method="kd", teacher="t.pt", epochs=2, sizes=(8, 16))
    pooled = 10 * 4  # the teacher's, at any size
    assert training_cost(net, taught, example, 100, teacher).teacher == 2 * 100 * pooled


@pytest.mark.parametrize(
    "options",
    [
        {"method": "netbooster", "where": "all", "ratio": 2, "giant_epochs": 1, "plt_epochs": 1},
        pytest.param({"method": "netaug"}, marks=pytest.mark.slow),
        pytest.param({"method": "rocket", "where": "last:1"}, marks=pytest.mark.slow),
        pytest.param(
            {"method": "netbooster", "where": "all", "giant_epochs": 1, "plt_epochs": 1, "collapse": True},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_giants_are_trained_at_each_size(net: nn.Module, tmp_path: Path, options: dict[str, Any]) -> None:
    result = train(net, TrainConfig(**RUN, **options, sizes=(8, 12, 10)), tmp_path / "trained.pt")
    assert [epoch.phase.rpartition(", ")[2] for epoch in result.history] == ["8 px", "12 px", "10 px"]
    assert result.fused_accuracy is None or abs(result.fused_accuracy - result.accuracy) < 0.02


def test_a_network_that_takes_one_size_alone_is_refused_before_it_starts(tmp_path: Path) -> None:
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    sentence = r"^Sequential cannot take the images of digits, 1×12×12 \(.*\): write .*, or choose other sizes$"
    with pytest.raises(UsageError, match=sentence):
        train(fixed, TrainConfig(**RUN, sizes=(12, 8)), tmp_path / "trained.pt")
    free = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 10))
    taught = TrainConfig(**RUN, sizes=(12, 8), method="kd", teacher="t.pt")
    with pytest.raises(UsageError, match=r"^the teacher t.pt \(Sequential\) cannot take the images of digits, 1×12×12"):
        train(free, taught, tmp_path / "trained.pt", teacher=fixed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sizes": (24,)}, "sizes must be two or more, not 24 alone: for one there is input_size"),
        ({"sizes": (24, 0)}, "sizes must be whole numbers of pixels, > 0, not 24, 0"),
        ({"sizes": (24, 32.5)}, "sizes must be whole numbers of pixels, > 0, not 24, 32.5"),
        ({"sizes": ("24", "32")}, "sizes must be whole numbers of pixels, > 0, not 24, 32"),
        ({"sizes": (8, 12, 16), "epochs": 2}, "sizes 8, 12, 16 are more than the epochs, 2"),
        ({"sizes": (8, 12), "input_size": 8}, "sizes end with 12, and input_size is 8: leave one of the two out"),
    ],
)
def test_refuses(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=rf"^{sentence}$"):
        TrainConfig(**options)


def test_the_same_size_twice_and_an_input_size_that_agrees_are_taken() -> None:
    assert TrainConfig(sizes=(8, 8, 12), input_size=12).side == 12


def test_data_that_decides_its_size_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made.py").write_text(
        "import torch\n"
        "def data():\n"
        "    part = torch.utils.data.TensorDataset(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))\n"
        "    return part, part\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^sizes: made:data decides the size of its images itself$"):
        load_data(TrainConfig(data="made:data", sizes=(4, 8)))
