r"""One loss per task, each over the rows that are in the task's sample space and have a label."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.recsys.schema import Task, as_tasks

_REGRESSIONS = ("mse", "huber")
_REDUCTIONS = ("sum_tasks", "mean_tasks")
_NO_CUTS: Mapping[str, Tensor] = MappingProxyType({})


class MultiTaskLoss(nn.Module):
    r"""Losses of all tasks from their logits.

    .. math:: L_t = \frac{w_t \sum_i m_t^i\, s^i\, \ell_t(z_t^i, y_t^i)}{\max(\sum_i m_t^i, 1)}

    with the mask :math:`m` (sample space and known label), sample weights :math:`s` and the task's
    weight :math:`w_t`. :math:`\ell` is the binary cross-entropy, a squared or Huber error, or for
    ordinal tasks the :func:`ordinal_loss` of cumulative logits,
    :math:`P(y > k) = \sigma(z - c_k)`.

    Args:
        tasks: In the order of the logits.
        regression: ``"mse"`` or ``"huber"``.
        huber_delta: Error from which on the Huber loss is linear.
        reduction: ``"sum_tasks"``: the losses are meant to be added up; ``"mean_tasks"`` divides
            each by the number of tasks.

    Shape:
        - logits, labels, mask ``[B, T]``, weight ``[B]`` -> losses ``[T]``

    Raises:
        UnknownNameError: There is no such loss or reduction.
        ArgumentError: The shapes do not fit.

    Notes:
        none

    Example:
        >>> loss = MultiTaskLoss(["click", "like"])
        >>> labels = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
        >>> loss(torch.zeros(2, 2), labels)
        tensor([0.6931, 0.6931])
    """

    weights: Tensor

    def __init__(
        self,
        tasks: Sequence[Task | Mapping[str, Any] | str],
        *,
        regression: Literal["mse", "huber"] = "mse",
        huber_delta: float = 1.0,
        reduction: Literal["sum_tasks", "mean_tasks"] = "sum_tasks",
    ) -> None:
        super().__init__()
        if regression not in _REGRESSIONS:
            raise UnknownNameError("regression loss", regression, _REGRESSIONS)
        if reduction not in _REDUCTIONS:
            raise UnknownNameError("reduction", reduction, _REDUCTIONS)
        if huber_delta <= 0:
            raise ArgumentError(f"huber_delta={huber_delta} is not positive.")
        self.tasks = as_tasks(tasks)
        self.regression, self.huber_delta = regression, huber_delta
        self.columns = {
            kind: [t for t, task in enumerate(self.tasks) if task.type == kind]
            for kind in ("binary", "regression", "ordinal")
        }
        weights = torch.tensor([task.weight for task in self.tasks])
        if reduction == "mean_tasks":
            weights = weights / len(self.tasks)
        self.register_buffer("weights", weights, persistent=False)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        cut_points: Mapping[str, Tensor] = _NO_CUTS,
        synchronize: bool = False,
    ) -> Tensor:
        """The losses.

        Args:
            logits: Of the model.
            labels: NaN where missing.
            mask: False on rows outside a task's sample space.
            weight: Of the rows.
            cut_points: Of each ordinal task, by name; the model learns them.
            synchronize: With several processes: count the rows of all of them, so that the mean of
                the processes' losses and gradients is that of the global batch. All processes must
                call together.
        """
        expected = (logits.shape[0], len(self.tasks))
        if logits.shape != expected or labels.shape != expected:
            raise ArgumentError(
                f"logits {list(logits.shape)} and labels {list(labels.shape)} do not fit "
                f"{len(self.tasks)} tasks. Expected [B, {len(self.tasks)}] for both."
            )
        counts = ~labels.isnan()
        if mask is not None:
            counts = counts & mask
        # Where a row does not count its label is replaced, so that no NaN reaches a gradient.
        each = self.elementwise(logits, torch.where(counts, labels, 0.0), cut_points)
        share = counts.to(each.dtype)
        rows = _rows(share.sum(0), synchronize)
        if weight is not None:
            share = share * weight.unsqueeze(1)
        return self.weights * (share * each).sum(0) / rows

    def elementwise(
        self, logits: Tensor, labels: Tensor, cut_points: Mapping[str, Tensor] = _NO_CUTS
    ) -> Tensor:
        """Loss of every row and task, ``[B, T]``."""
        if len(self.columns["binary"]) == len(self.tasks):
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        found: list[Tensor] = [logits] * len(self.tasks)
        for kind, function in (("binary", self._binary), ("regression", self._regression)):
            if columns := self.columns[kind]:
                losses = function(logits[:, columns], labels[:, columns])
                for place, t in enumerate(columns):
                    found[t] = losses[:, place]
        for t in self.columns["ordinal"]:
            cuts = cut_points[self.tasks[t].name]
            found[t] = ordinal_loss(logits[:, t], labels[:, t], cuts)
        return torch.stack(found, 1)

    @staticmethod
    def _binary(logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")

    def _regression(self, predictions: Tensor, labels: Tensor) -> Tensor:
        if self.regression == "mse":
            return (predictions - labels).square()
        return F.huber_loss(predictions, labels, reduction="none", delta=self.huber_delta)


def ordinal_loss(scores: Tensor, labels: Tensor, cuts: Tensor) -> Tensor:
    r"""Negative log likelihood of each row's level under cumulative logits.

    .. math:: -\log \big( \sigma(z - c_{y-1}) - \sigma(z - c_y) \big),
        \qquad c_{-1} = -\infty,\ c_{K-1} = \infty

    Args:
        scores: :math:`z`, ``[B]``.
        labels: Levels ``0 .. K - 1``, ``[B]``.
        cuts: Increasing, ``[K - 1]``.

    Shape:
        - ``-> [B]``

    Raises:
        ArgumentError: A label is no level.

    Example:
        >>> cuts = torch.tensor([-1.0, 1.0])
        >>> ordinal_loss(torch.zeros(3), torch.tensor([0.0, 1.0, 2.0]), cuts)
        tensor([1.3133, 0.7719, 1.3133])
    """
    level = labels.long()
    if bool(((level != labels) | (level < 0) | (level > len(cuts))).any()):
        raise ArgumentError(
            f"Ordinal labels are whole numbers 0 to {len(cuts)}, got "
            f"{float(labels.min()):g} to {float(labels.max()):g}. Encode the levels, or use a "
            "regression."
        )
    # log(sigmoid(a) - sigmoid(b)) = logsigmoid(a) + logsigmoid(-b) + log(1 - exp(b - a)), which
    # does not cancel; the outer levels have one bound only.
    above, below = scores - F.pad(cuts, (1, 0))[level], scores - F.pad(cuts, (0, 1))[level]
    lowest, highest = level == 0, level == len(cuts)
    inside = ~(lowest | highest)
    gap = torch.where(inside, above - below, 1.0)
    return -(
        torch.where(lowest, 0.0, F.logsigmoid(above))
        + torch.where(highest, 0.0, F.logsigmoid(-below))
        + torch.where(inside, torch.log(-torch.expm1(-gap)), 0.0)
    )


def _rows(rows: Tensor, synchronize: bool) -> Tensor:
    """The rows that count, but one at least; the mean over all processes if they synchronise."""
    if not (synchronize and dist.is_available() and dist.is_initialized()):
        return rows.clamp_min(1)
    rows = rows.clone()
    dist.all_reduce(rows)
    return rows.clamp_min(1) / dist.get_world_size()
