"""A classifier whose layers are split by vertical, and the scale that paces each vertical."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.vision.specialists.verticals import Verticals

Connection = Literal["fc", "sc"]


class SCHead(nn.Module):
    r"""Two hidden layers and a classifier, structurally connected (SC) or fully connected (FC).

    In an SC layer every vertical :math:`v` has units of its own, and a class reads only those of
    its vertical:

    .. math:: h_1 = \rho(W_1 x), \qquad h_{2,v} = \rho(W_{2,v} h_1), \qquad
        y_c = w_c^\top h_{2,v(c)}

    Number of weights, for width :math:`s_b`, :math:`M` verticals and :math:`N` classes:

    ================ =====================================================================
    connect          weights
    ================ =====================================================================
    ``("fc", "fc")`` :math:`s_b s_1 + s_1 s_2 + s_2 N`
    ``("fc", "sc")`` :math:`s_b s_1 + s_1 x + M s_1 (s_2 - x) + s_2 N`
    ``("sc", "sc")`` :math:`M s_b s_1 + M s_1 s_2 + s_2 N`
    ================ =====================================================================

    Args:
        s1: Units of the first layer; of each vertical if it is SC.
        s2: Units of the second layer that a class reads.
        class_to_vertical: The vertical of every class.
        shared: ``x``: how many of the ``s2`` units all verticals share; needs ``("fc", "sc")``.
        in_features: ``s_b``.
        connect: How each layer is connected.
        bias: Whether layers have biases; they are not in the table.

    Shape:
        - x ``[B, s_b]``; logits ``[B, N]``

    Raises:
        ArgumentError: Sizes that cannot be.

    Notes:
        All verticals run in one batched product. Their classes are padded to the largest vertical,
        no block-diagonal matrix is made. The paper does not state biases; those of classes start at
        the odds of one class in :math:`N`, or the first steps would only learn to say no.

    References:
        Gao et al., *Knowledge Concentration: Learning 100K Object Classifiers in a Single CNN*,
        arXiv 1711.07607.

    Example:
        >>> head = SCHead(16, 4, [0, 0, 0, 1], in_features=8, bias=False)
        >>> head(torch.randn(5, 8)).shape, sum(p.numel() for p in head.parameters())
        (torch.Size([5, 4]), 272)
    """

    def __init__(
        self,
        s1: int,
        s2: int,
        class_to_vertical: Sequence[int],
        shared: int = 0,
        *,
        in_features: int,
        connect: tuple[Connection, Connection] = ("fc", "sc"),
        bias: bool = True,
    ) -> None:
        super().__init__()
        if tuple(connect) not in (("fc", "fc"), ("fc", "sc"), ("sc", "sc")):
            raise ArgumentError(
                f"connect={connect!r} is unknown. Choose ('fc', 'fc'), ('fc', 'sc') or "
                "('sc', 'sc')."
            )
        if min(s1, s2, in_features) < 1 or not 0 <= shared < s2:
            raise ArgumentError(
                f"s1={s1}, s2={s2}, in_features={in_features}, shared={shared}: expected at least "
                "one unit each, and fewer shared units than s2."
            )
        if shared and tuple(connect) != ("fc", "sc"):
            raise ArgumentError("shared units need connect=('fc', 'sc').")
        self.verticals = Verticals(class_to_vertical)
        groups = [len(self.verticals) if kind == "sc" else 1 for kind in connect]
        self.first = _Grouped(groups[0], in_features, s1, bias)
        self.second = _Grouped(groups[1], s1, s2 - shared, bias)
        self.shared = _Grouped(1, s1, shared, bias) if shared else None
        self.weight = nn.Parameter(_uniform(s2, self.verticals.num_classes, s2))
        classes = self.verticals.num_classes
        start = torch.full((classes,), -math.log(max(classes - 1, 1)))
        self.bias = nn.Parameter(start) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all classes."""
        hidden = F.relu(self.first(x.unsqueeze(0)))  # [1 or M, B, s1]
        own = F.relu(self.second(hidden))
        if self.shared is not None:
            common = F.relu(self.shared(hidden)).expand(own.shape[0], -1, -1)
            own = torch.cat([common, own], -1)
        return self._classify(own)

    def _classify(self, hidden: Tensor) -> Tensor:
        """Each class from the units of its vertical, ``[1 or M, B, s2] -> [B, N]``."""
        if hidden.shape[0] == 1:
            logits = hidden[0] @ self.weight.T
        else:
            table = self.verticals.padded
            weights = self.weight.index_select(0, table.flatten()).unflatten(0, table.shape)
            padded = torch.bmm(hidden, weights.transpose(1, 2))  # [M, B, N_max]
            logits = padded.transpose(0, 1).flatten(1).index_select(1, self.verticals.place)
        return logits if self.bias is None else logits + self.bias


class _Grouped(nn.Module):
    """A linear layer per group, ``[1 or M, B, in] -> [M, B, out]``."""

    def __init__(self, groups: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(_uniform(inputs, groups, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(groups, 1, outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        groups = self.weight.shape[0]
        if groups > 1 and x.shape[0] == 1:  # all groups read the same: one wide product
            wide = self.weight.movedim(0, 1).flatten(1)
            y = (x[0] @ wide).unflatten(-1, (groups, -1)).transpose(0, 1)
        else:
            y = torch.bmm(x, self.weight)
        return y if self.bias is None else y + self.bias


class SelfPacedScale(nn.Module):
    r"""Give the logits of each vertical a learned length.

    .. math:: y_v = \gamma_v\, x_v / \lVert x_v \rVert_2

    :math:`\gamma_v` starts at :math:`\sqrt{N_v}` (deviation 0.001): the gradient through a
    normalised vertical shrinks as :math:`1 / \sqrt{N_v}`.

    Args:
        class_to_vertical: The vertical of every class.
        per: ``"vertical"``; or, both worse in the paper, ``"class"`` for a :math:`\gamma` per
            class, and ``"fixed"`` for one that is not learned.

    Shape:
        - logits ``[B, N]``; scaled ``[B, N]``

    Raises:
        ArgumentError: Logits of another width, or an unknown ``per``.

    References:
        Gao et al., *Knowledge Concentration: Learning 100K Object Classifiers in a Single CNN*,
        arXiv 1711.07607.

    Example:
        >>> scale = SelfPacedScale([0, 0, 1], per="fixed")
        >>> scale(torch.tensor([[3.0, 4.0, -2.0]])).round(decimals=3)
        tensor([[ 0.8490,  1.1310, -1.0000]])
    """

    def __init__(
        self,
        class_to_vertical: Sequence[int],
        per: Literal["vertical", "class", "fixed"] = "vertical",
    ) -> None:
        super().__init__()
        if per not in ("vertical", "class", "fixed"):
            raise ArgumentError(f"per={per!r} is unknown. Choose vertical, class or fixed.")
        self.verticals = Verticals(class_to_vertical)
        self.per = per
        start = self.verticals.sizes.sqrt()
        if per == "fixed":
            self.register_buffer("gamma", start)
            return
        if per == "class":
            start = start.index_select(0, self.verticals.of_class)
        self.gamma = nn.Parameter(start + 1e-3 * torch.randn(len(start)))

    def forward(self, logits: Tensor) -> Tensor:
        """Scaled logits."""
        self.verticals.check_width(logits)
        length = self.verticals.sum_within(logits.float().square()).clamp_min(1e-12).sqrt()
        place = self.verticals.of_class
        gamma = self.gamma if self.per == "class" else self.gamma.index_select(0, place)
        scaled = gamma * logits / length.index_select(1, place)
        return scaled.to(logits.dtype)


def _uniform(fan_in: int, *shape: int) -> Tensor:
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound)
