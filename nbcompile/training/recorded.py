"""A training step that is recorded once, as a CUDA graph, and replayed: no Python, and no launches one by one.

Reference: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. What Python decides in a step is decided
once, when it is recorded; so only methods whose steps are alike are recorded (``MethodRow.alike``), and the second
replay is compared with the step itself.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from nbcompile.core.errors import NBCompileError, UsageError
from nbcompile.core.random_state import forked_rng
from nbcompile.training.batch import Batch

StepOutcome = tuple[Tensor, Tensor]
"""Loss of a batch, and how many of its images were named rightly; both scalars."""

MakesGradients = Callable[[Batch], StepOutcome]
"""Makes the gradients of a batch, in place of those that were there."""

APART = 1e-2
"""Most that gradients of replay and step may differ, over their norm: GPUs add in changing order, and in TF32."""


class StepRecorder(Protocol):
    """What records."""

    def record(self, step: Callable[[], None]) -> Callable[[], object]:
        """Go through ``step`` without computing; what does so, from the same memory to the same memory."""


class CudaGraphs:
    """Records on a stream of its own, as recording demands."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(self, step: Callable[[], None]) -> Callable[[], object]:
        """See `StepRecorder`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            step()
        return graph.replay


def recorder_on(device: torch.device) -> StepRecorder:
    """What records there.

    Raises:
        UsageError: if nothing does.
    """
    if device.type != "cuda":
        raise UsageError(f"cuda_graphs needs a CUDA GPU, and the run is on '{device.type}': leave it out")
    return CudaGraphs()


class Recorded:
    """Makes gradients as ``learn`` does: a batch by itself, to warm up; then one that is recorded; then replays.

    Args:
        learn: of batches of one shape.
        model: whose gradients they are.
        recorder: records.
    """

    def __init__(self, learn: MakesGradients, model: nn.Module, recorder: StepRecorder) -> None:
        self._learn, self._recorder = learn, recorder
        self._parameters, self._buffers = list(model.parameters()), list(model.buffers())
        self._warm = self._proven = False
        self._replay: Callable[[], object] | None = None
        self._batch: Batch | None = None
        self._learnt: StepOutcome | None = None
        self._gradients: list[Tensor | None] = []

    def __call__(self, batch: Batch) -> StepOutcome:
        """As ``learn``.

        Raises:
            NBCompileError: if the step cannot be recorded, or its replay is not what it does.
        """
        if not self._warm:
            self._warm = True
            return self._learnt_from(batch)
        if self._replay is None:
            self._record(batch)
        elif not self._proven:
            return self._prove(batch)
        return self._replayed(batch)

    def _record(self, batch: Batch) -> None:
        more = {name: x.clone() for name, x in batch.more.items()}
        self._batch = Batch(batch.images.clone(), batch.labels.clone(), more)
        try:
            self._replay = self._recorder.record(self._step)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise NBCompileError(
                f"cuda_graphs: the training step cannot be recorded: {reason}; leave it out"
            ) from error
        self._gradients = [parameter.grad for parameter in self._parameters]

    def _step(self) -> None:
        assert self._batch is not None
        self._learnt = self._learnt_from(self._batch)

    def _learnt_from(self, batch: Batch) -> StepOutcome:
        found = self._learn(batch)
        for parameter in self._parameters:
            if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                parameter.grad = with_strides_of(parameter, parameter.grad)
        return found

    def _replayed(self, batch: Batch) -> StepOutcome:
        assert self._batch is not None
        assert self._replay is not None
        assert self._learnt is not None
        self._batch.images.copy_(batch.images)
        self._batch.labels.copy_(batch.labels)
        for name, x in self._batch.more.items():
            x.copy_(batch.more[name])
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if parameter.grad is not gradient:
                parameter.grad = gradient
        loss, right = self._learnt
        return loss.clone(), right.clone()  # the next replay writes there

    @torch.no_grad()
    def _prove(self, batch: Batch) -> StepOutcome:
        """Compare a replay with the step on a batch that was not recorded; random numbers are the same in both."""
        self._proven = True
        before = [buffer.clone() for buffer in self._buffers]
        devices = sorted({x.device.index for x in self._parameters if x.is_cuda})
        with forked_rng(devices), torch.enable_grad():
            self._learnt_from(batch)
        real = [parameter.grad for parameter in self._parameters]
        for buffer, was in zip(self._buffers, before, strict=True):
            buffer.copy_(was)
        learnt = self._replayed(batch)
        pairs = [(a, b) for a, b in zip(real, self._gradients, strict=True) if a is not None and b is not None]
        if any((a is None) != (b is None) for a, b in zip(real, self._gradients, strict=True)):
            raise NBCompileError(_OTHERWISE)
        apart = torch.stack([(a - b).square().sum() for a, b in pairs]).sum().sqrt()
        norm = torch.stack([a.square().sum() for a, _ in pairs]).sum().sqrt()
        if not float(apart) <= APART * float(norm):
            raise NBCompileError(f"{_OTHERWISE} (gradients {float(apart / norm):.2g} apart)")
        return learnt


def with_strides_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    """``gradient`` laid out as ``parameter`` is, or optimizers go through all tensors one by one.

    Where they differ in dimensions of size 1 alone, as channels-last kernels of 1×1 do, it is the same memory.
    """
    pairs = zip(gradient.shape, gradient.stride(), parameter.stride(), strict=True)
    if all(size == 1 or a == b for size, a, b in pairs):
        return gradient.as_strided(parameter.shape, parameter.stride())
    return torch.empty_like(parameter).copy_(gradient)


_OTHERWISE = "cuda_graphs: a recorded training step is not what the step does: leave cuda_graphs out"
