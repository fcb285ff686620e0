"""STEM-Net: embeddings of every task's own, and gates that learn from others without pulling."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.gating import Routing
from moeapps.recsys.blocks import ExpertBank
from moeapps.recsys.gates import GateBank, Level, LevelOutput, everyone, sees
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import FeatureSchema, Task


class StoppedLevel(Level):
    r"""A level whose gates see all experts but teach only some.

    .. math:: z_n = \sum_{e\ \mathrm{taught}} a_{n,e}\, h_e
        + \sum_{e\ \mathrm{not}} a_{n,e}\, \mathrm{stopgrad}(h_e)

    Args:
        experts: As in `Level`.
        gate: As in `Level`.
        gates: As in `Level`.
        owners: As in `Level`.
        taught: bool ``[N, E]``.

    Shape:
        - as `Level`
    """

    taught: Tensor

    def __init__(
        self,
        experts: ExpertBank,
        gate: GateBank,
        gates: Sequence[str],
        owners: Sequence[str],
        taught: Tensor,
    ) -> None:
        super().__init__(experts, gate, gates, owners)
        self.register_buffer("taught", taught, persistent=False)

    def mix(self, experts: Tensor, routing: Routing) -> LevelOutput:
        """Weighted sum of the experts for every gate."""
        weights = routing.weights.to(experts.dtype)
        mixed = torch.bmm(weights * self.taught, experts)
        mixed = torch.baddbmm(mixed, weights * ~self.taught, experts.detach())
        return LevelOutput(mixed, experts, routing, self.gates, self.owners)


class STEM(Ranker):
    r"""Shared and task-specific embeddings, all forward and task-specific backward.

    Every feature has ``T + 1`` tables: :math:`x_t` of a task, :math:`x_s` shared. Experts of task
    ``t`` read :math:`x_t`, shared ones :math:`x_s`. With :math:`g_t = \mathrm{softmax}
    (\mathrm{MLP}_t(x_t + x_s))` over all experts,

    .. math::
        x_t' = \sum_{e\ \text{of } t \text{ or shared}} g_{t,e}\, h_e
        + \sum_{\text{others}} g_{t,e}\, \mathrm{stopgrad}(h_e)

    Between layers the shared module mixes all experts with :math:`\mathrm{softmax}(\mathrm{MLP}_s
    (x_s))` and no stopped gradient.

    Args:
        schema: The features.
        tasks: The tasks.
        expert_dims: Widths of an expert's layers, a list per layer of the network.
        num_specific: Experts per task.
        num_shared: Shared experts.
        gate: Options of the gates; hidden layers of 128 and 64 by default.
        tower_dims: Widths of each tower's hidden layers.
        **common: Options of every model, see `Ranker`.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``

    Raises:
        ArgumentError: There is no layer or no expert of a kind.

    Notes:
        The tables of a feature lie side by side, so that one lookup reads all of them. Dense
        features are the same in every input.

    References:
        Su et al., *STEM: Unleashing the Power of Embeddings for Multi-task Recommendation*,
        AAAI 2024. https://arxiv.org/abs/2308.13537

    Example:
        >>> from moeapps.recsys.schema import Categorical
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = STEM(schema, ["click", "like"], expert_dims=[[16]], tower_dims=[8])
        >>> model({"cat": torch.tensor([[1], [2], [3]])}).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        expert_dims: Sequence[Sequence[int]] = ((512, 512, 512),),
        num_specific: int = 1,
        num_shared: int = 1,
        gate: Mapping[str, Any] | None = None,
        tower_dims: Sequence[int] = (128, 64),
        **common: Any,
    ) -> None:
        tasks = tuple(tasks)
        gate = {"hidden": (128, 64), **(gate or {})}
        copies = len(tasks) + 1
        super().__init__(schema, tasks, gate=gate, tower_dims=tower_dims, copies=copies, **common)
        if not expert_dims or num_specific < 1 or num_shared < 1:
            raise ArgumentError(
                f"expert_dims={expert_dims}, num_specific={num_specific}, num_shared={num_shared}. "
                "Expected one layer or more and one expert or more of each kind."
            )
        names = self.task_names
        sets = [num_specific] * len(names) + [num_shared]
        units = [*names, "shared"]
        owners = [unit for unit, count in zip(units, sets, strict=True) for _ in range(count)]
        width = self.schema.flat_width
        self.levels = nn.ModuleList()
        for number, dims in enumerate(expert_dims):
            gates = names if number == len(expert_dims) - 1 else units
            taught = [units if gate == "shared" else [gate, "shared"] for gate in gates]
            visible = everyone(len(gates), len(owners))
            self.levels.append(
                StoppedLevel(
                    self.make_bank(sets, width, dims),
                    self.make_gate(width, visible, shared_input=False),
                    gates,
                    owners,
                    sees(taught, owners),
                )
            )
            width = dims[-1]
        self.towers = self.make_towers(width)

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """What each task mixes on the last layer, from inputs ``[B, T + 1, d]``."""
        outputs: list[LevelOutput] = []
        for level in self.levels:
            shared = x[:, -1:]
            seen = x[:, :-1] + shared
            if len(outputs) < len(self.levels) - 1:
                seen = torch.cat([seen, shared], 1)
            outputs.append(level(x, seen))
            x = outputs[-1].mixed
        return x, outputs
