"""Selections in which each row is decided by itself.

Letters: ``*L`` rows, ``E`` experts, ``K`` chosen per row. Masked experts are logits of minus
infinity.
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.gating.routing import Routing, mask_rows
from moeapps.gating.select import masked_softmax, selection

Score = Literal["softmax", "sigmoid", "identity"]
Tie = Literal["first", "any"]


@selection("dense")
def softmax(
    logits: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    generator: Generator | None = None,
) -> Routing:
    r"""Every expert serves every row, weighted by a softmax.

    .. math:: w_e = \exp(l_e) / \sum_j \exp(l_j)

    Args:
        logits: Scores.
        mask: bool, broadcast against the logits; False switches an expert off.
        bias: Not used: nothing is chosen.
        valid: bool ``[*L]``, False for padding.
        generator: Not used: nothing is random.

    Shape:
        - logits ``[*L, E]`` or ``[*L, T, E]``; weights the same

    Notes:
        A row whose experts are all masked gets weights 0, not NaN.

    Example:
        >>> softmax(torch.tensor([[0.0, 0.0]])).weights
        tensor([[0.5000, 0.5000]])
    """
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    probs = masked_softmax(logits)
    return mask_rows(Routing(probs, logits.shape[-1], logits=logits, probs=probs), valid)


@selection("token", reads_bias=True, ranks=True)
def topk(
    logits: Tensor,
    top_k: int,
    *,
    score: Score = "softmax",
    normalise: bool | None = None,
    null: int = 0,
    tie: Tie = "first",
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    generator: Generator | None = None,
) -> Routing:
    r"""Each row takes its ``K`` best experts.

    .. math::
        \mathcal{K} = \operatorname{top-}K(p + b), \qquad
        w_k = p_k / \max\big(\textstyle\sum_{j \in \mathcal{K}} p_j, 10^{-20}\big)

    with :math:`p` the softmax, the sigmoid or the logits themselves. The bias changes the choice,
    never the weight.

    Args:
        logits: Scores of ``E + null`` experts.
        top_k: ``K``.
        score: How logits become scores.
        normalise: Whether the weights of a row are made to sum to 1; by default when ``K > 1`` and
            the score is not ``"identity"``. With ``K = 1`` every weight would be 1 and the gate
            would learn nothing from the task.
        null: How many of the last columns are null experts, which do nothing: index -1, weight 0.
        tie: ``"first"``: the lowest index wins among equals; ``"any"``: faster for large ``K``.
        bias: ``[E]`` or ``[E + null]``, added for choosing only.
        valid: bool ``[*L]``, False for padding.
        generator: Not used: nothing is random.

    Shape:
        - logits ``[*L, E + null]``; weights and indices ``[*L, K]``; probs ``[*L, E + null]``

    Raises:
        ArgumentError: For a ``K`` that does not exist, or normalised raw scores.

    Notes:
        With null experts ``extra["choices"]`` holds the ids before nulls became -1. For sigmoid
        scores ``probs`` is ``p / sum(p)``; for raw scores it is their softmax.

    References:
        Shazeer et al., *Outrageously Large Neural Networks*, ICLR 2017.
        Zeng et al., *AdaMoE*, EMNLP Findings 2024 (null experts).

    Example:
        >>> routing = topk(torch.tensor([[0.0, 3.0, 3.0, 1.0]]), 2)
        >>> routing.indices, routing.weights
        (tensor([[1, 2]]), tensor([[0.5000, 0.5000]]))
    """
    num_columns = logits.shape[-1]
    num_experts = num_columns - null
    if not 0 <= null < num_columns:
        raise ArgumentError(
            f"null={null} leaves no expert among {num_columns} logits. Choose less."
        )
    if not 1 <= top_k <= num_columns:
        total = f"num_experts={num_experts}" + (f" + null={null}" if null else "")
        fault = "exceeds" if top_k > 0 else "is too small for"
        raise ArgumentError(f"top_k={top_k} {fault} {total}. Choose 1..{num_columns}.")
    if normalise is None:
        normalise = top_k > 1 and score != "identity"
    elif normalise and score == "identity":
        raise ArgumentError(
            "normalise=True divides raw scores by a sum that may be 0 or negative. "
            "Use score='softmax' or 'sigmoid', or leave normalise out."
        )
    scores, probs = _scores(logits, score)
    sought = scores.detach()
    if bias is not None:
        missing = num_columns - bias.shape[-1]
        sought = sought + torch.nn.functional.pad(bias, (0, missing)).to(sought.dtype)
    sought = sought.masked_fill(logits.detach() == -math.inf, -math.inf)
    values, choices = _largest(sought, top_k, tie)
    choices = choices.masked_fill(values == -math.inf, -1)
    served = (choices >= 0) & (choices < num_experts)
    weights = torch.where(served, scores.gather(-1, choices.clamp_min(0)), 0)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
    indices = torch.where(served, choices, -1)
    extra = {"choices": choices} if null else {}
    routing = Routing(
        weights, num_experts, indices, logits=logits, probs=probs, layout="token", extra=extra
    )
    return mask_rows(routing, valid)


@selection("token", ranks=True)
def topp(
    logits: Tensor,
    p: float = 0.4,
    max_k: int | None = None,
    *,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    generator: Generator | None = None,
) -> Routing:
    r"""Each row takes as few experts as hold the probability mass ``p``, at least one.

    Args:
        logits: Scores.
        p: Mass to reach, in ``(0, 1]``.
        max_k: Most experts a row may take; all by default. Cap it in production: without the
            entropy loss the set grows.
        bias: Not used.
        valid: bool ``[*L]``, False for padding.
        generator: Not used: nothing is random.

    Shape:
        - logits ``[*L, E]``; weights and indices ``[*L, max_k]``, best first, unused places -1

    Raises:
        ArgumentError: For a mass outside ``(0, 1]`` or a ``max_k`` that does not exist.

    Notes:
        Weights are the raw probabilities; they sum to at least ``p`` (unless capped), not to 1.

    References:
        Huang et al., *Harder Tasks Need More Experts: Dynamic Routing in MoE Models*, ACL 2024.

    Example:
        >>> topp(torch.tensor([[0.1, 0.6, 0.3]]).log(), 0.8).indices
        tensor([[ 1,  2, -1]])
    """
    num_experts = logits.shape[-1]
    max_k = num_experts if max_k is None else max_k
    if not 0 < p <= 1:
        raise ArgumentError(f"p={p} is no probability mass. Choose 0 < p <= 1.")
    if not 1 <= max_k <= num_experts:
        raise ArgumentError(
            f"max_k={max_k} exceeds num_experts={num_experts}. Choose 1..{num_experts}."
        )
    probs = masked_softmax(logits)
    order = probs.detach().sort(dim=-1, descending=True, stable=True).indices[..., :max_k]
    weights = probs.gather(-1, order)
    taken = weights.detach()
    before = torch.nn.functional.pad(taken.cumsum(-1)[..., :-1], (1, 0))
    first = torch.arange(max_k, device=logits.device) == 0
    allowed = logits.detach().gather(-1, order) != -math.inf
    keep = ((before < p) | first) & allowed
    indices = torch.where(keep, order, -1)
    weights = torch.where(keep, weights, 0)
    routing = Routing(weights, num_experts, indices, logits=logits, probs=probs, layout="token")
    return mask_rows(routing, valid)


@selection("token", reads_bias=True, ranks=True)
def hard(
    logits: Tensor,
    *,
    score: Score = "softmax",
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    generator: Generator | None = None,
) -> Routing:
    r"""Each row takes its best expert with weight 1, and the gate still gets a gradient.

    .. math:: w = 1 + s - \mathrm{stopgrad}(s), \qquad s = \max_e p_e

    Args:
        logits: Scores.
        score: How logits become scores.
        bias: ``[E]``, added for choosing only.
        valid: bool ``[*L]``, False for padding.
        generator: Not used: nothing is random.

    Shape:
        - logits ``[*L, E]``; weights and indices ``[*L, 1]``

    Notes:
        Departures from the paper: none.

    References:
        Zhang et al., *Robust Mixture-of-Expert Training for Convolutional Neural Networks*,
        ICCV 2023.

    Example:
        >>> hard(torch.tensor([[0.0, 5.0]])).weights
        tensor([[1.]])
    """
    routing = topk(logits, 1, score=score, bias=bias, valid=valid)
    chosen = routing.weights
    one = torch.where(routing.indices >= 0, 1 + (chosen - chosen.detach()), 0)
    return dataclasses.replace(routing, weights=one)


@selection("token")
def random(
    logits: Tensor,
    top_k: int = 1,
    *,
    per: Literal["row", "batch"] = "row",
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    generator: Generator | None = None,
) -> Routing:
    """Experts drawn uniformly without replacement, each with weight ``1 / K``.

    Args:
        logits: Read for their shape, and for masks, only.
        top_k: ``K``; with ``K = E`` the routing is the mean of all experts.
        per: Draw once per row, or once for the whole batch.
        bias: Not used.
        valid: bool ``[*L]``, False for padding.
        generator: Source of the draw.

    Shape:
        - logits ``[*L, E]``; weights and indices ``[*L, K]``

    Raises:
        ArgumentError: For a ``K`` that does not exist.

    Notes:
        Departures from the paper: none.

    References:
        Zuo et al., *Taming Sparsely Activated Transformer with Stochastic Experts*, ICLR 2022.

    Example:
        >>> seeded = torch.Generator().manual_seed(0)
        >>> indices = random(torch.zeros(4, 8), per="batch", generator=seeded).indices
        >>> bool((indices == indices[0]).all())
        True
    """
    if per not in ("row", "batch"):
        raise ArgumentError(f"per={per!r} is unknown. Choose 'row' or 'batch'.")
    logits = logits.detach()
    like = logits if per == "row" else logits.new_empty(logits.shape[-1:])
    draw = torch.empty_like(like, dtype=torch.float32).uniform_(generator=generator)
    draw = torch.where(logits == -math.inf, -math.inf, draw)
    flat = torch.where(logits == -math.inf, logits, 0.0)
    drawn = topk(draw, top_k, score="identity", valid=valid)
    counted = (drawn.indices >= 0).sum(-1, keepdim=True).clamp_min(1)
    weights = torch.where(drawn.indices >= 0, counted.to(logits.dtype).reciprocal(), 0.0)
    return dataclasses.replace(drawn, weights=weights, logits=logits, probs=masked_softmax(flat))


class Random(nn.Module):
    """:func:`random` in training; at test the mean of all experts, or random too.

    Args:
        top_k: Experts drawn in training.
        per: Draw once per row, or once for the whole batch.
        at_test: ``"mean"`` of all experts, or ``"random"``.

    Shape:
        - logits ``[*L, E]``; weights and indices ``[*L, K]``, at test ``[*L, E]`` for the mean

    Raises:
        ArgumentError: For an unknown ``at_test``.

    Notes:
        Departures from the paper: none.

    References:
        Zuo et al., *Taming Sparsely Activated Transformer with Stochastic Experts*, ICLR 2022.

    Example:
        >>> select = Random(1, per="batch").eval()
        >>> select(torch.zeros(1, 4)).weights
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    layout, reads_bias, ranks = "token", False, False

    def __init__(
        self,
        top_k: int = 1,
        *,
        per: Literal["row", "batch"] = "row",
        at_test: Literal["mean", "random"] = "mean",
    ) -> None:
        super().__init__()
        if at_test not in ("mean", "random"):
            raise ArgumentError(f"at_test={at_test!r} is unknown. Choose 'mean' or 'random'.")
        self.top_k, self.per, self.at_test = top_k, per, at_test

    def forward(
        self,
        logits: Tensor,
        *,
        bias: Tensor | None = None,
        valid: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Routing:
        """Draw, or take all experts."""
        drawn = self.training or self.at_test == "random"
        top_k = self.top_k if drawn else logits.shape[-1]
        return random(logits, top_k, per=self.per, valid=valid, generator=generator)


def scheduled_top_k(step: int, end: int, *, smallest: int, largest: int) -> int:
    r"""``K`` at a step of training that starts with few experts and ends with many.

    .. math:: K(t) = \mathrm{clip}(\mathrm{round}((K_{max} - K_{min})\, t / t_{end}) + K_{min})

    Args:
        step: ``t``.
        end: ``t_end``, from where on ``K`` is the largest.
        smallest: ``K_min``.
        largest: ``K_max``.

    Notes:
        Departures from the paper: none.

    References:
        Chen et al., *Sparse MoE as the New Dropout*, ICLR 2023.

    Example:
        >>> [scheduled_top_k(t, 100, smallest=1, largest=5) for t in (0, 50, 100, 200)]
        [1, 3, 5, 5]
    """
    if not 1 <= smallest <= largest or end < 1:
        raise ArgumentError(
            f"smallest={smallest}, largest={largest}, end={end} make no schedule. "
            "Choose 1 <= smallest <= largest and end >= 1."
        )
    reached = round((largest - smallest) * step / end) + smallest
    return min(max(reached, smallest), largest)


def _scores(logits: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    """Scores that become weights, and the distribution that losses read."""
    if score == "softmax":
        probs = masked_softmax(logits)
        return probs, probs
    if score == "sigmoid":
        scores = logits.sigmoid()
        return scores, scores / scores.sum(-1, keepdim=True).clamp_min(1e-20)
    if score == "identity":
        return logits, masked_softmax(logits)
    raise ArgumentError(f"score={score!r} is unknown. Choose 'softmax', 'sigmoid' or 'identity'.")


def _largest(scores: Tensor, count: int, tie: Tie) -> tuple[Tensor, Tensor]:
    """The largest ``count`` entries of the last axis, best first, and their places.

    A few passes of max beat a sort for the small counts that gates use, and keep the rule that
    the lowest index wins among equals.
    """
    if tie not in ("first", "any"):
        raise ArgumentError(f"tie={tie!r} is unknown. Choose 'first' or 'any'.")
    if count <= 2 or (count <= 4 and scores.shape[-1] >= 32):
        best = [scores.max(-1, keepdim=True)]
        for _ in range(count - 1):
            scores = scores.scatter(-1, best[-1].indices, -math.inf)
            best.append(scores.max(-1, keepdim=True))
        return torch.cat([b.values for b in best], -1), torch.cat([b.indices for b in best], -1)
    if tie == "any":
        values, places = scores.topk(count, -1)
    else:
        values, places = scores.sort(dim=-1, descending=True, stable=True)
    return values[..., :count], places[..., :count]
