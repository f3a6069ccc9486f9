"""tiny.onnx is the vanilla network's own .onnx: the same layers, the outputs of PyTorch, the same latency.

For each network of the paper: expand, end of PLT, fuse, export. Beside it the original itself, with the same weights
(an untrained one has zero biases, which onnxsim drops: 1.4 % faster), goes through ``torch.onnx.export`` and onnxsim.
Both files run in ONNX Runtime on one thread, in turn. Two sessions of one and the same file differ by some percent,
the first that is opened being the slowest, so several of each are opened, in every order, and the vanilla file runs
against itself, too: that is the noise.
"""

import contextlib
import io
import itertools
import statistics
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxsim
import torch
from _common import PAPER, alternate, parser, ratios, write
from rich.console import Console
from rich.table import Table
from torch import nn

import nbcompile
from nbcompile.core.numerics import relative_error
from nbcompile.testing import scramble_
from nbcompile.zoo import NETWORKS

SEED = 0
INPUTS = 16
BATCHES = (1, 3)
LIMIT = 1e-5
ORDERS = 2 * list(itertools.permutations(("tiny", "vanilla", "again")))
"""In which the sessions are opened; "again" is a second one of the vanilla file."""


def main() -> None:
    args = parser("onnx_runtime", __doc__).parse_args()
    torch.set_num_threads(1)
    networks = PAPER[:1] if args.quick else PAPER
    rows = {name: measure(name, 5 if args.quick else 300) for name in networks}
    table = Table(
        "network", "Conv", "of the original", "BatchNorm", "error, batch 1", "batch 3", "ms", "original (ms)",
        "latency ratio (quartiles)", "noise", title="tiny.onnx over the vanilla network's .onnx",
    )  # fmt: skip
    for name, row in rows.items():
        compared = (row["latency_ratio"], row["vanilla_over_itself"])
        table.add_row(
            name, f"{row['conv_nodes']}", f"{row['conv_nodes_original']}", f"{row['batch_norm_nodes']}",
            *(f"{row['errors'][f'batch {batch}']:.1e}" for batch in BATCHES),
            f"{row['tiny_ms']:.2f}", f"{row['vanilla_ms']:.2f}",
            *(f"{r['median']:.3f} ({r['quartile_1']:.3f} to {r['quartile_3']:.3f})" for r in compared),
        )  # fmt: skip
    Console(width=170).print(table)
    units = {
        "errors": f"max|onnx - torch| / max|torch| over {INPUTS} inputs, limit {LIMIT}",
        "*_ms": "ms an image, batch 1, one thread, median",
        "latency_ratio, vanilla_over_itself": f"ratio of medians, over {len(ORDERS)} sessions of each file",
    }
    write(args, SEED, units, rows)


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Layers, errors and latency of one network."""
    torch.manual_seed(SEED)
    factory, shape = NETWORKS[name]
    original = factory()
    giant = nbcompile.expand(original, torch.randn(shape))
    scramble_(giant, SEED)
    nbcompile.PLT(giant, steps=1).step()
    tiny = nbcompile.fuse(giant)
    with tempfile.TemporaryDirectory() as folder:
        ours, vanilla = Path(folder, "tiny.onnx"), Path(folder, "vanilla.onnx")
        nbcompile.export(tiny, ours)
        original.load_state_dict(tiny.state_dict())
        plain_export(original.eval(), shape, vanilla)
        counts, of_original = operators(ours), operators(vanilla)
        files = {"tiny": ours, "vanilla": vanilla, "again": vanilla}
        times = [latency({key: files[key] for key in order}, shape, repeats) for order in ORDERS]
        errors = {f"batch {batch}": error(session(ours), tiny, (batch, *shape[1:])) for batch in BATCHES}
    tiny_ms, vanilla_ms, again_ms = ([one[key] for one in times] for key in ("tiny", "vanilla", "again"))
    return {
        "input": shape,
        "conv_nodes": counts["Conv"],
        "conv_nodes_original": of_original["Conv"],
        "batch_norm_nodes": counts["BatchNormalization"],
        "operators": counts,
        "operators_original": of_original,
        "errors": errors,
        "tiny_ms": statistics.median(tiny_ms),
        "vanilla_ms": statistics.median(vanilla_ms),
        "latency_ratio": ratios(tiny_ms, vanilla_ms),
        "vanilla_over_itself": ratios(again_ms, vanilla_ms),
    }


def latency(files: dict[str, Path], shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Milliseconds an image, the median of runs in turn, each file in a session of its own."""
    image = torch.randn(shape).numpy()
    seconds = alternate({name: partial(run, session(path), image) for name, path in files.items()}, repeats)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def plain_export(model: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """What a user without nbcompile does."""
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            model,
            (torch.randn(shape),),
            path,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
        )
    simple, sound = onnxsim.simplify(onnx.load(path))
    if not sound:
        raise RuntimeError(f"onnxsim's own check of {path} failed")
    onnx.save(simple, path)


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(runtime: onnxruntime.InferenceSession, image: Any) -> Any:
    return runtime.run(None, {runtime.get_inputs()[0].name: image})[0]


def error(runtime: onnxruntime.InferenceSession, tiny: nn.Module, shape: tuple[int, ...]) -> float:
    generator = torch.Generator().manual_seed(SEED)
    inputs = [torch.randn(shape, generator=generator) for _ in range(INPUTS)]
    with torch.no_grad():
        return max(relative_error(torch.from_numpy(run(runtime, x.numpy())), tiny(x)) for x in inputs)


if __name__ == "__main__":
    main()
