"""GIN whose every layer adds a linear skip."""

from torch import Tensor, nn

from moeapps.graphs.layers import BatchNorm, FeatureLinear, GINConv, NodeNetwork, check_sizes


class GINSkip(NodeNetwork):
    r"""Graph isomorphism network with a linear skip around each convolution.

    .. math:: h_{l+1} = \mathrm{dropout}(\mathrm{relu}(\mathrm{BN}(
              \mathrm{MLP}_l(h_i + \textstyle\sum_{j \in N(i)} h_j) + W_l h_i)))

    Args:
        in_channels: Width of the features.
        hidden_channels: Width of the hidden layers.
        num_layers: Convolutions, the last one bare, and layers of each inner MLP.
        out_channels: Classes.
        dropout: After every hidden layer, not inside the inner MLPs.

    Shape:
        - x ``[V, D]``, edge_index ``[2, M]``
        - output ``[V, O]`` logits

    Raises:
        ArgumentError: For sizes below 1 or a dropout outside ``[0, 1)``.

    Notes:
        The paper reports GIN-skip without printing its layer; the form above is ours.

    References:
        Zeng et al., *Mixture of Weak and Strong Experts on Graphs*, ICLR 2024 (as an expert).
        Xu et al., *How Powerful are Graph Neural Networks?*, ICLR 2019.

    Example:
        >>> import torch
        >>> model = GINSkip(8, 16, 2, 3)
        >>> model(torch.randn(5, 8), torch.tensor([[0, 1], [1, 0]])).shape
        torch.Size([5, 3])
    """

    supports_edge_weight = False
    supports_edge_attr = False

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        *,
        dropout: float = 0.3,
    ) -> None:
        check_sizes(
            in_channels,
            hidden_channels,
            num_layers=num_layers,
            out_channels=out_channels,
            dropout=dropout,
        )
        super().__init__(
            in_channels,
            hidden_channels,
            num_layers,
            out_channels,
            dropout=float(dropout),
            norm=BatchNorm(hidden_channels),
            act_kwargs={"inplace": True},
        )

    def init_conv(self, in_channels: int, out_channels: int) -> nn.Module:
        """One convolution with its skip."""
        return _SkipConv(in_channels, out_channels, num_layers=self.num_layers)


class _SkipConv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, num_layers: int) -> None:
        super().__init__()
        self.conv = GINConv(in_channels, out_channels, num_layers=num_layers)
        self.skip = FeatureLinear(in_channels, out_channels, bias=False)

    def reset_parameters(self) -> None:
        self.conv.reset_parameters()
        self.skip.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index) + self.skip(x)
