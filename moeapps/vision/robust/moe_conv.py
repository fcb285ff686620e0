"""A convolution with several experts, one of which serves each image, and the ways to route it."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating import Gate, PooledLinear, Routing, StackedConv2d, hard, report_routing

RouteName = Literal["hard", "detached", "soft"]
Route = RouteName | int | Tensor
"""How the decision of a router is used; see `follow`."""


def choose(
    logits: Tensor,
    *,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Routing:
    r"""One expert per image, by score: weight :math:`1 + s_e - \mathrm{stopgrad}(s_e)`."""
    return hard(logits, score="identity", bias=bias, valid=valid)


choose.ranks = True  # type: ignore[attr-defined]


def follow(routing: Routing, route: Route) -> Routing:
    """The routing that ``route`` makes of a router's decision.

    Args:
        routing: What the router decided, one expert per image.
        route: ``"hard"``: the chosen expert, whose score gets a gradient straight through.
            ``"detached"``: the same without that gradient. ``"soft"``: all experts, weighted by the
            softmax of the scores. A number: that expert for every image. A tensor ``[B]``: an
            expert for each image.

    Raises:
        UnknownNameError: There is no such way.
        ArgumentError: There is no such expert.

    Example:
        >>> follow(choose(torch.tensor([[0.0, 3.0]])), "hard").indices.tolist()
        [[1]]
        >>> follow(choose(torch.tensor([[0.0, 0.0]])), "soft").weights.tolist()
        [[0.5, 0.5]]
        >>> follow(choose(torch.tensor([[0.0, 3.0]])), 0).indices.tolist()
        [[0]]
    """
    if isinstance(route, str):
        if route == "hard":
            return routing
        if route == "detached":
            return dataclasses.replace(routing, weights=routing.weights.detach())
        if route == "soft":
            assert routing.logits is not None
            p = routing.logits.softmax(-1)
            return Routing(p, routing.num_experts, logits=routing.logits, probs=p)
        raise UnknownNameError("route", route, ("hard", "detached", "soft"))
    return forced(route, len(routing.weights), routing.num_experts, routing.weights.device)


def forced(expert: int | Tensor, rows: int, num_experts: int, device: torch.device) -> Routing:
    """The routing that gives every image the expert it is told."""
    if isinstance(expert, int) and not 0 <= expert < num_experts:
        raise ArgumentError(f"expert {expert} of {num_experts}. Choose 0 to {num_experts - 1}.")
    ids = torch.as_tensor(expert, device=device).expand(rows).unsqueeze(1).contiguous()
    weights = torch.ones(rows, 1, device=device)
    return Routing(weights, num_experts, ids, layout="token")


class MoEConv2d(nn.Module):
    r"""A convolution per expert, of which each image passes one.

    .. math:: y = (W_{e^*} * x)\,(1 + s_{e^*} - \mathrm{stopgrad}(s_{e^*})), \quad
        e^* = \arg\max_e s_e

    Only the chosen expert is computed: images are sorted by expert. The published code computes all
    experts and masks them; outputs and gradients are equal.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of one expert's output.
        kernel_size: Side of the kernel.
        num_experts: ``N``.
        stride: As in ``nn.Conv2d``.
        own_gate: The layer decides by itself, from the means of its input's channels; otherwise it
            is told.

    Shape:
        - ``x [B, C, H, W] -> [B, out_channels, H', W']``

    Notes:
        Departures from the paper: a layer's own gate is our reading of its text; the released code
        has one router for the whole network.

    References:
        Zhang et al., *Robust Mixture-of-Expert Training for Convolutional Neural Networks*,
        ICCV 2023.

    Example:
        >>> conv = MoEConv2d(3, 8, num_experts=2)
        >>> routing = choose(torch.tensor([[0.2, 0.1], [0.0, 1.0]]))
        >>> conv(torch.rand(2, 3, 5, 5), routing).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        num_experts: int,
        stride: int = 1,
        own_gate: bool = False,
    ) -> None:
        super().__init__()
        self.experts = StackedConv2d(
            num_experts, in_channels, out_channels, kernel_size, stride=stride, bias=False
        )
        self.gate = Gate(PooledLinear(in_channels, num_experts), choose) if own_gate else None

    def forward(self, x: Tensor, routing: Routing | None = None, route: Route = "hard") -> Tensor:
        """Convolve every image by its expert.

        Args:
            x: Images or feature maps.
            routing: The decision of a router outside; it goes before the layer's own.
            route: How to use the layer's own decision.
        """
        if routing is None:
            if self.gate is None:
                raise ArgumentError("MoEConv2d without own_gate got no routing. Pass one.")
            decision = self.gate(x)
            report_routing(self, decision)
            routing = follow(decision, route)
        y: Tensor = self.experts(x, routing)
        return y
