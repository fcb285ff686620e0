"""The confidence functions of Mowst: from the weak expert's evidence to the logit of ``c``.

Each module maps ``[*L, 2]`` (the two dispersions), or ``[*L, 2 + d]`` (followed by the node's own
features) where ``uses_features`` is true, to the logit of the confidence, ``[*L]``.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.errors import ArgumentError, UnknownNameError


class _PositiveLinear(nn.Linear):
    """A linear layer whose weights stay positive, so that it is increasing in every input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.softplus(self.weight), self.bias)


def cheap_dropout(x: Tensor, p: float) -> Tensor:
    """Dropout in training. On the CPU it draws 16 bits per entry, four times as fast as torch's.

    A gate is as wide as its weak expert and has two inputs, so torch's draws would be most of its
    cost. ``p`` is rounded to a multiple of 1 / 65,536, and the scale with it.
    """
    if not x.is_cpu or torch.compiler.is_compiling():
        return F.dropout(x, p)
    cut = round(p * 2**16)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    return x * (bits >= cut - 2**15).to(x.dtype).mul_(2**16 / (2**16 - cut))


class LearnedConfidence(nn.Module):
    r"""The logit of :math:`c` from an MLP: BatchNorm, ReLU, dropout, last layer bare.

    Args:
        in_features: Width of the evidence: 2, or 2 + d with ``uses_features``.
        hidden_channels: Width of the hidden layers.
        num_layers: Linear layers, at least 1.
        dropout: After each hidden layer.
        monotone: Positive weights and no BatchNorm: more dispersion never lowers the confidence.
        uses_features: Whether the evidence carries the node's features.

    Shape:
        - input ``[*L, in_features]``
        - output ``[*L]``

    Example:
        >>> LearnedConfidence(2, monotone=True)(torch.rand(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.3,
        monotone: bool = False,
        uses_features: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ArgumentError(f"gate_layers={num_layers} is too small. Choose 1 or more.")
        if not 0 <= dropout < 1:
            raise ArgumentError(f"gate_dropout={dropout} is out of range. Choose 0 <= dropout < 1.")
        self.uses_features = uses_features
        self.dropout = dropout
        widths = [in_features, *[hidden_channels] * (num_layers - 1), 1]
        linear = _PositiveLinear if monotone else nn.Linear
        self.layers = nn.ModuleList(linear(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(
            nn.Identity() if monotone else nn.BatchNorm1d(width) for width in widths[1:-1]
        )

    def reset_parameters(self) -> None:
        """Draw new parameters."""
        for module in (*self.layers, *self.norms):
            if isinstance(module, nn.Linear | nn.BatchNorm1d):
                module.reset_parameters()

    def forward(self, evidence: Tensor) -> Tensor:
        """Give the logit of the confidence."""
        h = evidence
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            h = F.relu(norm(layer(h)), inplace=True)
            if self.training and self.dropout:
                h = cheap_dropout(h, self.dropout)
        return self.layers[-1](h).squeeze(-1)


class HyperConfidence(nn.Module):
    r"""Gate weights made per node from its features :math:`x_v` by four small MLPs.

    .. math:: c = \sigma\big((D\, W_1(x) + b_1(x))\, W_2(x) + b_2(x)\big)

    There is no non-linearity between the two products.

    Args:
        in_features: Width of the evidence, 2 + d.
        hidden_channels: Width between the two products, and of the hidden layer of each MLP.
        dropout: In the hidden layer of each MLP.

    Shape:
        - input ``[*L, 2 + d]``
        - output ``[*L]``

    Example:
        >>> HyperConfidence(2 + 7, hidden_channels=4)(torch.rand(5, 9)).shape
        torch.Size([5])
    """

    uses_features = True

    def __init__(
        self, in_features: int, *, hidden_channels: int = 64, dropout: float = 0.3
    ) -> None:
        super().__init__()
        d, h = in_features - 2, hidden_channels

        def made(width: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(d, h), nn.ReLU(), nn.Dropout(dropout), nn.Linear(h, width)
            )

        self.w1, self.b1, self.w2, self.b2 = made(2 * h), made(h), made(h), made(1)

    def reset_parameters(self) -> None:
        """Draw new parameters."""
        for made in (self.w1, self.b1, self.w2, self.b2):
            for layer in made:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()

    def forward(self, evidence: Tensor) -> Tensor:
        """Give the logit of the confidence."""
        spread, x = evidence[..., :2], evidence[..., 2:]
        w1 = self.w1(x).unflatten(-1, (2, -1))  # [*L, 2, h]
        hidden = (spread.unsqueeze(-1) * w1).sum(-2) + self.b1(x)
        return (hidden * self.w2(x)).sum(-1) + self.b2(x).squeeze(-1)


class PowerConfidence(nn.Module):
    r"""No parameters: :math:`c = D_1^a`, the scaled variance to a power.

    Args:
        power: The exponent :math:`a \ge 0`; 0 always trusts the weak expert.

    Shape:
        - input ``[*L, 2]``
        - output ``[*L]``

    Example:
        >>> PowerConfidence(2.0)(torch.tensor([[0.5, 0.9]])).sigmoid()
        tensor([0.2500])
    """

    uses_features = False

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        if not power >= 0:
            raise ArgumentError(f"power={power} is negative. Choose 0 or more.")
        self.power = power

    def forward(self, evidence: Tensor) -> Tensor:
        """Give the logit of the confidence."""
        info = torch.finfo(evidence.dtype)
        log_c = self.power * evidence[..., 0].clamp_min(info.tiny).log()
        # Half a rounding step below 0: full confidence is a large logit, not an infinite one.
        log_c = log_c.clamp_max(-info.eps / 2)
        return log_c - torch.log(-torch.expm1(log_c))


GATES = ("learned", "learned+features", "hyper", "power")


def confidence_gate(
    name: str,
    *,
    in_channels: int | None = None,
    hidden_channels: int = 64,
    num_layers: int = 2,
    dropout: float = 0.3,
    monotone: bool = False,
    power: float = 1.0,
) -> nn.Module:
    """Build one of the confidence functions by name.

    Args:
        name: ``"learned"``, ``"learned+features"``, ``"hyper"`` or ``"power"``.
        in_channels: Width of the node features, for the two gates that read them.
        hidden_channels: Hidden width of the learned gates.
        num_layers: Layers of the learned gates.
        dropout: Dropout of the learned gates.
        monotone: Positive weights, for ``"learned"`` only.
        power: Exponent of ``"power"``.

    Raises:
        UnknownNameError: With the closest names.
        ArgumentError: If ``monotone`` or ``in_channels`` does not fit the gate.
    """
    if name not in GATES:
        raise UnknownNameError("gate", name, GATES)
    if monotone and name != "learned":
        raise ArgumentError(
            f"monotone=True does not go with gate={name!r}: only the dispersions have a direction. "
            "Use gate='learned'."
        )
    if name == "power":
        return PowerConfidence(power)
    if name == "learned":
        return LearnedConfidence(
            2,
            hidden_channels=hidden_channels,
            num_layers=num_layers,
            dropout=dropout,
            monotone=monotone,
        )
    if in_channels is None:
        raise ArgumentError(
            f"gate={name!r} reads the node features, whose width is unknown. Pass in_channels=."
        )
    if name == "hyper":
        return HyperConfidence(2 + in_channels, hidden_channels=hidden_channels, dropout=dropout)
    return LearnedConfidence(
        2 + in_channels,
        hidden_channels=hidden_channels,
        num_layers=num_layers,
        dropout=dropout,
        uses_features=True,
    )
