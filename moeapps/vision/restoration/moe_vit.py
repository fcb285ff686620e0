"""MoE-ViT: the transformer with parallel feed-forward experts that MoFME is measured against."""

from typing import Any

from torch import nn

from moeapps.gating import Gate, ModuleExperts, MoE, softmax, topk
from moeapps.vision.restoration.feed_forward import FeedForward
from moeapps.vision.restoration.frame import RestorationFrame


class MoEViT(RestorationFrame):
    r"""Image-to-image transformer with ``N`` feed-forward networks per block, routed per token.

    .. math:: x \leftarrow x + \mathrm{Attn}(\mathrm{LN}(x)), \qquad
        x \leftarrow x + \sum_e r_e(x)\, \mathrm{FFN}_e(\mathrm{LN}_e(x))

    Args:
        num_experts: ``N``.
        embed_dim: ``D``.
        depth: Blocks.
        hidden_dim: Width of each expert's hidden layer; ``4 D`` if None.
        top_k: Experts that keep a weight; 0 for all.
        dropout: In the blocks.
        **frame: Options of :class:`RestorationFrame`.

    Shape:
        - images ``[B, 3, H, W]`` from 0 to 1, any size; output the same
        - ``aux["routing"]``: one :class:`~moeapps.gating.Routing` per block

    Notes:
        Departures from the paper's baseline: with ``top_k`` only the chosen experts run, and with
        ``top_k=1`` the weight is the probability and not 1.

    References:
        Zhang et al., *Efficient Deweather Mixture-of-Experts with Uncertainty-aware Feature-wise
        Linear Modulation*, AAAI 2024 (its baseline).

    Example:
        >>> import torch
        >>> model = MoEViT(4, embed_dim=16, depth=1, num_heads=2, head_dim=8, top_k=2).eval()
        >>> model(torch.rand(1, 3, 20, 33)).shape
        torch.Size([1, 3, 20, 33])
    """

    def __init__(
        self,
        num_experts: int = 4,
        *,
        embed_dim: int = 384,
        depth: int = 2,
        hidden_dim: int | None = None,
        top_k: int = 0,
        dropout: float = 0.1,
        **frame: Any,
    ) -> None:
        hidden = hidden_dim or 4 * embed_dim
        ffns = [
            MoE(
                Gate(nn.Linear(embed_dim, num_experts), topk(top_k) if top_k else softmax),
                ModuleExperts(
                    FeedForward(embed_dim, hidden, dropout=dropout) for _ in range(num_experts)
                ),
            )
            for _ in range(depth)
        ]
        super().__init__(ffns, embed_dim=embed_dim, dropout=dropout, **frame)
