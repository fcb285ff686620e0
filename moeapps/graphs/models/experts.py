"""The usual networks on nodes, from PyTorch Geometric, on fast message passing.

Every layer is ``linear or convolution -> BatchNorm -> ReLU (GAT: ELU) -> dropout``, the last one
bare. Parameters of MLP, GCN and GraphSAGE carry PyTorch Geometric's names: its state dicts load.

Letters: ``V`` nodes, ``M`` directed edges, ``D`` input width, ``O`` outputs.
"""

from typing import Any

import torch_geometric.nn as pyg
from torch import Tensor, nn

from moeapps.errors import ArgumentError
from moeapps.graphs.layers import (
    BatchNorm,
    FeatureLinear,
    GATConv,
    GCNConv,
    GINConv,
    NodeNetwork,
    SAGEConv,
    check_batch,
    check_sizes,
)


class MLP(pyg.MLP):
    """What :func:`mlp` builds."""

    def __init__(self, channels: list[int], *, dropout: float) -> None:
        super().__init__(channels, dropout=float(dropout), act=nn.ReLU(inplace=True))
        self.lins[0] = FeatureLinear(*channels[:2])
        self.norms = nn.ModuleList(BatchNorm(width) for width in channels[1:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[V, O]``."""
        check_batch(x, self)
        return super().forward(x)


class GCN(NodeNetwork):
    """What :func:`gcn` builds."""

    supports_edge_weight = True
    supports_edge_attr = False

    def init_conv(self, in_channels: int, out_channels: int, **_: Any) -> nn.Module:
        """One convolution."""
        return GCNConv(in_channels, out_channels)


class GraphSAGE(NodeNetwork):
    """What :func:`graphsage` builds."""

    supports_edge_weight = False
    supports_edge_attr = False

    def init_conv(self, in_channels: int, out_channels: int, **_: Any) -> nn.Module:
        """One convolution."""
        return SAGEConv(in_channels, out_channels, aggr="mean")


class GIN(NodeNetwork):
    """What :func:`gin` builds."""

    supports_edge_weight = False
    supports_edge_attr = False

    def init_conv(self, in_channels: int, out_channels: int, **_: Any) -> nn.Module:
        """One convolution."""
        return GINConv(in_channels, out_channels, num_layers=self.num_layers)


class GAT(NodeNetwork):
    """What :func:`gat` builds."""

    supports_edge_weight = False
    supports_edge_attr = False

    def init_conv(self, in_channels: int, out_channels: int, *, heads: int, **_: Any) -> nn.Module:
        """One convolution; the last has one head."""
        if getattr(self, "_is_conv_to_out", False):
            return GATConv(in_channels, out_channels, heads=1, concat=False, dropout=self.dropout.p)
        return GATConv(in_channels, out_channels // heads, heads=heads, dropout=self.dropout.p)


def _build(
    network: type[NodeNetwork], sizes: tuple[int, int, int, int], dropout: float, **kwargs: Any
) -> NodeNetwork:
    in_channels, hidden_channels, num_layers, out_channels = sizes
    check_sizes(
        in_channels,
        hidden_channels,
        num_layers=num_layers,
        out_channels=out_channels,
        dropout=dropout,
    )
    norm = BatchNorm(hidden_channels)
    return network(
        *sizes, dropout=float(dropout), norm=norm, act_kwargs={"inplace": True}, **kwargs
    )


def mlp(
    in_channels: int,
    hidden_channels: int,
    num_layers: int,
    out_channels: int,
    *,
    dropout: float = 0.3,
) -> MLP:
    r"""MLP on a node's own features.

    .. math:: h_{l+1} = \mathrm{dropout}(\mathrm{relu}(\mathrm{BN}(W_l h_l + b_l)))

    Args:
        in_channels: Width of the features.
        hidden_channels: Width of the hidden layers.
        num_layers: Linear layers, the last one bare.
        out_channels: Classes.
        dropout: After every hidden layer.

    Shape:
        - input ``[V, D]``, dense or constant ``torch.sparse_csr``
        - output ``[V, O]`` logits

    Notes:
        PyTorch Geometric's ``MLP``. Departures: none.

    Example:
        >>> import torch
        >>> model = mlp(8, 16, 2, 3)
        >>> model(torch.randn(5, 8)).shape
        torch.Size([5, 3])
    """
    check_sizes(
        in_channels,
        hidden_channels,
        num_layers=num_layers,
        out_channels=out_channels,
        dropout=dropout,
    )
    widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
    return MLP(widths, dropout=dropout)


def gcn(
    in_channels: int,
    hidden_channels: int,
    num_layers: int,
    out_channels: int,
    *,
    dropout: float = 0.3,
) -> GCN:
    r"""Graph convolutional network, :math:`\hat D^{-1/2} (A + I) \hat D^{-1/2} X W + b` per layer.

    Args:
        in_channels: Width of the features.
        hidden_channels: Width of the hidden layers.
        num_layers: Convolutions, the last one bare.
        out_channels: Classes.
        dropout: After every hidden layer.

    Shape:
        - x ``[V, D]``, edge_index ``[2, M]``, edge_weight ``[M]``
        - output ``[V, O]`` logits

    Notes:
        PyTorch Geometric's ``GCN``; the operator is built once per graph. Departures: BatchNorm.

    References:
        Kipf, Welling, *Semi-Supervised Classification with Graph Convolutional Networks*,
        ICLR 2017.

    Example:
        >>> import torch
        >>> model = gcn(8, 16, 2, 3)
        >>> model(torch.randn(5, 8), torch.tensor([[0, 1], [1, 0]])).shape
        torch.Size([5, 3])
    """
    return _build(GCN, (in_channels, hidden_channels, num_layers, out_channels), dropout)


def graphsage(
    in_channels: int,
    hidden_channels: int,
    num_layers: int,
    out_channels: int,
    *,
    dropout: float = 0.3,
) -> GraphSAGE:
    r"""GraphSAGE, :math:`W_n\, \mathrm{mean}_{j \in N(i)} x_j + b + W_r x_i` per layer.

    A node without neighbours keeps only its own part.

    Args:
        in_channels: Width of the features.
        hidden_channels: Width of the hidden layers.
        num_layers: Convolutions, the last one bare.
        out_channels: Classes.
        dropout: After every hidden layer.

    Shape:
        - x ``[V, D]``, edge_index ``[2, M]``
        - output ``[V, O]`` logits

    Notes:
        PyTorch Geometric's ``GraphSAGE``. Departures: BatchNorm; no L2 normalisation.

    References:
        Hamilton, Ying, Leskovec, *Inductive Representation Learning on Large Graphs*, NeurIPS 2017.

    Example:
        >>> import torch
        >>> model = graphsage(8, 16, 2, 3)
        >>> model(torch.randn(5, 8), torch.tensor([[0, 1], [1, 0]])).shape
        torch.Size([5, 3])
    """
    return _build(GraphSAGE, (in_channels, hidden_channels, num_layers, out_channels), dropout)


def gat(
    in_channels: int,
    hidden_channels: int,
    num_layers: int,
    out_channels: int,
    *,
    heads: int = 8,
    dropout: float = 0.3,
) -> GAT:
    r"""Graph attention network with one self loop per node.

    .. math::
        y_{ih} = \sum_j a_{ijh} W_h x_j, \quad
        a_{i \cdot h} = \mathrm{softmax}_j\,
        \mathrm{lrelu}(s_h^\top W_h x_j + t_h^\top W_h x_i)

    Args:
        in_channels: Width of the features.
        hidden_channels: Width of the hidden layers, all heads together.
        num_layers: Convolutions, the last one bare.
        out_channels: Classes.
        heads: Heads of every hidden layer, concatenated; the last layer has one.
        dropout: After every hidden layer and on the attention weights.

    Shape:
        - x ``[V, D]``, edge_index ``[2, M]``
        - output ``[V, O]`` logits

    Notes:
        PyTorch Geometric's ``GAT`` on sparse products. Departures: BatchNorm; one head in the last
        layer.

    References:
        Velickovic et al., *Graph Attention Networks*, ICLR 2018.

    Example:
        >>> import torch
        >>> model = gat(8, 16, 2, 3, heads=4)
        >>> model(torch.randn(5, 8), torch.tensor([[0, 1], [1, 0]])).shape
        torch.Size([5, 3])
    """
    if heads < 1 or hidden_channels % heads:
        raise ArgumentError(
            f"heads={heads} does not divide hidden_channels={hidden_channels}, expected equal "
            "heads. Change one of them."
        )
    sizes = (in_channels, hidden_channels, num_layers, out_channels)
    return _build(GAT, sizes, dropout, act="elu", heads=heads)


def gin(
    in_channels: int,
    hidden_channels: int,
    num_layers: int,
    out_channels: int,
    *,
    dropout: float = 0.3,
) -> GIN:
    r"""Graph isomorphism network, :math:`\mathrm{MLP}_l(x_i + \sum_{j \in N(i)} x_j)` per layer.

    Args:
        in_channels: Width of the features.
        hidden_channels: Width of the hidden layers.
        num_layers: Convolutions, the last one bare, and layers of each inner MLP.
        out_channels: Classes.
        dropout: After every hidden layer, not inside the inner MLPs.

    Shape:
        - x ``[V, D]``, edge_index ``[2, M]``
        - output ``[V, O]`` logits

    Notes:
        PyTorch Geometric's ``GIN`` stack. Departures: epsilon fixed at 0; dropout.

    References:
        Xu et al., *How Powerful are Graph Neural Networks?*, ICLR 2019.

    Example:
        >>> import torch
        >>> model = gin(8, 16, 2, 3)
        >>> model(torch.randn(5, 8), torch.tensor([[0, 1], [1, 0]])).shape
        torch.Size([5, 3])
    """
    return _build(GIN, (in_channels, hidden_channels, num_layers, out_channels), dropout)
