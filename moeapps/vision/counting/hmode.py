"""HMoDE and its baselines in the same frame: one density head, one gate over all experts."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from moeapps.vision.counting.density_mixture import (
    FlatDensityMixture,
    Groups,
    HierarchicalDensityMixture,
    SingleDensity,
)
from moeapps.vision.counting.network import CountingNetwork

_RELEASED = (1024, 2048, 1024, 512, 256)
_SLIM = (256, 256)


class HMoDE(CountingNetwork):
    """Hierarchical mixture of density experts, by default on VGG16-BN as published.

    Args:
        slim: Second gate of 3x3 convolutions 256, 256 in place of the released 1024, 2048, 1024,
            512, 256, which hold 58 % of all parameters.
        groups: See :class:`~moeapps.vision.counting.density_mixture.HierarchicalDensityMixture`.
        gate_widths: 3x3 convolutions of the first gate.
        second_widths: Those of the second gate; overrides ``slim``.
        attention_widths: Those of the attention, None for none.
        relu_logits: ReLU on the gates' logits, as in the released code.
        **frame: Arguments of :class:`~moeapps.vision.counting.network.CountingNetwork`: backbone,
            strides (an expert each), label_scale, weights, ...

    Shape:
        - images ``[B, 3, H, W]`` with pixels from 0 to 1, of any size; density ``[B, 1, H, W]``

    Notes:
        82.6 million parameters as released. Departures from the released code: no ReLU on logits,
        Kaiming's initialisation and a positive start of the experts (there 93 % of the first
        expert's outputs start at exactly 0), any size of image by padding.

    References:
        Du, Shi, Deng, Zafeiriou, *Redesigning Multi-Scale Neural Network for Crowd Counting*, IEEE
        TIP 2023.

    Example:
        >>> import torch
        >>> model = HMoDE(backbone="plain", strides=(2, 4, 8), slim=True, decoder_width=8).eval()
        >>> density, aux = model(torch.rand(2, 3, 37, 50), return_aux=True)
        >>> density.shape, aux["experts"].shape, aux["attention"].shape
        (torch.Size([2, 1, 37, 50]), torch.Size([2, 3, 19, 25]), torch.Size([2, 1, 5, 7]))
    """

    def __init__(
        self,
        *,
        slim: bool = False,
        groups: Groups = "pairs",
        gate_widths: Sequence[int] = (256,),
        second_widths: Sequence[int] | None = None,
        attention_widths: Sequence[int] | None = (256, 128),
        relu_logits: bool = False,
        strides: Sequence[int] = (4, 8, 16),
        **frame: Any,
    ) -> None:
        mixture = partial(
            HierarchicalDensityMixture,
            groups=groups,
            gate_widths=gate_widths,
            second_widths=second_widths or (_SLIM if slim else _RELEASED),
            attention_widths=attention_widths,
            relu_logits=relu_logits,
        )
        super().__init__(mixture, len(strides), strides=strides, **frame)


class FlatDensityCounter(CountingNetwork):
    """The experts of :class:`HMoDE` under one softmax over all of them.

    Args:
        gate_widths: 3x3 convolutions of the gate.
        strides: An expert each.
        **frame: Arguments of :class:`~moeapps.vision.counting.network.CountingNetwork`.

    Example:
        >>> import torch
        >>> model = FlatDensityCounter(backbone="plain", strides=(2, 4, 8), decoder_width=8)
        >>> model(torch.rand(1, 3, 24, 24)).shape
        torch.Size([1, 1, 24, 24])
    """

    def __init__(
        self,
        *,
        gate_widths: Sequence[int] = (256,),
        strides: Sequence[int] = (4, 8, 16),
        **frame: Any,
    ) -> None:
        mixture = partial(FlatDensityMixture, gate_widths=gate_widths)
        super().__init__(mixture, len(strides), strides=strides, **frame)


class SingleDensityCounter(CountingNetwork):
    """The encoder and decoder of :class:`HMoDE` with one density head, on the finest map.

    Args:
        **frame: Arguments of :class:`~moeapps.vision.counting.network.CountingNetwork`.

    Example:
        >>> import torch
        >>> model = SingleDensityCounter(backbone="plain", strides=(2, 4, 8), decoder_width=8)
        >>> model(torch.rand(1, 3, 24, 24)).shape
        torch.Size([1, 1, 24, 24])
    """

    def __init__(self, **frame: Any) -> None:
        super().__init__(_alone, 1, **frame)


def _alone(num_experts: int, in_channels: int) -> SingleDensity:
    return SingleDensity()
