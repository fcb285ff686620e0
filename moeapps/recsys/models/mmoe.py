"""MMoE and OMoE: tasks share experts, with a gate each or with one gate."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from moeapps.recsys.gates import Level, LevelOutput, everyone
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import FeatureSchema, Task


class MMoE(Ranker):
    r"""Multi-gate mixture of experts: each task mixes the same experts with its own gate.

    .. math::
        h_e = f_e(v), \quad a_t = \mathrm{softmax}(W_t v + b_t), \quad
        z_t = \sum_e a_{t,e}\, h_e, \quad \mathrm{logit}_t = \mathrm{tower}_t(z_t)

    Args:
        schema: The features.
        tasks: The tasks.
        num_experts: ``E``.
        expert_dims: Widths of an expert's layers.
        **common: Options of every model, see `Ranker`.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``

    Notes:
        Departures from the paper: gates have a bias (``gate={"bias": False}`` for none).

    References:
        Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate
        Mixture-of-Experts*, KDD 2018. https://doi.org/10.1145/3219819.3220007

    Example:
        >>> import torch
        >>> from moeapps.recsys.schema import Categorical, FeatureSchema
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = MMoE(schema, ["click", "like"], num_experts=3, expert_dims=[16])
        >>> logits, aux = model({"cat": torch.tensor([[1], [2], [3]])}, return_aux=True)
        >>> logits.shape, aux.levels[0].routing.weights.shape
        (torch.Size([3, 2]), torch.Size([3, 2, 3]))
    """

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        num_experts: int = 8,
        expert_dims: Sequence[int] = (256, 128),
        **common: Any,
    ) -> None:
        super().__init__(schema, tasks, **common)
        width, gates = self.schema.flat_width, self.gate_names()
        self.level = Level(
            self.make_bank(num_experts, width, expert_dims),
            self.make_gate(width, everyone(len(gates), num_experts)),
            gates,
            ["shared"] * num_experts,
        )
        self.towers = self.make_towers(expert_dims[-1])

    def gate_names(self) -> list[str]:
        """One gate per task."""
        return self.task_names

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """What each task mixes."""
        level: LevelOutput = self.level(x)
        return level.mixed, [level]


class OMoE(MMoE):
    r"""One-gate mixture of experts: all tasks mix the experts alike.

    .. math:: z = \sum_e a_e(v)\, f_e(v), \qquad \mathrm{logit}_t = \mathrm{tower}_t(z)

    Args:
        schema: The features.
        tasks: The tasks.
        num_experts: ``E``.
        expert_dims: Widths of an expert's layers.
        **common: Options of every model, see `Ranker`.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``

    Notes:
        Departures from the paper: the gate has a bias.

    References:
        Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate
        Mixture-of-Experts*, KDD 2018. https://doi.org/10.1145/3219819.3220007

    Example:
        >>> import torch
        >>> from moeapps.recsys.schema import Categorical, FeatureSchema
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = OMoE(schema, ["click", "like"], num_experts=3, expert_dims=[16])
        >>> model({"cat": torch.tensor([[1], [2], [3]])}).shape
        torch.Size([3, 2])
    """

    def gate_names(self) -> list[str]:
        """One gate for all."""
        return ["shared"]

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """What the gate mixes, for every task."""
        z, levels = super().represent(x)
        return z.squeeze(1), levels
