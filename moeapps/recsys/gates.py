"""Gates over the experts each of them sees, and a level: experts, gates, mixture.

Letters: ``B`` batch, ``E`` experts, ``N`` gates, ``D`` width.
"""

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.gating import Gate, GateDropout, Routing, StackedLinear, report_routing, softmax
from moeapps.recsys.blocks import ExpertBank, Norm, stacked_linear
from moeapps.recsys.norm import StackedNorm


class GateScores(nn.Module):
    r"""Logits of ``N`` gates, each over the experts it sees: :math:`l_n = W_n x_n + b_n`.

    A gate has weights for visible experts only; hidden ones get logits of minus infinity.

    Args:
        in_features: Width of what a gate reads.
        visible: bool ``[N, E]``.
        shared_input: Whether all gates read one input, or each its own.
        hidden: Widths of hidden layers with ReLU, per gate.
        bias: The last layer has one.
        norm: ``"batch"`` normalises the logits over the batch, as some code does; None by default.

    Shape:
        - ``[B, D]``, or ``[B, N, D]`` without ``shared_input`` -> ``[B, N, E]``

    Example:
        >>> visible = torch.tensor([[True, True, False], [False, True, True]])
        >>> GateScores(4, visible)(torch.zeros(1, 4)).isinf()[0].tolist()
        [[False, False, True], [True, False, False]]
    """

    visible: Tensor
    places: Tensor | None

    def __init__(
        self,
        in_features: int,
        visible: Tensor,
        *,
        shared_input: bool = True,
        hidden: Sequence[int] = (),
        bias: bool = True,
        norm: Norm = None,
    ) -> None:
        super().__init__()
        num_gates, self.counts = len(visible), visible.sum(1).tolist()
        if min(self.counts) < 1:
            raise ArgumentError("A gate sees no expert. Expected one or more visible per gate.")
        self.sets = None if shared_input and not hidden else self.counts
        self.bank: ExpertBank | None = None
        if hidden:
            readers = num_gates if shared_input else [1] * num_gates
            self.bank = ExpertBank(readers, in_features, hidden)
            in_features = hidden[-1]
        # Maps to one number each: row i of the weights belongs to the i-th visible pair.
        self.linear = StackedLinear(sum(self.counts), in_features, 1, bias=bias)
        self.norm = None if norm is None else StackedNorm(norm, sum(self.counts), 1)
        self.register_buffer("visible", visible, persistent=False)
        places = None if bool(visible.all()) else visible.flatten().nonzero().squeeze(1)
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.spread(self.seen(x), -math.inf)

    def seen(self, x: Tensor) -> Tensor:
        """Logits of visible experts alone, gate after gate, ``[B, V]``."""
        if self.bank is not None:
            x = self.bank(x)
        logits = stacked_linear(x, self.linear.w, self.linear.b, self.sets)
        return logits if self.norm is None else self.norm(logits)

    def spread(self, numbers: Tensor, hidden: float) -> Tensor:
        """Numbers of visible experts ``[B, V]`` among all, ``[B, N, E]``."""
        if self.places is not None:
            everyone = numbers.new_full((numbers.shape[0], self.visible.numel()), hidden)
            numbers = everyone.scatter(1, self.places.expand(numbers.shape[0], -1), numbers)
        return numbers.unflatten(1, self.visible.shape)


class GateBank(Gate):
    r"""``N`` softmax gates over the experts each of them sees.

    Args:
        in_features: Width of what a gate reads.
        visible: bool ``[N, E]``.
        temperature: Divides the logits.
        dropout: Probability that a gate drops an expert in training; the rest is renormalised.
            Against gates that lean on one expert.
        shared_input: As in `GateScores`.
        hidden: As in `GateScores`.
        bias: As in `GateScores`.
        norm: As in `GateScores`.

    Shape:
        - ``[B, D]`` or ``[B, N, D]`` -> a dense routing with weights ``[B, N, E]``

    Example:
        >>> GateBank(4, everyone(2, 3))(torch.zeros(1, 4)).weights.shape
        torch.Size([1, 2, 3])
    """

    def __init__(
        self,
        in_features: int,
        visible: Tensor,
        *,
        temperature: float = 1.0,
        dropout: float = 0.0,
        shared_input: bool = True,
        hidden: Sequence[int] = (),
        bias: bool = True,
        norm: Norm = None,
    ) -> None:
        score = GateScores(
            in_features, visible, shared_input=shared_input, hidden=hidden, bias=bias, norm=norm
        )
        perturb = GateDropout(dropout) if dropout else None
        super().__init__(score, softmax, perturb=perturb, temperature=temperature)


def everyone(num_gates: int, num_experts: int) -> Tensor:
    """The mask of gates that see every expert, bool ``[N, E]``."""
    return torch.ones(num_gates, num_experts, dtype=torch.bool)


def sees(gates: Sequence[Sequence[Hashable]], owners: Sequence[Hashable]) -> Tensor:
    """The mask of gates that see the experts of certain owners, bool ``[N, E]``.

    Args:
        gates: For each gate, whose experts it sees.
        owners: Whose each expert is.

    Example:
        >>> sees([["a", "shared"], ["b"]], ["a", "b", "shared"]).int().tolist()
        [[1, 0, 1], [0, 1, 0]]
    """
    return torch.tensor([[owner in seen for owner in owners] for seen in gates])


class LevelOutput(NamedTuple):
    """What one level did, for the next one and for diagnostics.

    Args:
        mixed: What each gate mixed, ``[B, N, D]``.
        experts: What each expert gave, ``[B, E, D]``.
        routing: Dense; ``weights [B, N, E]`` mixed the experts, ``probs`` is the gates' softmax.
        gates: Whose each gate is: a task, a category, or ``"shared"``.
        owners: Whose each expert is.
    """

    mixed: Tensor
    experts: Tensor
    routing: Routing
    gates: tuple[str, ...]
    owners: tuple[str, ...]


class Level(nn.Module):
    r"""Experts and the gates that mix them.

    .. math:: z_n = \sum_e \big(a_{n,e}(x) + r_{n,e}\big)\, f_e(x)

    with gates :math:`a` and, in some models, residual weights :math:`r`.

    Args:
        experts: ``E`` of them.
        gate: ``N`` gates.
        gates: Whose each gate is.
        owners: Whose each expert is.
        residual: Weights to add, ``[B, N, E]`` or ``[N, E]``, from what the residual reads.

    Shape:
        - ``x`` as the experts take it; the gate and the residual read ``x`` too unless given their
          own input; see `LevelOutput` for the result
    """

    def __init__(
        self,
        experts: ExpertBank,
        gate: Gate,
        gates: Sequence[str],
        owners: Sequence[str],
        residual: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.experts, self.gate, self.residual = experts, gate, residual
        self.gates, self.owners = tuple(gates), tuple(owners)

    def forward(
        self, x: Tensor, gate_input: Tensor | None = None, residual_input: Tensor | None = None
    ) -> LevelOutput:
        """Mix the experts for every gate."""
        experts = self.experts(x)
        seen = x if gate_input is None else gate_input
        routing = self.gate(seen)
        if self.residual is not None:
            extra = self.residual(seen if residual_input is None else residual_input)
            routing = dataclasses.replace(routing, weights=routing.weights + extra)
        report_routing(self, routing)
        return self.mix(experts, routing)

    def mix(self, experts: Tensor, routing: Routing) -> LevelOutput:
        """Weighted sum of the experts for every gate."""
        mixed = torch.bmm(routing.dense().to(experts.dtype), experts)
        return LevelOutput(mixed, experts, routing, self.gates, self.owners)
