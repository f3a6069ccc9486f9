"""What is trained gives what the int8 file gives, in the interpreters of devices."""

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from nbcompile.core.copies import copied
from nbcompile.core.errors import UsageError
from nbcompile.deploy.deploy_form import deploy
from nbcompile.exporters.to_tflite.build import filed, quantized_form
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import Recipe
from nbcompile.exporters.to_tflite.run.interpreters import run_file
from nbcompile.training.int8.simulation import Simulation, simulated
from tests.training.int8.networks import NETWORKS, SIDES, network

EXACT = 0.98
"""Share of the outputs that are the same integers; a scale that is wrong by a third gives less."""


class Case:
    """A network, its simulation, and its files from the ranges of that."""

    def __init__(self, name: str) -> None:
        model, images = network(name)
        self.example = (images[:1],)
        graph = deploy(model, self.example)
        assert isinstance(graph, fx.GraphModule)
        self.graph = graph
        self.simulation = simulated(graph, self.example, [(x[None],) for x in images])
        self.images = torch.cat([torch.randn(60, 3, *SIDES), images])

    def file(self, kernels: str = "xnnpack") -> bytes:
        """With the weights and steps that the simulation has now."""
        for name, layer in self.simulation.layers.items():
            self.graph.get_submodule(name).load_state_dict(layer.layer.state_dict())
        micro, learned = kernels == "micro", self.simulation.ranges()
        self.model, _, content = quantized_form(self.graph, self.example, [], Recipe(), micro=micro, learned=learned)
        return content

    def apart(self, content: bytes, kernels: str, simulation: Simulation | None = None) -> np.ndarray:
        """How far the outputs are from each other, in steps of the file."""
        samples = filed(self.model, [(x[None],) for x in self.images])
        found = np.concatenate([y[0] for y in run_file(content, samples, kernels=kernels)])
        with torch.no_grad():
            wanted: Tensor = (simulation or self.simulation).network(self.images)
        file = read_file(content)
        return np.abs(found - wanted.numpy()) / (file.step(file.outputs[0]) or 1)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name == "joined" else pytest.mark.slow) for name in NETWORKS]
)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def within(steps: np.ndarray) -> float:
    return float((steps < 1.01).mean())


def equal(steps: np.ndarray) -> float:
    return float((steps < 0.01).mean())


def test_it_gives_what_the_file_gives(case: Case) -> None:
    assert case.simulation.unsimulated == ()
    lite, micro = (case.apart(case.file(kernels), kernels) for kernels in ("xnnpack", "micro"))
    assert within(lite) == 1
    assert equal(lite) > EXACT
    assert within(micro) > 0.95  # its kernel of means cuts off where LiteRT rounds


def test_after_steps_and_weights_have_learnt_it_still_does(case: Case) -> None:
    optimizer = torch.optim.SGD([p for p in case.simulation.network.parameters() if p.requires_grad], lr=0.01)
    before = case.simulation.ranges()
    for _ in range(3):
        case.simulation.network(case.images[:20]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = case.simulation.ranges()
    moved = [x.limits != y.limits for x, y in zip(before.values, after.values, strict=True)]
    assert sum(moved) > len(moved) / 2
    assert within(case.apart(case.file(), "xnnpack")) > 0.99


def test_a_wrong_scale_is_seen(case: Case) -> None:
    content = case.file()
    right = equal(case.apart(content, "xnnpack"))
    step = list(case.simulation.steps.values())[2]
    with torch.no_grad():
        step.size.mul_(1.33)
    wrong = equal(case.apart(content, "xnnpack"))
    with torch.no_grad():
        step.size.div_(1.33)
    assert wrong < EXACT < right


def test_weights_are_the_integers_of_the_file(case: Case) -> None:
    file = read_file(case.file())
    stored = [np.sort(t.data.ravel()) for t in file.tensors if t.data is not None and t.dtype == np.int8]
    for layer in case.simulation.layers.values():
        weight = layer.layer.weight.detach()  # type: ignore[union-attr]
        integers = np.sort((weight / layer.scale(weight)).round().numpy().ravel())
        assert any(x.size == integers.size and (x == integers).all() for x in stored)


def test_what_is_not_simulated_is_named_and_has_a_range() -> None:
    torch.manual_seed(0)
    model, images = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.SiLU()).eval(), torch.randn(4, 2, 7, 5)
    graph = deploy(model, (images[:1],))
    assert isinstance(graph, fx.GraphModule)
    simulation = simulated(graph, (images[:1],), [(x[None],) for x in images])
    assert simulation.unsimulated == ("1/logistic",)
    again = simulation.of(copied(simulation.network))
    assert again.ranges() == simulation.ranges()
    assert again.network(images).equal(simulation.network(images))


def test_a_network_in_pieces_is_refused() -> None:
    with pytest.raises(UsageError, match="int8 needs a network that can be traced as one graph"):
        simulated(torch.nn.Linear(2, 3), (torch.zeros(1, 2),), [])
