"""Scores: modules that give every row one logit per expert.

Any module from inputs to ``[*L, E]`` is a score. One that also takes ``cond``, ``state`` or
``valid`` in its ``forward`` gets them from the gate, one that returns ``(logits, extra)`` adds to
the ``extra`` of the routing, and one with ``channels_first = True`` has rows on every axis of its
input but the second.

Letters: ``*L`` rows, ``B`` batch, ``N`` rows of a group, ``D`` width, ``E`` experts, ``T`` tasks.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.errors import ArgumentError, GateError

STD = 0.02  # of every weight here that has no other rule


def expect_width(x: Tensor, width: int) -> None:
    """Refuse inputs whose last axis is not ``width``."""
    if x.shape[-1] != width:
        raise GateError(
            f"gate expected [..., {width}], got {list(x.shape)}. Features belong on the last axis; "
            "pixels in channels-first order need Conv or PooledLinear."
        )


class Linear(nn.Module):
    r"""One linear map without bias: :math:`l = W x`, started at :math:`N(0, 0.02)`.

    Args:
        in_features: ``D``.
        num_experts: ``E``.

    Shape:
        - x ``[*L, D]``; logits ``[*L, E]``

    Example:
        >>> Linear(16, 4)(torch.zeros(2, 16)).shape
        torch.Size([2, 4])
    """

    def __init__(self, in_features: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_experts, in_features) * STD)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        expect_width(x, self.weight.shape[1])
        return F.linear(x, self.weight)


class PooledLinear(Linear):
    r"""A linear map of the mean over all positions, one decision per image.

    Shape:
        - x ``[B, D, *spatial]``; logits ``[B, E]``

    Example:
        >>> PooledLinear(16, 4)(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        return super().forward(x.flatten(2).mean(-1))


class MLP(nn.Sequential):
    """Linear layers with an activation and dropout between them.

    Args:
        in_features: ``D``.
        num_experts: ``E``.
        hidden: Width of each hidden layer; one number for one layer.
        dropout: After each activation.
        activation: Builds the activation.

    Shape:
        - x ``[*L, D]``; logits ``[*L, E]``

    Notes:
        Xavier-uniform weights, biases 0. ``MLP(D, E, (H, H // 2), dropout=0.2)`` is DriftMoE's.

    References:
        Aspis et al., *DriftMoE: A Mixture of Experts Approach to Handle Concept Drifts*, 2025.

    Example:
        >>> MLP(16, 4, (32, 16), dropout=0.2)(torch.zeros(2, 16)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        hidden: int | Sequence[int],
        *,
        dropout: float = 0.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        widths = [in_features, *([hidden] if isinstance(hidden, int) else hidden), num_experts]
        layers: list[nn.Module] = []
        for width, following in itertools.pairwise(widths):
            linear = nn.Linear(width, following)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear, activation(), nn.Dropout(dropout)]
        super().__init__(*layers[:-2])


class Tasks(nn.Module):
    r"""One linear gate per task, computed together: :math:`l_t = W_t x`.

    Args:
        in_features: ``D``.
        num_experts: ``E``.
        num_tasks: ``T``.
        visible: bool ``[T, E]``; False hides an expert from a task.

    Shape:
        - x ``[*L, D]``; logits ``[*L, T, E]``

    Raises:
        ArgumentError: When ``visible`` does not fit.

    Notes:
        Departures from the paper: none.

    References:
        Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate
        Mixture-of-Experts*, KDD 2018.

    Example:
        >>> Tasks(16, 4, 3)(torch.zeros(2, 16)).shape
        torch.Size([2, 3, 4])
    """

    visible: Tensor | None

    def __init__(
        self, in_features: int, num_experts: int, num_tasks: int, *, visible: Tensor | None = None
    ) -> None:
        super().__init__()
        self.num_tasks, self.num_experts = num_tasks, num_experts
        self.weight = nn.Parameter(torch.randn(num_tasks * num_experts, in_features) * STD)
        shape = (num_tasks, num_experts)
        if visible is not None and (visible.shape != shape or visible.dtype != torch.bool):
            raise ArgumentError(
                f"visible is {visible.dtype} {list(visible.shape)}, expected bool {list(shape)}: "
                "True where a task may use an expert."
            )
        self.register_buffer("visible", visible)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        expect_width(x, self.weight.shape[1])
        logits = F.linear(x, self.weight).unflatten(-1, (self.num_tasks, self.num_experts))
        if self.visible is not None:
            logits = torch.where(self.visible, logits, -math.inf)
        return logits


class TaskConditioned(nn.Module):
    r"""One gate that also reads which task a row belongs to.

    .. math:: l = W [x ; \mathrm{emb}_t] = W_x x + W_e\, \mathrm{emb}_t

    Args:
        in_features: ``D``.
        num_experts: ``E``.
        num_tasks: ``T``.
        embed_dim: Width of a task's embedding.

    Shape:
        - x ``[*L, D]``; cond int64 ``[*L]``, or its first axes only; logits ``[*L, E]``

    Raises:
        GateError: Without ``cond``.

    Notes:
        The concatenated and the additive form in use are this same linear map.

    Example:
        >>> TaskConditioned(16, 4, 3)(torch.zeros(2, 7, 16), cond=torch.tensor([0, 2])).shape
        torch.Size([2, 7, 4])
    """

    def __init__(
        self, in_features: int, num_experts: int, num_tasks: int, *, embed_dim: int = 64
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tasks, embed_dim)
        self.weight = nn.Parameter(torch.randn(num_experts, in_features + embed_dim) * STD)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Logits of ``x`` for the tasks ``cond``."""
        if cond is None:
            raise GateError("TaskConditioned got no task. Pass cond=ids, int64, one per row.")
        of_x, of_task = self.weight.split([x.shape[-1], self.embedding.embedding_dim], -1)
        task = self.embedding(cond.reshape(cond.shape + (1,) * (x.ndim - 1 - cond.ndim)))
        return F.linear(x, of_x) + F.linear(task, of_task)


class Conv(nn.Module):
    """A convolution that gives every pixel its logits, experts on the last axis.

    Args:
        in_channels: ``C``.
        num_experts: ``E``; a shape such as ``(G, M)`` gives logits ``[B, H, W, G, M]``.
        kernel_size: Odd; 1 or 3.
        bias: Whether it has one.

    Shape:
        - x ``[B, C, H, W]``; logits ``[B, H, W, E]``

    Raises:
        ArgumentError: For an even kernel, which would move the pixels.

    Example:
        >>> Conv(8, (3, 2))(torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 5, 5, 3, 2])
    """

    channels_first = True

    def __init__(
        self,
        in_channels: int,
        num_experts: int | Sequence[int],
        kernel_size: int = 1,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ArgumentError(f"kernel_size={kernel_size} is even and would move the pixels.")
        self.shape = (num_experts,) if isinstance(num_experts, int) else tuple(num_experts)
        out = math.prod(self.shape)
        self.conv = nn.Conv2d(in_channels, out, kernel_size, padding=kernel_size // 2, bias=bias)
        nn.init.normal_(self.conv.weight, std=STD)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        return self.conv(x).movedim(1, -1).unflatten(-1, self.shape)


class Constant(nn.Module):
    """Learned logits that are the same for every row.

    Args:
        num_experts: ``E``. All logits start at 0.

    Shape:
        - x ``[*L, D]``, read for its shape only; logits ``[*L, E]``

    Notes:
        Departures from the paper: none.

    References:
        Zhang et al., *Self-Supervised Aggregation of Diverse Experts for Test-Agnostic
        Long-Tailed Recognition*, NeurIPS 2022 (its test-time weights).

    Example:
        >>> Constant(3)(torch.zeros(2, 16)).softmax(-1)[0].detach()
        tensor([0.3333, 0.3333, 0.3333])
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_experts))

    def forward(self, x: Tensor) -> Tensor:
        """The same logits for every row of ``x``."""
        return self.weight.expand(*x.shape[:-1], -1)


class Fixed(nn.Module):
    """A random linear map that is never trained.

    Args:
        in_features: ``D``.
        num_experts: ``E``.

    Shape:
        - x ``[*L, D]``; logits ``[*L, E]``

    Notes:
        Departures from the paper: none.

    References:
        Chen et al., *Sparse MoE as the New Dropout*, ICLR 2023.

    Example:
        >>> list(Fixed(16, 4).parameters())
        []
    """

    weight: Tensor

    def __init__(self, in_features: int, num_experts: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(num_experts, in_features) * STD)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        expect_width(x, self.weight.shape[1])
        return F.linear(x, self.weight)


class Hash(nn.Module):
    r"""A fixed expert for every id, as one-hot logits.

    .. math:: e(i) = (2654435761\, i \bmod 2^{32}) \bmod E

    Use it with ``topk(1, score="identity")``, which gives weight 1.

    Args:
        num_experts: ``E``.
        table: int64 ``[ids]``, an expert for every id instead of the formula, for example one that
            balances known frequencies.

    Shape:
        - x anything if cond is given, else the ids; cond int64 ``[*L]``; logits ``[*L, E]``

    Raises:
        GateError: When neither gives integer ids.

    Notes:
        Departures from the paper: none.

    References:
        Roller et al., *Hash Layers For Large Sparse Models*, NeurIPS 2021.

    Example:
        >>> Hash(4)(torch.tensor([0, 1, 2])).argmax(-1)
        tensor([0, 1, 2])
    """

    table: Tensor | None

    def __init__(self, num_experts: int, table: Tensor | None = None) -> None:
        super().__init__()
        if table is not None and not bool(((table >= 0) & (table < num_experts)).all()):
            raise ArgumentError(f"table names experts outside 0..{num_experts - 1}.")
        self.num_experts = num_experts
        self.register_buffer("table", table)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """One-hot logits of the ids."""
        ids = x if cond is None else cond
        if ids.dtype.is_floating_point:
            raise GateError("Hash got no integer ids. Pass them as cond=ids.")
        if self.table is not None:
            experts = self.table[ids]
        else:
            experts = (ids.long() * 2654435761 & 0xFFFFFFFF) % self.num_experts
        dtype = x.dtype if x.dtype.is_floating_point else torch.float32
        return F.one_hot(experts, self.num_experts).to(dtype)


class Confidence(nn.Module):
    r"""Two experts mixed by one confidence: logits :math:`[\log c, \log(1 - c)]`.

    Args:
        score: Gives the confidence of each row, ``[*L]`` or ``[*L, 1]``; without it the input is
            the confidence.
        probability: Whether the confidence is a probability ``c``. By default it is ``c``'s logit,
            which stays exact when ``c`` is close to 0 or 1.

    Shape:
        - logits ``[*L, 2]``; their softmax is ``[c, 1 - c]``

    Notes:
        Departures from the paper: none.

    References:
        Zeng et al., *Mixture of Weak and Strong Experts on Graphs*, ICLR 2024.

    Example:
        >>> Confidence(probability=True)(torch.tensor([0.8])).softmax(-1)
        tensor([[0.8000, 0.2000]])
    """

    def __init__(
        self, score: Callable[[Tensor], Tensor] | None = None, *, probability: bool = False
    ) -> None:
        super().__init__()
        self.score, self.probability = score, probability

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        c = x if self.score is None else self.score(x)
        if self.score is not None and c.ndim == x.ndim:
            c = c.squeeze(-1)
        if not self.probability:
            return torch.stack([F.logsigmoid(c), F.logsigmoid(-c)], -1)
        kind = torch.finfo(c.dtype)
        c = c.clamp(kind.tiny, 1 - kind.eps / 2)  # keeps both logs, and their gradients, finite
        return torch.stack([c.log(), (-c).log1p()], -1)
