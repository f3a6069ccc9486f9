"""What a teacher, several, or none teach; and what that cost."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nbcompile
from nbcompile import UsageError
from nbcompile.training import TrainConfig, train
from nbcompile.training.batch import ANSWERS, OTHER_VIEW, Batch
from nbcompile.training.command import named_teachers, run_train
from nbcompile.training.data.digits import load_digits
from nbcompile.training.data.two_views import TwoViews
from nbcompile.training.methods.base import Method
from nbcompile.training.methods.distillation import divergence, mixtures
from nbcompile.training.methods.teachers import Ensemble
from nbcompile.training.methods.tf_kd import virtual_answers
from nbcompile.training.outputs.run_folder import RunFolder
from nbcompile.training.outputs.teacher_cost import cost_of_teachers
from tests.training.test_methods import X, method, network

LABELS = torch.tensor([0, 1, 2, 0])
MODEL = "nbcompile:dscnn?num_classes=10"
SHORT: dict[str, Any] = {"batch_size": 512, "warmup_epochs": 0, "accelerator": "cpu", "train_images": 600}


def teachers(count: int) -> nn.ModuleList:
    torch.manual_seed(3)
    return nn.ModuleList(nn.Sequential(nn.Flatten(), nn.Linear(35, 3)) for _ in range(count)).requires_grad_(False)


def own_loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, LABELS, label_smoothing=0.1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_several_teachers_answer_with_the_mean_of_their_probabilities(temperature: float) -> None:
    three = teachers(3)
    answers = Ensemble(three, temperature)(X).double()
    expected = torch.stack([(one(X).double() / temperature).softmax(1) for one in three]).mean(0)
    torch.testing.assert_close((answers / temperature).softmax(1), expected, rtol=1e-5, atol=1e-7)
    one = method(three, method="kd", teacher="a.pt,b.pt,c.pt", kd_weight=0.75, temperature=temperature)
    logits = network().eval()(X)
    loss, _ = one.loss(network().eval(), Batch(X, LABELS))
    torch.testing.assert_close(loss, 0.25 * own_loss(logits) + 0.75 * divergence(logits, answers, temperature))


def test_without_labels_the_answers_are_all_there_is() -> None:
    (teacher,) = teachers(1)
    one = method(teacher, method="kd", teacher="a.pt", labels="none")
    loss, logits = one.loss(network().eval(), Batch(X, LABELS))
    torch.testing.assert_close(loss, divergence(logits, teacher(X), 1.0))
    again, _ = one.loss(network().eval(), Batch(X, LABELS.flip(0)))
    assert torch.equal(again, loss), "labels count"


def test_answers_that_a_batch_brings_need_no_teacher() -> None:
    one = method(None, method="kd", stored_labels="labels", kd_weight=0.5)
    answers = torch.randn(4, 3)
    loss, logits = one.loss(network().eval(), Batch(X, LABELS, {ANSWERS: answers}))
    torch.testing.assert_close(loss, (own_loss(logits) + divergence(logits, answers, 1.0)) / 2)


def test_the_teacher_may_see_another_view() -> None:
    (teacher,) = teachers(1)
    one = method(teacher, method="kd", teacher="a.pt", same_view=False, labels="none")
    loss, logits = one.loss(network().eval(), Batch(X, LABELS, {OTHER_VIEW: X.flip(3)}))
    torch.testing.assert_close(loss, divergence(logits, teacher(X.flip(3)), 1.0))
    images, labels, more = TwoViews(load_digits().train)[list(range(50))]
    assert images.shape == more[OTHER_VIEW].shape
    assert not torch.equal(images, more[OTHER_VIEW])
    assert labels.tolist() == load_digits().train.labels[:50].tolist()


def test_teacher_and_network_see_the_same_mixtures() -> None:
    torch.manual_seed(0)
    images, seen = torch.randn(6, 1, 7, 5), []
    teacher = teachers(1)[0]
    teacher.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    one = method(teacher, method="kd", teacher="a.pt", labels="none", kd_mixup=1.0)
    model = network().eval()
    model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    loss, logits = one.loss(model, Batch(images, torch.zeros(6, dtype=torch.int64)))
    assert torch.equal(seen[0], seen[1])
    torch.testing.assert_close(loss, divergence(logits, teacher(seen[0]), 1.0))
    corners = torch.eye(6).view(6, 1, 6, 1)
    shares = mixtures(Batch(corners, LABELS), 1.0).images.flatten(1)
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    assert (shares.diagonal() >= 0.5).all()
    assert (shares.diagonal() < 1).any()


def test_a_virtual_teacher_is_softened_once() -> None:
    """Not as the released code, whose softmax of probabilities gives all classes the same."""
    answers = virtual_answers(torch.eye(5)[[2, 0]], 0.9)
    torch.testing.assert_close(answers.softmax(1)[0], torch.tensor([0.025, 0.025, 0.9, 0.025, 0.025]))
    torch.testing.assert_close(
        virtual_answers(torch.tensor([[0.75, 0.25, 0.0, 0.0, 0.0]]), 0.9).exp()[0],
        torch.tensor([0.68125, 0.24375, 0.025, 0.025, 0.025]),
    )
    soft = (answers / 20).softmax(1)[0]
    assert soft[2] / soft[0] == pytest.approx((0.9 / 0.025) ** (1 / 20), rel=1e-5)
    assert soft[2] / soft[0] > 1.15 > math.exp((0.9 - 0.025) / 20)
    one = method(method="tf-kd", virtual_weight=0.25, virtual_correct=0.9, virtual_temperature=7.0)
    loss, logits = one.loss(network().eval(), Batch(X, LABELS))
    p = torch.full((4, 3), 0.05, dtype=torch.float64).scatter(1, LABELS[:, None], 0.9)
    p = (p.log() / 7).softmax(1)
    q = (logits.double() / 7).softmax(1)
    expected = 0.75 * own_loss(logits) + 0.25 * 49 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)


def test_anchors_answer_one_after_the_other() -> None:
    route = teachers(3)
    one: Method = method(route, method="rco", teacher="run", epochs=7, labels="none")
    heard = []
    for epoch in range(7):
        one.attach(network(), epoch)
        loss, logits = one.loss(network().eval(), Batch(X, LABELS))
        heard.append([bool(torch.isclose(loss, divergence(logits, anchor(X), 1.0))) for anchor in route].index(True))
    assert heard == [0, 0, 0, 1, 1, 2, 2]
    assert [one.phase(epoch) for epoch in (0, 6)] == ["anchor 1", "anchor 3"]
    with pytest.raises(UsageError, match=r"^rco: 3 anchors are more than the 2 epochs: each needs one$"):
        method(route, method="rco", teacher="run", epochs=2)
    with pytest.raises(
        UsageError, match=r"^method 'rco' needs the anchors .* two or more files: train the teacher with"
    ):
        method(route[0], method="rco", teacher="run")


def test_a_run_keeps_its_route_and_a_network_learns_from_it(tmp_path: Path, net: nn.Module) -> None:
    big, run = tmp_path / "big.pt", tmp_path / "big-run"
    plain = TrainConfig(method="vanilla", epochs=5, keep_anchors=2, **SHORT)
    made = train(net, plain, big)
    anchors = [run / "anchor-1.pt", run / "anchor-2.pt"]
    assert sorted(run.glob("anchor*")) == anchors
    first, last = (nbcompile.load(path) for path in anchors)
    assert all(torch.equal(x, made.model.state_dict()[name]) for name, x in last.state_dict().items())
    assert not torch.equal(next(first.parameters()), next(last.parameters()))
    config = TrainConfig(method="rco", teacher=str(run), epochs=3, **SHORT)
    assert named_teachers(config) == [*map(str, anchors)]
    taught = train(net, config, tmp_path / "a.pt", teacher=[first, last])
    assert [epoch.phase for epoch in taught.history] == ["anchor 1", "anchor 1", "anchor 2"]
    assert taught.teacher_cost == made.cost.total == cost_of_teachers([*map(str, anchors)]), "one run counts once"
    with pytest.raises(
        UsageError, match=r"the teacher .*big-run is a folder: name a file in it, or choose method rco$"
    ):
        named_teachers(replace(config, method="kd"))
    options: dict[str, Any] = {"quiet": True, "method": "rco", "teacher": str(run), "epochs": 3}
    with pytest.raises(UsageError, match=r"^cannot write .*anchor-1.pt: it is what is read"):
        run_train(MODEL, output=tmp_path / "c.pt", run_dir=run, **options)
    RunFolder(run).begin(plain, [])
    assert list(run.glob("anchor*")) == [], "of the run before"
    with pytest.raises(UsageError, match=r"the teacher .*big-run holds no anchors: train it with --keep-anchors 4$"):
        run_train(MODEL, output=tmp_path / "c.pt", **options)


@pytest.mark.slow
def test_words_of_the_command_line(tmp_path: Path) -> None:
    options: dict[str, Any] = {"quiet": True, **SHORT}
    big, labels = tmp_path / "big.pt", str(tmp_path / "labels")
    run_train(MODEL, output=big, method="vanilla", epochs=2, keep_anchors=2, **options)
    route = run_train(
        MODEL, output=tmp_path / "a.pt", method="rco", teacher=str(tmp_path / "big-run"), epochs=2, **options
    )
    assert [epoch.phase for epoch in route.history] == ["anchor 1", "anchor 2"]
    two = f"{big},{tmp_path / 'a.pt'}"
    one = run_train(MODEL, output=tmp_path / "b.pt", teacher=two, stored_labels=labels, epochs=2, **options)
    other = run_train(MODEL, output=tmp_path / "c.pt", stored_labels=labels, epochs=2, **options)
    assert [epoch.loss for epoch in one.history] == [epoch.loss for epoch in other.history]
    assert (one.cost.teacher > 0, other.cost.teacher) == (True, 0)
    assert one.teacher_cost == other.teacher_cost is not None


def test_what_a_teacher_cost_is_read_beside_its_file(tmp_path: Path) -> None:
    for name, cost in (("a", 5), ("b", 7)):
        (tmp_path / f"{name}-run").mkdir()
        (tmp_path / f"{name}-run" / "result.json").write_text(json.dumps({"cost": {"total": cost}}))
    a, b, best = str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), str(tmp_path / "a-run" / "best.ckpt")
    assert cost_of_teachers([a]) == cost_of_teachers([a, best]) == 5
    assert cost_of_teachers([a, b]) == 12
    assert (
        cost_of_teachers([])
        is cost_of_teachers([a, "timm:resnet18"])
        is cost_of_teachers([str(tmp_path / "c.pt")])
        is None
    )
    (tmp_path / "b-run" / "result.json").write_text("{")
    assert cost_of_teachers([a, b]) is None


def test_each_of_several_teachers_must_fit(tmp_path: Path, net: nn.Module) -> None:
    config = TrainConfig(method="kd", teacher="a.pt,timm:x?dims=(1,2)", epochs=1, **SHORT)
    assert config.teachers == ("a.pt", "timm:x?dims=(1,2)")
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(UsageError, match=r"^the teacher timm:x\?dims=\(1,2\) \(Sequential\) gives .* 10 classes"):
        train(net, config, tmp_path / "a.pt", teacher=[net, other])
    small = nn.Sequential(nn.Flatten(), nn.Linear(49, 10))
    with pytest.raises(UsageError, match=r"^the teacher a\.pt \(Sequential\) cannot take the images of digits, 1×8×8"):
        train(net, config, tmp_path / "a.pt", teacher=[small, net])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kd_mixup": 0.2}, "kd_mixup leaves mixtures no label but the teacher's answer: add labels 'none'"),
        ({"kd_mixup": -1}, "kd_mixup must be >= 0, not -1"),
        (
            {"kd_mixup": 0.2, "labels": "none", "stored_labels": "x"},
            "kd_mixup and stored_labels both say what the teacher sees: choose one",
        ),
        ({"same_view": False, "stored_labels": "x"}, "other_view and stored_labels both say what the .*: choose one"),
        ({"labels": "some"}, "labels must be one of given, none, not 'some'"),
        (
            {"same_view": False, "augment": "mixup"},
            "augment 'mixup' mixes images with each other: other_view and kd_mixup go with another one",
        ),
        (
            {"stored_labels": "x", "sizes": (6, 8)},
            "stored_labels are answers to images of one size: leave sizes out, or ask the teacher in each run",
        ),
        ({"stored_views": 3}, "stored_views goes with stored_labels, a folder"),
        ({"stored_top": 3}, "stored_top goes with stored_labels, a folder"),
        (
            {"teacher": "a.pt,self"},
            "teacher 'self' cannot be one of several: no giant is there before its own training",
        ),
        (
            {"teacher": "self", "method": "netbooster+kd", "labels": "none"},
            "labels none needs a teacher from the start, not 'self'",
        ),
        (
            {"teacher": "self", "method": "netbooster+kd", "stored_labels": "x"},
            "stored_labels needs a teacher from the start, not 'self'",
        ),
        (
            {"method": "rco", "stored_labels": "x"},
            "stored_labels goes with one teacher for the whole run, not with the anchors of method 'rco'",
        ),
        (
            {"method": "rco", "teacher": None, "stored_labels": "x"},
            "method 'rco' needs a teacher: a file or a MODEL; .*",
        ),
        ({"keep_anchors": 61}, "keep_anchors 61 is more than epochs 60"),
        ({"virtual_correct": 1.0}, r"virtual_correct must be in \(0, 1\), not 1.0"),
        ({"virtual_weight": 1.5}, r"virtual_weight must be in \[0, 1\], not 1.5"),
    ],
)
def test_refuses(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=rf"^{sentence}$"):
        TrainConfig(**({"method": "kd", "teacher": "t.pt"} | options))


def test_stored_labels_are_a_teacher() -> None:
    assert TrainConfig(stored_labels="labels").for_network(giant=False).method == "kd"
    with pytest.raises(
        UsageError, match=r"^virtual_correct goes with method tf-kd, not with vanilla: name the method$"
    ):
        TrainConfig(virtual_correct=0.5).for_network(giant=False)
