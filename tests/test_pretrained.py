"""Weights of torchvision and timm from the libraries' own caches: real files, real loading, connections that fail."""

import logging
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

import nbcompile
from nbcompile import CheckpointError, UsageError
from nbcompile.cli.run.expand import run_expand
from nbcompile.cli.run.fuse import run_fuse
from nbcompile.cli.run.verify import run_verify
from nbcompile.core.example import TensorSpec, origin_of
from nbcompile.models import build
from nbcompile.open_network import open_network
from nbcompile.spec_strings import is_pretrained, without_weights
from nbcompile.testing import scramble_
from nbcompile.training.command import run_train

TORCHVISION = "torchvision:shufflenet_v2_x0_5?pretrained=true"
TIMM = "timm:test_resnet?pretrained=true"
TIMM_FILE = "model.safetensors"
NOWHERE = "http://127.0.0.1:9"
"""A proxy that refuses: whatever the machine is connected to, nobody answers."""
OPTIONS = {"model": None, "key": None, "input_shape": None}


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of both libraries, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, NOWHERE)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers proxies
    return tmp_path


@pytest.fixture
def torchvision_file(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Weights where torchvision keeps them."""
    weights = scramble_(torchvision.models.shufflenet_v2_x0_5()).state_dict()
    url = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(weights, folder / url.rpartition("/")[2])
    return weights


def timm_weights() -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in scramble_(timm.create_model("test_resnet")).state_dict().items()}


@pytest.fixture
def timm_file(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Weights where huggingface_hub keeps timm's."""
    weights = timm_weights()
    home = tmp_path / "hub" / f"models--timm--{timm.get_pretrained_cfg('test_resnet').hf_hub_id.partition('/')[2]}"
    (home / "snapshots" / "abc").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    save_file(weights, home / "snapshots" / "abc" / TIMM_FILE)
    return weights


def same(model: nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    found = model.state_dict()
    return found.keys() == weights.keys() and all(torch.equal(value, weights[key]) for key, value in found.items())


def test_torchvision(torchvision_file: dict[str, torch.Tensor]) -> None:
    built = build(TORCHVISION)
    assert same(built.model, torchvision_file)
    assert built.inputs == (TensorSpec((1, 3, 224, 224)),)
    assert built.preprocessing == {
        "scale": 1 / 255,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bilinear",
        "crop": 224 / 256,
    }
    for named in ("DEFAULT", "IMAGENET1K_V1"):
        assert same(build(f"torchvision:shufflenet_v2_x0_5?weights={named}").model, torchvision_file)
    for spec in (TORCHVISION.replace("true", "false"), TORCHVISION.partition("?")[0] + "?weights=None"):
        assert not same(build(spec).model, torchvision_file)
    assert origin_of(built.model).preprocessing == built.preprocessing


def test_timm(
    timm_file: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("nbcompile"), "propagate", True)  # the command line stops it
    built = build(TIMM)
    assert same(built.model, timm_file)
    assert built.inputs == (TensorSpec((1, 3, 160, 160)),)
    assert built.preprocessing["mean"] == (0.5, 0.5, 0.5)
    assert not same(build(TIMM.replace("true", "false")).model, timm_file)
    assert same(build(f"{TIMM}&num_classes=1000").model, timm_file)
    assert caplog.text == ""
    other = build(f"{TIMM}&num_classes=7").model.state_dict()
    assert f"'{TIMM}&num_classes=7': its last layer is new, and has learnt nothing yet" in caplog.text
    shared = [key for key, value in timm_file.items() if other[key].shape == value.shape]
    assert len(shared) == len(timm_file) - 2  # the last layer's
    assert all(torch.equal(other[key], timm_file[key]) for key in shared)


def test_a_file_that_timm_is_told(tmp_path: Path) -> None:
    weights = timm_weights()
    save_file(weights, tmp_path / "mine.safetensors")
    assert same(build(f"{TIMM}&pretrained_cfg_overlay={{'file': '{tmp_path}/mine.safetensors'}}").model, weights)


def test_nothing_is_downloaded_without_the_word(tmp_path: Path) -> None:
    for spec in (TORCHVISION, TIMM):
        assert isinstance(build(without_weights(spec)).model, nn.Module)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "where", "server"),
    [
        (TORCHVISION, "torch/hub/checkpoints/shufflenetv2_x0.5-", "download.pytorch.org"),
        ("torchvision:vit_b_16?weights=IMAGENET1K_SWAG_E2E_V1", "vit_b_16_swag", "download.pytorch.org"),
        (TIMM, "/hub)", "huggingface.co"),
    ],
)
def test_offline_is_said_at_once(spec: str, where: str, server: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError) as refused:
        build(spec)
    sentence = str(refused.value)
    assert sentence.startswith(f"'{spec}' needs weights that are not in the cache (")
    assert where in sentence
    assert f"and {server} cannot be reached ([Errno 111] Connection refused): connect to the network once" in sentence
    assert sentence.endswith("without pretrained weights nothing is downloaded")
    assert len(sentence.splitlines()) == 1
    assert capfd.readouterr().err == ""  # no retries, no progress


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "torchvision:resnet18?weights=V9",
            "there are no weights 'V9' of 'resnet18'; there are IMAGENET1K_V1, DEFAULT",
        ),
        ("torchvision:resnet18?pretrained=yes", "pretrained is true or false, not 'yes'"),
        ("timm:resnet18?pretrained=1", "pretrained is true or false, not '1'"),
        ("timm:resnet50_mlp?pretrained=true", "timm has no weights of 'resnet50_mlp'"),
        ("timm:resnet18?pretrained=true&depth=3", "building 'timm:resnet18.*' failed: TypeError"),
        ("torchvision:fcn_resnet50?weights_backbone=DEFAULT", "option 'weights_backbone' is not taken"),
    ],
)
def test_wrong_words(spec: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build(spec)


def test_a_damaged_file_in_the_cache(torchvision_file: object, timm_file: object, tmp_path: Path) -> None:
    for file in (*tmp_path.rglob("*.pth"), *tmp_path.rglob(TIMM_FILE)):
        file.write_bytes(b"half a download")
    with pytest.raises(CheckpointError, match=r"its weights in .*shufflenetv2.* cannot be read: .*Error"):
        build(TORCHVISION)
    with pytest.raises(CheckpointError, match=r"its weights cannot be had: SafetensorError"):
        build(TIMM)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A hub of our own: what it has, by path."""
    files: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            if content is not None:
                for key, value in {"X-Repo-Commit": 40 * "a", "ETag": '"abc"', "Content-Length": len(content)}.items():
                    self.send_header(key, str(value))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(files.get(self.path, b""))

        def log_message(self, *_: object) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(urllib.request, "_opener", None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{hub.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template[template.index("/{") :])
        yield files
        hub.shutdown()


def test_a_download_by_the_librarys_own_code(server: dict[str, bytes], tmp_path: Path) -> None:
    weights = timm_weights()
    save_file(weights, tmp_path / "sent")
    where = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    with pytest.raises(CheckpointError, match=f"^'{TIMM}': its weights cannot be had: ".replace("?", r"\?")):
        build(TIMM)
    server[f"/{where}/resolve/main/{TIMM_FILE}"] = (tmp_path / "sent").read_bytes()
    assert same(build(TIMM).model, weights)
    server.clear()
    assert same(build(TIMM).model, weights)  # from the cache


@pytest.mark.slow
def test_what_the_commands_say(
    torchvision_file: object, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("nbcompile"), "propagate", True)  # the command line stops it
    tiny = tmp_path / "tiny.onnx"
    run_fuse(
        TORCHVISION, [tiny], force=False, verify_each=False, report=None, command="", device={}, **OPTIONS
    )  # fmt: skip
    assert "without weights" not in caplog.text
    numbers = {check.name: check.passed for check in run_verify(str(tiny), TORCHVISION, **OPTIONS).checks}
    assert numbers["numbers"]
    run_fuse(
        without_weights(TORCHVISION), [tiny], force=False, verify_each=False, report=None, command="", device={},
        **OPTIONS,
    )  # fmt: skip
    assert "is built without weights" in caplog.text
    assert not run_verify(str(tiny), TORCHVISION, **OPTIONS).passed  # its numbers are others
    caplog.clear()
    run_expand(TORCHVISION, tmp_path / "giant.pt", where="first:1")
    assert "the trained weights of 1 expanded layers are discarded" in caplog.text


def test_a_file_brings_its_own_weights(tmp_path: Path) -> None:
    """The MODEL in a file, or beside it, is built without a download: its weights are not asked for."""
    model = scramble_(build(without_weights(TIMM)).model)
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    opened = open_network(str(tmp_path / "mine.pt"), model=TIMM, key=None, input_shape=None)
    assert same(opened, model.state_dict())


@pytest.mark.slow
def test_it_can_teach(
    timm_file: object, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("nbcompile"), "propagate", True)
    teacher = f"{TIMM}&num_classes=10&in_chans=1"
    options = {"epochs": 1, "batch_size": 256, "warmup_epochs": 0, "train_images": 256, "input_size": 32}
    model = "nbcompile:dscnn?num_classes=10&in_channels=1"
    run_train(model, output=tmp_path / "a.pt", teacher=teacher, accelerator="cpu", quiet=True, **options)
    assert "has learned nothing" not in caplog.text


def test_the_words() -> None:
    assert is_pretrained(TIMM)
    assert is_pretrained("torchvision:resnet18?weights=DEFAULT")
    assert not is_pretrained("torchvision:resnet18?weights=None")
    assert not is_pretrained("timm:resnet18?pretrained=false")
    assert not is_pretrained("mine:make?pretrained=true")
    assert without_weights("timm:resnet18?pretrained=true&in_chans=1") == "timm:resnet18?in_chans=1"
    assert without_weights(TIMM) == "timm:test_resnet"
    assert without_weights("mine:make?pretrained=true") == "mine:make?pretrained=true"
    assert nbcompile.cost(build("timm:test_resnet?pretrained=false").model).macs > 0
