"""H2GCN: a node's own features, its neighbours' and their neighbours' kept apart."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.errors import ArgumentError
from moeapps.graphs.layers import FeatureLinear, check_sizes
from moeapps.graphs.propagation import propagate


class H2GCN(nn.Module):
    r"""Network for graphs whose neighbours often differ in class.

    .. math::
        r_0 = \mathrm{relu}(X W), \quad r_k = [A_1 r_{k-1}, A_2 r_{k-1}], \quad
        y = W_o\, \mathrm{dropout}([r_0, \dots, r_K]) + b

    :math:`A_1` and :math:`A_2` are the symmetrically normalised adjacencies of pairs exactly one
    and exactly two hops apart, without self loops.

    Args:
        in_channels: Width of the features.
        hidden_channels: Width ``h`` of :math:`r_0`.
        num_layers: Rounds ``K``; the classifier sees :math:`(2^{K+1} - 1) h` numbers, 7h for 2.
        out_channels: Classes.
        dropout: Before the classifier.

    Shape:
        - x ``[V, D]``, dense or constant ``torch.sparse_csr``; edge_index ``[2, M]``
        - output ``[V, O]`` logits

    Raises:
        ArgumentError: For sizes below 1, a dropout outside ``[0, 1)``, or edge weights.

    Notes:
        The two-hop pairs are found once per graph and can far outnumber the edges around hubs.
        Departures: none.

    References:
        Zhu et al., *Beyond Homophily in Graph Neural Networks: Current Limitations and Effective
        Designs*, NeurIPS 2020.

    Example:
        >>> model = H2GCN(8, 16, 2, 3)
        >>> model(torch.randn(5, 8), torch.tensor([[0, 1], [1, 0]])).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        *,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_sizes(
            in_channels,
            hidden_channels,
            num_layers=num_layers,
            out_channels=out_channels,
            dropout=dropout,
        )
        self.num_layers = num_layers
        self.dropout = dropout
        self.embed = FeatureLinear(in_channels, hidden_channels, bias=False)
        self.classify = nn.Linear((2 ** (num_layers + 1) - 1) * hidden_channels, out_channels)

    @property
    def receptive_hops(self) -> int:
        """How far away a node can influence another."""
        return 2 * self.num_layers

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.embed.reset_parameters()
        self.classify.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Logits ``[V, O]`` of every node."""
        if edge_weight is not None:
            raise ArgumentError(
                "H2GCN got edge_weight and has no use for it, expected none. Leave it out, or use "
                "gcn."
            )
        first = self.embed(x).relu()
        dropped = self.training and self.dropout > 0
        if not dropped and 2 * self.classify.out_features <= first.size(1):
            return self._from_right(first, edge_index)
        rounds = [first]
        for _ in range(self.num_layers):
            last = rounds[-1]
            hops = [propagate(last, edge_index, how=how) for how in ("hop1", "hop2")]
            rounds.append(torch.cat(hops, 1))
        return self.classify(F.dropout(torch.cat(rounds, 1), self.dropout, self.training))

    def _from_right(self, first: Tensor, edge_index: Tensor) -> Tensor:
        r"""The same without dropout, the classifier before the hops: few columns instead of many.

        Behind :math:`r_0` all is linear. With :math:`C_K = W_K` and
        :math:`C_{k-1} = [W_{k-1}, C_k^1, C_k^2]`, where the upper rows :math:`C_k^1` meet
        :math:`A_1 r_{k-1}`, each :math:`r_k C_k = A_1 r_{k-1} C_k^1 + A_2 r_{k-1} C_k^2` comes from
        columns of :math:`r_{k-1} C_{k-1}`.
        """
        width = first.size(1)
        *blocks, factor = self.classify.weight.t().split(
            [width << number for number in range(self.num_layers + 1)]
        )
        for block in reversed(blocks):
            factor = torch.cat([block, *factor.chunk(2)], 1)
        outputs = self.classify.out_features
        columns, out = first @ factor, self.classify.bias
        for _ in range(self.num_layers):
            half = (columns.size(1) - outputs) // 2
            own, one, two = columns.split([outputs, half, half], 1)
            out = out + own
            columns = propagate(one, edge_index, how="hop1")
            columns = columns + propagate(two, edge_index, how="hop2")
        return out + columns
