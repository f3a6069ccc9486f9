"""The ATen graph of a module, as the TFLite lowering takes it."""

from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves

from nbcompile.core.errors import ExportError
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.core.files import with_slashes
from nbcompile.core.one_at_a_time import one_at_a_time
from nbcompile.exporters.to_tflite.lower.ops.table import HANDLERS


@one_at_a_time
def captured(graph: nn.Module, inputs: Inputs) -> ExportedProgram:
    """The functional ATen graph of ``graph`` at batch 1: operators with a handler whole, all others decomposed.

    Args:
        graph: on the CPU, in eval mode.
        inputs: example, batch first; tensors whose first dimension is that of the first one share the batch.

    Raises:
        ExportError: if it cannot be captured, or it changes its own buffers.
    """
    try:
        program: ExportedProgram = torch.export.export(graph, first_sample(inputs), strict=False)
        table = torch.export.default_decompositions()
        for name in HANDLERS:
            table.pop(_overload(name), None)  # type: ignore[no-untyped-call]
        program = program.run_decompositions(table)
    except Exception as error:  # torch.export raises many kinds; all mean that there is no graph of fixed sizes
        raise ExportError(
            f"torch.export cannot capture {type(graph).__name__} with fixed sizes, which TFLite needs: "
            f"{_first_line(error)}; make its code independent of the values of its inputs"
        ) from error
    for spec in program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise ExportError(
                f"{type(graph).__name__} writes '{spec.target}' in eval mode ({spec.kind.name.lower()}): a .tflite "
                f"file keeps nothing from one run to the next; return that value as an output"
            )
    return program


def first_sample(inputs: Inputs) -> Inputs:
    """``inputs`` at batch 1."""
    batch = tree_leaves(inputs)[0].shape[:1]
    return change_tensors(lambda x: x[:1] if x.shape[:1] == batch else x, inputs)


def constants(program: ExportedProgram) -> dict[str, Any]:
    """What the graph's placeholders stand for, by name; not the user's inputs."""
    values = {**program.state_dict, **program.constants}
    return {
        spec.arg.name: values[str(spec.target)]
        for spec in program.graph_signature.input_specs
        if spec.kind is not InputKind.USER_INPUT
    }


def aten_name(target: Any) -> str:
    """The name of an ATen operator in `HANDLERS`: ``conv2d``, ``add.Tensor``."""
    return str(target).removeprefix("aten.").removesuffix(".default")


def _overload(name: str) -> torch._ops.OpOverload:
    """The ATen operator of a name in `HANDLERS`."""
    packet, _, overload = name.partition(".")
    operator: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return operator


def place(node: fx.Node) -> str:
    """File and line of the call in the user's own code, if they are known: `` at net.py:12``."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
    for line in reversed(lines):
        if line.startswith('File "') and "/torch/" not in with_slashes(line) and "eval_with_key" not in line:
            file, _, rest = line.removeprefix('File "').partition('", line ')
            return f" at {file}:{rest.partition(',')[0]}"
    return ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
