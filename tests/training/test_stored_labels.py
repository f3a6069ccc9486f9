"""A teacher's answers, written once and used by many runs."""

import json
import math
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from nbcompile import UsageError
from nbcompile.training import TrainConfig, TrainResult, train
from nbcompile.training.batch import ANSWERS
from nbcompile.training.data.base import Data
from nbcompile.training.data.factory import Items
from nbcompile.training.data.in_memory import tensor_data
from nbcompile.training.stored.labels import StoredLabels
from nbcompile.training.stored.record import checksum_of_weights
from nbcompile.training.stored.views import as_tensors, packed, row_type, unpacked
from tests.training.stopping import StopError, stop_after

FABRIC = Fabric(accelerator="cpu", devices=1)
EVERYTHING = list(range(40))


def some_data(classes: int = 4, seed: int = 0, size: int | None = None) -> Data:
    """Noise, 7 × 7 pixels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (40, 1, 7, 7), dtype=torch.uint8, generator=generator)
    part, names = (pixels, torch.arange(40) % classes), tuple("abcdefg"[:classes])
    return tensor_data("some", part, part, names, scale=1 / 255, size=size, mirror=True)


class Teacher(nn.Module):
    """Counts the images that it is asked about."""

    def __init__(self, classes: int = 4, seed: int = 3, side: int = 7) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(side * side, classes)
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        logits: Tensor = self.layer(images.flatten(1)) * 3
        return logits


def opened(
    folder: Path, teacher: nn.Module | None, data: Data | None = None, run: str = "run", **options: Any
) -> StoredLabels:
    told = {"method": "kd", "epochs": 3, "batch_size": 16, "stored_labels": str(folder), "warmup_epochs": 0}
    config = TrainConfig(**told | {"teacher": None if teacher is None else "t.pt"} | options)  # type: ignore[arg-type]
    return StoredLabels(config, data or some_data(), teacher, FABRIC, folder.parent / run)


def filled(folder: Path, teacher: nn.Module | None = None, **options: Any) -> StoredLabels:
    stored = opened(folder, teacher or Teacher(), **options)
    stored.begin(resumed=False)
    for epoch in range(options.get("epochs", 3)):
        stored.turn_to(epoch)
    return stored


@pytest.mark.parametrize("top", [1, 3, 6, 7])
def test_what_is_left_counts_evenly(top: int) -> None:
    generator = torch.Generator().manual_seed(top)
    logits = 4 * torch.randn(11, 7, generator=generator)
    p = logits.double().softmax(1)
    rows = packed(torch.zeros(11, 2, dtype=torch.int16), logits, top)
    assert rows.dtype == row_type(2, top)
    best = p.sort(1, descending=True)
    expected = p.clone()
    if top < 7:
        even = best.values[:, top:].sum(1, keepdim=True) / (7 - top)
        expected.scatter_(1, best.indices[:, top:], even.repeat(1, 7 - top))
    found = unpacked(as_tensors(rows), 7).double().exp()
    torch.testing.assert_close(found, expected, rtol=8e-3, atol=1e-9)  # half precision, of logarithms down to -20
    torch.testing.assert_close(found.sum(1), torch.ones(11, dtype=torch.float64), rtol=2e-3, atol=0)


def test_a_sure_teacher_stays_sure() -> None:
    rows = packed(torch.zeros(1, 0, dtype=torch.int16), torch.tensor([[30.0, 0.0, -30.0, 5.0, 0.0]]), 2)
    found = unpacked(as_tensors(rows), 5)[0]
    assert found.isfinite().all()
    assert found[3] == pytest.approx(-25, abs=0.02)
    assert found[1] == found[2] == found[4] == pytest.approx(-30 + math.log(2 / 3), abs=0.02)
    with pytest.raises(UsageError, match=r"^the teacher answers with numbers that are not finite: it cannot teach$"):
        packed(torch.zeros(1, 0, dtype=torch.int16), torch.tensor([[math.nan, 0.0]]), 1)


def test_a_batch_has_the_views_and_what_the_teacher_answered_to_them(tmp_path: Path) -> None:
    teacher, data = Teacher(), some_data()
    stored = opened(tmp_path / "labels", teacher, data)
    stored.begin(resumed=False)
    seen = []
    for epoch in range(3):
        before = torch.random.get_rng_state()
        stored.turn_to(epoch)
        assert torch.equal(torch.random.get_rng_state(), before), "the run's random numbers are its own"
        images, labels, more = stored.images[EVERYTHING]
        torch.testing.assert_close(more[ANSWERS].exp(), teacher(images).softmax(1), rtol=8e-3, atol=1e-6)
        assert labels.tolist() == data.train.labels.tolist() == stored.images.labels.tolist()
        some, _, few = stored.images[[7, 9]]
        assert torch.equal(some, images[[7, 9]])
        assert torch.equal(few[ANSWERS], more[ANSWERS][[7, 9]])
        seen.append(images)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_second_run_asks_nobody_and_sees_the_same(tmp_path: Path) -> None:
    folder, teacher = tmp_path / "labels", Teacher()
    first = filled(folder, teacher)
    assert teacher.asked == 3 * 40
    again = filled(folder, teacher, run="second")
    nobody = opened(folder, None, run="third")
    nobody.begin(resumed=False)
    assert teacher.asked == 3 * 40
    for epoch in range(3):
        batches = []
        for stored in (first, again, nobody):
            stored.turn_to(epoch)
            images, _, more = stored.images[EVERYTHING]
            batches.append((images, more[ANSWERS]))
        for images, answers in batches[1:]:
            assert torch.equal(images, batches[0][0])
            assert torch.equal(answers, batches[0][1])
    assert (first.spent, again.spent, nobody.spent) == (3 * 40 * 49 * 4, 0, 0)
    assert nobody.shared() == {"views": 3, "macs": 3 * 40 * 49 * 4, "runs": 3}


def test_each_seed_begins_with_another_view_and_sees_all(tmp_path: Path) -> None:
    filled(tmp_path / "labels", epochs=4)

    def order(seed: int, **options: Any) -> list[int]:
        stored = opened(tmp_path / "labels", None, **{"epochs": 4, "seed": seed, **options})
        numbers = []
        for epoch in range(6):
            stored.turn_to(epoch)
            drawn = stored.images.rows["drawn"]
            numbers.append(next(i for i in range(4) if np.array_equal(drawn, views[i])))
        return numbers

    views = [np.load(tmp_path / "labels" / f"view-000{i}.npy")["drawn"] for i in range(4)]
    orders = [order(seed) for seed in range(8)]
    assert all(one == [(one[0] + i) % 4 for i in range(6)] for one in orders)
    assert len({one[0] for one in orders}) > 2
    assert set(order(0, stored_views=2)) == {0, 1}


def test_a_longer_run_adds_views_and_says_where_it_cannot(tmp_path: Path) -> None:
    folder, teacher = tmp_path / "labels", Teacher()
    filled(folder, teacher)
    sentence = r"holds 3 of the 5 views that the run needs: give the teacher, or say stored_views 3$"
    with pytest.raises(UsageError, match=sentence):
        opened(folder, None, epochs=5)
    longer = filled(folder, teacher, epochs=5, run="longer")
    assert teacher.asked == 5 * 40
    assert longer.spent == 2 * 40 * 49 * 4
    assert longer.shared()["runs"] == 2
    assert opened(folder, None, epochs=5).shared()["views"] == 5
    (folder / "view-0001.npy").unlink()
    with pytest.raises(UsageError, match="holds 4 of the 5 views"):
        opened(folder, None, epochs=5)


def test_a_resumed_run_keeps_its_account(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    stored = opened(folder, Teacher())
    stored.begin(resumed=False)
    stored.turn_to(0)
    resumed = opened(folder, Teacher())
    resumed.begin(resumed=True)
    resumed.turn_to(1)
    assert resumed.spent == 2 * 40 * 49 * 4
    anew = opened(folder, Teacher())
    anew.begin(resumed=False)
    assert anew.spent == 0


def test_only_one_of_two_runs_answers(tmp_path: Path) -> None:
    teachers = [Teacher(), Teacher()]
    runs = [opened(tmp_path / "labels", teacher, run=str(i)) for i, teacher in enumerate(teachers)]
    for run in runs:
        run.begin(resumed=False)
    threads = [threading.Thread(target=lambda run=run: [run.turn_to(epoch) for epoch in range(3)]) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(teacher.asked for teacher in teachers) == 3 * 40
    assert sum(run.spent for run in runs) == 3 * 40 * 49 * 4


def test_two_runs_answer_two_views_at_the_same_time(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=20)

    class Meets(Teacher):
        def forward(self, images: Tensor) -> Tensor:
            if self.asked == 0 and len(images) > 1:
                both.wait()
            return super().forward(images)

    runs = [opened(tmp_path / "labels", Meets(), run=str(seed), seed=seed) for seed in range(8)]
    first = next(run for run in runs if run._first != runs[0]._first)
    pair = [runs[0], first]
    for run in pair:
        run.begin(resumed=False)
    threads = [threading.Thread(target=run.turn_to, args=(0,)) for run in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not both.broken
    assert len(list((tmp_path / "labels").glob("view-*.npy"))) == 2
    assert [run.spent for run in pair] == [40 * 49 * 4] * 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"teacher": Teacher(seed=4)}, "another teacher; choose another folder"),
        ({"data": some_data(seed=1)}, "other images; choose another folder"),
        (
            {"data": replace(some_data(), classes=("a", "b", "c", "x"))},
            "other classes: 'd', not 'x'; choose another folder",
        ),
        (
            {"data": some_data(5), "teacher": Teacher(5)},
            "other classes: 4, not 5; choose another folder",
        ),
        (
            {"data": some_data(size=9), "teacher": Teacher(side=9)},
            "another input size: 1×7×7, not 1×9×9; choose another f",
        ),
        ({"stored_top": 2}, "another number of classes to an image: 4, not 2; choose another folder"),
    ],
)
@pytest.mark.parametrize("during", [False, True])
def test_labels_that_were_stored_for_something_else(
    tmp_path: Path, change: dict[str, Any], sentence: str, during: bool
) -> None:
    folder, options = tmp_path / "labels", {"teacher": Teacher(), **change}
    early = opened(folder, **options) if during else None  # another run makes the folder before this one begins
    filled(folder)
    with pytest.raises(UsageError, match=rf"^{folder} holds labels that were stored with {sentence}"):
        opened(folder, **options) if early is None else early.begin(resumed=False)


def test_labels_that_were_stored_for_other_augmentation(tmp_path: Path) -> None:
    filled(tmp_path / "labels")
    data = some_data()
    data.train.augmentation = "turned"  # type: ignore[attr-defined]
    sentence = "other augmentation: 'shifted by up to 1 px, mirrored', not 'turned'; choose another folder"
    with pytest.raises(UsageError, match=sentence):
        opened(tmp_path / "labels", None, data)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    with pytest.raises(UsageError, match=r"labels holds 0 of the 3 views that the run needs: give the teacher$"):
        opened(folder, None)
    folder.mkdir()
    (folder / "cat.jpg").touch()
    with pytest.raises(UsageError, match=r"labels holds no stored labels, but cat.jpg: choose a folder of their own$"):
        opened(folder, Teacher())
    with pytest.raises(UsageError, match=r"cat.jpg is a file: name a folder$"):
        opened(folder / "cat.jpg", Teacher())
    with pytest.raises(UsageError, match=r"stored_labels .* cannot be written: "):
        opened(folder / "cat.jpg" / "x", Teacher()).begin(resumed=False)
    items = replace(some_data(), train=Items([(torch.zeros(1, 7, 7), 0)] * 4, "train"))
    with pytest.raises(UsageError, match=r"^stored_labels needs images whose views can be repeated, and those of some"):
        opened(tmp_path / "others", Teacher(), items)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "damaged: delete the folder, and the teacher answers anew"),
        ("[]", "damaged: delete the folder, and the teacher answers anew"),
        ('{"format": 2}', "has format 2, this version of nbcompile reads 1: choose another folder"),
        ('{"format": 1, "data": "x"}', "is no record of stored labels: choose another folder"),
    ],
)
def test_a_damaged_record(tmp_path: Path, text: str, sentence: str) -> None:
    filled(tmp_path / "labels")
    (tmp_path / "labels" / "labels.json").write_text(text)
    with pytest.raises(UsageError, match=rf"labels\.json .*{sentence}$"):
        opened(tmp_path / "labels", Teacher())


def test_damaged_views(tmp_path: Path) -> None:
    folder, anew = tmp_path / "labels", "delete it, and the teacher answers anew$"
    filled(folder)
    path = folder / "view-0001.npy"
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:50], b"", b"PK" + whole):
        path.write_bytes(broken)
        with pytest.raises(UsageError, match=rf"view-0001.npy is damaged, or was never whole: {anew}"):
            opened(folder, None)
    np.save(path, np.zeros(40))
    with pytest.raises(UsageError, match=r"view-0001.npy holds no answers to 40 images of this set: delete it, or ch"):
        opened(folder, None)
    for spoilt in ({"logs": math.nan}, {"logs": 3.0}, {"classes": 4}):
        path.write_bytes(whole)
        rows = np.load(path)
        for name, value in spoilt.items():
            rows[name][5, 1] = value
        np.save(path, rows)
        stored = opened(folder, None, stored_views=2)
        with pytest.raises(
            UsageError, match=rf"view-0001.npy is damaged: it holds numbers that are no answers; {anew}"
        ):
            [stored.turn_to(epoch) for epoch in range(2)]
    path.unlink()
    filled(folder)
    assert path.read_bytes() == whole


def test_weights_are_told_apart_by_their_names_and_values() -> None:
    one, two = Teacher(), Teacher()
    assert checksum_of_weights(one) == checksum_of_weights(two)
    with torch.no_grad():
        two.layer.bias[3] += 1e-6
    assert checksum_of_weights(one) != checksum_of_weights(two)
    assert checksum_of_weights(nn.ModuleList([one])) != checksum_of_weights(one)
    assert checksum_of_weights(one.bfloat16()) != checksum_of_weights(Teacher())


def test_students_share_a_folder(net_for: Callable[[], nn.Module], tmp_path: Path) -> None:
    """The second one has no teacher, is stopped, and ends with the bits of the first."""
    labels = tmp_path / "labels"
    base: dict[str, Any] = {"epochs": 3, "batch_size": 256, "accelerator": "cpu", "stored_labels": str(labels)}

    def run(name: str, teacher: nn.Module | None, **options: Any) -> TrainResult:
        config = TrainConfig(**base, method="kd", teacher=None if teacher is None else "t.pt")
        return train(net_for(), config, tmp_path / f"{name}.pt", teacher=teacher, **options)

    torch.manual_seed(8)
    first = run("first", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(StopError):
        run("second", None, on_event=stop_after(1))
    second = run("second", None, resume=True)
    assert [epoch.loss for epoch in second.history] == [epoch.loss for epoch in first.history]
    for name, x in first.model.state_dict().items():
        assert torch.equal(x, second.model.state_dict()[name]), name
    assert first.cost.teacher == 3 * 1437 * 640
    assert (second.cost.teacher, second.cost.network) == (0, first.cost.network)
    told = json.loads((tmp_path / "second-run" / "result.json").read_text())
    assert told["stored_labels"] == {"views": 3, "macs": 3 * 1437 * 640, "runs": 2}
    shutil.rmtree(labels)
    with pytest.raises(UsageError, match=r"labels holds 0 of the 3 views that the run needs: give the teacher$"):
        run("third", None)
    assert not (tmp_path / "third-run").exists()
