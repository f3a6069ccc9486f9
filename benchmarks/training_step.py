"""One training step of the MobileNetV2-Tiny giant over one of the vanilla network, and where its extra time goes.

Forward, loss, backward and SGD step at 144 px, batch 32, ``torch.compile`` off. The paper prints 1.325 for latency,
on GPUs; the giant has 2.3 times the MACs.
"""

import statistics
from collections.abc import Callable

import torch
from _common import alternate, parser, ratios, write
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile

import nbcompile

SEED = 0
SIZE, BATCH = 144, 32
GROUPS = {
    "convolution": ("convolution",),
    "matrix product": ("bmm", "baddbmm"),
    "batch norm": ("batch_norm", "group_norm"),
    "linearised activation": ("lerp",),
    "activation": ("hardtanh", "clamp", "threshold", "relu"),
    "optimiser": ("_foreach", "sgd"),
}
"""Operators by words in their names; the first group that fits."""


def main() -> None:
    made = parser("training_step", __doc__)
    made.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = made.parse_args()
    console = Console()
    table = Table("threads", "giant", "vanilla (ms)", "giant (ms)", "ratio", "quartiles", title="One training step")
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        steps = {name: trainer(model) for name, model in models().items()}
        seconds = alternate(steps, 3 if args.quick else 15)
        vanilla = statistics.median(seconds["vanilla"])
        for name in ("giant", "giant, preserve"):
            ratio, own = ratios(seconds[name], seconds["vanilla"]), statistics.median(seconds[name])
            rows.append({"threads": threads, "giant": name, "vanilla_ms": 1e3 * vanilla, "giant_ms": 1e3 * own} | ratio)
            spread = f"{ratio['quartile_1']:.2f} to {ratio['quartile_3']:.2f}"
            table.add_row(
                f"{threads}", name, f"{1e3 * vanilla:.0f}", f"{1e3 * own:.0f}", f"{ratio['median']:.2f}", spread
            )
    console.print(table)
    torch.set_num_threads(1)
    profiles = {name: by_operator(trainer(model)) for name, model in models().items()}
    console.print(profile_table(profiles))
    macs = {name: nbcompile.cost(model, torch.randn(1, 3, SIZE, SIZE)).macs for name, model in models().items()}
    units = {
        "*_ms": "ms a step",
        "median": "ratio",
        "profiles": "ms a step by operator, one thread",
        "macs": "per image, forward",
    }
    write(args, SEED, units, {"batch": BATCH, "size": SIZE, "macs": macs, "steps": rows, "profiles": profiles})


def models() -> dict[str, nn.Module]:
    torch.manual_seed(SEED)
    vanilla = nbcompile.zoo.mobilenetv2_tiny()
    example = torch.randn(1, 3, SIZE, SIZE)
    return {
        "vanilla": vanilla,
        "giant": nbcompile.expand(vanilla, example),
        "giant, preserve": nbcompile.expand(vanilla, example, preserve=True),
    }


def trainer(model: nn.Module, device: str = "cpu", batch: int = BATCH, fast: bool = False) -> Callable[[], object]:
    """One step of SGD with momentum on a fixed batch, in the middle of PLT where the model is a giant.

    Args:
        model: is moved to ``device``.
        device: where; the step ends when it is done there.
        batch: images of ``SIZE`` pixels.
        fast: whether the model is compiled, its images channels-last, and its products in bfloat16 on a GPU.
    """
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(batch, 3, SIZE, SIZE, generator=generator).to(device)
    labels = torch.randint(1000, (batch,), generator=generator).to(device)
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    for name, slope in model.named_buffers():
        if name.endswith(".slope"):
            slope.fill_(0.5)
    if fast:
        images = images.to(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)
        model.compile()
    autocast = torch.autocast(device, torch.bfloat16, enabled=fast and device == "cuda")

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            loss = nn.functional.cross_entropy(model(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def by_operator(step: Callable[[], object], repeats: int = 2) -> dict[str, float]:
    """Milliseconds a step that each group of operators takes itself."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(repeats):
            step()
    totals = dict.fromkeys((*GROUPS, "other"), 0.0)
    for event in found.key_averages():
        group = next((g for g, words in GROUPS.items() if any(w in event.key for w in words)), "other")
        totals[group] += event.self_cpu_time_total / 1e3 / repeats
    return totals


def profile_table(found: dict[str, dict[str, float]]) -> Table:
    table = Table("operators", *(f"{name} (ms)" for name in found), title="Where a step's time goes, one thread")
    for group in (*GROUPS, "other"):
        table.add_row(group, *(f"{times[group]:.0f}" for times in found.values()))
    table.add_row("all", *(f"{sum(times.values()):.0f}" for times in found.values()))
    return table


if __name__ == "__main__":
    main()
