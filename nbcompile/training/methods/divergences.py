"""How far a network's answers are from a teacher's, for whom the two share weights; means over a batch, in nats.

Source: ``adaptive`` is AlphaNet's (Wang et al. 2021, arXiv:2102.07954, sec. 4), with its clip of 5; ``balanced`` weighs
each sample as BD-KD does (Amara et al. 2022, arXiv:2212.12965), by which of the two is surer: the weights are ours.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP = 5.0
"""The most that a ratio of two probabilities counts, in ``adaptive``."""


def forward(logits: Tensor, teacher: Tensor) -> Tensor:
    """``KL(teacher || network)``, of logits ``(N, K)``; no gradient reaches the teacher."""
    return _both_ways(logits, teacher)[0].mean()


def reverse(logits: Tensor, teacher: Tensor) -> Tensor:
    """``KL(network || teacher)``."""
    return _both_ways(logits, teacher)[1].mean()


def balanced(logits: Tensor, teacher: Tensor) -> Tensor:
    """Two thirds of the forward one where the network is surer than the teacher, else of the reverse one."""
    there, back = _both_ways(logits, teacher)
    surer = (_entropy(logits.detach()) < _entropy(teacher)).to(there.dtype)
    return (((1 + surer) * there + (2 - surer) * back) / 3).mean()


def adaptive(logits: Tensor, teacher: Tensor) -> Tensor:
    """Of the alpha-divergences for -1 and 1, that which is larger, sample by sample.

    Its value is the divergence, and its gradient that of one whose ratios of probabilities are clipped.
    """
    log_own, log_taught = F.log_softmax(logits, 1), F.log_softmax(teacher.detach(), 1)
    own, ratio = log_own.detach().exp(), (log_taught - log_own.detach()).exp()
    inverse, clipped = (1 / ratio).clamp_max(CLIP), ratio.clamp_max(CLIP)
    values = (own * (inverse - 1) / 2).sum(1), (own * clipped * clipped.log()).sum(1)
    weights = 0.5 - inverse, clipped  # how a divergence changes with the network's probabilities
    slopes = -(own * weights[0] * log_own).sum(1), -(own * weights[1] * log_own).sum(1)
    larger = values[0] > values[1]
    slope, value = (torch.where(larger, one, other) for one, other in (slopes, values))
    return (slope - slope.detach() + value).mean()


def _both_ways(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    own, taught = F.log_softmax(logits, 1), F.log_softmax(teacher.detach(), 1)
    return (taught.exp() * (taught - own)).sum(1), (own.exp() * (own - taught)).sum(1)


def _entropy(logits: Tensor) -> Tensor:
    known = F.log_softmax(logits, 1)
    return -(known.exp() * known).sum(1)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "adaptive": adaptive,
    "forward": forward,
    "reverse": reverse,
    "balanced": balanced,
}
