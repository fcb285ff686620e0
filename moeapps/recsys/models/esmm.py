"""ESMM: click and conversion over all impressions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.recsys.gates import LevelOutput
from moeapps.recsys.ranker import Aux, Ranker
from moeapps.recsys.schema import FeatureSchema, Task


class ESMM(Ranker):
    r"""Entire space multi-task model.

    Two towers on shared embeddings give the logits :math:`a` of the click rate and :math:`b` of the
    conversion rate after a click:

    .. math::
        p_{CTR} = \sigma(a), \quad p_{CVR} = \sigma(b), \quad p_{CTCVR} = p_{CTR}\, p_{CVR}

    The tasks are click and click-and-conversion, both over all impressions; the conversion rate
    gets no loss of its own. The logit of the product is exact:

    .. math:: \mathrm{logit}(\sigma(a)\,\sigma(b)) = -\log(e^{-a} + e^{-b} + e^{-a-b})

    Args:
        schema: The features.
        tasks: Click, then click-and-conversion.
        tower_dims: Widths of each tower's hidden layers.
        **common: Options of every model, see `Ranker`.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, 2]`` of :math:`p_{CTR}` and :math:`p_{CTCVR}`;
          ``aux.extra`` holds the probabilities ``ctr``, ``cvr`` and ``ctcvr``, ``[B]`` each

    Raises:
        ArgumentError: There are not two binary tasks, or the second has a sample mask.

    Notes:
        none

    References:
        Ma et al., *Entire Space Multi-Task Model: An Effective Approach for Estimating
        Post-Click Conversion Rate*, SIGIR 2018. https://arxiv.org/abs/1804.07931

    Example:
        >>> from moeapps.recsys.schema import Categorical
        >>> model = ESMM(FeatureSchema([Categorical("user", 9, 4)]), ["click", "buy"])
        >>> _, aux = model({"cat": torch.tensor([[1], [2], [3]])}, return_aux=True)
        >>> bool(torch.allclose(aux.extra["ctcvr"], aux.extra["ctr"] * aux.extra["cvr"]))
        True
    """

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        tower_dims: Sequence[int] = (256, 128),
        **common: Any,
    ) -> None:
        super().__init__(schema, tasks, tower_dims=tower_dims, **common)
        kinds = [(task.type, task.sample_mask) for task in self.tasks]
        if len(kinds) != 2 or kinds[1] != ("binary", None) or kinds[0][0] != "binary":
            raise ArgumentError(
                f"ESMM got the tasks {self.task_names}. Expected two binary ones: click, then "
                "click-and-conversion with labels for every impression and no sample mask."
            )
        self.towers = self.make_towers(self.schema.flat_width)

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """The flat input, which both towers read."""
        return x, []

    def score(self, x: Tensor) -> tuple[Tensor, Aux]:
        """Logits of click and of click-and-conversion."""
        ab, aux = super().score(x)
        a, b = ab.unbind(1)
        both = -torch.stack([-a, -b, -a - b], 1).logsumexp(1)
        aux.extra = {"ctr": a.sigmoid(), "cvr": b.sigmoid(), "ctcvr": both.sigmoid()}
        return torch.stack([a, both], 1), aux
