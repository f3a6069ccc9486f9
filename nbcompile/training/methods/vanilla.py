"""The network as it is: the baseline that every other method is measured against."""

from torch import nn

from nbcompile.training.methods.base import Method


class Vanilla(Method):
    """Trains the network as it is."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network itself."""
        return model

    def phase(self, epoch: int) -> str:
        """Always the same."""
        return "train"
