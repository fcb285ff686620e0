"""AdvMoE: each image takes one of N pathways through a convolutional network."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from moeapps import gating
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating import report_routing
from moeapps.vision.robust.moe_conv import MoEConv2d, Route, follow, forced
from moeapps.vision.robust.networks import Normalise, make_network
from moeapps.vision.robust.router import image_gate


class AdvMoE(nn.Module):
    r"""A convolutional network whose layers keep N experts, one of which serves each image.

    .. math:: e^* = \arg\max_e s_e(x), \qquad z = f_{e^*}(x)

    Args:
        num_classes: ``C``.
        backbone: ``"resnet18"`` or ``"small_cnn"``.
        num_experts: ``N``.
        ratio: Width of a pathway over that of the dense network.
        routing: ``"global"``: one router for the whole network, a small ResNet on the image.
            ``"per_layer"``: every layer decides by the means of its input's channels.
        in_channels: Channels of an image.
        router_depth: Layers of the global router.
        router_widths: Channels of its three stages.
        fallback: Images whose best score leads the second by less than this get the mean of the
            probabilities of all pathways, at the price of computing them (eval mode, global
            routing).
        mean: Of the pixels of each channel; subtracted inside.
        std: Of the pixels of each channel.

    Shape:
        - images ``[B, in_channels, H, W]`` with pixels from 0 to 1, of any size; logits ``[B, C]``
        - scores ``[B, L, N]``, with ``L = 1`` router or one per layer

    Raises:
        UnknownNameError: A name is not known.
        ArgumentError: A number cannot be.

    Notes:
        Departures from the paper: ``fallback``, off by default, and per-layer routers as far as the
        text tells. The global router is the released code's.

    References:
        Zhang et al., *Robust Mixture-of-Expert Training for Convolutional Neural Networks*,
        ICCV 2023.

    Example:
        >>> model = AdvMoE(10, backbone="small_cnn", router_depth=8, in_channels=1).eval()
        >>> images = torch.rand(4, 1, 8, 8)
        >>> logits, scores = model(images, return_scores=True)
        >>> logits.shape, scores.shape
        (torch.Size([4, 10]), torch.Size([4, 1, 2]))
        >>> other = model(images, route=1)  # whatever the router says
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        backbone: str = "resnet18",
        num_experts: int = 2,
        ratio: float = 0.5,
        routing: Literal["global", "per_layer"] = "global",
        in_channels: int = 3,
        router_depth: int = 20,
        router_widths: Sequence[int] = (16, 32, 64),
        fallback: float | None = None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        if num_experts < 1:
            raise ArgumentError(f"num_experts={num_experts}. Choose 1 or more.")
        if routing not in ("global", "per_layer"):
            raise UnknownNameError("routing", routing, ("global", "per_layer"))
        if fallback is not None and routing != "global":
            raise ArgumentError("fallback needs one router. Use routing='global'.")
        self.num_classes, self.num_experts, self.fallback = num_classes, num_experts, fallback
        self.normalise = Normalise(mean, std, in_channels)
        self.router = None
        if routing == "global":
            self.router = image_gate(
                num_experts, depth=router_depth, widths=router_widths, in_channels=in_channels
            )
        self.network = make_network(
            backbone,
            ratio,
            in_channels=in_channels,
            num_classes=num_classes,
            num_experts=num_experts,
            own_gates=self.router is None,
        )

    def forward(
        self,
        images: Tensor,
        route: Route | Literal["mixture"] = "hard",
        return_scores: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, and the routers' scores if asked for.

        Args:
            images: Pixels from 0 to 1.
            route: See :func:`~moeapps.vision.robust.moe_conv.follow`; ``"mixture"`` (global
                routing) gives the log of the pathways' probabilities weighted by the softmax of the
                scores.
            return_scores: Also give the scores ``[B, L, N]``.
        """
        x = self.normalise(images)
        if self.router is None:
            if isinstance(route, str) and route == "mixture":
                raise ArgumentError("route='mixture' needs one router. Use routing='global'.")
            return self._per_layer(x, route, return_scores)
        decision = self.router(x)
        report_routing(self, decision)
        assert decision.logits is not None
        if isinstance(route, str) and route == "mixture":
            logits = self._mixture(x, decision.logits.log_softmax(-1))
        else:
            logits = self.network(x, follow(decision, route), route)
            if self.fallback is not None and not self.training and isinstance(route, str):
                logits = self._fall_back(x, logits, decision.logits)
        return (logits, decision.logits.unsqueeze(1)) if return_scores else logits

    def scores(self, images: Tensor) -> Tensor:
        """The routers' scores ``[B, L, N]``; a global router runs alone."""
        if self.router is None:
            return self.forward(images, return_scores=True)[1]
        decision = self.router(self.normalise(images))
        report_routing(self, decision)
        return decision.logits.unsqueeze(1)

    def pathways(self, x: Tensor) -> Tensor:
        """Log-probabilities of every pathway, ``[B, N, C]``, from normalised images."""
        routings = [forced(e, len(x), self.num_experts, x.device) for e in range(self.num_experts)]
        return torch.stack([self.network(x, r, "hard").log_softmax(-1) for r in routings], 1)

    def unsure(self, scores: Tensor) -> Tensor:
        """Bool ``[B]``: which images fall back on all pathways."""
        if self.fallback is None or self.num_experts < 2:
            return torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        first, second = scores.topk(2, -1).values.unbind(-1)
        return first - second < self.fallback

    def _fall_back(self, x: Tensor, logits: Tensor, scores: Tensor) -> Tensor:
        """Put the mean of all pathways where the router is unsure; only those are computed."""
        rows = self.unsure(scores).nonzero().squeeze(1)
        if not len(rows):
            return logits
        even = x.new_zeros(len(rows), self.num_experts).log_softmax(-1)
        return logits.index_copy(0, rows, self._mixture(x[rows], even).to(logits.dtype))

    def _mixture(self, x: Tensor, log_weights: Tensor) -> Tensor:
        """A pathway that gives NaN for an image is left out for that image."""
        paths = self.pathways(x)
        dead = paths.isnan().any(-1)
        left = log_weights.masked_fill(dead, -torch.inf).log_softmax(-1)
        return (paths.masked_fill(dead.unsqueeze(-1), 0.0) + left.unsqueeze(-1)).logsumexp(1)

    def _per_layer(
        self, x: Tensor, route: Route, return_scores: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        if not return_scores:
            logits: Tensor = self.network(x, None, route)
            return logits
        with gating.record(self) as recording:
            logits = self.network(x, None, route)
        calls = [layer[0].logits for layer in recording.routings.values()]
        return logits, torch.stack([scores for scores in calls if scores is not None], 1)

    def router_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that decide routes."""
        if self.router is not None:
            yield from self.router.parameters()
            return
        for module in self.network.modules():
            if isinstance(module, MoEConv2d) and module.gate is not None:
                yield from module.gate.parameters()

    def network_parameters(self) -> Iterator[nn.Parameter]:
        """All other parameters."""
        routing = {id(p) for p in self.router_parameters()}
        yield from (p for p in self.parameters() if id(p) not in routing)
