"""Scores that compare rows: with expert embeddings, with slots, with each other, across layers.

Letters: ``*L`` rows, ``B`` groups, ``N`` rows of a group, ``D`` width, ``E`` experts, ``S`` slots.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.errors import ArgumentError, GateError
from moeapps.gating.scores import STD, expect_width


class Cosine(nn.Module):
    r"""Cosine between a projected row and a learned expert vector.

    .. math:: l_e = \min(s, 100)\; \frac{P x}{\|P x\|} \cdot \frac{e_e}{\|e_e\|}

    Args:
        in_features: ``D``.
        num_experts: ``E``.
        dim: Width after ``P``; ``min(256, D)`` by default.
        temperature: ``1 / s`` at the start; ``s`` is learned.

    Shape:
        - x ``[*L, D]``; logits ``[*L, E]``

    Notes:
        ``Cosine(D, E, dim=E // 2, temperature=0.07)`` is the form of X-MoE.

    References:
        Chi et al., *On the Representation Collapse of Sparse Mixture of Experts*, NeurIPS 2022.

    Example:
        >>> logits = Cosine(16, 4)(torch.randn(2, 16))
        >>> bool((logits.abs() <= 2).all())
        True
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        *,
        dim: int | None = None,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ArgumentError(f"temperature={temperature} must be positive.")
        dim = min(256, in_features) if dim is None else dim
        self.project = nn.Linear(in_features, dim, bias=False)
        self.experts = nn.Parameter(torch.randn(num_experts, dim) * 0.01)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        expect_width(x, self.project.in_features)
        cosine = F.linear(F.normalize(self.project(x), dim=-1), F.normalize(self.experts, dim=-1))
        return self.log_scale.clamp_max(math.log(100)).exp() * cosine


class Prototype(nn.Module):
    r"""Cosine between a row and a learned prototype: :math:`l_e = x \cdot c_e / (\|x\| \|c_e\|)`.

    Use it with ``topk(K, score="identity")`` for the cosine itself as weight, or with ``"softmax"``
    or ``"sigmoid"`` and ``normalise=False``.

    Args:
        in_features: ``D``.
        num_experts: ``E``.

    Shape:
        - x ``[*L, D]``; logits ``[*L, E]`` in ``[-1, 1]``

    Notes:
        Departures from the paper: none.

    References:
        Wei et al., *Routing Matters in MoE: Scaling Diffusion Transformers with Explicit Routing
        Guidance*, 2025 (ProMoE).

    Example:
        >>> Prototype(16, 4)(torch.zeros(2, 16)).shape
        torch.Size([2, 4])
    """

    def __init__(self, in_features: int, num_experts: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(num_experts, in_features) * STD)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        expect_width(x, self.prototypes.shape[1])
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.prototypes, dim=-1))


class Slots(nn.Module):
    r"""Cosine between a row and every slot of every expert, for :func:`soft_slots`.

    .. math:: l_{e,s} = \frac{x}{\|x\|} \cdot \mathrm{scale}\, \frac{\phi_{e,s}}{\|\phi_{e,s}\|}

    Args:
        in_features: ``D``.
        num_experts: ``E``.
        num_slots: ``S`` per expert.

    Shape:
        - x ``[B, N, D]``; logits ``[B, N, E, S]``

    Notes:
        Departures from the paper: none.

    References:
        Puigcerver et al., *From Sparse to Soft Mixtures of Experts*, ICLR 2024.

    Example:
        >>> Slots(16, 4, 2)(torch.zeros(1, 8, 16)).shape
        torch.Size([1, 8, 4, 2])
    """

    def __init__(self, in_features: int, num_experts: int, num_slots: int) -> None:
        super().__init__()
        self.phi = nn.Parameter(
            torch.randn(in_features, num_experts, num_slots) / math.sqrt(in_features)
        )
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        expect_width(x, self.phi.shape[0])
        phi = self.scale * F.normalize(self.phi, dim=0)
        return torch.einsum("bnd,des->bnes", F.normalize(x, dim=-1), phi)


class Recurrent(nn.Module):
    r"""A gate that remembers what it saw in earlier layers.

    .. math:: h_l = \mathrm{GRU}(P_l x_l, h_{l-1}), \qquad l = W_l h_l

    Give all layers the same ``cell``; pass ``routing.extra["state"]`` of one layer to the gate of
    the next as ``state``.

    Args:
        in_features: ``D``.
        num_experts: ``E``.
        cell: The shared cell; a new one by default.
        state_size: Width of the state of a new cell.

    Shape:
        - x ``[*L, D]``; state ``[*L, H]``, zeros if None; logits ``[*L, E]``

    Notes:
        Departures from the paper: none.

    References:
        Qiu et al., *Layerwise Recurrent Router for Mixture-of-Experts*, ICLR 2025.

    Example:
        >>> first = Recurrent(16, 4)
        >>> second = Recurrent(16, 4, cell=first.cell)
        >>> logits, extra = first(torch.zeros(2, 16))
        >>> second(torch.zeros(2, 16), **extra)[0].shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        *,
        cell: nn.GRUCell | None = None,
        state_size: int = 128,
    ) -> None:
        super().__init__()
        self.cell = nn.GRUCell(state_size, state_size) if cell is None else cell
        self.project = nn.Linear(in_features, self.cell.input_size, bias=False)
        self.weight = nn.Parameter(torch.randn(num_experts, self.cell.hidden_size) * STD)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of ``x`` and the new state."""
        rows = x.shape[:-1]
        projected = self.project(x).flatten(0, -2) if x.ndim > 2 else self.project(x)
        if state is not None and state.ndim > 2:
            state = state.flatten(0, -2)
        h = self.cell(projected, state)
        return F.linear(h, self.weight).unflatten(0, rows), {"state": h.unflatten(0, rows)}


class SimilarityAware(nn.Module):
    r"""Logits averaged over similar rows of a group: :math:`A\, l` with a row-stochastic ``A``.

    .. math:: A = \mathrm{softmax}(x W x^\top / \tau)

    Args:
        score: Gives the logits ``l``.
        in_features: ``D``, for the similarity above. Without it ``A`` is what the caller passes as
            ``cond``, for example the mean attention matrix of the block.
        temperature: ``tau``.

    Shape:
        - x ``[B, N, D]``; cond ``[B, N, N]``; logits ``[B, N, E]``

    Raises:
        GateError: When ``A`` is neither computed nor given.

    Notes:
        ``W`` starts at the identity over ``sqrt(D)``. Padding rows are not averaged in.

    References:
        Nguyen et al., *Improving Routing in Sparse Mixture of Experts with Graph of Tokens*, 2025.

    Example:
        >>> from moeapps.gating.scores import Linear
        >>> SimilarityAware(Linear(16, 4), 16)(torch.zeros(2, 7, 16)).shape
        torch.Size([2, 7, 4])
    """

    def __init__(
        self, score: nn.Module, in_features: int | None = None, *, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.score, self.temperature = score, temperature
        self.similarity = None
        if in_features is not None:
            start = torch.eye(in_features) / math.sqrt(in_features)
            self.similarity = nn.Parameter(start)

    def forward(self, x: Tensor, cond: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Logits of ``x``."""
        logits = self.score(x)
        if self.similarity is not None:
            alike = x @ self.similarity @ x.transpose(-1, -2) / self.temperature
            if valid is not None:
                alike = alike.masked_fill(~valid.unsqueeze(-2), torch.finfo(alike.dtype).min)
            attention = alike.softmax(-1)
        elif cond is not None:
            attention = cond.to(logits.dtype)
        else:
            raise GateError(
                "SimilarityAware has no similarity of its own and got none. Pass cond=attention "
                "[B, N, N], or build it with in_features."
            )
        return attention @ logits
