"""Early exit: an image goes on to the next expert only while a rule asks for one."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.vision.longtail.aggregate import (
    Aggregator,
    Branch,
    MeanLogits,
    answered,
    heard,
)
from moeapps.vision.longtail.evidence import Conflict, log_uncertainty

ExitRule = Callable[[Tensor, Tensor | None], Tensor]


class MaxProb(nn.Module):
    """Go on while the mean logits give no class more than ``threshold``.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.1, 0.0]]])
        >>> MaxProb(0.8)(logits)
        tensor([False,  True])
    """

    def __init__(self, threshold: float = 0.9) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Whether each image needs another expert after ``logits [A, k, C]``, bool ``[A]``."""
        return running_mean(logits).softmax(-1).amax(-1) < self.threshold


class Doubt(nn.Module):
    """Go on while the experts' joint doubt (evidential, as in TLC) exceeds ``threshold``.

    ``conflict`` says with whom an expert can be in conflict, see `log_engagement`.

    Example:
        >>> logits = torch.tensor([[[6.0, 2.0]], [[0.5, 0.5]]]).log()  # u = 0.2 and 0.67
        >>> Doubt(0.5)(logits)
        tensor([False,  True])
    """

    def __init__(self, threshold: float = 0.5, *, conflict: Conflict = "released") -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise ArgumentError(
                f"threshold={threshold:g} is no doubt to exceed. Choose 0 < threshold <= 1; "
                "without an early exit all experts answer."
            )
        self.threshold, self.conflict = threshold, conflict

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Whether each image needs another expert after ``logits [A, k, C]``, bool ``[A]``."""
        return log_uncertainty(logits, self.conflict) > math.log(self.threshold)


class Sequential(Aggregator):
    r"""Experts one after another, each only on the images that the rule did not let go yet.

    Skipping is real: `run` hands branch ``k`` the rows of the trunk's output that are still
    active, and calls no further branch when none is.

    Args:
        rule: ``rule(logits [A, k, C], features [A, D])``: which of the active images need another
            expert after the first ``k`` (bool ``[A]``). ``features`` are those of expert ``k``.
        inner: Aggregates what was computed for each image.

    Shape:
        - as a function of all logits ``[B, K, C]`` it is the masked reference, equal to `run`

    Notes:
        The reported routing has weight 0 where an expert was not called: its ``mean_active()`` is
        the mean number of experts per image. An image that no expert has answered with finite
        logits goes on whatever the rule says. Exported and compiled models compute all branches and
        mask, as sizes that depend on the data do not trace.

    References:
        Wang et al., *Long-tailed Recognition by Routing Diverse Distribution-Aware Experts*, ICLR
        2021.

    Example:
        >>> calls = []
        >>> def branch(k, rows):
        ...     calls.append(len(rows))
        ...     return rows * (k + 1), rows
        >>> hidden = torch.tensor([[9.0, 0.0], [0.1, 0.0]])
        >>> Sequential(MaxProb(0.9)).run(hidden, branch, 3)
        tensor([[9.0000, 0.0000],
                [0.2000, 0.0000]])
        >>> calls
        [2, 1, 1]
    """

    skips = True

    def __init__(self, rule: ExitRule, inner: Aggregator | None = None) -> None:
        super().__init__()
        self.rule = rule
        self.inner = MeanLogits() if inner is None else inner
        if self.inner.skips:
            raise ArgumentError("inner is itself an early exit. Give an aggregator of all experts.")

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Forget what the active rows would not have computed, then aggregate."""
        used = [torch.ones_like(logits[:, 0, 0], dtype=torch.bool)]
        for k in range(1, logits.shape[1]):
            seen = None if features is None else features[:, k - 1]
            used.append(used[-1] & self.needs_more(logits[:, :k], seen))
        kept = torch.where(torch.stack(used, 1).unsqueeze(-1), logits, math.nan)
        output: Tensor = self.inner(kept)
        return output

    def run(self, hidden: Tensor, branch: Branch, num_experts: int) -> Tensor:
        """Call each branch on its active rows only."""
        if torch.compiler.is_compiling():
            return super().run(hidden, branch, num_experts)
        active = torch.arange(len(hidden), device=hidden.device)
        everything: Tensor | None = None
        for k in range(num_experts):
            logits, features = branch(k, hidden)
            if everything is None:
                shape = (len(hidden), num_experts, logits.shape[-1])
                everything = logits.new_full(shape, math.nan)
            everything[:, k].index_copy_(0, active, logits)
            if k == num_experts - 1:
                break
            rows = everything if k == 0 else everything.index_select(0, active)
            more = self.needs_more(rows[:, : k + 1], features).nonzero().flatten()
            if not len(more):
                break
            if len(more) < len(active):
                active = active.index_select(0, more)
                hidden = hidden.index_select(0, more)
        assert everything is not None
        output: Tensor = self.inner(everything)
        return output

    def needs_more(self, logits: Tensor, features: Tensor | None) -> Tensor:
        """The rule, and every image that no expert has answered."""
        return self.rule(logits, features) | ~answered(logits).any(1)


def running_mean(logits: Tensor) -> Tensor:
    """Mean logits ``[A, C]`` of the experts that answered."""
    number = answered(logits).sum(1, keepdim=True).clamp(min=1)
    return heard(logits, 0.0).sum(1) / number
