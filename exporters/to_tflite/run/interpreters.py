"""Run a ``.tflite`` file in memory, in the interpreters that devices have.

=============  ====================================================================================================
kernels        what runs
=============  ====================================================================================================
``xnnpack``    LiteRT as it comes: XNNPACK's kernels, what a Raspberry Pi runs
``builtin``    LiteRT's own optimised kernels, without XNNPACK
``reference``  LiteRT's reference kernels: plain loops; some operators are missing, and its int8 ``SUM`` is wrong
``micro``      TFLite Micro, built for this machine with its reference kernels: what a microcontroller runs
=============  ====================================================================================================
"""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_micro.python.tflite_micro import runtime as tflm

from nbcompile.core.errors import ExportError, PreconditionError, UsageError
from nbcompile.core.memory.arena import aligned
from nbcompile.core.progress import step
from nbcompile.exporters.to_tflite.file.flatbuffer import File, read_file
from nbcompile.exporters.to_tflite.file.stderr import stderr_kept

Sample = tuple[np.ndarray, ...]
"""One array per input, or output, of a file, in its shape."""

_RESOLVERS = {
    "xnnpack": OpResolverType.AUTO,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}
KERNELS = (*_RESOLVERS, "micro")


def run_file(content: bytes, samples: Sequence[Sample], *, kernels: str = "xnnpack", raw: bool = False) -> list[Sample]:
    """The outputs of a file, sample by sample.

    Args:
        content: the file.
        samples: inputs in the file's shapes: numbers, which are quantized as the file asks, or values of the file's
            own integer type.
        kernels: one of ``KERNELS``.
        raw: give values as the file stores them, not the numbers that they stand for.

    Raises:
        UsageError: if ``kernels`` is not known.
        ExportError: if the interpreter refuses the file; with what it said.
        PreconditionError: if a sample does not fit the file's inputs.
    """
    file = read_file(content)
    session = load_file(content, kernels)
    outputs = []
    with step("running samples", len(samples)) as advance:
        for sample in samples:
            outputs.append(session.run(fitted(file, sample)))
            advance()
    return outputs if raw else [numbers(file, values) for values in outputs]


def tensors(content: bytes, samples: Sequence[Sample], *, kernels: str = "builtin") -> Iterator[dict[int, np.ndarray]]:
    """What the inputs and every tensor that is computed hold, sample by sample.

    Args:
        content: the file.
        samples: as in `run_file`.
        kernels: one of ``KERNELS``; every operator is then run by itself, none is merged with its neighbours.

    Yields:
        Values as the file stores them, by the tensor's index.

    Raises:
        UsageError, ExportError, PreconditionError: as `run_file`.
    """
    file = read_file(content)
    session = load_file(content, kernels, keep=True)
    for sample in samples:
        session.run(fitted(file, sample))
        yield {i: session.tensor(i).reshape(file.tensors[i].shape) for i in (*file.inputs, *file.writers)}


def fitted(file: File, sample: Sample) -> Sample:
    """``sample`` as the inputs of ``file`` store it.

    Raises:
        PreconditionError: if the number or the shapes of the arrays are not those of the inputs.
    """
    wanted = [file.tensors[i] for i in file.inputs]
    if [x.shape for x in sample] != [t.shape for t in wanted]:
        raise PreconditionError(
            f"the file takes inputs of shape {', '.join(str(t.shape) for t in wanted)}; "
            f"the sample has {', '.join(str(x.shape) for x in sample) or 'none'}"
        )
    return tuple(x if x.dtype == t.dtype else t.quantized(x) for x, t in zip(sample, wanted, strict=True))


def numbers(file: File, values: Sample) -> Sample:
    """The numbers that outputs of ``file`` stand for."""
    return tuple(file.tensors[i].dequantized(y) for i, y in zip(file.outputs, values, strict=True))


class LoadedFile(ABC):
    """An interpreter that holds one file."""

    @abstractmethod
    def run(self, sample: Sample) -> Sample:
        """The outputs, as the file stores them, for inputs as the file stores them."""

    @abstractmethod
    def tensor(self, index: int) -> np.ndarray:
        """What the last run left in a tensor; only where the session keeps tensors."""


def load_file(content: bytes, kernels: str, *, keep: bool = False) -> LoadedFile:
    """An interpreter that is ready to run.

    Args:
        content: the file.
        kernels: one of ``KERNELS``.
        keep: whether every tensor keeps its values after a run.

    Raises:
        UsageError: if ``kernels`` is not known.
        ExportError: if the interpreter refuses the file; with what it said.
    """
    if kernels not in KERNELS:
        raise UsageError(f"kernels '{kernels}' are unknown; known are {', '.join(KERNELS)}")
    return start_micro(content, keep=keep) if kernels == "micro" else _LiteRT(content, kernels, keep)


def start_micro(content: bytes, *, keep: bool = False) -> "Micro":
    """TFLite Micro, ready to run in an arena that is large enough.

    Args:
        content: the file.
        keep: whether every tensor keeps its values after a run.

    Raises:
        ExportError: if TFLite Micro refuses the file; with what it said.
    """
    return Micro(content, room_for(read_file(content)), keep=keep)


def room_for(file: File) -> int:
    """Bytes of an arena that is large enough for TFLite Micro."""
    # Several times what tensors and kernels take together; memory that is not touched costs nothing. Starting small and
    # growing would be unsafe: some kernels (MEAN) do not look whether they got the memory that they asked for.
    return aligned(4 * (sum(tensor.nbytes for tensor in file.tensors) + file.size) + 2**20)


class _LiteRT(LoadedFile):
    """LiteRT, one thread."""

    def __init__(self, content: bytes, kernels: str, keep: bool) -> None:
        self._refusals = partial(_refusals, f"LiteRT ({kernels})", content)
        with self._refusals(), warnings.catch_warnings():
            # That keeping tensors takes memory is known and wanted here.
            warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors", category=UserWarning)
            self._interpreter = Interpreter(
                model_content=content,
                num_threads=1,
                experimental_op_resolver_type=_RESOLVERS[kernels],
                experimental_preserve_all_tensors=keep,
            )
            self._interpreter.allocate_tensors()
        self._inputs = [row["index"] for row in self._interpreter.get_input_details()]
        self._outputs = [row["index"] for row in self._interpreter.get_output_details()]

    def run(self, sample: Sample) -> Sample:
        for index, x in zip(self._inputs, sample, strict=True):
            self._interpreter.set_tensor(index, x)
        with self._refusals():
            self._interpreter.invoke()
        return tuple(self._interpreter.get_tensor(index) for index in self._outputs)

    def tensor(self, index: int) -> np.ndarray:
        values: np.ndarray = self._interpreter.get_tensor(index)
        return values


class Micro(LoadedFile):
    """TFLite Micro on this machine.

    Args:
        content: the file.
        arena: bytes of memory that it gets; too few for it may crash the process, not only be refused.
        keep: whether every tensor keeps its values after a run; the arena then holds all of them at once.

    Raises:
        ExportError: if TFLite Micro refuses the file or the arena; with what it said.
    """

    def __init__(self, content: bytes, arena: int, *, keep: bool = False) -> None:
        config = tflm.InterpreterConfig
        mode = config.kPreserveAllTensors if keep else config.kAllocationRecording
        self._outputs = range(len(read_file(content).outputs))
        self._refusals = partial(_refusals, "TFLite Micro", content)
        enough = arena >= room_for(read_file(content))
        with self._refusals() if enough else _refusals(f"TFLite Micro with {arena:,} B of arena", content, False):
            self._interpreter = tflm.Interpreter.from_bytes(content, arena_size=arena, intrepreter_config=mode)

    def run(self, sample: Sample) -> Sample:
        """See `LoadedFile.run`."""
        for i, x in enumerate(sample):
            self._interpreter.set_input(x, i)
        with self._refusals():
            self._interpreter.invoke()
        return tuple(self._interpreter.get_output(i) for i in self._outputs)

    def tensor(self, index: int) -> np.ndarray:
        """See `LoadedFile.tensor`."""
        values: np.ndarray = self._interpreter.GetTensor(index, 0)["tensor_data"]
        return values

    def allocations(self) -> str:
        """What TFLite Micro's recording allocator prints; not where tensors are kept."""
        with stderr_kept() as said:
            self._interpreter.print_allocations()
            return said()


@contextmanager
def _refusals(who: str, content: bytes, by_layer: bool = True) -> Iterator[None]:
    """What an interpreter refuses becomes an ExportError that says what it wrote to standard error, and the layer.

    In an arena that is too small, no layer is to blame.
    """
    with stderr_kept() as said:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            lines = [line.strip() for line in said().splitlines()]
            lines = [line for line in lines if line and not line.startswith(("INFO:", "WARNING:"))]
            reason = "; ".join(lines or str(error).splitlines()).rstrip(".")
            layer = _layer_in(reason, content) if by_layer else ""
            raise ExportError(f"{who} cannot run the file: {reason}{layer}") from error


def _layer_in(reason: str, content: bytes) -> str:
    """The layer whose operator is named by its number, and what may help: there are fewer kernels for integers.

    In int16x8 no single layer can stay in float.
    """
    file, number = read_file(content), re.search(r"\bnumber (\d+)", reason)
    if not number or int(number[1]) >= len(file.ops):  # one of a delegate's
        return ""
    layer = file.tensors[file.ops[int(number[1])].outputs[0]]
    kept = "quantize='int8' may have a kernel" if layer.dtype == np.int16 else "float_layers=… keeps it in float32"
    return f" (layer '{layer.name}'" + (f"; {kept})" if layer.quantization else ")")
