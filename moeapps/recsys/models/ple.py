"""PLE and CGC: experts of one task and shared ones, in levels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.recsys.gates import Level, LevelOutput, sees
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import FeatureSchema, Task


class PLE(Ranker):
    r"""Progressive layered extraction: task-specific and shared experts, level by level.

    With :math:`x_t^0 = x_s^0 = v`, every level has :math:`m_t` experts per task reading
    :math:`x_t^{l-1}` and :math:`m_s` shared ones reading :math:`x_s^{l-1}`:

    .. math::
        x_t^l &= \mathrm{softmax}(W_t x_t^{l-1} + b_t) \cdot [\text{own} \,\|\, \text{shared}] \\
        x_s^l &= \mathrm{softmax}(W_s x_s^{l-1} + b_s) \cdot [\text{all}]

    The last level has no shared gate; :math:`\mathrm{logit}_t = \mathrm{tower}_t(x_t^L)`.

    Args:
        schema: The features.
        tasks: The tasks.
        expert_dims: Widths of an expert's layers, a list per level.
        num_specific: ``m_t``, experts per task.
        num_shared: ``m_s``, shared experts.
        **common: Options of every model, see `Ranker`.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``

    Raises:
        ArgumentError: There is no level, or no expert that a gate could see.

    Notes:
        Departures from the paper: gates have a bias. The paper's loss, task weights that decay
        geometrically, is the ``static`` strategy of :mod:`moeapps.training.balancing`.

    References:
        Tang et al., *Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
        Personalized Recommendations*, RecSys 2020. https://doi.org/10.1145/3383313.3412236

    Example:
        >>> import torch
        >>> from moeapps.recsys.schema import Categorical, FeatureSchema
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = PLE(schema, ["click", "like"], expert_dims=[[16], [8]])
        >>> logits, aux = model({"cat": torch.tensor([[1], [2], [3]])}, return_aux=True)
        >>> [level.owners for level in aux.levels]
        [('click', 'like', 'shared', 'shared'), ('click', 'like', 'shared', 'shared')]
    """

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        expert_dims: Sequence[Sequence[int]] = ((256, 128), (128,)),
        num_specific: int = 1,
        num_shared: int = 2,
        **common: Any,
    ) -> None:
        super().__init__(schema, tasks, **common)
        if not expert_dims or num_specific < 1 or num_shared < 1:
            raise ArgumentError(
                f"expert_dims={expert_dims}, num_specific={num_specific}, num_shared={num_shared} "
                "make no levels. Expected one level or more and one expert or more of each kind; "
                "MMoE has shared experts only."
            )
        names = self.task_names
        sets = [num_specific] * len(names) + [num_shared]
        owners = [name for name in names for _ in range(num_specific)] + ["shared"] * num_shared
        width, last = self.schema.flat_width, len(expert_dims) - 1
        self.levels = nn.ModuleList()
        for number, dims in enumerate(expert_dims):
            gates = names if number == last else [*names, "shared"]
            visible = [owners if gate == "shared" else [gate, "shared"] for gate in gates]
            first = number == 0  # everything reads v
            self.levels.append(
                Level(
                    self.make_bank(len(owners) if first else sets, width, dims),
                    self.make_gate(width, sees(visible, owners), shared_input=first),
                    gates,
                    owners,
                )
            )
            width = dims[-1]
        self.towers = self.make_towers(width)

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """What each task mixes on the last level."""
        outputs = [self.levels[0](x)]
        for level in self.levels[1:]:
            x = outputs[-1].mixed
            last = len(outputs) == len(self.levels) - 1
            outputs.append(level(x, x[:, : len(self.tasks)] if last else x))
        return outputs[-1].mixed, outputs


class CGC(PLE):
    r"""Customised gate control: PLE with one level.

    .. math:: z_t = \mathrm{softmax}(W_t v + b_t) \cdot [\text{own} \,\|\, \text{shared}]

    Args:
        schema: The features.
        tasks: The tasks.
        expert_dims: Widths of an expert's layers.
        num_specific: ``m_t``, experts per task.
        num_shared: ``m_s``, shared experts.
        **common: Options of every model, see `Ranker`.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``

    Notes:
        Departures from the paper: gates have a bias.

    References:
        Tang et al., *Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
        Personalized Recommendations*, RecSys 2020. https://doi.org/10.1145/3383313.3412236

    Example:
        >>> import torch
        >>> from moeapps.recsys.schema import Categorical, FeatureSchema
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = CGC(schema, ["click", "like"], expert_dims=[16])
        >>> model({"cat": torch.tensor([[1], [2], [3]])}).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        expert_dims: Sequence[int] = (256, 128),
        num_specific: int = 1,
        num_shared: int = 2,
        **common: Any,
    ) -> None:
        super().__init__(
            schema,
            tasks,
            expert_dims=[expert_dims],
            num_specific=num_specific,
            num_shared=num_shared,
            **common,
        )
