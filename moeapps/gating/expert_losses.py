"""Auxiliary losses that read more than a routing: expert outputs, prototypes, gate rows, labels.

Like :mod:`moeapps.gating.losses`: pure functions, scalar, mean over rows, no coefficient inside.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.gating.routing import Routing


def consistency(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    r"""Symmetric divergence of two predictions made by different random experts (THOR).

    .. math:: L = \frac{1}{N} \sum_n \tfrac12 \sum_c (p_{n,c} - q_{n,c})(\ln p_{n,c} - \ln q_{n,c})

    0 when both agree. Usual weight: 1 to 5.

    Args:
        p_logits: Scores of the first pass before the softmax.
        q_logits: Scores of the second pass.

    Shape:
        - ``[*L, C]``, ``[*L, C]`` -> scalar

    Notes:
        Takes logits, not probabilities, so that certain predictions stay finite.

    References:
        Zuo et al., *Taming Sparsely Activated Transformer with Stochastic Experts*, ICLR 2022.

    Example:
        >>> consistency(torch.zeros(2, 3), torch.zeros(2, 3))
        tensor(0.)
    """
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()


def orthogonality(rows: Tensor) -> Tensor:
    r"""Mean squared cosine between different rows; minimise it to keep them apart.

    .. math:: L = \frac{1}{R(R-1)} \sum_{i \ne j} \cos(w_i, w_j)^2

    Usual weight: 1e-3.

    Args:
        rows: Gate rows, prototypes, or stacked expert weights (flattened per expert here).

    Shape:
        - ``[R, ...]`` -> scalar

    Example:
        >>> orthogonality(torch.eye(3))
        tensor(0.)
    """
    return _pairwise_squared_cosine(rows.flatten(1)).mean()


def output_diversity(ys: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""Mean squared cosine between the outputs of different experts for the same row.

    .. math:: L = \frac{1}{N} \sum_n \frac{1}{E(E-1)} \sum_{i \ne j} \cos(y_{n,i}, y_{n,j})^2

    Usual weight: 1e-2.

    Args:
        ys: Outputs of all experts (dense layout).
        valid: bool ``[*L]``, False for padding.

    Shape:
        - ``[*L, E, O]`` -> scalar

    Notes:
        Rows with NaN outputs are left out.

    Example:
        >>> output_diversity(torch.eye(2).expand(4, 2, 2))
        tensor(0.)
    """
    rows = ys.isfinite().flatten(-2).all(-1)
    if valid is not None:
        rows = rows & valid
    per_row = _pairwise_squared_cosine(torch.where(rows[..., None, None], ys, 0))
    return torch.where(rows, per_row, 0).sum() / rows.sum().clamp_min(1)


def prototype_contrast(
    routing: Routing, x: Tensor, prototypes: Tensor, *, temperature: float = 0.07
) -> Tensor:
    r"""Pulls each prototype to the mean of the rows routed to it and away from the others.

    .. math:: L = -\frac{1}{|A|} \sum_{i \in A} \ln
        \frac{\exp(\cos(c_i, m_i) / \tau)}{\sum_{j \in A} \exp(\cos(c_i, m_j) / \tau)}

    :math:`m_j` is the mean of the rows sent to expert ``j``; ``A`` are the experts that got rows.
    0 when fewer than two did. Usual weight: 1.

    Args:
        routing: Token layout.
        x: What the gate saw.
        prototypes: :math:`c`, one per expert.
        temperature: :math:`\tau`.

    Shape:
        - routing rows ``[*L, K]``, x ``[*L, D]``, prototypes ``[E, D]`` -> scalar

    Raises:
        ArgumentError: The layout is not token.

    References:
        Wei et al., *ProMoE: Routing Matters in MoE*, 2025.

    Example:
        >>> routing = Routing(torch.ones(2, 1), 2, torch.tensor([[0], [1]]), layout="token")
        >>> loss = prototype_contrast(routing, torch.eye(2), torch.eye(2))
        >>> bool(loss < 1e-5)
        True
    """
    if routing.layout != "token":
        raise ArgumentError(
            f"prototype_contrast needs the token layout, got {routing.layout!r}: its clusters are "
            "the rows sent to each expert."
        )
    rows = torch.where(routing.counted_rows().unsqueeze(-1), x, 0).flatten(0, -2)
    sent = membership(routing).to(rows.dtype)
    counts = sent.sum(0)
    means = sent.T @ rows / counts.clamp_min(1).unsqueeze(-1)
    alive = counts > 0
    similarity = F.normalize(prototypes, dim=-1) @ F.normalize(means, dim=-1).T / temperature
    # A finite floor: rows of dead experts are dropped below and must not become NaN before.
    similarity = similarity.masked_fill(~alive, torch.finfo(similarity.dtype).min)
    losses = -similarity.log_softmax(-1).diagonal()
    total = torch.where(alive, losses, 0).sum() / alive.sum().clamp_min(1)
    return torch.where(alive.sum() < 2, total * 0, total)


def bce_correct(logits: Tensor, hit: Tensor) -> Tensor:
    r"""Teaches a gate which experts were right: binary cross-entropy with a multi-hot target.

    .. math:: L = -\frac{1}{N E} \sum_{n,e}
        h_{n,e} \ln \sigma(l_{n,e}) + (1 - h_{n,e}) \ln (1 - \sigma(l_{n,e}))

    Usual weight: 1.

    Args:
        logits: Clean scores of the gate.
        hit: 1 or True where the expert predicted the row correctly.

    Shape:
        - ``[*L, E]``, ``[*L, E]`` -> scalar

    References:
        Aspis et al., *DriftMoE*, 2025.

    Example:
        >>> round(float(bce_correct(torch.zeros(2, 3), torch.ones(2, 3))), 4)
        0.6931
    """
    return F.binary_cross_entropy_with_logits(logits, hit.to(logits.dtype))


def membership(routing: Routing) -> Tensor:
    """Which expert serves which row, bool ``[N, E]`` with rows flattened; no gradient.

    Rows that do not count (padding, NaN) are False everywhere.
    """
    with torch.no_grad():
        chosen = routing.weights != 0 if routing.indices is None else routing.indices >= 0
        ones = dataclasses.replace(routing, weights=chosen.to(routing.weights.dtype))
        return ((ones.dense() > 0) & routing.counted_rows().unsqueeze(-1)).flatten(0, -2)


def _pairwise_squared_cosine(vectors: Tensor) -> Tensor:
    """Mean over ordered pairs of different vectors ``[..., R, D]``; 0 for a single one."""
    unit = F.normalize(vectors, dim=-1)
    squares = (unit @ unit.transpose(-1, -2)).square()
    count = vectors.shape[-2]
    total = squares.sum((-2, -1)) - squares.diagonal(dim1=-2, dim2=-1).sum(-1)
    return total / max(count * (count - 1), 1)
