"""Gradient re-parameterization."""

from dataclasses import dataclass

from nbcompile.core.options import option


@dataclass(frozen=True, kw_only=True)
class ReparamOptions:
    """As the sum of which branches layers learn."""

    branches: str = option(
        "rep",
        "As the sum of which branches layers learn, see nbcompile.grad_reparam",
        panel="Branches (grad-reparam)",
        metavar="NAME",
        choices=("rep", "dbb", "expand"),
    )
    draw_branches: bool = option(
        False,
        "Begin with branches of random weights, and an identity of 1, added to each layer; "
        "the network computes something else then",
    )
