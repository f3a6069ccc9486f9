"""Blocks run as chains, and are shown as their modules to whoever looks into them."""

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from nbcompile.core.activations import Activation
from nbcompile.core.blocks import Expanded
from nbcompile.core.channelwise import runs
from nbcompile.core.layers import LayerSpec
from nbcompile.core.site_spec import SiteSpec

BLOCKS = ("inverted-residual", "bottleneck", "basic")


def block(layer: nn.Module | None = None, **options: Any) -> Expanded:
    layer = nn.Conv2d(4, 8, 1, bias=False) if layer is None else layer
    chosen = {"block": "inverted-residual", "ratio": 2, "preserve": True, "inner": "norm"} | options
    spec = SiteSpec(name="site", layer=LayerSpec.of(layer), activation=Activation("relu6"), **chosen)
    made = Expanded(spec, layer)
    for parameter in made.parameters():
        nn.init.normal_(parameter, 0.3)
    made.slope.fill_(0.5)
    return made


def plainly(made: Expanded, x: Tensor) -> Tensor:
    """The modules one by one."""
    y = x
    for stage in made.stages:
        y = stage(y, made.slope)
    y = made.last(y)
    y = y if made.last_norm is None else made.last_norm(y)
    return y if made.original is None else made.original(x) + y


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many links each chain has that runs."""
    found: list[int] = []
    run = runs.run_chain
    monkeypatch.setattr(runs, "run_chain", lambda x, links, slope: (found.append(len(links)), run(x, links, slope))[1])
    return found


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("pixels", [(7, 5), (17, 19)], ids=str)
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1, stride=2)], ids=["1x1", "3x3"])
def test_numbers_and_gradients(kind: str, pixels: tuple[int, int], layer: nn.Module, chains: list[int]) -> None:
    made = block(copy.deepcopy(layer), block=kind).double()
    other = copy.deepcopy(made)
    x = torch.randn(3, 4, *pixels, dtype=torch.float64)
    found, wanted = made(x), plainly(other, x)
    assert chains == ([1, 1] if kind == "basic" else [2, 1] if kind == "inverted-residual" else [1, 1, 1])
    torch.testing.assert_close(found, wanted)
    gradient = torch.randn_like(found)
    ours = torch.autograd.grad(found, list(made.parameters()), gradient)
    torchs = torch.autograd.grad(wanted, list(other.parameters()), gradient)
    for (name, _), a, b in zip(made.named_parameters(), ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=name)
    for (name, a), b in zip(made.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize(
    ("layer", "options", "x"),
    [
        (nn.Conv1d(4, 8, 1), {}, torch.randn(2, 4, 300)),
        (nn.Conv3d(4, 8, 1), {}, torch.randn(2, 4, 7, 5, 9)),
        (nn.ConvTranspose2d(4, 8, 2, stride=2), {}, torch.randn(2, 4, 7, 5)),
        (nn.Linear(4, 8), {"inner": "bias"}, torch.randn(3, 4)),
        (nn.Conv2d(4, 8, 1, bias=False), {"inner": "scale"}, torch.randn(2, 4, 17, 16)),
        (nn.Conv2d(4, 8, 1), {"inner": "bias"}, torch.randn(2, 4, 17, 16)),
        (nn.Conv2d(4, 8, 1), {"momentum": None, "preserve": False}, torch.randn(2, 4, 17, 16)),
    ],
    ids=["1d", "3d", "transposed", "linear", "scale", "bias", "cumulative"],
)
@pytest.mark.parametrize("training", [True, False])
def test_layers_of_other_kinds(layer: nn.Module, options: dict[str, Any], x: Tensor, training: bool) -> None:
    made = block(copy.deepcopy(layer), **options).train(training)
    torch.testing.assert_close(made(x), plainly(copy.deepcopy(made), x), rtol=1e-4, atol=1e-5)


def test_two_maps_a_block_are_kept() -> None:
    """What the first layer gives and what the last one takes; the modules keep four."""
    made, x = block(preserve=False), torch.randn(2, 4, 17, 16)
    with saved(2 * 8 * 17 * 16) as ours:
        found = made(x)
    with saved(2 * 8 * 17 * 16) as theirs:
        plain = plainly(made, x)
    assert found.requires_grad
    assert plain.requires_grad
    assert (len(ours), len(theirs)) == (2, 4)


@contextmanager
def saved(numel: int) -> Iterator[set[int]]:
    found: set[int] = set()
    alive: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        if x.numel() >= numel:
            found.add(x.untyped_storage().data_ptr())
            alive.append(x)
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        yield found


def hook_on(name: str) -> Callable[[Expanded], Any]:
    return lambda made: made.get_submodule(name).register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (hook_on("stages.0"), [1]),
        (hook_on("stages.1.norm"), [1]),
        (hook_on("stages.1.layer"), [1, 1, 1]),
        (hook_on("last_norm"), [2]),
        (lambda made: parametrize.register_parametrization(made.stages[1].layer, "weight", nn.Identity()), [1, 1, 1]),
        (lambda made: setattr(made.stages[0], "norm", nn.SyncBatchNorm(8)), [1]),
        (lambda made: setattr(made.stages[0], "norm", nn.GroupNorm(2, 8)), [1]),
        (lambda made: nn.init.zeros_(made.stages[1].layer.weight), [1]),
        (lambda made: made.to(memory_format=torch.channels_last), None),
        (lambda made: made.eval(), [2, 1]),
    ],
    ids=["stage", "norm", "factor", "last", "parametrized", "sync", "group", "zero", "channels last", "eval"],
)
def test_steps_aside(change: Callable[[Expanded], Any], left: list[int] | None, chains: list[int]) -> None:
    made = block().double()
    change(made)
    made.double()
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    x = x if left is not None else x.to(memory_format=torch.channels_last)
    training = [module for module in made.modules() if isinstance(module, nn.SyncBatchNorm)]
    for norm in training:
        norm.eval()  # it does not train on a CPU
    found = made(x)
    torch.testing.assert_close(found, plainly(copy.deepcopy(made), x))
    assert chains == (left or [])
    assert found.is_contiguous(memory_format=torch.contiguous_format if left is not None else torch.channels_last)


def test_every_hook_is_called() -> None:
    made, seen = block(), []
    for name, module in made.named_modules():
        if name and not isinstance(module, nn.ModuleList):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    made(torch.randn(2, 4, 17, 16))
    assert len(seen) == len(set(seen)) == 9
    handle, everywhere = register_module_forward_hook(lambda *_: seen.append("")), len(seen)
    with_hook = made(torch.randn(2, 4, 17, 16))
    handle.remove()
    assert with_hook.requires_grad
    assert seen[everywhere:].count("") == 10


def test_counters_see_convolutions(chains: list[int]) -> None:
    made = block()
    with FlopCounterMode(display=False) as counted:
        made(torch.randn(1, 4, 17, 16))
    assert counted.get_total_flops() == 2 * 17 * 16 * (4 * 8 + 8 + 8 * 8 + 4 * 8)
    assert not chains


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")  # torch's own
def test_transforms(chains: list[int]) -> None:
    """torch.func and forward-mode AD, of the input and of the weights."""
    made = block().double().eval()
    x, along = torch.randn(2, 2, 4, 7, 5, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(made(x.requires_grad_()).sum(), x)
    chains.clear()
    weights = dict(made.named_parameters())
    of_all = torch.func.grad(lambda w: torch.func.functional_call(made, w, (x,)).sum())(weights)
    for name, found in of_all.items():
        (by_chain,) = torch.autograd.grad(plainly(made, x).sum(), weights[name])
        torch.testing.assert_close(found, by_chain, msg=name)
    torch.testing.assert_close(torch.func.grad(lambda x: made(x).sum())(x), wanted)
    mapped = torch.func.vmap(lambda x: made(x[None])[0])(x)
    torch.testing.assert_close(mapped, plainly(made, x))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(made(forward_ad.make_dual(x.detach(), along))).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent.sum(), (wanted * along).sum())
    assert not chains


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning", "ignore:.*is deprecated:DeprecationWarning")
def test_traced_and_saved() -> None:
    made = block().eval()
    x = torch.randn(2, 4, 17, 16)
    scripted = torch.jit.trace(made, (x,), check_trace=False)
    torch.testing.assert_close(scripted(x), made(x))
    assert "_convolution" in str(scripted.inlined_graph)
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), made(x))
    exported = torch.export.export(made, (x,))
    names = [str(node.target) for node in exported.graph.nodes]
    assert sum("conv2d" in name for name in names) == 4


def test_under_autocast(chains: list[int]) -> None:
    made, x = block(), torch.randn(3, 4, 17, 16)
    other = copy.deepcopy(made)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = made(x), plainly(other, x)
    assert chains == [2, 1]
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.2)
    found.float().square().sum().backward()
    assert {p.grad.dtype for p in made.parameters() if p.grad is not None} == {torch.float32}


def test_checkpointing_and_no_grad() -> None:
    made, x = block(), torch.randn(2, 4, 17, 16, requires_grad=True)
    other = copy.deepcopy(made)
    torch.utils.checkpoint.checkpoint(made, x, use_reentrant=False).sum().backward()
    wanted, x.grad = x.grad, None
    other(x).sum().backward()
    torch.testing.assert_close(x.grad, wanted)
    with torch.inference_mode():
        assert not made(x).requires_grad
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        made(torch.randn(1, 4, 1, 1))
