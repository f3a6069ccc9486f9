"""Giants in other people's training loops: DDP, AMP, torch.compile, SyncBN, resuming, EMA. All runs are real."""

import copy
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, fx, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import nbcompile
from nbcompile import PLT, zoo
from nbcompile.core.blocks import Stage, sites
from nbcompile.core.errors import PreconditionError
from nbcompile.core.numerics import relative_error
from nbcompile.testing import scramble_
from tests.slow import one_in

STEPS = 6


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nbcompile.expand(scramble_(zoo.dscnn()), torch.randn(1, 1, 8, 8), preserve=True)


@pytest.fixture(scope="module")
def prototype() -> nn.Module:
    return build()


@pytest.fixture
def giant(prototype: nn.Module) -> nn.Module:
    return copy.deepcopy(prototype)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 1, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, context: Any = None) -> None:
    x, y = batch(step)
    with context or nullcontext():
        loss = nn.functional.cross_entropy(model(x), y)
    assert loss.isfinite()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(model: nn.Module, plt: PLT, steps: range = range(STEPS), context: Any = None) -> None:
    optimizer = sgd(model)
    for step in steps:
        learn(model, optimizer, step, context)
        plt.step()


def check_fused(model: nn.Module, limit: float = 1e-6) -> nn.Module:
    """``fuse(model)`` computes what ``model`` does and is a plain dscnn again."""
    tiny = nbcompile.fuse(model)
    x, _ = batch(99)
    with torch.no_grad():
        assert relative_error(tiny(x), copy.deepcopy(model).eval()(x)) <= limit
    original = zoo.dscnn()
    original.load_state_dict(tiny.state_dict(), strict=True)
    return tiny


def test_plain_training_to_the_end(giant: nn.Module) -> None:
    plt = PLT(giant, STEPS)
    train(giant, plt)
    assert plt.done
    check_fused(giant)


def test_ddp_in_two_processes(tmp_path: Path) -> None:
    script = Path(__file__).with_name("ddp_training.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(script), str(tmp_path)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert finished.returncode == 0, finished.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["slopes"] == second["slopes"]
    assert [set(slopes) for slopes in first["slopes"]] == [{0.25}, {0.5}, {0.75}, {1.0}]
    for name, parameter in first["parameters"].items():
        assert torch.equal(parameter, second["parameters"][name]), name
    assert first["error"] <= 1e-6
    assert first["keys"] == list(zoo.dscnn().state_dict())


def test_amp(giant: nn.Module) -> None:
    """The slopes are float32 and must not lift the maps out of bfloat16."""
    dtypes, hooks = set(), []
    for module in giant.modules():
        if isinstance(module, Stage):
            hooks.append(module.register_forward_hook(lambda _module, _inputs, output: dtypes.add(output.dtype)))
    plt = PLT(giant, STEPS)
    train(giant, plt, context=torch.autocast("cpu", torch.bfloat16))
    for hook in hooks:
        hook.remove()
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in giant.parameters()} == {torch.float32}
    check_fused(giant)


class Counting:
    """A compiler that only counts what it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: fx.GraphModule, _: list[Tensor]) -> fx.GraphModule:
        self.graphs += 1
        return graph


@pytest.fixture
def _clean_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_clean_compiler")
def test_torch_compile_never_compiles_again(giant: nn.Module) -> None:
    backend, eager = Counting(), copy.deepcopy(giant)
    compiled = torch.compile(giant, backend=backend)
    assert isinstance(compiled, nn.Module)
    plt = PLT(compiled, STEPS)
    train(compiled, plt)
    assert plt.done
    assert backend.graphs == 1
    train(eager, PLT(eager, STEPS))
    for (key, found), wanted in zip(giant.state_dict().items(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=key)
    check_fused(compiled)


@pytest.mark.slow
@pytest.mark.usefixtures("_clean_compiler")
def test_torch_compile_by_inductor(giant: nn.Module) -> None:
    compiled = torch.compile(giant)
    assert isinstance(compiled, nn.Module)
    plt, optimizer = PLT(compiled, STEPS), sgd(giant)
    learn(compiled, optimizer, 0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(1, STEPS + 1):
            plt.step()
            learn(compiled, optimizer, step)
    assert plt.done
    check_fused(compiled)


def test_sync_batch_norm_conversion(giant: nn.Module) -> None:
    keys, before = list(giant.state_dict()), copy.deepcopy(giant)
    plt = PLT(giant, STEPS)
    plt.step()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(giant)
    assert list(converted.state_dict()) == keys
    assert {float(block.slope) for block in sites(converted).values()} == {float(torch.tensor(1 / STEPS))}
    train(converted, plt)
    assert plt.done
    tiny = check_fused(converted)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in tiny.modules())
    before.load_state_dict(converted.state_dict())
    check_fused(before)


def test_a_converted_original_gets_synchronised_blocks() -> None:
    original = nn.SyncBatchNorm.convert_sync_batchnorm(zoo.dscnn())
    block = next(iter(sites(nbcompile.expand(original, torch.randn(1, 1, 8, 8))).values()))
    norms = [stage.norm for stage in block.stages]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


def test_resuming_mid_ramp_is_bit_identical(prototype: nn.Module) -> None:
    whole = copy.deepcopy(prototype)
    optimizer, plt = sgd(whole), PLT(whole, steps=4, start=1)
    file = io.BytesIO()
    for step in range(STEPS):
        if step == 3:
            state = {"model": whole.state_dict(), "optimizer": optimizer.state_dict(), "plt": plt.state_dict()}
            torch.save(state, file)
        learn(whole, optimizer, step)
        plt.step()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = build(seed=1)
    resumed.load_state_dict(saved["model"])
    optimizer, plt = sgd(resumed), PLT(resumed, steps=4, start=1)
    optimizer.load_state_dict(saved["optimizer"])
    plt.load_state_dict(saved["plt"])
    assert plt.slope == 0.5
    for step in range(3, STEPS):
        learn(resumed, optimizer, step)
        plt.step()
    assert plt.done
    for (key, found), wanted in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(found, wanted), key
    check_fused(resumed)


Average = Callable[[nn.Module], nn.Module]
AVERAGES: dict[str, Average] = {
    "ModelEmaV2": lambda model: ModelEmaV2(model, decay=0.7),
    "ModelEmaV2, slow": lambda model: ModelEmaV2(model, decay=0.9998),
    "ModelEmaV3": lambda model: ModelEmaV3(model, decay=0.7),
    "ModelEmaV3, one by one": lambda model: ModelEmaV3(model, decay=0.7, foreach=False),
    "AveragedModel": lambda model: AveragedModel(model, use_buffers=True),
    "AveragedModel, EMA": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True),
}
every_average = pytest.mark.parametrize("average", AVERAGES.values(), ids=list(AVERAGES))


def averaged(ema: nn.Module) -> nn.Module:
    assert isinstance(ema.module, nn.Module)
    return ema.module


def update(ema: nn.Module, model: nn.Module) -> None:
    if isinstance(ema, AveragedModel):
        ema.update_parameters(model)
    else:
        ema.update(model)


@every_average
@pytest.mark.parametrize("average_first", one_in(2, [True, False]))
def test_ema_through_to_a_fused_average(giant: nn.Module, average: Average, average_first: bool) -> None:
    ema = average(giant)
    plt, optimizer = PLT(giant, STEPS, also=[averaged(ema)]), sgd(giant)
    for step in range(STEPS):
        learn(giant, optimizer, step)
        if average_first:
            update(ema, giant)
        plt.step()
        if not average_first:
            update(ema, giant)
    for _ in range(20):  # tuning after the ramp, which only averages
        update(ema, giant)
    assert plt.done
    tiny = check_fused(averaged(ema))
    weights = torch.cat([p.flatten() for p in tiny.parameters()])
    assert not torch.allclose(weights, torch.cat([p.flatten() for p in nbcompile.fuse(giant).parameters()]))
    for block, ours in zip(sites(averaged(ema)).values(), sites(giant).values(), strict=True):
        assert torch.equal(block.get_extra_state(), ours.get_extra_state())


@every_average
@pytest.mark.parametrize("made_before", one_in(2, [False, True]))
def test_an_average_without_also_is_recognised(giant: nn.Module, average: Average, made_before: bool) -> None:
    ema = average(giant) if made_before else None
    plt, optimizer = PLT(giant, STEPS), sgd(giant)
    ema = ema or average(giant)
    for step in range(STEPS):
        learn(giant, optimizer, step)
        plt.step()
        update(ema, giant)
    with pytest.raises(PreconditionError, match=r"lagging average \(EMA\) of the slopes: .*also=\[ema\.module\]"):
        nbcompile.fuse(averaged(ema))


def test_the_rounding_of_an_average_is_no_slope(giant: nn.Module) -> None:
    plt = PLT(giant, 1)
    plt.step()
    for block in sites(giant).values():
        block.slope.copy_(torch.nextafter(block.slope, torch.zeros(())))
        assert float(block.slope) < 1
    check_fused(giant)
