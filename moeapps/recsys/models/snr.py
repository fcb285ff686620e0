"""SNR: sub-networks whose connections are learned, and learned away."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating import Routing, report_routing
from moeapps.recsys.gates import LevelOutput
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import FeatureSchema, Task

BETA, GAMMA, ZETA = 0.9, -0.1, 1.1  # temperature and stretch of the hard concrete distribution


class Connection(nn.Module):
    r"""Connections from ``E`` sub-networks to ``N`` readers with learned on/off switches.

    .. math::
        y_i = \sum_j z_{ij} W_{ij} x_j \ \text{(trans)}, \qquad
        y_i = \sum_j z_{ij} x_j \ \text{(aver)}

    In training :math:`z = \mathrm{clip}(s(\zeta-\gamma)+\gamma, 0, 1)` with
    :math:`s = \sigma((\log u - \log(1-u) + \log\alpha)/\beta)` and :math:`u \sim U(0, 1)`, drawn
    anew in every step; in evaluation :math:`s = \sigma(\log\alpha)`.

    Args:
        num_readers: ``N``.
        num_subnets: ``E``.
        width: ``D`` of the sub-networks' outputs.
        kind: ``"trans"`` or ``"aver"``.
        readers: Whose each reader is.

    Shape:
        - ``[B, E, D] ->`` a `LevelOutput` with ``mixed [B, N, D]``
    """

    def __init__(
        self, num_readers: int, num_subnets: int, width: int, kind: str, readers: Sequence[str]
    ) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.zeros(num_readers, num_subnets))
        self.readers, self.owners = tuple(readers), ("shared",) * num_subnets
        self.weight: nn.Parameter | None = None
        if kind == "trans":
            bound = 1 / math.sqrt(width)
            weight = torch.empty(num_readers, width, num_subnets, width).uniform_(-bound, bound)
            self.weight = nn.Parameter(weight)  # [N, out, E, in]: one product over all inputs

    def forward(self, x: Tensor) -> LevelOutput:
        """What every reader gets."""
        z = self.switches()
        weights = z.expand(x.shape[0], *z.shape)
        routing = Routing(weights, z.shape[1])
        report_routing(self, routing)
        if self.weight is None:
            mixed = torch.bmm(weights, x)
        else:
            readers, out = self.weight.shape[:2]
            switched = self.weight * z[:, None, :, None]
            mixed = F.linear(x.flatten(1), switched.flatten(2).flatten(0, 1))
            mixed = mixed.unflatten(1, (readers, out))
        return LevelOutput(mixed, x, routing, self.readers, self.owners)

    def switches(self) -> Tensor:
        """The switches, ``[N, E]``."""
        logits: Tensor = self.log_alpha
        if self.training:
            u = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = (u.log() - (-u).log1p() + logits) / BETA
        return (logits.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def expected_count(self) -> Tensor:
        r"""Expected number of open connections, :math:`\sum P(z > 0)`."""
        return (self.log_alpha - BETA * math.log(-GAMMA / ZETA)).sigmoid().sum()


class SNR(Ranker):
    r"""Sub-network routing with learned sparse connections.

    Layers of sub-networks with hard concrete switches :math:`z_{ij}` between them and before the
    towers, see `Connection`. The penalty

    .. math:: \lambda \sum_{ij} \sigma\big(\log\alpha_{ij} - \beta \log(-\gamma / \zeta)\big)

    is the expected number of open connections.

    Args:
        schema: The features.
        tasks: The tasks.
        num_subnets: Sub-networks per layer.
        subnet_dims: Widths of a sub-network's layers, a list per layer of sub-networks.
        connection: ``"trans"`` (SNR-Trans) or ``"aver"`` (SNR-Aver).
        l0_weight: :math:`\lambda`.
        **common: Options of every model, see `Ranker`.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``

    Raises:
        ArgumentError: There is no sub-network.
        UnknownNameError: For an unknown ``connection``.

    Notes:
        Switches start at :math:`\log\alpha = 0`, where the paper is silent. In evaluation they are
        the same for all rows.

    References:
        Ma et al., *SNR: Sub-Network Routing for Flexible Parameter Sharing in Multi-Task Learning*,
        AAAI 2019. https://doi.org/10.1609/aaai.v33i01.3301216

    Example:
        >>> from moeapps.recsys.schema import Categorical
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = SNR(schema, ["click", "like"], num_subnets=3, subnet_dims=[[16], [8]])
        >>> model({"cat": torch.tensor([[1], [2], [3]])}).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        num_subnets: int = 4,
        subnet_dims: Sequence[Sequence[int]] = ((256,), (128,)),
        connection: Literal["trans", "aver"] = "trans",
        l0_weight: float = 1e-4,
        **common: Any,
    ) -> None:
        super().__init__(schema, tasks, **common)
        if connection not in ("trans", "aver"):
            raise UnknownNameError("connection", connection, ("trans", "aver"))
        if num_subnets < 1 or not subnet_dims:
            raise ArgumentError(
                f"num_subnets={num_subnets}, subnet_dims={subnet_dims}. Expected 1 or more of both."
            )
        self.l0_weight = l0_weight
        self.layers, self.connections = nn.ModuleList(), nn.ModuleList()
        width: int = self.schema.flat_width
        for number, dims in enumerate(subnet_dims):
            sets = num_subnets if number == 0 else [1] * num_subnets
            self.layers.append(self.make_bank(sets, width, dims))
            last, width = number == len(subnet_dims) - 1, dims[-1]
            readers = self.task_names if last else ["shared"] * num_subnets
            link = Connection(len(readers), num_subnets, width, connection, readers)
            self.connections.append(link)
        self.towers = self.make_towers(width)

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """What reaches each tower."""
        outputs: list[LevelOutput] = []
        for layer, connection in zip(self.layers, self.connections, strict=True):
            outputs.append(connection(layer(x)))
            x = outputs[-1].mixed
        return x, outputs

    def expert_banks(self) -> list[tuple[str, nn.Module]]:
        """The layers of sub-networks."""
        return [(f"layers.{i}", layer) for i, layer in enumerate(self.layers)]

    def penalty(self, logits: Tensor) -> Tensor | None:
        """Expected number of open connections, weighted."""
        counts = [link.expected_count() for link in self.connections]  # type: ignore[operator]
        return self.l0_weight * torch.stack(counts).sum()
