"""PEPNet: embeddings scaled by the domain, tower units scaled by the person."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.recsys.gates import LevelOutput
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import FeatureSchema, Task


class GateNU(nn.Module):
    r"""Gate neural unit: a factor between 0 and 2 for every number it scales.

    .. math:: \mathrm{GateNU}(x) = 2\,\sigma\big(W_2\,\mathrm{ReLU}(W_1 x + b_1) + b_2\big)

    Args:
        in_features: Width of what it reads.
        out_features: How many numbers it scales.
        hidden: Width of the hidden layer.

    Shape:
        - ``[B, in_features] -> [B, out_features]``

    Example:
        >>> GateNU(4, 6, 8)(torch.zeros(2, 4)).shape
        torch.Size([2, 6])
    """

    def __init__(self, in_features: int, out_features: int, hidden: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(in_features, hidden), nn.Linear(hidden, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """The factors."""
        return 2 * self.out(self.hidden(x).relu()).sigmoid()


class PEPNet(Ranker):
    r"""Parameter and embedding personalised network.

    EPNet scales the flat input by the domain, PPNet every layer of every tower by the person:

    .. math::
        v' &= v \odot \mathrm{GateNU}(\mathrm{domain} \,\|\, \mathrm{stopgrad}(v)) \\
        h_{t,l} &= \mathrm{ReLU}(W_{t,l} h_{t,l-1} + b_{t,l}) \odot
        \mathrm{GateNU}_{t,l}(\mathrm{person} \,\|\, \mathrm{stopgrad}(v'))

    with :math:`h_{t,0} = v'`; domain and person are embeddings of some features.

    Args:
        schema: The features.
        tasks: The tasks.
        domain: Features that tell the domain, such as the tab.
        person: Features that tell who and what: user, item, author.
        expert_dims: Widths of the tower layers that PPNet scales.
        gate_hidden: Width of each gate's hidden layer.
        **common: Options of every model, see `Ranker`; ``tower_dims`` is not used, since the towers
            are ``expert_dims`` and a linear map.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]``

    Raises:
        ArgumentError: No domain or no personal feature is named, or there is no layer.
        UnknownNameError: A named feature does not exist.

    Notes:
        The gates of one layer for all tasks are one network with a common hidden layer.

    References:
        Chang et al., *PEPNet: Parameter and Embedding Personalized Network for Infusing with
        Personalized Prior Information*, KDD 2023. https://arxiv.org/abs/2302.01115

    Example:
        >>> from moeapps.recsys.schema import Categorical
        >>> schema = FeatureSchema([Categorical("user", 9, 4), Categorical("tab", 5, 4)])
        >>> model = PEPNet(schema, ["click"], domain=["tab"], person=["user"], expert_dims=[16, 8])
        >>> model({"cat": torch.tensor([[1, 1], [2, 1], [3, 4]])}).shape
        torch.Size([3, 1])
    """

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        domain: Sequence[str],
        person: Sequence[str],
        expert_dims: Sequence[int] = (256, 128),
        gate_hidden: int = 64,
        **common: Any,
    ) -> None:
        super().__init__(schema, tasks, **{**common, "tower_dims": ()})
        if not domain or not person or not expert_dims:
            raise ArgumentError(
                f"domain={domain}, person={person}, expert_dims={expert_dims}. Expected at least "
                "one feature for each and at least one layer."
            )
        self.domain = [self.schema.flat_slice(name) for name in domain]
        self.person = [self.schema.flat_slice(name) for name in person]
        width, num_tasks = self.schema.flat_width, len(self.tasks)
        personal = width + sum(part.stop - part.start for part in self.person)
        of_domain = width + sum(part.stop - part.start for part in self.domain)
        self.scale_inputs = GateNU(of_domain, width, gate_hidden)
        self.layers, self.scales = nn.ModuleList(), nn.ModuleList()
        for dim in expert_dims:
            self.layers.append(self.make_bank([1] * num_tasks, width, [dim]))
            self.scales.append(GateNU(personal, num_tasks * dim, gate_hidden))
            width = dim
        self.towers = self.make_towers(width)

    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """The last personalised layer of every task."""
        domain = [x[:, part] for part in self.domain]
        scaled = x * self.scale_inputs(torch.cat([*domain, x.detach()], 1))
        person = [x[:, part] for part in self.person]
        seen = torch.cat([*person, scaled.detach()], 1)
        h = scaled
        for layer, scale in zip(self.layers, self.scales, strict=True):
            h = layer(h)
            h = h * scale(seen).view_as(h)
        return h, []
