r"""Auxiliary losses of gates: pure functions of a routing, without a coefficient inside.

Each returns a scalar (float32, float64 for float64 routings) averaged over the rows that count:
padding rows and rows with NaN scores are left out. Letters: ``N`` counted rows, ``E`` experts,
``K`` chosen per row, :math:`f_e` share of assignments (no gradient), :math:`P_e` mean of ``probs``.

:data:`LOSSES` holds those that need nothing but the routing, for ``recording.loss({...})``. Those
that read more stand in :mod:`moeapps.gating.expert_losses` and can be imported from here as well.
The usual weights stand in each docstring.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.gating.expert_losses import (
    bce_correct,
    consistency,
    orthogonality,
    output_diversity,
    prototype_contrast,
)
from moeapps.gating.routing import Routing

__all__ = [
    "LOSSES",
    "balance",
    "bce_correct",
    "consistency",
    "importance",
    "load",
    "marginal_entropy",
    "mutual_information",
    "null_balance",
    "orthogonality",
    "output_diversity",
    "prototype_contrast",
    "router_z",
    "row_entropy",
    "score_variance",
]


def balance(routing: Routing, *, first_choice: bool = False, sync: bool = False) -> Tensor:
    r"""Load-balance loss of GShard and Switch; 1 at uniform use, ``E`` when one expert gets all.

    .. math:: L = E \sum_e f_e P_e

    Usual weight: 1e-2.

    Args:
        routing: ``f`` counts what rows asked for, before capacity dropped anything.
        first_choice: Take ``f`` from each row's first choice only (token layout).
        sync: Add up the assignments of all processes first, so that the global batch is balanced.
            Recommended when one process sees fewer than about ``8 E`` rows per step.

    Shape:
        - routing rows ``[*L, E]`` -> scalar

    Raises:
        ArgumentError: The routing has no ``probs``, or ``first_choice`` outside the token layout.

    Notes:
        ``f`` is divided by the number of assignments, not of rows, so top-K is not K times larger
        (one widely used library sums over the choices instead). With null experts both factors are
        taken over the true experts only; :func:`null_balance` includes the null ones. A dense
        layout uses every expert for every row and gives 1.

    References:
        Fedus, Zoph, Shazeer, *Switch Transformers*, JMLR 2022.

    Example:
        >>> import torch
        >>> from moeapps.gating.routing import Routing
        >>> probs = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> routing = Routing(
        ...     torch.ones(2, 1), 2, torch.zeros(2, 1, dtype=torch.int64), probs=probs,
        ...     layout="token",
        ... )
        >>> balance(routing)
        tensor(2.)
    """
    probs, _ = _counted_probs(routing)
    num_experts = routing.num_experts
    counts = assigned(routing, first_choice=first_choice)[:num_experts].to(probs.dtype)
    if sync:
        counts = _sum_over_processes(counts)
    share = counts / counts.sum().clamp_min(1)
    mean = probs[:, :num_experts].sum(0)
    return num_experts * (share * mean).sum() / _positive(mean.sum())


def importance(routing: Routing) -> Tensor:
    r"""Squared coefficient of variation of the experts' summed probabilities.

    .. math:: L = \mathrm{CV}^2\Big(\sum_n p_n\Big), \qquad
        \mathrm{CV}^2(s) = \mathrm{var}(s) / \mathrm{mean}(s)^2

    0 at uniform use, ``E - 1`` when one expert gets all. Usual weight: 0.1, in V-MoE 0.005.

    Notes:
        The variance is the population's. Null experts are not counted.

    References:
        Shazeer et al., *Outrageously Large Neural Networks*, ICLR 2017.

    Example:
        >>> import torch
        >>> from moeapps.gating.routing import Routing
        >>> importance(Routing(torch.full((4, 2), 0.5), 2, probs=torch.full((4, 2), 0.5)))
        tensor(0.)
    """
    return squared_cv(_counted_probs(routing)[0][:, : routing.num_experts].sum(0))


def load(
    routing: Routing,
    *,
    sigma: float | Tensor | None = None,
    threshold: Literal["leave_one_out", "kth"] = "leave_one_out",
) -> Tensor:
    r"""Squared coefficient of variation of the expected number of rows per expert.

    .. math:: L = \mathrm{CV}^2\Big(\sum_n \Phi\big((l_{n,e} - t_{n,e}) / \sigma_{n,e}\big)\Big)

    ``l`` are the clean scores and ``t`` the noisy score to beat for a place in the top ``K``.
    0 at uniform use, ``E - 1`` when one expert gets all. Usual weight: as :func:`importance`.

    Args:
        routing: Token layout with ``extra["noisy_logits"]``, as noisy gates leave it in training.
        sigma: Standard deviation of the noise; default ``extra["sigma"]``.
        threshold: ``"leave_one_out"`` (Shazeer): the (K+1)-th largest noisy score for an expert
            inside the top K, else the K-th. ``"kth"`` (V-MoE): the K-th for all.

    Raises:
        ArgumentError: The routing carries no noise.

    Notes:
        When all experts are chosen (``K = E`` or dense) no place can be lost: the loss is then that
        of the assignment counts, without gradient.

    References:
        Shazeer et al., ICLR 2017; Riquelme et al., *Scaling Vision with Sparse Mixture of Experts*,
        NeurIPS 2021.

    Example:
        >>> import torch
        >>> from moeapps.gating.routing import Routing
        >>> load(Routing(torch.full((4, 2), 0.5), 2, probs=torch.full((4, 2), 0.5)))
        tensor(0.)
    """
    probs, rows = _counted_probs(routing)
    num_experts, width = routing.num_experts, probs.shape[-1]
    top_k = width if routing.indices is None else routing.indices.shape[-1]
    if routing.layout != "token" or top_k >= width:
        return squared_cv(assigned(routing)[:num_experts].to(probs.dtype))
    noisy = routing.extra.get("noisy_logits")
    scale = routing.extra.get("sigma") if sigma is None else sigma
    if noisy is None or scale is None or routing.logits is None:
        raise ArgumentError(
            "load needs the noise of the gate: extra['noisy_logits'] and a sigma. Give the gate "
            "perturb=Learned(...) or Gaussian(...) and compute the loss in training, or use "
            "importance or balance."
        )
    clean, noisy = _flat(routing.logits, rows), _flat(noisy, rows)
    if isinstance(scale, Tensor) and scale.ndim:
        scale = torch.where(rows.unsqueeze(-1), scale, 1).flatten(0, -2)
    possible = probs > 0  # masked experts are not; padding rows have none
    best = torch.where(possible, noisy, -torch.inf).topk(top_k + 1, dim=-1).values
    bar = best[:, top_k - 1 : top_k]
    if threshold == "leave_one_out":
        bar = torch.where(noisy > best[:, top_k:], best[:, top_k:], bar)
    chance = torch.where(possible, torch.special.ndtr((clean - bar) / scale), 0)
    return squared_cv(chance[:, :num_experts].sum(0))


def router_z(routing: Routing) -> Tensor:
    r"""Keeps scores small.

    .. math:: L = \frac{1}{N} \sum_n \big(\log \sum_e e^{l_{n,e}}\big)^2

    :math:`(\ln E)^2` at zero scores. Usual weight: 1e-3.

    Raises:
        ArgumentError: The routing has no ``logits``.

    References:
        Zoph et al., *ST-MoE*, 2022.

    Example:
        >>> import torch
        >>> from moeapps.gating.routing import Routing
        >>> zero = torch.zeros(3, 4)
        >>> round(float(router_z(Routing(zero, 4, logits=zero))), 4)  # (ln 4)^2
        1.9218
    """
    if routing.logits is None:
        raise ArgumentError("router_z needs routing.logits; this routing was built without scores.")
    rows = routing.counted_rows()
    logits = _flat(routing.logits, rows)
    keep = rows.flatten()
    squares = logits.logsumexp(-1).square()
    return torch.where(keep, squares, 0).sum() / keep.sum().clamp_min(1)


def row_entropy(routing: Routing) -> Tensor:
    r"""Mean entropy of each row's distribution; minimise it for confident gates.

    .. math:: L = \frac{1}{N} \sum_n H(p_n)

    :math:`\ln E` at uniform, 0 when one expert has all. Usual weight: 1e-4.

    References:
        Huang et al., *Harder Tasks Need More Experts*, ACL 2024 (the "dynamic" loss of top-p).

    Example:
        >>> import torch
        >>> from moeapps.gating.routing import Routing
        >>> half = torch.full((3, 2), 0.5)
        >>> round(float(row_entropy(Routing(half, 2, probs=half))), 4)
        0.6931
    """
    probs, rows = _counted_probs(routing)
    return entropy(probs).sum() / rows.sum().clamp_min(1)


def marginal_entropy(routing: Routing) -> Tensor:
    r"""Negative entropy of the mean distribution; minimise it for even use.

    .. math:: L = -H(P)

    :math:`-\ln E` at uniform use, 0 when one expert gets all. Usual weight: 1e-2.

    Example:
        >>> import torch
        >>> from moeapps.gating.routing import Routing
        >>> half = torch.full((3, 2), 0.5)
        >>> round(float(marginal_entropy(Routing(half, 2, probs=half))), 4)
        -0.6931
    """
    probs, rows = _counted_probs(routing)
    return -entropy(probs.sum(0) / rows.sum().clamp_min(1))


def mutual_information(
    routing: Routing, groups: Tensor, *, num_groups: int | None = None
) -> Tensor:
    r"""Negative mutual information between a row's group (task, domain) and its expert.

    .. math:: L = -\sum_{t,e} J_{t,e} \ln \frac{J_{t,e}}{J_t J_e}, \qquad
        J_{t,e} = \frac{1}{N} \sum_n \mathbb{1}[g_n = t]\, p_{n,e}

    0 when expert and group are independent, :math:`-\ln \min(T, E)` with one expert per group.
    Usual weight: 5e-4 to 1e-2.

    Args:
        routing: Rows ``*L``, with ``probs``.
        groups: Group id per row, int64, broadcastable to ``*L``. For task gates ``[*L, T, E]`` pass
            ``torch.arange(T)``.
        num_groups: Number of groups; default the largest id + 1, which waits for the device.

    References:
        Chen et al., *Mod-Squad*, CVPR 2023.

    Example:
        >>> import torch
        >>> from moeapps.gating.routing import Routing
        >>> routing = Routing(torch.eye(2), 2, probs=torch.eye(2))
        >>> round(float(mutual_information(routing, torch.tensor([0, 1]))), 4)
        -0.6931
    """
    probs, rows = _counted_probs(routing)
    ids = groups.expand(rows.shape).flatten()
    if num_groups is None:
        num_groups = int(ids.max()) + 1
    member = F.one_hot(ids, num_groups).to(probs.dtype)
    joint = member.T @ probs / rows.sum().clamp_min(1)
    # I(T; E) = H(T) + H(E) - H(T, E)
    return entropy(joint.flatten()) - entropy(joint.sum(0)) - entropy(joint.sum(1))


def null_balance(routing: Routing) -> Tensor:
    r"""Balance over true and null experts; null experts are interchangeable.

    .. math:: L = (E + m) \sum_{e=1}^{E+m} \bar f_e P_e

    where :math:`\bar f` of each of the ``m`` null experts is the mean over them. 1 at uniform use.
    Usual weight: 1e-2, annealed.

    Raises:
        ArgumentError: The gate has no null experts.

    Notes:
        The published code averages along the wrong axis, which does nothing; here the average is
        taken over the null columns, as the paper's text says.

    References:
        Zeng et al., *AdaMoE*, EMNLP Findings 2024.

    Example:
        >>> import torch
        >>> from moeapps.gating.routing import Routing
        >>> routing = Routing(
        ...     torch.ones(1, 1), 1, torch.tensor([[0]]), probs=torch.full((1, 2), 0.5),
        ...     layout="token", extra={"choices": torch.tensor([[0]])},
        ... )
        >>> null_balance(routing)
        tensor(1.)
    """
    probs, rows = _counted_probs(routing)
    width, num_experts = probs.shape[-1], routing.num_experts
    if width == num_experts:
        raise ArgumentError(
            "null_balance needs a gate with null experts, for example topk(3, null=8). "
            "Use balance for a gate without."
        )
    counts = assigned(routing).to(probs.dtype)
    null = counts[num_experts:]
    counts = torch.cat([counts[:num_experts], null.mean().expand_as(null)])
    share = counts / counts.sum().clamp_min(1)
    return width * (share * probs.sum(0)).sum() / rows.sum().clamp_min(1)


def score_variance(routing: Routing) -> Tensor:
    r"""Negative variance of each expert's probability over the rows; minimise it to specialise.

    .. math:: L = -\frac{1}{E} \sum_e \mathrm{Var}_n(p_{n,e})

    Usual weight: 1e-2.

    Notes:
        The variance is the population's.

    Example:
        >>> import torch
        >>> from moeapps.gating.routing import Routing
        >>> score_variance(Routing(torch.eye(2), 2, probs=torch.eye(2)))
        tensor(-0.2500)
    """
    probs, rows = _counted_probs(routing)
    count = rows.sum().clamp_min(1)
    centred = torch.where(rows.flatten().unsqueeze(-1), probs - probs.sum(0) / count, 0)
    return -(centred.square().sum(0) / count).mean()


LOSSES: dict[str, Callable[[Routing], Tensor]] = {
    "balance": balance,
    "importance": importance,
    "load": load,
    "router_z": router_z,
    "row_entropy": row_entropy,
    "marginal_entropy": marginal_entropy,
    "null_balance": null_balance,
    "score_variance": score_variance,
}
"""Losses that take a routing and nothing else, by name."""


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats over the last axis; value and gradient are finite at probability 0."""
    return -(probs * torch.where(probs > 0, probs, 1).log()).sum(-1)


def squared_cv(amounts: Tensor) -> Tensor:
    """Population variance over squared mean, 0 when all amounts are 0."""
    mean = amounts.mean()
    return (amounts - mean).square().mean() / _positive(mean.square())


def assigned(routing: Routing, *, first_choice: bool = False) -> Tensor:
    """Assignments per column of ``probs`` (null experts too) as asked, before capacity; int64.

    Args:
        routing: Any layout.
        first_choice: Count each row's first choice only (token layout).

    Raises:
        ArgumentError: ``first_choice`` outside the token layout.
    """
    if routing.layout != "token":
        if first_choice:
            raise ArgumentError(
                f"first_choice=True needs the token layout, got {routing.layout!r}: only there do "
                "rows rank experts."
            )
        return routing.counts()
    assert routing.indices is not None
    width = routing.num_experts if routing.probs is None else routing.probs.shape[-1]
    picks = routing.extra.get("choices", routing.indices)
    picks = picks[..., :1] if first_choice else picks
    picks = torch.where((picks < 0) | ~routing.counted_rows().unsqueeze(-1), width, picks)
    counts = picks.new_zeros(width + 1)
    return counts.scatter_add(0, picks.flatten(), torch.ones_like(picks).flatten())[:width]


def _counted_probs(routing: Routing) -> tuple[Tensor, Tensor]:
    """``probs`` ``[N, E(+null)]``, 0 in rows that do not count, and those rows, bool ``[*L]``."""
    if routing.probs is None:
        raise ArgumentError(
            "this loss reads routing.probs, which the routing does not have. Build it with a "
            "selection of moeapps.gating, or pass probs= to Routing."
        )
    rows = routing.counted_rows()
    return _flat(routing.probs, rows), rows


def _flat(values: Tensor, rows: Tensor) -> Tensor:
    return torch.where(rows.unsqueeze(-1), values, 0).flatten(0, -2)


def _positive(amount: Tensor) -> Tensor:
    return amount.clamp_min(torch.finfo(amount.dtype).tiny)


def _sum_over_processes(counts: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
    return counts
