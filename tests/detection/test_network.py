"""A detector is a network like others: it is expanded, made linear, fused, widened, saved; and a MODEL names it."""

from pathlib import Path

import pytest
import torch

import nbcompile
from nbcompile.core.errors import UsageError
from nbcompile.core.example import origin_of
from nbcompile.detection.network import Detector, grid_of
from nbcompile.models import build
from nbcompile.spec_strings import detector_on
from nbcompile.testing import scramble_
from tests.boxes import Tower

IMAGES = torch.randn(2, 3, 96, 64, dtype=torch.float64)


def double_detector() -> Detector:
    torch.manual_seed(0)
    return scramble_(Detector(Tower(), 3, width=16)).double()


def test_maps_have_their_places_in_both_modes() -> None:
    model = double_detector()
    for training in (True, False):
        fine, coarse = model.train(training)(IMAGES)
        assert (fine.shape, coarse.shape) == ((2, 24, 6, 4), (2, 24, 3, 2))


def test_it_begins_sure_of_nothing() -> None:
    fine, coarse = Detector(Tower(), 3).eval()(IMAGES.float())
    for x in (fine, coarse):
        assert float(x[:, 4::8].detach().sigmoid().mean()) == pytest.approx(0.01, rel=0.2)


def test_expanded_linear_and_fused_it_is_the_same_detector(tmp_path: Path) -> None:
    model = double_detector().eval()
    giant = nbcompile.expand(model, IMAGES, where="all", ratio=2)
    plt = nbcompile.PLT(giant, steps=2)
    for _ in range(2):
        plt.step()
    linear = giant.eval()(IMAGES)
    fused = nbcompile.fuse(giant)
    assert {n: p.shape for n, p in fused.named_parameters() if n.endswith("conv.weight")} == {
        n: p.shape for n, p in model.named_parameters() if n.endswith("conv.weight")
    }
    for one, other in zip(fused(IMAGES), linear, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    nbcompile.save(giant, tmp_path / "giant.pt")
    for one, other in zip(nbcompile.load(tmp_path / "giant.pt")(IMAGES), linear, strict=True):
        assert torch.equal(one, other)


def test_widened_it_is_the_same_detector() -> None:
    model = double_detector().eval()
    wide = nbcompile.widen(model, IMAGES)
    for one, other in zip(nbcompile.fuse(wide)(IMAGES), model(IMAGES), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_model_string_names_it_and_its_file_describes_itself(tmp_path: Path) -> None:
    spec = "nbcompile:yolo?backbone=nbcompile:mobilenetv2_35?num_classes=7&num_classes=2&width=24"
    built = build(spec, "1x3x64x64")
    assert isinstance(built.model, Detector)
    assert built.model.from_fine.conv.out_channels == 24
    found = built.model.eval()(torch.ones(1, 3, 64, 64))
    nbcompile.save(built.model, tmp_path / "x.pt")
    again = nbcompile.load(tmp_path / "x.pt")
    assert origin_of(again).model == spec  # type: ignore[union-attr]
    for one, other in zip(again(torch.ones(1, 3, 64, 64)), found, strict=True):
        torch.testing.assert_close(one, other)


def test_options_of_the_backbone_are_set_apart_by_semicolons() -> None:
    spec = detector_on("timm:mobilenetv2_035?pretrained=true&in_chans=1&num_classes=4", 2)
    assert spec == "nbcompile:yolo?backbone=timm:mobilenetv2_035?in_chans=1;num_classes=4&num_classes=2"
    assert build(spec).inputs[0].shape == (1, 1, 256, 256)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("num_classes=3", "stands on a backbone of torchvision, timm or nbcompile: write nbcompile:yolo"),
        ("backbone=os:system", "stands on a backbone of torchvision, timm or nbcompile"),
        ("backbone=nbcompile:yolo?backbone=timm:resnet18", "stands on a backbone of"),
        (
            "backbone=timm:resnet18?pretrained=true",
            "a detector is built without weights; nbcompile train timm:resnet18",
        ),
        ("backbone=nbcompile:mobilenetv2_35&wide=3", r"failed: TypeError: .*unexpected keyword argument 'wide'"),
        ("backbone=nbcompile:mobilenetv2_35&width=0", "a detector's width is a whole number from 1, not 0"),
        (
            "backbone=nbcompile:mobilenetv2_35&num_classes=x",
            "a detector's num_classes is a whole number from 1, not 'x'",
        ),
        ("backbone=nbcompile:mobilenetv2_36", "nbcompile.zoo has no model 'mobilenetv2_36'"),
    ],
)
def test_what_is_none_is_refused(options: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        build(f"nbcompile:yolo?{options}")


def test_sizes_are_multiples_of_32() -> None:
    assert grid_of(416) == ((26, 26), (13, 13))
    for size in (32, 100, 0):
        with pytest.raises(UsageError, match=f"^a detector's input_size is a multiple of 32, 64 or more, not {size}$"):
            grid_of(size)
