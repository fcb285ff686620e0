"""AdaTT: every task fuses all experts and keeps its own by a residual."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.recsys.gates import Level, LevelOutput, everyone, sees
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import FeatureSchema, Task


class NativeWeights(nn.Module):
    r"""Free weights of every gate for the experts of its own unit, the same for all rows.

    Args:
        own: bool ``[N, E]``.

    Shape:
        - anything ``-> [N, E]``, 0 for other experts

    Notes:
        A unit with one expert has the fixed weight 1, with ``m`` it starts at
        :math:`U(-1/\sqrt m, 1/\sqrt m)`.

    Example:
        >>> own = torch.tensor([[True, False, False], [False, True, True]])
        >>> (NativeWeights(own)(None) == 0).tolist()
        [[False, True, True], [True, False, False]]
    """

    fixed: Tensor
    places: Tensor

    def __init__(self, own: Tensor) -> None:
        super().__init__()
        count = own.sum(1, keepdim=True)
        several = own & (count > 1)
        bound = count.rsqrt().expand_as(own)[several]
        free = nn.Parameter((2 * torch.rand(len(bound)) - 1) * bound)
        self.free = free if len(free) else None
        self.register_buffer("fixed", (own & (count == 1)).float(), persistent=False)
        self.register_buffer("places", several.flatten().nonzero().squeeze(1), persistent=False)

    def forward(self, x: Any) -> Tensor:
        """The weights."""
        if self.free is None:
            return self.fixed
        return self.fixed.flatten().scatter(0, self.places, self.free).view_as(self.fixed)


class AdaTT(Ranker):
    r"""Adaptive task-to-task fusion network.

    Units are the tasks, and in the general form a shared one. Every unit :math:`u` owns native
    experts that read its own :math:`x_u`, with :math:`x_u^0 = v`:

    .. math::
        x_u^l = \mathrm{softmax}(W_u x_u^{l-1} + b_u) \cdot H_{all}
        + \sum_{e \in \mathrm{native}(u)} w_{u,e}\, h_e

    On the last layer only tasks have a gate; :math:`\mathrm{logit}_t = \mathrm{tower}_t(x_t^L)`.

    Args:
        schema: The features.
        tasks: The tasks.
        expert_dims: Widths of an expert's layers, a list per fusion layer.
        num_native: Native experts per task.
        num_shared: Experts of the shared unit; 0 for the form without one, AdaTT-sp.
        **common: Options of every model, see `Ranker`.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``

    Raises:
        ArgumentError: There is no layer or no native expert.

    Notes:
        none

    References:
        Li et al., *AdaTT: Adaptive Task-to-Task Fusion Network for Multitask Learning in
        Recommendations*, KDD 2023. https://arxiv.org/abs/2304.04959

    Example:
        >>> from moeapps.recsys.schema import Categorical
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = AdaTT(schema, ["click", "like"], expert_dims=[[16], [8]])
        >>> model({"cat": torch.tensor([[1], [2], [3]])}).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        expert_dims: Sequence[Sequence[int]] = ((256, 128), (128,)),
        num_native: int = 1,
        num_shared: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(schema, tasks, **common)
        if not expert_dims or num_native < 1 or num_shared < 0:
            raise ArgumentError(
                f"expert_dims={expert_dims}, num_native={num_native}, num_shared={num_shared}. "
                "Expected one layer or more, one native expert or more, and 0 or more shared ones."
            )
        names = self.task_names
        units = names if num_shared == 0 else [*names, "shared"]
        sets = [num_native] * len(names) + [num_shared] * (num_shared > 0)
        owners = [unit for unit, count in zip(units, sets, strict=True) for _ in range(count)]
        width = self.schema.flat_width
        self.levels = nn.ModuleList()
        for number, dims in enumerate(expert_dims):
            gates = names if number == len(expert_dims) - 1 else units
            first = number == 0  # everything reads v
            visible = everyone(len(gates), len(owners))
            self.levels.append(
                Level(
                    self.make_bank(len(owners) if first else sets, width, dims),
                    self.make_gate(width, visible, shared_input=first),
                    gates,
                    owners,
                    NativeWeights(sees([[gate] for gate in gates], owners)),
                )
            )
            width = dims[-1]
        self.towers = self.make_towers(width)

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """What each task fuses on the last layer."""
        outputs = [self.levels[0](x)]
        for level in self.levels[1:]:
            x = outputs[-1].mixed
            last = len(outputs) == len(self.levels) - 1
            outputs.append(level(x, x[:, : len(self.tasks)] if last else x))
        return outputs[-1].mixed, outputs
