"""What to make of the experts' logits at inference: means, priors, Dempster's rule, early exit.

An aggregator is called with all logits ``[B, K, C]`` (and features ``[B, K, D]``) and gives ``[B,
C]``. An image's output never depends on other images. An expert whose logits for an image are not
finite is left out for that image; if no expert is left, that image's output is NaN. Weights are
reported as a dense routing ``[B, K]``.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from moeapps.gating import Routing, combine, report_routing, softmax

Branch = Callable[[int, Tensor], tuple[Tensor, Tensor]]


class Aggregator(nn.Module):
    """Base: scores of the experts, a softmax over those that answered, a weighted sum."""

    skips = False
    """Whether `run` may leave branches out."""

    def score(self, logits: Tensor) -> Tensor:
        """Unnormalised log-weight of every expert, ``[B, K]``; all alike by default."""
        return logits.new_zeros(logits.shape[:2], dtype=torch.float32)

    def route(self, logits: Tensor) -> Routing:
        """Weights of the experts that answered; they sum to 1."""
        score = torch.where(answered(logits), self.score(logits), -math.inf)
        routing = softmax(score)
        report_routing(self, routing)
        return routing

    def run(self, hidden: Tensor, branch: Branch, num_experts: int) -> Tensor:
        """Call the branches on the trunk's output and aggregate what they give."""
        outputs = [branch(k, hidden) for k in range(num_experts)]
        logits, features = zip(*outputs, strict=True)
        output: Tensor = self(torch.stack(logits, 1), torch.stack(features, 1))
        return output

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Aggregate ``[B, K, C]`` to ``[B, C]``."""
        routing = self.route(logits)
        return unless_none(combine(logits, routing), routing)


class MeanLogits(Aggregator):
    r"""The mean over experts: :math:`\frac{1}{K} \sum_k z_k`.

    Example:
        >>> MeanLogits()(torch.tensor([[[2.0, 0.0], [4.0, 2.0]]]))
        tensor([[3., 1.]])
        >>> MeanLogits()(torch.tensor([[[2.0, 0.0], [float("nan"), 2.0]]]))
        tensor([[2., 0.]])
    """


def answered(logits: Tensor) -> Tensor:
    """Which experts gave only finite logits, bool ``[B, K]``."""
    return logits.isfinite().all(-1)


def unless_none(output: Tensor, routing: Routing) -> Tensor:
    """NaN for images that no expert answered."""
    some = (routing.weights > 0).any(-1, keepdim=True)
    return torch.where(some, output, math.nan)
