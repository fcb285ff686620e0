"""Mixing the density maps of several experts, pixel by pixel: in two levels, in one, not at all."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps import gating
from moeapps.errors import ArgumentError
from moeapps.gating import Gate, Routing, report_routing

Groups = Literal["pairs"] | Sequence[Sequence[int]]


class HierarchicalDensityMixture(nn.Module):
    r"""Experts mix inside overlapping groups, and the groups mix.

    .. math::
        \mathrm{Gr}_g = \sum_{k \in g} w_{gk} E_k, \qquad E_{out} = \sum_g v_g \mathrm{Gr}_g

    with :math:`w_g = \mathrm{softmax}` of the first gate on the features F and :math:`v` that of
    the second on :math:`F' = A \odot F`, where the attention A is trained to find where anything
    is. Experts of one group compete; an expert in several groups works with all the others.

    Args:
        num_experts: ``K``, at least 2.
        in_channels: ``C`` of the features the gates read.
        groups: ``"pairs"`` for all ``K (K - 1) / 2`` of them, or the experts of each group.
        gate_widths: 3x3 convolutions of the first gate before its 1x1.
        second_widths: The same of the second gate.
        attention_widths: The same of the attention; None for none (``F' = F``).
        relu_logits: ReLU on the logits before the softmax, as in the released code.

    Shape:
        - maps ``[B, K, h, w]``, features ``[B, C, h', w']`` with h and w multiples of h' and w'
        - the result is a dict: experts ``[B, K, h, w]`` (the maps), groups ``[B, G, h, w]``, output
          ``[B, 1, h, w]``, gates (a :class:`~moeapps.gating.Routing` of ``[B, h', w', G, K]`` and,
          for more than one group, one of ``[B, h', w', G]``), weights ``[B, K, h', w']`` (of each
          expert in the output), attention ``[B, 1, h', w']`` or None, importance (a scalar)

    Raises:
        ArgumentError: Fewer than two experts, or groups that name others or leave some out.

    Notes:
        Importance is the sum over the groups of the squared coefficient of variation of their
        experts' summed weights. The weights of a cell of the features hold for all its pixels.
        Departures from the released code: no ReLU on the logits, Kaiming's initialisation.

    References:
        Du, Shi, Deng, Zafeiriou, *Redesigning Multi-Scale Neural Network for Crowd Counting*, IEEE
        TIP 2023.

    Example:
        >>> head = HierarchicalDensityMixture(3, 8, gate_widths=[16], second_widths=[16])
        >>> aux = head(torch.rand(2, 3, 24, 24), torch.rand(2, 8, 6, 6))
        >>> aux["output"].shape, aux["groups"].shape, aux["attention"].shape
        (torch.Size([2, 1, 24, 24]), torch.Size([2, 3, 24, 24]), torch.Size([2, 1, 6, 6]))
    """

    members: Tensor

    def __init__(
        self,
        num_experts: int,
        in_channels: int,
        *,
        groups: Groups = "pairs",
        gate_widths: Sequence[int] = (256,),
        second_widths: Sequence[int] = (1024, 2048, 1024, 512, 256),
        attention_widths: Sequence[int] | None = (256, 128),
        relu_logits: bool = False,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.groups = _check_groups(num_experts, groups)
        mask = torch.zeros(len(self.groups), num_experts, dtype=torch.bool)
        for row, members in zip(mask, self.groups, strict=True):
            row[list(members)] = True
        first = _GroupScore(in_channels, gate_widths, self.groups, num_experts, relu_logits)
        self.first = Gate(first, gating.softmax, mask=mask)
        self.register_buffer("members", mask, persistent=False)
        self.attention = self.second = None
        if len(self.groups) > 1:
            second = ConvScore(in_channels, second_widths, len(self.groups), relu_logits)
            self.second = Gate(second, gating.softmax)
            if attention_widths is not None:
                self.attention = ConvScore(in_channels, attention_widths, 1)

    def forward(self, maps: Tensor, features: Tensor) -> dict[str, Any]:
        """Mix the maps."""
        maps = _at_least_float32(maps)
        inside = self.first(features)
        report_routing(self.first, inside)
        groups = (_spread(inside.weights, maps) * maps.unsqueeze(1)).sum(2)
        gates, attention = [inside], None
        output, weights = groups, inside.weights[..., 0, :]
        if self.second is not None:
            if self.attention is not None:
                logits = self.attention(features).movedim(-1, 1)
                attention = _at_least_float32(logits).sigmoid()
                features = features * attention
            among = self.second(features)
            report_routing(self.second, among)
            output = (_spread(among.weights, maps) * groups).sum(1, keepdim=True)
            weights = (among.weights.unsqueeze(-1) * inside.weights).sum(-2)
            gates.append(among)
        return {
            "experts": maps,
            "groups": groups,
            "output": output,
            "gates": gates,
            "weights": weights.movedim(-1, 1),
            "attention": attention,
            "importance": group_importance(inside.weights, self.members),
        }


class FlatDensityMixture(nn.Module):
    r"""One softmax over all experts: :math:`E_{out} = \sum_k w_k E_k`.

    Args:
        num_experts: ``K``, at least 2.
        in_channels: ``C`` of the features the gate reads.
        gate_widths: 3x3 convolutions of the gate before its 1x1.

    Shape:
        - As in :class:`HierarchicalDensityMixture`, without groups (``G = 0``) and attention

    Example:
        >>> aux = FlatDensityMixture(3, 8)(torch.rand(2, 3, 24, 24), torch.rand(2, 8, 6, 6))
        >>> aux["output"].shape, aux["weights"].sum(1).allclose(torch.ones(2, 6, 6))
        (torch.Size([2, 1, 24, 24]), True)
    """

    def __init__(
        self, num_experts: int, in_channels: int, *, gate_widths: Sequence[int] = (256,)
    ) -> None:
        super().__init__()
        _check_groups(num_experts, "pairs")
        self.num_experts = num_experts
        self.gate = Gate(ConvScore(in_channels, gate_widths, num_experts), gating.softmax)

    def forward(self, maps: Tensor, features: Tensor) -> dict[str, Any]:
        """Mix the maps."""
        maps = _at_least_float32(maps)
        routing = self.gate(features)
        report_routing(self.gate, routing)
        output = (_spread(routing.weights, maps) * maps).sum(1, keepdim=True)
        everyone = torch.ones(1, self.num_experts, dtype=torch.bool, device=maps.device)
        importance = group_importance(routing.weights.unsqueeze(-2), everyone)
        weights = routing.weights.movedim(-1, 1)
        return _without_groups(maps, output, [routing], weights, importance)


class SingleDensity(nn.Module):
    """One expert and nothing to mix: the baseline of the mixtures in the same frame.

    Example:
        >>> maps = torch.rand(2, 1, 24, 24)
        >>> bool((SingleDensity()(maps, torch.rand(2, 8, 6, 6))["output"] == maps).all())
        True
    """

    num_experts = 1

    def forward(self, maps: Tensor, features: Tensor) -> dict[str, Any]:
        """The map itself."""
        maps = _at_least_float32(maps)
        ones = torch.ones_like(features[:, :1], dtype=maps.dtype)
        return _without_groups(maps, maps, [], ones, maps.new_zeros(()))


class ConvScore(nn.Module):
    """3x3 convolutions with ReLU, then 1x1 to the logits, which stand on the last axis.

    Args:
        in_channels: ``C``.
        widths: Of the 3x3 convolutions.
        num_logits: ``L``.
        relu: ReLU on the logits.

    Shape:
        - x ``[B, C, h, w]`` -> ``[B, h, w, L]``
    """

    channels_first = True

    def __init__(
        self, in_channels: int, widths: Sequence[int], num_logits: int, relu: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width in itertools.pairwise((in_channels, *widths)):
            conv = nn.Conv2d(inputs, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            layers += [conv, nn.ReLU(inplace=True)]
        last = nn.Conv2d((in_channels, *widths)[-1], num_logits, 1)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(*layers, last)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every pixel."""
        logits = self.layers(x).movedim(1, -1)
        return logits.relu() if self.relu else logits


class _GroupScore(ConvScore):
    """Logits of the members of every group, ``[B, h, w, G, K]``; 0 for who is no member."""

    places: Tensor

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        groups: Sequence[Sequence[int]],
        num_experts: int,
        relu: bool,
    ) -> None:
        places = [g * num_experts + k for g, members in enumerate(groups) for k in members]
        super().__init__(in_channels, widths, len(places), relu)
        self.shape = (len(groups), num_experts)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        everyone = logits.new_zeros(*logits.shape[:-1], self.shape[0] * self.shape[1])
        return everyone.index_copy(-1, self.places, logits).unflatten(-1, self.shape)


def group_importance(weights: Tensor, members: Tensor) -> Tensor:
    r"""How unevenly the experts of each group are used, summed over the groups.

    .. math:: \sum_g \frac{\mathrm{var}(v_g)}{\mathrm{mean}(v_g)^2 + 10^{-10}}, \qquad
        v_{gk} = \sum_{b, y, x} w_{gk}

    Args:
        weights: ``[B, h, w, G, K]``.
        members: bool ``[G, K]``, which experts a group has.

    Notes:
        The variance is the unbiased one, as released; :func:`moeapps.gating.losses.importance`
        takes the population's.

    Example:
        >>> group_importance(torch.tensor([[[[[3.0, 1.0]]]]]), torch.tensor([[True, True]]))
        tensor(0.5000)
    """
    used, count = weights.sum((0, 1, 2)), members.sum(-1)
    mean = used.sum(-1) / count
    squares = torch.where(members, used - mean.unsqueeze(-1), 0).square()
    return (squares.sum(-1) / (count - 1) / (mean.square() + 1e-10)).sum()


def _spread(weights: Tensor, maps: Tensor) -> Tensor:
    """Weights ``[B, h', w', *W]`` of cells at the pixels of the maps, ``[B, *W, h, w]``."""
    axes = weights.shape[3:]
    flat = weights.flatten(3).movedim(-1, 1)
    return F.interpolate(flat, size=maps.shape[-2:], mode="nearest").unflatten(1, axes)


def _without_groups(
    maps: Tensor, output: Tensor, gates: list[Routing], weights: Tensor, importance: Tensor
) -> dict[str, Any]:
    return {
        "experts": maps,
        "groups": maps[:, :0],
        "output": output,
        "gates": gates,
        "weights": weights,
        "attention": None,
        "importance": importance,
    }


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_groups(num_experts: int, groups: Groups) -> list[tuple[int, ...]]:
    if num_experts < 2:
        raise ArgumentError(
            f"num_experts={num_experts} leaves nothing to mix; expected 2 or more. Use the single "
            "density head for one expert."
        )
    if groups == "pairs":
        return list(itertools.combinations(range(num_experts), 2))
    found = [tuple(group) for group in groups]
    named = set(itertools.chain(*found))
    if named != set(range(num_experts)) or any(len(set(g)) != len(g) or len(g) < 2 for g in found):
        raise ArgumentError(
            f"groups={found} do not divide {num_experts} experts; expected at least two different "
            f"experts from 0 to {num_experts - 1} per group, and every expert in some group. Use "
            "groups='pairs'."
        )
    return found
