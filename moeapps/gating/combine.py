"""Put the experts' outputs together: weighted sum by default, and the other ways."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.gating.routing import Routing

Combiner = Callable[[Tensor, Routing], Tensor]


def combine(ys: Tensor, routing: Routing, *, tasks: bool | None = None) -> Tensor:
    r"""Weighted sum of the experts' outputs.

    .. math:: y_n = \sum_e w_{ne}\, y_{ne}

    Args:
        ys: What the experts gave, see Shape. One number per expert works too: a mixture of losses.
        routing: The gate's decision. Its weights are cast to the dtype of ``ys`` once.
        tasks: Whether the weights hold several gates per row, ``[*L, T, E]``; None finds out from
            the shapes. Only ``ys [*L, E, E]`` with ``T = E`` needs it.

    Shape:
        - dense and token layout: ``ys [*L, E, *O] -> [*L, *O]``, with tasks ``[*L, T, *O]``; in the
          token layout the chosen experts are picked from all
        - expert layout: ``ys [B, E, C, *O] -> [B, N, *O]``
        - slot layout: ``ys [B, E, S, *O] -> [B, N, *O]``

    Raises:
        ArgumentError: The shapes do not fit.

    Notes:
        An expert with weight 0 for a row (for all its tasks) cannot pass on NaN or infinity.

    Example:
        >>> routing = Routing(torch.tensor([[0.25, 0.75]]), num_experts=2)
        >>> combine(torch.tensor([[[4.0, 8.0], [0.0, 4.0]]]), routing).tolist()
        [[1.0, 5.0]]
        >>> combine(torch.tensor([[4.0, 8.0]]), routing).tolist()  # one loss per expert
        [7.0]
    """
    if routing.layout == "expert":
        return combine_choice(ys, routing)
    if routing.layout == "slot":
        return combine_slots(ys, routing)
    weights = routing.weights
    if routing.layout == "token":
        assert routing.indices is not None
        lead = routing.indices.dim() - 1
        _check_all(ys, routing.indices.shape[:-1], routing.num_experts)
        ys = _pick(ys, routing.indices, lead)
    else:
        if tasks is None:
            tasks = ys.shape[: weights.dim()] != weights.shape
        lead = weights.dim() - (2 if tasks else 1)
        _check_all(ys, weights.shape[:lead], routing.num_experts)
    return mix(ys, weights, lead=lead)


def mix(ys: Tensor, weights: Tensor, *, lead: int) -> Tensor:
    """``weights [*L, (T,) E] @ ys [*L, E, *O]`` with ``lead`` axes in ``*L``."""
    tasks = weights.dim() > lead + 1
    item = ys.shape[lead + 1 :]
    unused = (weights == 0).all(-2) if tasks else weights == 0
    flat = ys.flatten(lead + 1) if item else ys.unsqueeze(-1)
    # 0 * NaN is NaN, so what takes no part is replaced; finite values keep their exact gradient.
    flat = torch.where(unused.unsqueeze(-1) & ~flat.isfinite(), 0, flat)
    weights = weights.to(flat.dtype)
    if not item and not tasks:  # losses: a product would run in half precision under autocast
        return (weights * flat.squeeze(-1)).sum(-1)
    y = (weights if tasks else weights.unsqueeze(-2)) @ flat
    return y.view(*weights.shape[:-1], *item)


def combine_choice(ys: Tensor, routing: Routing) -> Tensor:
    """Expert layout: add what each expert gave to its rows, ``[*B, E, C, *O] -> [*B, N, *O]``."""
    indices = routing.indices
    assert indices is not None
    if ys.shape[: indices.dim()] != indices.shape:
        raise ArgumentError(
            f"combine got outputs {list(ys.shape)} for expert-choice indices "
            f"{list(indices.shape)}; expected [B, E, C, ...]. Run experts.all on the chosen rows, "
            "or call the experts with the routing."
        )
    groups, num_rows = routing.rows[:-1], routing.rows[-1]
    item = ys.shape[indices.dim() :]
    weights = torch.where(indices < 0, 0, routing.weights).to(ys.dtype)
    flat = ys.reshape(*indices.shape, math.prod(item))
    flat = torch.where((indices < 0).unsqueeze(-1), 0, flat)
    if ys.is_cuda and not torch.are_deterministic_algorithms_enabled():
        y = _gather_choice(flat, weights, indices, num_rows)
    else:
        B = math.prod(groups)
        start = num_rows * torch.arange(B, device=indices.device).view(*groups, 1, 1)
        target = (indices.clamp(min=0) + start).flatten()
        rows = (weights.unsqueeze(-1) * flat).flatten(0, -2)
        y = rows.new_zeros(B * num_rows, math.prod(item)).index_add(0, target, rows)
    return y.view(*groups, num_rows, *item)


def _gather_choice(flat: Tensor, weights: Tensor, indices: Tensor, num_rows: int) -> Tensor:
    """The same sum without atomic additions: each row looks up its place with every expert."""
    E, C = indices.shape[-2:]
    B = math.prod(indices.shape[:-2])
    ids = torch.where(indices < 0, num_rows, indices).view(B, E, C)
    place = torch.arange(B * E * C, device=ids.device).view(B, E, C)
    nowhere = torch.full((B, E, num_rows + 1), B * E * C, device=ids.device)
    place = nowhere.scatter(2, ids, place)[..., :num_rows].transpose(1, 2)
    spread = weights.new_zeros(B, E, num_rows + 1).scatter(2, ids, weights.view(B, E, C))
    spread = spread[..., :num_rows].transpose(1, 2)
    rows = flat.reshape(B * E * C, flat.shape[-1])
    rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])]).index_select(0, place.flatten())
    rows = rows.view(B * num_rows, E, rows.shape[1])
    return torch.bmm(spread.reshape(B * num_rows, 1, E), rows)


def combine_slots(ys: Tensor, routing: Routing) -> Tensor:
    """Slot layout: every row mixes all slots' outputs, ``[*B, E, S, *O] -> [*B, N, *O]``."""
    weights = routing.weights
    groups = weights.dim() - 3
    if ys.shape[: groups + 2] != weights.shape[:groups] + weights.shape[-2:]:
        raise ArgumentError(
            f"combine got outputs {list(ys.shape)} for slot weights {list(weights.shape)}; "
            "expected [B, E, S, ...] and [B, N, E, S]. Call the experts with the routing, which "
            "fills the slots."
        )
    item = ys.shape[groups + 2 :]
    flat = ys.reshape(*ys.shape[:groups], math.prod(weights.shape[-2:]), math.prod(item))
    y = weights.to(ys.dtype).flatten(-2) @ flat
    return y.view(*weights.shape[:-2], *item)


def mean(ys: Tensor, routing: Routing) -> Tensor:
    """Plain mean over the experts that take part in each row; the gate gets no gradient.

    Example:
        >>> routing = Routing(torch.tensor([[0.9, 0.1, 0.0]]), num_experts=3)
        >>> mean(torch.tensor([[[2.0], [4.0], [100.0]]]), routing).tolist()
        [[3.0]]
    """
    return combine(ys, mean_routing(routing))


def select(ys: Tensor, routing: Routing) -> Tensor:
    """The output of each row's best expert, unweighted; the gate gets no gradient.

    Example:
        >>> routing = Routing(torch.tensor([[0.4, 0.6]]), num_experts=2)
        >>> select(torch.tensor([[[1.0], [2.0]]]), routing).tolist()
        [[2.0]]
    """
    return combine(ys, select_routing(routing))


def identity(ys: Tensor, routing: Routing) -> Tensor:
    """The output of the one chosen expert, unscaled; the gate learns straight through.

    The value is ``y``, the gradient that of ``w * y``.

    Raises:
        ArgumentError: More than one expert per row.

    Example:
        >>> routing = Routing(torch.tensor([[0.4]]), 2, torch.tensor([[1]]), layout="token")
        >>> identity(torch.tensor([[[1.0], [2.0]]]), routing).tolist()
        [[2.0]]
    """
    return combine(ys, identity_routing(routing))


def dempster(ys: Tensor, routing: Routing) -> Tensor:
    r"""Dempster's rule on the experts' evidence, as probabilities.

    Logits are evidence: belief :math:`b_j = e^{z_j} / S` and doubt :math:`u = O / S` with
    :math:`S = \sum_j e^{z_j} + O`. Two opinions make

    .. math:: b_j \propto b^1_j b^2_j + b^1_j u^2 + b^2_j u^1, \qquad u \propto u^1 u^2

    An expert that takes no part has no opinion (``u = 1``). The result is :math:`b_j + u / O`.

    Args:
        ys: Logits of every expert ``[*L, E, O]``.
        routing: Says who takes part: weight other than 0 (dense) or chosen (token).

    Shape:
        - ``[*L, O]``, rows sum to 1

    Notes:
        Computed from logarithms, so that full conflict between certain experts stays finite.

    Example:
        >>> routing = Routing(torch.ones(1, 2), num_experts=2)
        >>> dempster(torch.tensor([[[9.0, 0.0], [0.0, 0.0]]]), routing).round(decimals=2).tolist()
        [[1.0, 0.0]]
    """
    part = _takes_part(routing)
    if ys.shape[:-1] != part.shape:
        raise ArgumentError(
            f"dempster got logits {list(ys.shape)} for experts {list(part.shape)}; expected "
            "[*L, E, O] and [*L, E]. Gates per task cannot be combined this way."
        )
    belief, doubt = opinions(ys)
    nothing = -1e30  # not infinity, whose gradient is NaN
    part = part.unsqueeze(-1)
    beliefs = torch.where(part, belief, nothing).unbind(-2)
    doubts = torch.where(part, doubt, 0).unbind(-2)
    b, u = beliefs[0], doubts[0]
    for b2, u2 in zip(beliefs[1:], doubts[1:], strict=True):
        b, u, _ = join_opinions(b, u, b2, u2)
    return torch.logaddexp(b, u - math.log(ys.shape[-1])).exp().to(ys.dtype)


def opinions(logits: Tensor) -> tuple[Tensor, Tensor]:
    r"""Logits as evidence: the logarithms of belief and doubt of a Dirichlet opinion.

    .. math:: b_j = e^{z_j} / S, \qquad u = O / S, \qquad S = \sum_j e^{z_j} + O

    Shape:
        - ``[*L, O]`` -> log belief ``[*L, O]``, log doubt ``[*L, 1]``, float32 or more

    Example:
        >>> belief, doubt = opinions(torch.tensor([6.0, 0.0]).log())  # evidence 6 and 0
        >>> belief.exp().tolist(), doubt.exp().tolist()
        ([0.75, 0.0], [0.25])
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    classes = math.log(z.shape[-1])
    total = torch.logaddexp(z.logsumexp(-1, keepdim=True), z.new_full((), classes))
    return z - total, classes - total


def join_opinions(b: Tensor, u: Tensor, b2: Tensor, u2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Dempster's rule on two opinions, in logarithms.

    .. math::
        b_j = \frac{b^1_j b^2_j + b^1_j u^2 + b^2_j u^1}{1 - Q}, \quad
        u = \frac{u^1 u^2}{1 - Q}, \quad Q = \sum_{i \neq j} b^1_i b^2_j

    Returns:
        Log belief ``[*L, O]``, log doubt ``[*L, 1]``, and their agreement ``log(1 - Q)``,
        ``[*L, 1]``.

    Notes:
        The agreement is the sum of all that is left of the two opinions, so it costs ``O``, not
        ``O * O``, and stays finite for experts that are certain of different classes.

    Example:
        >>> one = torch.tensor([0.6, 0.2]).log(), torch.tensor([0.2]).log()
        >>> two = torch.tensor([0.1, 0.4]).log(), torch.tensor([0.5]).log()
        >>> b, u, agreement = join_opinions(*one, *two)
        >>> [round(float(x), 4) for x in (*b.exp(), u.exp(), agreement.exp())]
        [0.5135, 0.3514, 0.1351, 0.74]
    """
    b = torch.stack([b + b2, b + u2, u + b2]).logsumexp(0)
    u = u + u2
    agreement = torch.cat([b, u], -1).logsumexp(-1, keepdim=True)
    return b - agreement, u - agreement, agreement


def mean_routing(routing: Routing) -> Routing:
    """The routing whose weighted sum is `mean`."""
    _per_row(routing, "mean")
    part = routing.weights != 0 if routing.indices is None else routing.indices >= 0
    weights = part.to(routing.weights.dtype)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return dataclasses.replace(routing, weights=weights)


def select_routing(routing: Routing) -> Routing:
    """The routing whose weighted sum is `select`; in the token layout only one expert is left."""
    _per_row(routing, "select")
    best = routing.weights.argmax(-1, keepdim=True)
    if routing.indices is None:
        weights = torch.zeros_like(routing.weights).scatter(-1, best, 1.0)
        weights = torch.where(routing.weights == 0, 0, weights)  # padding rows stay empty
        return dataclasses.replace(routing, weights=weights)
    indices = routing.indices.gather(-1, best)
    return dataclasses.replace(
        routing, indices=indices, weights=(indices >= 0).to(routing.weights.dtype)
    )


def identity_routing(routing: Routing) -> Routing:
    """The routing whose weighted sum is `identity`."""
    if routing.indices is None or routing.layout != "token" or routing.indices.shape[-1] != 1:
        raise ArgumentError(
            f"combine='identity' got a routing in layout {routing.layout!r} with weights "
            f"{list(routing.weights.shape)}; it needs one expert per row. Use topk(1) or hard, or "
            "combine='weighted'."
        )
    weights = routing.weights
    straight = 1 + weights - weights.detach()
    return dataclasses.replace(routing, weights=torch.where(routing.indices < 0, 0, straight))


def _takes_part(routing: Routing) -> Tensor:
    """Bool ``[*L, (T,) E]``: which experts serve which row."""
    _per_row(routing, "dempster")
    if routing.indices is None:
        return routing.weights != 0
    experts = torch.arange(routing.num_experts, device=routing.indices.device)
    return (routing.indices.unsqueeze(-1) == experts).any(-2)


def _pick(ys: Tensor, indices: Tensor, lead: int) -> Tensor:
    """Chosen experts' outputs ``[*L, K, *O]``; zero for nobody."""
    item = [1] * (ys.dim() - lead - 1)
    ids = indices.view(*indices.shape, *item)
    picked = ys.gather(lead, ids.clamp(min=0).expand(*indices.shape, *ys.shape[lead + 1 :]))
    return torch.where(ids < 0, 0, picked)


def _per_row(routing: Routing, name: str) -> None:
    if routing.layout not in ("dense", "token"):
        raise ArgumentError(
            f"{name!r} combines per row, but the routing has layout {routing.layout!r}. "
            "Use a gate with layout 'dense' or 'token', or combine='weighted'."
        )


def _check_all(ys: Tensor, lead: torch.Size, num_experts: int) -> None:
    expected = (*lead, num_experts)
    if tuple(ys.shape[: len(expected)]) != expected:
        raise ArgumentError(
            f"combine got outputs {list(ys.shape)}; expected {[*expected, '...']}: the outputs of "
            "all experts, the expert axis right after the rows."
        )
