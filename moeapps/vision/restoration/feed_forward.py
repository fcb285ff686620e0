"""The feed-forward part of a transformer block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Module):
    r"""Two linear layers with GELU between them.

    .. math:: y = W_2\,\mathrm{GELU}(W_1\,\mathrm{LN}(x) + b_1) + b_2

    Args:
        dim: ``D``.
        hidden_dim: Width of the hidden layer.
        dropout: On the hidden layer and the output.
        norm: Normalise the input.

    Shape:
        - x ``[*L, D]``; output the same

    Example:
        >>> FeedForward(8, 32)(torch.zeros(2, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self, dim: int, hidden_dim: int, *, dropout: float = 0.1, norm: bool = True
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[*L, D] -> [*L, D]``."""
        return self.finish(self.fc1(self.norm(x)))

    def finish(self, hidden: Tensor) -> Tensor:
        """From before the activation to the output; overwrites ``hidden`` if it has no gradient."""
        active = F.gelu(hidden) if torch.is_grad_enabled() else torch.ops.aten.gelu_(hidden)
        return self.dropout(self.fc2(self.dropout(active)))
