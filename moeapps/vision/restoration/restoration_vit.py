"""The plain transformer beside MoFME: one ordinary feed-forward network per block."""

from typing import Any

from moeapps.vision.restoration.feed_forward import FeedForward
from moeapps.vision.restoration.frame import RestorationFrame


class RestorationViT(RestorationFrame):
    r"""Image-to-image transformer without experts.

    .. math:: x \leftarrow x + \mathrm{Attn}(\mathrm{LN}(x)), \qquad
        x \leftarrow x + W_2\,\mathrm{GELU}(W_1\,\mathrm{LN}(x) + b_1) + b_2

    Args:
        embed_dim: ``D``.
        depth: Blocks.
        hidden_dim: Width of the feed-forward networks' hidden layer; ``4 D`` if None.
        dropout: In the blocks.
        **frame: Options of :class:`RestorationFrame`.

    Shape:
        - images ``[B, 3, H, W]`` from 0 to 1, any size; output the same

    Notes:
        Departures from the paper's baseline: none.

    References:
        Zhang et al., *Efficient Deweather Mixture-of-Experts with Uncertainty-aware Feature-wise
        Linear Modulation*, AAAI 2024 (its baseline).

    Example:
        >>> import torch
        >>> model = RestorationViT(embed_dim=16, depth=1, num_heads=2, head_dim=8).eval()
        >>> model(torch.rand(1, 3, 20, 33)).shape
        torch.Size([1, 3, 20, 33])
    """

    def __init__(
        self,
        *,
        embed_dim: int = 384,
        depth: int = 2,
        hidden_dim: int | None = None,
        dropout: float = 0.1,
        **frame: Any,
    ) -> None:
        hidden = hidden_dim or 4 * embed_dim
        ffns = [FeedForward(embed_dim, hidden, dropout=dropout) for _ in range(depth)]
        super().__init__(ffns, embed_dim=embed_dim, dropout=dropout, **frame)
