"""Files that trainers really write: each is read without the model's code, and fused."""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from lightning.fabric import Fabric
from timm.utils.checkpoint_saver import CheckpointSaver
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

import nbcompile
from nbcompile.core.errors import CheckpointError
from tests.slow import one_in

X = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return z


class Aliased(Net):
    """One layer under two names, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.body
        self.neck = nn.Linear(6, 6, bias=False)
        self.other = nn.Linear(6, 6, bias=False)
        self.other.weight = self.neck.weight

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.other(self.neck(self.again(self.stem(x)).mean((2, 3)))))
        return z


def make(cls: type[Net] = Net) -> nn.Module:
    return nbcompile.expand(cls(), X, where=["stem.0", "body.0"], preserve=True)


def train(model: nn.Module, giant: nn.Module, *, also: tuple[nn.Module, ...] = (), ema: Any = None) -> torch.optim.SGD:
    """Three steps, after which the giant is linear."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    plt = nbcompile.PLT(giant, steps=3, also=also)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        plt.step()
        if ema is not None:
            ema(model)
    return optimizer


def same(one: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(one.eval()(X), other.eval()(X))


def check(path: Path, giant: nn.Module, cls: type[Net] = Net, **options: Any) -> None:
    """Read it, bit by bit what was trained; fuse it; the original takes the weights."""
    loaded = nbcompile.load(path, **options)
    assert list(loaded.state_dict()) == list(giant.state_dict())
    assert same(loaded, giant)
    original = cls()
    original.load_state_dict(nbcompile.fuse(loaded).state_dict())
    assert same(original, nbcompile.fuse(giant))
    own = nbcompile.load(path, model=cls(), **options)
    assert same(own, giant)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trained.pt"


@pytest.fixture
def gloo(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_plain_state_dict(file: Path) -> None:
    giant = make()
    train(giant, giant)
    torch.save(giant.state_dict(), file)
    check(file, giant)


@pytest.mark.parametrize("legacy", one_in(2, [False, True]))
def test_model_and_optimizer(legacy: bool, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    giant = make()
    optimizer = train(giant, giant)
    content = {
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "model": giant.state_dict(),
    }
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    check(file, giant)
    check(file, giant, key="model")
    assert not caplog.text
    with pytest.raises(CheckpointError, match=r"trained\.pt has no weights at 'ema'; it has them at 'model'$"):
        nbcompile.load(file, key="ema")


def test_weights_of_a_plain_network_beside_its_optimizer(file: Path) -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    model(X).sum().backward()
    optimizer.step()
    wrapped = {f"module.{k}": v for k, v in model.state_dict().items()}
    torch.save({"optimizer": optimizer.state_dict(), "net": wrapped}, file)
    assert same(nbcompile.load(file, model=Net()), model)


def test_timm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    giant = make()
    ema = ModelEmaV3(giant, decay=0.5)
    optimizer = train(giant, giant, also=(ema.module,), ema=ema.update)
    args = argparse.Namespace(model="net", lr=0.1, data_dir=tmp_path, betas=(0.9, 0.999), hparams={"a": None})
    saver = CheckpointSaver(  # type: ignore[no-untyped-call]
        giant, optimizer, args=args, model_ema=ema, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(3, metric=np.float64(0.5))  # type: ignore[no-untyped-call]
    for name in ("last.pth.tar", "model_best.pth.tar"):
        caplog.clear()
        check(tmp_path / name, ema.module)
        assert (
            "holds weights at 'state_dict', 'state_dict_ema': 'state_dict_ema' was taken (--key chooses)" in caplog.text
        )
        caplog.clear()
        check(tmp_path / name, giant, key="state_dict")
        assert not caplog.text
    with pytest.raises(CheckpointError, match=r"no weights at 'model'; it has them at 'state_dict', 'state_dict_ema'$"):
        nbcompile.load(tmp_path / "last.pth.tar", key="model")


class Module(pl.LightningModule):
    def __init__(self, giant: nn.Module, folder: Path, rate: object, names: list[str]) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["giant"])
        self.model = giant
        self.plt = nbcompile.PLT(giant, steps=2)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def on_train_batch_end(self, *_: Any) -> None:
        self.plt.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning calls a name that torch deprecated
def test_lightning(tmp_path: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    giant = make()
    module = Module(giant, folder=tmp_path, rate=np.float32(0.1), names=["a"])
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=4))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    check(tmp_path / "a.ckpt", giant)
    check(tmp_path / "a.ckpt", giant, key="state_dict")
    check(tmp_path / "a.ckpt", giant, key="state_dict.model")


def test_fabric(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    giant = make()
    model, optimizer = fabric.setup(giant, torch.optim.SGD(giant.parameters(), lr=0.1))
    train(model, giant)
    fabric.save(tmp_path / "a.ckpt", {"net": model, "optimizer": optimizer, "step": 3, "folder": tmp_path})
    check(tmp_path / "a.ckpt", giant)


@pytest.mark.parametrize("cls", one_in(2, [Aliased, Net]))
def test_accelerate(cls: type[Net], tmp_path: Path) -> None:
    giant = make(cls)
    train(giant, giant)
    accelerator = Accelerator(cpu=True)
    accelerator.save_model(accelerator.prepare(giant), str(tmp_path))
    check(tmp_path / "model.safetensors", giant, cls)
    accelerator.save_model(giant, str(tmp_path / "unsafe"), safe_serialization=False)
    check(tmp_path / "unsafe" / "pytorch_model.bin", giant, cls)


@pytest.mark.slow
def test_ddp_of_a_compiled_giant(file: Path, gloo: None) -> None:
    giant = make()
    model = DistributedDataParallel(torch.compile(giant, backend="eager"))
    train(model, giant)
    torch.save({"model": model.state_dict()}, file)
    check(file, giant)
    outside: Any = torch.compile(DistributedDataParallel(giant), backend="eager")
    torch.save({"model": outside.state_dict()}, file)
    check(file, giant)
    nbcompile.save(model, file)
    check(file, giant)


def test_averaged_model(file: Path) -> None:
    giant = make()
    average = get_ema_multi_avg_fn(0.5)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(giant, multi_avg_fn=average, use_buffers=True)
    train(giant, giant, also=(averaged.module,), ema=averaged.update_parameters)
    torch.save(averaged.state_dict(), file)
    check(file, averaged.module)
    nbcompile.save(averaged, file)
    check(file, averaged.module)


def test_average_of_checkpoints(file: Path) -> None:
    """As timm's avg_checkpoints.py: every entry summed in float64, divided, and clamped to float32."""
    states, giant = [], make()
    train(giant, giant)
    for _ in range(3):
        train(giant, giant)
        states.append({k: v.clone() for k, v in giant.state_dict().items()})
    mean = {key: sum(s[key].to(torch.float64) for s in states) / len(states) for key in states[0]}
    top = torch.finfo(torch.float32).max
    mean = {k: v.clamp(-top, top).to(torch.float32) for k, v in mean.items()}
    torch.save(mean, file)
    giant.load_state_dict(mean)
    check(file, giant)


@pytest.mark.parametrize("cls", one_in(2, [Aliased, Net]))
def test_average_of_the_parameters_alone(cls: type[Net], file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As torch_ema and diffusers keep it: a list, which is copied into the model when it is measured."""
    giant = make(cls)
    train(giant, giant)
    shadow = [(0.5 * p).detach() for p in giant.parameters()]
    torch.save({"net": giant.state_dict(), "ema": {"decay": 0.5, "shadow_params": shadow}}, file)
    check(file, giant, cls, key="net")
    with torch.no_grad():
        for parameter, average in zip(giant.parameters(), shadow, strict=True):
            parameter.copy_(average)
    check(file, giant, cls)
    assert "'ema.shadow_params' is an average of the parameters alone: buffers are those of 'net'" in caplog.text


def test_weights_of_the_fused_network_go_back_to_any_trainer(file: Path) -> None:
    giant = make()
    train(giant, giant)
    tiny = nbcompile.fuse(giant)
    torch.save({"state_dict": {f"model.{k}": v for k, v in tiny.state_dict().items()}}, file)
    assert same(nbcompile.load(file, model=Net()), tiny)
