"""Selections that look at a whole group: experts choose rows, or slots read all of them.

Letters: ``B`` groups, ``N`` rows of a group, ``E`` experts, ``C`` capacity, ``S`` slots per expert.
"""

import math
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from moeapps.errors import ArgumentError, GateError
from moeapps.gating.balance import recomputing
from moeapps.gating.limits import ceil_ratio
from moeapps.gating.routing import Routing, mask_rows
from moeapps.gating.select import masked_softmax, selection


@selection("expert")
def expert_choice(
    logits: Tensor,
    capacity: float = 2,
    *,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    generator: Generator | None = None,
) -> Routing:
    r"""Each expert takes its best ``C = ceil(N * capacity / E)`` rows of every group.

    Weights are ``softmax over E`` of the chosen rows. A row may get no expert or many.

    Args:
        logits: Scores.
        capacity: Mean number of experts per row, at most ``E``.
        bias: Not used: the load is even by construction.
        valid: bool ``[B, N]``, False for padding, which no expert takes.
        generator: Not used: nothing is random.

    Shape:
        - logits ``[B, N, E]``; weights and indices ``[B, E, C]``; probs ``[B, N, E]``

    Raises:
        ArgumentError: For a capacity that is not in ``(0, E]``.
        GateError: Without groups, or with groups of one row: the choice depends on the group, so
            it means nothing for online or causal inference. See :class:`ExpertChoice`.

    Notes:
        Departures from the paper: none.

    References:
        Zhou et al., *Mixture-of-Experts with Expert Choice Routing*, NeurIPS 2022.

    Example:
        >>> logits = torch.eye(4).unsqueeze(0)
        >>> expert_choice(logits, capacity=1).indices.flatten()
        tensor([0, 1, 2, 3])
    """
    probs = _group_probs(logits, capacity)
    num_rows, num_experts = logits.shape[1:]
    if num_rows == 1:
        raise GateError(
            "expert choice got groups of a single row, which every expert would take. "
            "Give it whole groups, or use topk; for single rows at test time see ExpertChoice."
        )
    size = ceil_ratio(num_rows, capacity, num_experts)
    allowed = logits.detach() != -math.inf
    if valid is not None:
        allowed = allowed & valid.unsqueeze(-1)
    sought = torch.where(allowed, probs.detach(), -math.inf).transpose(1, 2)
    best, rows = sought.sort(dim=-1, descending=True, stable=True)
    best, rows = best[..., :size], rows[..., :size]
    taken = best != -math.inf
    weights = torch.where(taken, probs.transpose(1, 2).gather(-1, rows), 0)
    indices = torch.where(taken, rows, -1)
    return Routing(
        weights, num_experts, indices, logits=logits, probs=probs, valid=valid, layout="expert"
    )


@selection("slot")
def soft_slots(
    logits: Tensor,
    *,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    generator: Generator | None = None,
) -> Routing:
    r"""Every slot reads a mean of all rows and every row reads a mean of all slots.

    .. math::
        D_{n,es} = \frac{\exp(l_{n,es})}{\sum_{n'} \exp(l_{n',es})}, \qquad
        C_{n,es} = \frac{\exp(l_{n,es})}{\sum_{e's'} \exp(l_{n,e's'})}

    Args:
        logits: Scores, for example of :class:`moeapps.gating.scores.Slots`.
        bias: Not used: nothing is chosen.
        valid: bool ``[B, N]``, False for padding, which no slot reads.
        generator: Not used: nothing is random.

    Shape:
        - logits ``[B, N, E, S]``; weights (combine) and dispatch the same; probs ``[B, N, E]``

    Raises:
        GateError: For logits of another shape.

    Notes:
        ``routing.logits`` is the log-sum-exp over an expert's slots, so that its softmax is
        ``probs``.

    References:
        Puigcerver et al., *From Sparse to Soft Mixtures of Experts*, ICLR 2024.

    Example:
        >>> routing = soft_slots(torch.zeros(1, 4, 2, 1))
        >>> routing.dispatch[0, :, 0, 0], routing.weights[0, 0].flatten()
        (tensor([0.2500, 0.2500, 0.2500, 0.2500]), tensor([0.5000, 0.5000]))
    """
    if logits.ndim != 4:
        raise GateError(
            f"soft_slots expected logits [B, N, E, S], got {list(logits.shape)}. "
            "Use a Slots score on inputs [B, N, D]."
        )
    read = logits
    if valid is not None:
        read = torch.where(valid[..., None, None], logits, -math.inf)
    dispatch = masked_softmax(read, 1)
    flat = logits.flatten(2)
    combine = masked_softmax(flat)
    # The log-sum-exp per expert, from what is there: two reductions instead of six passes.
    tiny = torch.finfo(combine.dtype).tiny
    total = flat.amax(-1, keepdim=True) - combine.amax(-1, keepdim=True).clamp_min(tiny).log()
    combine = combine.view_as(logits)
    probs = combine.sum(-1)
    routing = Routing(
        combine,
        logits.shape[2],
        dispatch=dispatch,
        logits=total + probs.clamp_min(tiny).log(),
        probs=probs,
        layout="slot",
    )
    return mask_rows(routing, valid)


class ExpertChoice(nn.Module):
    r""":func:`expert_choice` that can also serve single rows at test time.

    In training it keeps, per expert, a running mean of the smallest score that still got in,
    :math:`\theta_e`. With ``at_test="threshold"`` an expert then takes every row with
    :math:`p_e \ge \theta_e`, whatever else is in the group.

    Args:
        num_experts: ``E``.
        capacity: Mean number of experts per row, at most ``E``.
        at_test: ``"group"`` chooses as in training; ``"threshold"`` as above, a token layout.
        momentum: Share of the newest batch in the running mean.

    Shape:
        - logits ``[B, N, E]``; weights and indices ``[B, E, C]``, or ``[*L, E]`` by threshold

    Raises:
        ArgumentError: For an unknown ``at_test``.

    Notes:
        Before any training every threshold is ``1 / E``. The threshold is our addition.

    References:
        Zhou et al., *Mixture-of-Experts with Expert Choice Routing*, NeurIPS 2022.

    Example:
        >>> select = ExpertChoice(2, capacity=1, at_test="threshold").eval()
        >>> select(torch.tensor([[2.0, 0.0]])).indices
        tensor([[ 0, -1]])
    """

    layout, reads_bias, ranks = "expert", False, False
    threshold: Tensor
    num_batches: Tensor

    def __init__(
        self,
        num_experts: int,
        capacity: float = 2,
        *,
        at_test: Literal["group", "threshold"] = "group",
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if at_test not in ("group", "threshold"):
            raise ArgumentError(f"at_test={at_test!r} is unknown. Choose 'group' or 'threshold'.")
        self.capacity, self.at_test, self.momentum = capacity, at_test, momentum
        self.register_buffer("threshold", torch.full((num_experts,), 1 / num_experts))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        logits: Tensor,
        *,
        bias: Tensor | None = None,
        valid: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Routing:
        """Choose by group, or by threshold."""
        if self.at_test == "threshold" and not self.training:
            return self._by_threshold(logits, valid)
        routing = expert_choice(logits, self.capacity, valid=valid)
        if self.training and not recomputing():
            self._observe(routing)
        return routing

    def _by_threshold(self, logits: Tensor, valid: Tensor | None) -> Routing:
        probs = masked_softmax(logits)
        num_experts = logits.shape[-1]
        take = (probs >= self.threshold) & (logits != -math.inf)
        indices = torch.where(take, torch.arange(num_experts, device=logits.device), -1)
        weights = torch.where(take, probs, 0)
        routing = Routing(weights, num_experts, indices, logits=logits, probs=probs, layout="token")
        return mask_rows(routing, valid)

    @torch.no_grad()
    def _observe(self, routing: Routing) -> None:
        assert routing.indices is not None
        last = routing.weights[..., -1]  # smallest score in, one per group and expert
        known = (routing.indices[..., -1] >= 0) & last.isfinite()
        mean = torch.where(known, last, 0).sum(0) / known.sum(0).clamp_min(1)
        self.num_batches += 1
        rate = self.num_batches.to(self.threshold.dtype).reciprocal().clamp_min(self.momentum)
        moved = torch.lerp(self.threshold, mean.to(self.threshold.dtype), rate)
        self.threshold.copy_(torch.where(known.any(0), moved, self.threshold))


def _group_probs(logits: Tensor, capacity: float) -> Tensor:
    if logits.ndim != 3:
        raise GateError(
            f"expert choice expected logits [B, N, E], got {list(logits.shape)}. "
            "For one group of rows use x.unsqueeze(0)."
        )
    num_experts = logits.shape[-1]
    if not 0 < capacity <= num_experts:
        raise ArgumentError(
            f"capacity={capacity} experts per row is impossible with num_experts={num_experts}. "
            f"Choose 0 < capacity <= {num_experts}."
        )
    return masked_softmax(logits)
