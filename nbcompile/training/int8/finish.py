"""The session of the finish: as any other, on the simulation of the int8 file.

The recipe is ours: SGD as before, one cosine from a hundredth of the learning rate (Esser et al. 2020,
arXiv:1902.08153, sec. 3, train 8-bit networks for one epoch at a hundredth of theirs), labels alone, averaged weights.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn
from torch.optim import SGD

from nbcompile.core.blocks import sites
from nbcompile.core.copies import copied
from nbcompile.core.errors import UsageError
from nbcompile.core.example import Inputs, inputs_for
from nbcompile.deploy.deploy_form import deploy
from nbcompile.exporters import TFLITE
from nbcompile.fusion import fuse
from nbcompile.results.layer_costs import original_of
from nbcompile.training.data.base import Data
from nbcompile.training.deployed_accuracy import calibration_images
from nbcompile.training.learning_rate import WarmupCosine
from nbcompile.training.loader import Loader
from nbcompile.training.methods.base import Method
from nbcompile.training.methods.groups import parameter_groups
from nbcompile.training.session import Session
from nbcompile.training.weight_average import Average
from nbcompile.wide.giants import is_giant

if TYPE_CHECKING:
    from nbcompile.training.int8.simulation import Simulation
    from nbcompile.training.options.config import TrainConfig
    from nbcompile.training.outputs.records import Epoch

log = logging.getLogger("nbcompile")

PHASE = "int8"


class _Evaluated(nn.Module):
    """A deploy form that stays one when it is trained: norms that are left keep their statistics."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph.eval()

    def train(self, mode: bool = True) -> "_Evaluated":
        """Always in eval mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Any:
        """What the int8 file gives, in float."""
        return self.graph(x)


class _Labels(Method):
    """Learns from the labels, whatever the method before did."""

    def phase(self, epoch: int) -> str:
        """One word."""
        return PHASE


@dataclass(kw_only=True)
class FinishSession(Session):
    """A session behind another one.

    Attributes:
        base: the session before, at its end.
        contracted: what that gave.
        deployed: its deploy form.
        simulation: what is trained.
        inputs: example.
    """

    base: Session
    contracted: nn.Module
    deployed: fx.GraphModule
    simulation: "Simulation"
    inputs: Inputs

    def advance(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""
        if self.config.side is not None and self.config.sizes and self.resize is not None:
            self.resize(self.config.side)

    def phase(self, epoch: int) -> str:
        """``int8``."""
        return PHASE

    def saved(self) -> nn.Module:
        """The network itself, which remembers its ranges."""
        from nbcompile.training.int8.write_back import written_back  # with the packages of .tflite files

        found = self.simulation.of(cast(_Evaluated, self.network()).graph)
        layers = {name: copied(one.layer).cpu() for name, one in found.layers.items()}
        network, missed = written_back(self.contracted, self.deployed, layers, self.inputs, found.ranges())
        if missed is not None and len(self.history) == self.config.all_epochs:
            log.warning(
                "the int8 finish cannot be written back into %s ('%s' is not one layer and its norm): the trained file "
                "holds the deploy form, with the keys of nbcompile.fuse(model)",
                type(self.contracted).__name__,
                missed,
            )
        return network

    def rivals(self) -> "Sequence[Epoch]":
        """The epochs of the finish: all others are of another network."""
        return self.history[self.config.epochs :]

    def state_dict(self) -> dict[str, Any]:
        """That of the session before, and what was trained since."""
        own = {
            "model": self.bare.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return self.base.state_dict() | {"epoch": len(self.history), "history": self._told(), "int8": own}

    def _told(self) -> list[dict[str, Any]]:
        return [epoch.to_json() for epoch in self.history]


def require_finish(model: nn.Module, data: Data, config: "TrainConfig") -> None:
    """Check before a run that its network can be finished.

    Raises:
        UsageError: if it is a giant that stays one, or a package is missing.
        ExportError: if its int8 file could not be written.
    """
    if sites(model) and not config.expands and not all(block.linear for block in sites(model).values()):
        slope = min(float(block.slope) for block in sites(model).values())
        raise UsageError(
            f"int8 needs a network that can be contracted: the slopes of this giant stand at {slope:.6g}, and method "
            f"'{config.method_row.name}' leaves them there: choose netbooster, or give the network that it was made of"
        )
    TFLITE.exporter()  # it says which package is missing
    from nbcompile.exporters.to_tflite.build import float_form

    bare = original_of(model) if is_giant(model) else copied(model, training=False)
    example = (torch.zeros(1, *data.shape),)
    graph = deploy(bare.cpu(), example)
    if not isinstance(graph, fx.GraphModule):
        raise UsageError(_IN_PIECES)
    float_form(graph, example, micro=False)


_IN_PIECES = (
    "int8 needs a network that can be traced as one graph, to know where its file rounds: this one is run in pieces; "
    "nbcompile inspect says why"
)


def _simulated(base: Session, data: Data) -> "tuple[nn.Module, fx.GraphModule, Inputs, Simulation]":
    """The contracted network of ``base``, its deploy form, an example of its inputs, and the simulated int8 file."""
    from nbcompile.training.int8.simulation import best_form, simulated  # with the packages of .tflite files

    last = base.network().eval()
    contracted = (fuse(last) if is_giant(last) else copied(last, training=False)).cpu()
    contracted = contracted.to(memory_format=torch.contiguous_format)
    inputs = inputs_for(contracted, torch.zeros(1, *data.shape), who="train")
    graph = deploy(contracted, inputs)
    if not isinstance(graph, fx.GraphModule):
        raise UsageError(_IN_PIECES)
    samples = [(x[None],) for x in calibration_images(data, base.config)]
    simulation = simulated(best_form(graph, inputs, samples), inputs, samples)
    if simulation.unsimulated and base.fabric.is_global_zero:
        log.warning(
            "the int8 finish does not know the rounding of %s: it learns as if there were none",
            ", ".join(simulation.unsimulated),
        )
    return contracted, graph, inputs, simulation


def begin_finish(base: Session, data: Data, train: Loader, checkpoint: dict[str, Any] | None) -> FinishSession:
    """The session of the finish, after its last epoch in ``checkpoint``, if there is one.

    Args:
        base: after its last epoch; it is kept as it is.
        data: what it was trained on.
        train: batches of that, without a teacher's views.
        checkpoint: that the run was resumed from.

    Raises:
        UsageError: if the network cannot be traced as one graph.
        ExportError: if its int8 file cannot be written.
    """
    c, fabric = base.config, base.fabric
    contracted, graph, inputs, simulation = _simulated(base, data)
    epochs, steps = c.int8 or 0, len(train)
    method = _Labels(c, steps)
    method.task = data.task
    bare = _Evaluated(simulation.network)
    lr = c.finish_lr
    groups = parameter_groups(bare, c.weight_decay)
    optimizer: Any = SGD(groups, lr=lr, momentum=c.momentum, nesterov=c.momentum > 0)
    model, optimizer = fabric.setup(bare, optimizer)
    decay = c.ema_decay(steps, epochs)
    average = Average(bare, decay) if decay else None
    if checkpoint is not None and (state := checkpoint.get("int8")) is not None:
        bare.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
    begun = c.epochs * len(base.train)
    return FinishSession(
        fabric=fabric,
        config=c,
        method=method,
        model=model,
        bare=bare,
        optimizer=optimizer,
        average=average,
        schedule=WarmupCosine(peak=lr, warmup=0, steps=epochs * steps, start=begun),
        train=train,
        val=base.val,
        tell=base.tell,
        folder=base.folder,
        history=base.history,
        step=begun + (len(base.history) - c.epochs) * steps,
        resize=base.resize,
        base=base,
        contracted=contracted,
        deployed=graph,
        simulation=simulation,
        inputs=inputs,
    )
