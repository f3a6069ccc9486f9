"""A network that computes what its int8 file will: fake quantizers where the exporter puts quantizers.

The file is made once, as `nbcompile.export` would make it; its scales are put into a copy of the deploy form, between
the nodes whose values it holds (`places`). Then weights and steps learn; where quantizers stand never changes.

Source: Jacob et al. 2018, arXiv:1712.05877, sec. 3; norms are folded before, as by Krishnamoorthi 2018,
arXiv:1806.08342, sec. 3.2.2, who freezes their statistics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import fx, nn

from nbcompile.core.copies import copied
from nbcompile.core.errors import UsageError
from nbcompile.core.example import Inputs
from nbcompile.core.progress import step
from nbcompile.deploy.to_device import exact_forms
from nbcompile.exporters.to_tflite.build import Samples, filed, quantized_form
from nbcompile.exporters.to_tflite.file.flatbuffer import File, read_file
from nbcompile.exporters.to_tflite.file.options import Recipe, held_out
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.quantize.bias import corrected
from nbcompile.exporters.to_tflite.quantize.learned import LearnedRanges
from nbcompile.exporters.to_tflite.quantize.ranges import Range, Ranges
from nbcompile.exporters.to_tflite.quantize.scales import FileScales, IntegerLayer, scales_of
from nbcompile.exporters.to_tflite.quantize.shared_scales import copies_in
from nbcompile.exporters.to_tflite.run.interpreters import tensors
from nbcompile.exporters.to_tflite.trials import best, tried
from nbcompile.training.int8.places import layer_with, matched, numbers_in_file, numbers_in_graph
from nbcompile.training.int8.quantizers import LearnedStep, QuantizedLayer, Quantizer

BEGINS_WITH = "mse"
"""How ranges are taken that training begins with. Source: Nagel et al. 2021, arXiv:2106.08295, sec. 4."""

_LOOKED_AT = 2  # samples on which values are told apart


@dataclass(frozen=True)
class Simulation:
    """What is trained in the finish.

    Attributes:
        network: the deploy form with quantizers.
        file: the float file that its int8 file is made from.
        steps: by the index of the tensor in ``file`` that they are of.
        fixed: ranges of the tensors that have none.
        layers: those with rounded weights, by their names in the deploy form.
        unsimulated: layers whose results the file rounds, and the network does not.
    """

    network: fx.GraphModule
    file: File
    steps: Mapping[int, LearnedStep]
    fixed: Mapping[int, Range]
    layers: Mapping[str, QuantizedLayer]
    unsimulated: tuple[str, ...]

    def of(self, network: nn.Module) -> "Simulation":
        """The same of a copy of ``network``, such as an average."""
        modules = dict(network.named_modules())
        place = {id(module): name for name, module in self.network.named_modules()}
        steps = {
            i: cast(LearnedStep, modules[place[id(one)]]) if id(one) in place else one  # of what is not simulated
            for i, one in self.steps.items()
        }
        layers = {name: cast(QuantizedLayer, modules[place[id(one)]]) for name, one in self.layers.items()}
        return replace(self, network=cast(fx.GraphModule, network), steps=steps, layers=layers)

    def ranges(self) -> LearnedRanges:
        """What exporters take."""
        return LearnedRanges.of(self.file, {**self.fixed, **{i: one.limits for i, one in self.steps.items()}})


def best_form(graph: fx.GraphModule, inputs: Inputs, samples: Sequence[Inputs]) -> fx.GraphModule:
    """What training begins with: ``graph``, or the same function with equalized channels, as exporters choose.

    Args:
        graph: the deploy form.
        inputs: example, batch first.
        samples: they calibrate, and a few of them are what is chosen by.
    """
    given, checked = held_out(samples)
    forms = exact_forms(graph, inputs, given)
    data = Samples.of(graph, inputs, given, checked)
    trials = tried(forms, inputs, data, Recipe(ranges=BEGINS_WITH), micro=False, correct_bias="never")
    return forms[best(trials.built, "never").how]


@step("making the int8 simulation")
def simulated(graph: nn.Module, inputs: Inputs, samples: Sequence[Inputs]) -> Simulation:
    """``graph`` with quantizers.

    Args:
        graph: the deploy form; stays as it is.
        inputs: example, batch first.
        samples: they calibrate, at batch 1.

    Raises:
        UsageError: if it could not be captured whole.
        ExportError: if TFLite cannot express it.
    """
    if not isinstance(graph, fx.GraphModule):
        raise UsageError(
            "int8 needs a network that can be traced as one graph, to know where its file rounds: this one is run in "
            "pieces; nbcompile inspect says why"
        )
    model, ranges, content = quantized_form(graph, inputs, samples, Recipe(ranges=BEGINS_WITH))
    assert isinstance(ranges, Ranges)
    looked = samples[:_LOOKED_AT]
    values = list(tensors(model.content, filed(model, looked)))
    exact = read_file(model.content)
    quantized = read_file(content)
    made = _Making(copied(graph), exact, scales_of(exact, quantized))
    made.find(numbers_in_file(values), numbers_in_graph(graph, looked))
    made.correct(quantized, read_file(corrected(model, content, filed(model, samples))))
    return made.simulation(model, ranges)


class _Making:
    """One simulation on its way."""

    def __init__(self, network: nn.Module, exact: File, scales: FileScales) -> None:
        assert isinstance(network, fx.GraphModule)
        self._network, self._exact, self._scales = network, exact, scales
        self._steps: dict[int, LearnedStep] = {}
        for scale in scales.scales:
            shared = LearnedStep(scale.step, scale.zero, learned=not scale.prescribed)
            self._steps.update(dict.fromkeys(scale.tensors, shared))
        self._nodes: dict[int, fx.Node] = {}

    def find(self, numbers: Mapping[int, object], held: Mapping[fx.Node, object]) -> None:
        """Which node of the network each tensor is."""
        own = {node.name: node for node in self._network.graph.nodes}
        wanted = {i: x for i, x in numbers.items() if i in self._steps and i not in self._scales.moved}
        copies = copies_in(self._exact)
        found = matched({i: x for i, x in wanted.items() if i not in copies}, held)  # type: ignore[arg-type, misc]
        self._nodes = {i: own[node.name] for i, node in found.items()}

    def correct(self, before: File, after: File) -> None:
        """Begin with the biases of another file, which is quantized alike."""
        for one in self._scales.layers:
            name = self._module(one)
            bias = None if name is None else self._network.get_submodule(name).bias
            if one.bias is None or not isinstance(bias, nn.Parameter):
                continue
            old, new = (file.tensors[one.bias] for file in (before, after))
            if old.data is not None and new.data is not None and old.quantization is not None:
                change = (new.data.astype(np.float64) - old.data) * old.quantization.scale
                bias.data += torch.from_numpy(change).to(bias)

    def simulation(self, model: FloatModel, ranges: Ranges) -> Simulation:
        """Put everything in its place."""
        unsimulated = [*self._quantize_values(), *self._quantize_copies()]
        layers = self._quantize_layers()
        unsimulated += [self._name(one.output) for one in self._scales.layers if one not in layers]
        unsimulated += [self._name(i) for i in sorted(self._scales.rescaled)]
        self._network.graph.lint()
        self._network.recompile()
        said = tuple(dict.fromkeys(model.layers.get(name, name) for name in unsimulated))
        fixed = {i: limits for i, limits in ranges.kept.items() if i not in self._steps}
        trained = {name: module for _, (name, module) in layers.items()}
        for parameter in self._network.parameters():
            parameter.requires_grad_(False)
        for module in trained.values():
            module.layer.requires_grad_(True)
        for scale in self._scales.scales:
            self._steps[scale.tensors[0]].size.requires_grad_(not scale.prescribed)
        return Simulation(self._network, self._exact, self._steps, fixed, trained, said)

    def _name(self, index: int) -> str:
        return self._exact.tensors[index].name

    def _quantize_values(self) -> list[str]:
        """A quantizer behind every node whose value the file rounds; the names of tensors that have no node."""
        for index, node in self._nodes.items():
            self._insert(index, node, list(node.users))
        copies = copies_in(self._exact)
        left = self._steps.keys() - self._nodes.keys() - self._scales.moved - copies.keys()
        return [self._name(i) for i in sorted(left)]

    def _quantize_copies(self) -> list[str]:
        """A quantizer on the way from a value to the one reader that takes a copy of it."""
        left = []
        for index, (source, result) in copies_in(self._exact).items():
            start, end = self._nodes.get(source), self._nodes.get(result)
            readers = [] if start is None or end is None else self._leading(start, end)
            if start is None or not readers:
                left.append(self._name(index))
                continue
            self._insert(index, self._last(start), readers)
        return left

    def _insert(self, index: int, node: fx.Node, readers: Sequence[fx.Node]) -> None:
        name = f"int8_quantizer_{index}"
        self._network.add_module(name, Quantizer(self._steps[index], index in self._scales.averaged))
        with self._network.graph.inserting_after(node):
            rounded = self._network.graph.call_module(name, (node,))
        for reader in readers:
            reader.replace_input_with(node, rounded)

    def _last(self, node: fx.Node) -> fx.Node:
        """``node`` behind its quantizers."""
        behind = next((one for one in node.users if str(one.target).startswith("int8_quantizer_")), None)
        return node if behind is None else self._last(behind)

    def _leading(self, start: fx.Node, end: fx.Node) -> list[fx.Node]:
        """The readers of ``start`` by which nothing that is rounded lies between it and ``end``."""
        rounded = {*self._nodes.values()}

        def leads(node: fx.Node) -> bool:
            return node is end or (node not in rounded and any(map(leads, node.users)))

        return [one for one in self._last(start).users if leads(one)]

    def _module(self, layer: IntegerLayer) -> str | None:
        """The name of the module that has its weights."""
        values = self._exact.tensors[layer.weight].data
        return None if values is None else layer_with(values, self._network)

    def _quantize_layers(self) -> dict[IntegerLayer, tuple[str, QuantizedLayer]]:
        """Layers with rounded weights in place of those that the file has in integers."""
        found: dict[IntegerLayer, tuple[str, QuantizedLayer]] = {}
        for one in self._scales.layers:
            name = self._module(one)
            if name is None:
                continue
            held = self._network.get_submodule(name)
            rounded = QuantizedLayer(held, self._steps.get(one.source), one.per_channel)
            self._network.set_submodule(name, rounded)
            found[one] = (name, rounded)
        return found
