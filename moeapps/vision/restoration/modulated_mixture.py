"""One feed-forward network whose input (or hidden layer) a routed mixture of experts modulates."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps import kernels
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating import Gate, Routing, StackedFiLM, report_routing, softmax, topk
from moeapps.vision.restoration.feed_forward import FeedForward
from moeapps.vision.restoration.uncertainty_router import UncertaintyRouter

CHOICES = {
    "kind": ("static", "dynamic"),
    "site": ("input", "hidden"),
    "routing": ("token", "image"),
}


class ModulatedMixture(nn.Module):
    r"""Feature-modulated experts in front of one shared feed-forward network.

    With :math:`h = \mathrm{LN}(x)` and weights :math:`r = \mathrm{gate}(x)`,

    .. math:: y = \mathrm{FFN}\Big(\sum_e r_e\, \mathrm{FM}_e(z)\Big), \qquad
        \mathrm{FFN}(u) = W_2\,\mathrm{GELU}(W_1 u + b_1) + b_2

    static: :math:`\mathrm{FM}_e(z) = \gamma_e \odot z + \beta_e`, :math:`z = h`;
    dynamic: :math:`\mathrm{FM}_e(z) = (G_e z + g_e) \odot z + (C_e z + c_e)`, with
    :math:`z = \mathrm{GELU}(W_a h + b_a) \odot (W_b h + b_b)` (``star``) or :math:`z = h`.
    With ``site="hidden"`` the static mixture acts on :math:`W_1 h + b_1`.

    No expert is evaluated by itself. Constants are mixed first, so static experts cost next to
    nothing. Dynamic ones are mixed as maps where one routing serves a whole image, as one product
    with all maps where every token mixes all experts, and by grouping tokens where each chooses
    its ``top_k``. All are exact.

    Args:
        dim: ``D``.
        num_experts: ``N``.
        hidden_dim: Width of the feed-forward network's hidden layer; ``4 D`` if None.
        kind: ``"static"`` or ``"dynamic"`` modulations.
        site: ``"input"`` of the feed-forward network, or its ``"hidden"`` layer (static only).
        routing: Weights per ``"token"``, or one set per ``"image"``, from the mean of its tokens.
        top_k: Experts that keep a weight; 0 for all.
        star: Put the base network in front of dynamic modulations.
        dropout: On the hidden layer and the output.
        norm: Normalise the input. If False, ``h = x``.
        uncertainty: Options of :class:`UncertaintyRouter`, for example ``{"mode": "mean"}``; None
            for a linear router.
        compat_offset: Weight 0 goes to ``GELU(z)``, weight ``e`` to expert ``e - 1`` and none to
            the last expert, as in the authors' code (dynamic only).

    Shape:
        - x ``[B, n, D]`` (per token any ``[*L, D]``); output the same

    Raises:
        UnknownNameError: A name is not known.
        ArgumentError: Options exclude one another.

    Notes:
        Departures from the paper: ``site``, ``routing="image"`` and the exact algebra. With
        ``top_k=1`` the weight is the probability and not 1, so that the router learns. Constants
        start at :math:`\gamma \sim 1 + 0.2\,N(0, 1)`, :math:`\beta \sim 0.2\,N(0, 1)`, since equal
        experts give the router no gradient, and at 1 and 0 for a single expert.

    References:
        Zhang et al., *Efficient Deweather Mixture-of-Experts with Uncertainty-aware Feature-wise
        Linear Modulation*, AAAI 2024.

    Example:
        >>> mixture = ModulatedMixture(16, 8, top_k=2).eval()
        >>> y, routing = mixture(torch.randn(2, 9, 16), return_routing=True)
        >>> y.shape, routing.indices.shape
        (torch.Size([2, 9, 16]), torch.Size([2, 9, 2]))
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        hidden_dim: int | None = None,
        kind: Literal["static", "dynamic"] = "dynamic",
        site: Literal["input", "hidden"] = "input",
        routing: Literal["token", "image"] = "token",
        top_k: int = 0,
        star: bool = True,
        dropout: float = 0.1,
        norm: bool = True,
        uncertainty: dict[str, Any] | None = None,
        compat_offset: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("kind", kind), ("site", site), ("routing", routing)):
            if value not in CHOICES[name]:
                raise UnknownNameError(name, value, CHOICES[name])
        dynamic, hidden = kind == "dynamic", hidden_dim or 4 * dim
        if dynamic and site == "hidden":
            raise ArgumentError("The hidden site takes constants. Pass kind='static'.")
        if compat_offset and not dynamic:
            raise ArgumentError("compat_offset is a fault of dynamic experts. Leave it out.")
        if not 0 <= top_k <= num_experts:
            raise ArgumentError(f"top_k={top_k} exceeds num_experts={num_experts}. 0 takes all.")
        self.site, self.routing, self.compat_offset = site, routing, compat_offset
        score: nn.Module = (
            nn.Linear(dim, num_experts)
            if uncertainty is None
            else UncertaintyRouter(dim, num_experts, **uncertainty)
        )
        self.gate = Gate(score, topk(top_k) if top_k else softmax)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.star = Star(dim) if star and dynamic else nn.Identity()
        self.experts = StackedFiLM(num_experts, dim if site == "input" else hidden, dynamic=dynamic)
        if not dynamic:
            start_constants(self.experts)
        self.ffn = FeedForward(dim, hidden, dropout=dropout, norm=False)

    def forward(self, x: Tensor, return_routing: bool = False) -> Tensor | tuple[Tensor, Routing]:
        """Mix and transform; also the routing if asked for."""
        routing = self.gate(x.flatten(1, -2).mean(1) if self.routing == "image" else x)
        report_routing(self, routing)
        u = self.star(self.norm(x))
        if self.site == "input":
            y = self.ffn(self._modulated(u, routing))
        else:
            y = self.ffn.finish(self._modulated(self.ffn.fc1(u), routing))
        return (y, routing) if return_routing else y

    def _modulated(self, z: Tensor, routing: Routing) -> Tensor:
        """``sum_e r_e FM_e(z)``."""
        experts = self.experts
        if self.compat_offset:
            r = routing.dense().to(z.dtype)
            first = r[..., :1].reshape(*r.shape[:-1], *([1] * (z.dim() - r.dim())), 1)
            y = first * F.gelu(z)
            if experts.num_experts == 1:
                return y
            assert experts.w is not None
            return y + kernels.film_mix(z, r[..., 1:], experts.w[:-1], experts.b[:-1])
        if self.routing == "image":
            return kernels.film_mix(z, routing.dense(), experts.w, experts.b)
        return experts(z, routing)


class Star(nn.Module):
    r"""Base network of dynamic experts: :math:`\mathrm{GELU}(W_a h + b_a) \odot (W_b h + b_b)`.

    Args:
        dim: ``D``.

    Example:
        >>> Star(8)(torch.zeros(2, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, h: Tensor) -> Tensor:
        """``[*L, D] -> [*L, D]``."""
        return F.gelu(self.a(h)) * self.b(h)


@torch.no_grad()
def start_constants(experts: StackedFiLM) -> None:
    """Scales around 1 and shifts around 0, apart from one another; exactly there for one expert."""
    scale, shift = experts.b.chunk(2, dim=-1)
    spread = 0.2 if experts.num_experts > 1 else 0.0
    scale.normal_(1, spread)
    shift.normal_(0, spread)
