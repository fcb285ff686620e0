"""SharedBottom: one network for all tasks, one tower each."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from moeapps.recsys.gates import LevelOutput
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import FeatureSchema, Task


class SharedBottom(Ranker):
    r"""Hard parameter sharing, the baseline of multi-task ranking.

    .. math:: z = \mathrm{MLP}(v), \qquad \mathrm{logit}_t = \mathrm{tower}_t(z)

    Args:
        schema: The features.
        tasks: The tasks.
        bottom_dims: Widths of the shared network.
        **common: Options of every model, see `Ranker`.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``

    Notes:
        none

    References:
        Caruana, *Multitask Learning*, Machine Learning 28, 1997.

    Example:
        >>> import torch
        >>> from moeapps.recsys.schema import Categorical, FeatureSchema
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = SharedBottom(schema, ["click", "like"], bottom_dims=[16])
        >>> model({"cat": torch.tensor([[1], [2], [3]])}).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        bottom_dims: Sequence[int] = (256, 128),
        **common: Any,
    ) -> None:
        super().__init__(schema, tasks, **common)
        self.bottom = self.make_bank(1, self.schema.flat_width, bottom_dims)
        self.towers = self.make_towers(bottom_dims[-1])

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """The same for every task."""
        return self.bottom(x).squeeze(1), []
