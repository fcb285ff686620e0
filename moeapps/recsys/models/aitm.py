"""AITM: what a step of a conversion path learned goes on to the next."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.gating import StackedLinear
from moeapps.recsys.gates import LevelOutput
from moeapps.recsys.ranker import Aux, Ranker
from moeapps.recsys.schema import FeatureSchema, Task


class AITM(Ranker):
    r"""Adaptive information transfer along ordered tasks, such as click then buy.

    .. math::
        q_t = \mathrm{MLP}_t(v), \quad z_1 = q_1, \quad
        p_{t-1} = \mathrm{ReLU}(G_t z_{t-1} + c_t)

    and attention over the pair :math:`u \in \{q_t, p_{t-1}\}`:

    .. math::
        w_u = \mathrm{softmax}_u\big(\langle h_1(u), h_2(u) \rangle / \sqrt k\big), \qquad
        z_t = \sum_u w_u\, h_3(u)

    with linear :math:`h_1, h_2, h_3` without bias. A penalty keeps later steps from being likelier
    than earlier ones: :math:`\alpha\, \mathrm{mean}_i \sum_{t \ge 2} \max(\hat y_t - \hat y_{t-1},
    0)`.

    Args:
        schema: The features.
        tasks: Binary tasks in the order of the path.
        expert_dims: Widths of each task's network.
        share_attention: One triple of :math:`h` for all transfers, as in the authors' code, or one
            for each.
        calibrator: :math:`\alpha`.
        tower_dims: Widths of each tower's hidden layers; none for a linear map.
        **common: Options of every model, see `Ranker`.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``; ``aux.extra["transfer"]`` ``[B, T - 1]``: how
          much of :math:`z_t` comes from the step before

    Raises:
        ArgumentError: A task is not binary.

    Notes:
        Departures from the authors' code: one rate of dropout for all layers.

    References:
        Xi et al., *Modeling the Sequential Dependence among Audience Multi-step Conversions with
        Multi-task Learning in Targeted Display Advertising*, KDD 2021.
        https://arxiv.org/abs/2105.08489

    Example:
        >>> from moeapps.recsys.schema import Categorical
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = AITM(schema, ["click", "buy"], expert_dims=[16, 8])
        >>> model({"cat": torch.tensor([[1], [2], [3]])}).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        expert_dims: Sequence[int] = (128, 64, 32),
        share_attention: bool = True,
        calibrator: float = 0.6,
        tower_dims: Sequence[int] = (),
        **common: Any,
    ) -> None:
        super().__init__(schema, tasks, tower_dims=tower_dims, **common)
        wrong = [task.name for task in self.tasks if task.type != "binary"]
        if wrong:
            raise ArgumentError(f"AITM orders binary tasks, but {wrong} are not. Leave them out.")
        k, transfers = expert_dims[-1], len(self.tasks) - 1
        self.calibrator = calibrator
        self.bank = self.make_bank(len(self.tasks), self.schema.flat_width, expert_dims)
        self.transfer = self.attention = None
        if transfers:
            self.transfer = StackedLinear(transfers, k, k)
            # h1, h2 and h3 on top of one another: one product.
            self.attention = StackedLinear(
                1 if share_attention else transfers, k, 3 * k, bias=False
            )
        self.towers = self.make_towers(k)

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """The representation of every step."""
        return self._walk(x)[0], []

    def score(self, x: Tensor) -> tuple[Tensor, Aux]:
        """Logits, and how much each step took from the one before."""
        z, transfer = self._walk(x)
        return self.towers(z), Aux(x, z, extra={"transfer": transfer})

    def _walk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.bank(x).unbind(1)
        steps, shares = [queries[0]], [x.new_zeros(x.shape[0], 0)]
        if self.transfer is not None and self.attention is not None:
            gates = self.transfer.functions()
            heads = self.attention.functions()
            if len(heads) < len(gates):
                heads = [*heads] * len(gates)
            for q, gate, head in zip(queries[1:], gates, heads, strict=True):
                pair = torch.stack([q, gate(steps[-1]).relu()], 1)  # [B, 2, k]
                h1, h2, h3 = head(pair).chunk(3, -1)
                weights = ((h1 * h2).sum(-1) / math.sqrt(q.shape[1])).softmax(-1)
                steps.append((weights.unsqueeze(2) * h3).sum(1))
                shares.append(weights[:, 1:])
        return torch.stack(steps, 1), torch.cat(shares, 1)

    def penalty(self, logits: Tensor) -> Tensor | None:
        """The calibrator."""
        probability = logits.sigmoid()
        above = (probability[:, 1:] - probability[:, :-1]).relu()
        return self.calibrator * above.sum(1).mean()
