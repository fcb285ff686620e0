r"""Statistics of routings: who is used, how sure the gate is, what is lost.

No gradient, all on the routing's device, returned as tensors; padding rows and NaN rows are left
out. Letters: ``E`` experts, :math:`f_e` share of the assignments that expert ``e`` serves,
:math:`P` mean of ``probs``.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.gating.expert_losses import membership
from moeapps.gating.losses import entropy
from moeapps.gating.routing import Routing

DEAD_BELOW = 0.1
"""An expert is dead when its share is below this part of an even share ``1/E``."""


@torch.no_grad()
def routing_stats(routing: Routing) -> dict[str, Tensor]:
    r"""Every statistic that one routing alone gives.

    ======================= ==========================================================
    ``utilisation``         :math:`f`, ``[E]``
    ``load_entropy``        :math:`H(f) / \ln E`; 1 even, 0 one expert only
    ``cv``                  standard deviation over mean of the counts
    ``max_violation``       largest count over mean count, minus 1
    ``effective_experts``   :math:`\exp H(P)`
    ``dead_experts``        share of experts with :math:`f_e < 0.1/E` in this routing alone
    ``gate_entropy``        :math:`\mathrm{mean}_n\, H(p_n) / \ln E`
    ``saturation``          share of rows whose largest weight exceeds 0.95
    ``margin``              mean of largest minus second largest probability
    ``dropped``             share of assignments to true experts lost to capacity
    ``null_rate``           share of choices that fell on a null expert
    ``mean_active``         mean number of experts serving a row
    ======================= ==========================================================

    Args:
        routing: Any layout. Without ``probs`` the weights, scaled to sum to 1, stand for them.

    Shape:
        - scalars, but ``utilisation`` ``[E]``

    Example:
        >>> half = torch.full((4, 2), 0.5)
        >>> stats = routing_stats(Routing(half, 2, probs=half))
        >>> stats["utilisation"], stats["load_entropy"]
        (tensor([0.5000, 0.5000]), tensor(1.))
    """
    rows = routing.counted_rows()
    probs = _counted_probs(routing, rows)
    num_rows = rows.sum().clamp_min(1)
    counts = routing.counts().to(probs.dtype)
    mean_count = counts.mean().clamp_min(torch.finfo(counts.dtype).tiny)
    share = counts / counts.sum().clamp_min(1)
    log_experts = math.log(max(routing.num_experts, 2))
    best = probs.max(-1)
    second = probs.scatter(-1, best.indices.unsqueeze(-1), 0).amax(-1)
    largest = routing.weights if routing.layout in ("dense", "token") else routing.dense()
    largest = torch.where(rows, largest.amax(-1), 0)
    dropped, null_rate = _lost(routing, rows)
    return {
        "utilisation": share,
        "load_entropy": entropy(share) / log_experts,
        "cv": counts.std(correction=0) / mean_count,
        "max_violation": counts.max() / mean_count - 1,
        "effective_experts": entropy(probs.sum(0) / num_rows).exp(),
        "dead_experts": _dead(share),
        "gate_entropy": entropy(probs).sum() / num_rows / log_experts,
        "saturation": (largest > 0.95).sum() / num_rows,
        "margin": (best.values - second).sum() / num_rows,
        "dropped": dropped,
        "null_rate": null_rate,
        "mean_active": routing.mean_active(),
    }


@torch.no_grad()
def fluctuation(
    before: Routing, now: Routing, *, measure: Literal["changed", "jaccard"] = "changed"
) -> Tensor:
    r"""How much the chosen sets changed between two checkpoints on the same probe rows.

    .. math:: \mathrm{changed} = \frac{1}{N} \sum_n \mathbb{1}[S_n \ne S'_n], \qquad
        \mathrm{jaccard} = 1 - \frac{1}{N} \sum_n \frac{|S_n \cap S'_n|}{|S_n \cup S'_n|}

    Args:
        before: Routing of the probe rows at the earlier checkpoint.
        now: Routing of the same rows now.
        measure: Share of rows whose set changed, or mean Jaccard distance of the sets.

    Shape:
        - two routings with the same rows -> scalar

    Raises:
        ArgumentError: The two routings have different rows or experts.

    Example:
        >>> one = Routing(torch.ones(2, 1), 2, torch.tensor([[0], [1]]), layout="token")
        >>> two = Routing(torch.ones(2, 1), 2, torch.tensor([[0], [0]]), layout="token")
        >>> fluctuation(one, two)
        tensor(0.5000)
    """
    old, new = membership(before), membership(now)
    if old.shape != new.shape:
        raise ArgumentError(
            f"fluctuation got routings of {list(old.shape)} and {list(new.shape)} (rows, experts). "
            "Route the same probe rows with both checkpoints."
        )
    keep = (before.counted_rows() & now.counted_rows()).flatten()
    if measure == "changed":
        moved = (old != new).any(-1).to(before.weights.dtype)
    else:
        moved = 1 - (old & new).sum(-1) / (old | new).sum(-1).clamp_min(1)
        moved = torch.where((old | new).any(-1), moved, 0)
    return torch.where(keep, moved, 0).sum() / keep.sum().clamp_min(1)


@torch.no_grad()
def specialisation(
    routing: Routing, labels: Tensor, *, permutations: int = 20, seed: int = 0
) -> Tensor:
    r"""How much a row's label says about its first-choice expert, corrected for chance.

    .. math:: \frac{I(e; y) - \mathrm{mean}_\pi\, I(e; \pi y)}{H(y)}

    The mutual information of independent finite samples is above 0; its mean over random
    permutations :math:`\pi` of the labels is subtracted.

    Args:
        routing: Any layout; the first choice is the expert with the largest weight (token layout:
            the first index).
        labels: int64 ``[*L]``, ids from 0; negative labels are left out.
        permutations: Random permutations for the baseline; 0 subtracts nothing.
        seed: Of the permutations; the global generator is not touched.

    Shape:
        - routing rows ``*L``, labels ``*L`` -> scalar

    Example:
        >>> routing = Routing(torch.eye(2).repeat(50, 1), 2)
        >>> specialisation(routing, torch.tensor([0, 1] * 50)) > 0.9
        tensor(True)
    """
    if routing.layout == "token":
        assert routing.indices is not None
        first = routing.indices[..., 0]
    else:
        weights, first = routing.dense().max(-1)
        first = torch.where(weights > 0, first, -1)
    keep = (routing.counted_rows() & (first >= 0) & (labels >= 0)).flatten()
    first, label = first.flatten()[keep], labels.flatten()[keep]
    if label.numel() == 0:
        return routing.weights.new_zeros(())
    num_labels = int(label.max()) + 1

    def information(shuffled: Tensor) -> Tensor:
        joint = torch.bincount(
            first * num_labels + shuffled, minlength=routing.num_experts * num_labels
        )
        table = joint.view(routing.num_experts, num_labels).double() / label.numel()
        return entropy(table.sum(0)) + entropy(table.sum(1)) - entropy(table.flatten())

    generator = torch.Generator().manual_seed(seed)
    found = information(label)
    if permutations:
        orders = [
            torch.randperm(label.numel(), generator=generator).to(label.device)
            for _ in range(permutations)
        ]
        found = found - torch.stack([information(label[order]) for order in orders]).mean()
    spread = entropy(torch.bincount(label).double() / label.numel())
    score = torch.where(spread > 0, found / spread.clamp_min(1e-12), 0)
    return score.to(routing.weights.dtype)


@torch.no_grad()
def pairwise_agreement(routing: Routing) -> Tensor:
    r"""Share of rows that two experts serve together.

    .. math:: A_{ij} = \frac{1}{N} \sum_n \mathbb{1}[i \in S_n]\, \mathbb{1}[j \in S_n]

    Shape:
        - routing rows ``*L`` -> symmetric ``[E, E]``; the diagonal is each expert's share of rows

    Example:
        >>> routing = Routing(torch.ones(1, 2), 3, torch.tensor([[0, 2]]), layout="token")
        >>> pairwise_agreement(routing)[0]
        tensor([1., 0., 1.])
    """
    served = membership(routing).to(routing.weights.dtype)
    return served.T @ served / routing.counted_rows().sum().clamp_min(1)


@torch.no_grad()
def task_divergence(routing: Routing) -> Tensor:
    r"""Jensen-Shannon divergence between the tasks' mean gates, in nats.

    .. math:: H\Big(\frac1T \sum_t P_t\Big) - \frac1T \sum_t H(P_t)

    0 when all tasks use the experts alike, :math:`\ln T` at most (disjoint experts).

    Args:
        routing: Dense routing of task gates, ``[*L, T, E]``.

    Shape:
        - ``[*L, T, E]`` -> scalar

    Raises:
        ArgumentError: The routing has no task axis.

    Example:
        >>> disjoint = torch.eye(2).expand(5, 2, 2)
        >>> round(float(task_divergence(Routing(disjoint, 2, probs=disjoint))), 4)  # ln 2
        0.6931
    """
    rows = routing.counted_rows()
    if routing.layout != "dense" or rows.ndim < 2:
        raise ArgumentError(
            f"task_divergence needs dense task gates [*L, T, E], got {routing.layout!r} with rows "
            f"{list(rows.shape)}. Build the gate with Gate.softmax(D, E, tasks=T)."
        )
    num_tasks = rows.shape[-1]
    probs = _counted_probs(routing, rows).view(-1, num_tasks, routing.num_experts)
    per_task = rows.reshape(-1, num_tasks).sum(0).clamp_min(1)
    mean = probs.sum(0) / per_task.unsqueeze(-1)  # [T, E]
    return entropy(mean.mean(0)) - entropy(mean).mean()


class DeadExperts:
    r"""Share of dead experts over a sliding window of steps.

    .. math:: \bar f \leftarrow (1 - 1/W)\, \bar f + f / W, \qquad
        \mathrm{dead} = \frac1E \sum_e \mathbb{1}[\bar f_e < 0.1 / E]

    Starts at even use, so an expert counts as dead only after it was idle for a while (about
    ``2.3 W`` steps). Steps without any assignment change nothing.

    Args:
        num_experts: ``E``.
        window: ``W``, steps over which the mean fades.

    Shape:
        - :meth:`update` takes counts ``[E]`` and returns a scalar

    Example:
        >>> tracker = DeadExperts(2, window=1)
        >>> tracker.update(torch.tensor([10, 0]))
        tensor(0.5000)
    """

    def __init__(self, num_experts: int, *, window: int = 100) -> None:
        if window < 1:
            raise ArgumentError(f"window={window} is not a number of steps. Choose 1 or more.")
        self.window = window
        self.share = torch.full((num_experts,), 1 / num_experts)

    @torch.no_grad()
    def update(self, counts: Tensor) -> Tensor:
        """Take in one step's assignments and return the share of dead experts."""
        self.share = self.share.to(counts.device)
        total = counts.sum()
        moved = self.share + (counts / total.clamp_min(1) - self.share) / self.window
        self.share = torch.where(total > 0, moved, self.share)
        return _dead(self.share)


def _dead(share: Tensor) -> Tensor:
    return (share < DEAD_BELOW / share.numel()).to(share.dtype).mean()


def _counted_probs(routing: Routing, rows: Tensor) -> Tensor:
    """``[N, E(+null)]``, rows flattened, 0 in rows that do not count."""
    if routing.probs is not None:
        probs = routing.probs
    else:
        weights = routing.dense()
        probs = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return torch.where(rows.unsqueeze(-1), probs, 0).flatten(0, -2)


def _lost(routing: Routing, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Share of true-expert choices dropped by capacity, and share of choices that were null."""
    choices = routing.extra.get("choices")
    if routing.layout != "token" or choices is None:
        zero = routing.weights.new_zeros(())
        return zero, zero
    assert routing.indices is not None
    counted = rows.unsqueeze(-1)
    true = counted & (choices >= 0) & (choices < routing.num_experts)
    null = counted & (choices >= routing.num_experts)
    lost = (true & (routing.indices < 0)).sum() / true.sum().clamp_min(1)
    return lost, null.sum() / (true.sum() + null.sum()).clamp_min(1)
