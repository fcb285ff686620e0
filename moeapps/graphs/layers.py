"""Layers and the stack that the node networks share.

Letters: ``V`` nodes, ``M`` directed edges, ``D`` input width, ``O`` outputs, ``H`` heads.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.nn.models.basic_gnn import BasicGNN

from moeapps.errors import ArgumentError
from moeapps.graphs import propagation
from moeapps.graphs.attention import attend
from moeapps.graphs.propagation import linear, propagate


class FeatureLinear(pyg.Linear):
    """Linear layer that also takes constant ``torch.sparse_csr`` features."""

    def forward(self, x: Tensor) -> Tensor:
        """``x W^T + b``."""
        return linear(x, self.weight, self.bias)


class BatchNorm(pyg.BatchNorm):
    """Batch normalisation of a tensor that the caller gives away.

    Outside of training and without gradients it writes into its input: on large graphs a new tensor
    costs more than the arithmetic.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised features."""
        norm = self.module
        if self.training or torch.is_grad_enabled() or x.dtype != norm.weight.dtype:
            return super().forward(x)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return x.mul_(scale).add_(norm.bias - norm.running_mean * scale)


def mix_then_linear(
    x: Tensor, weight: Tensor, bias: Tensor, mix: Callable[[Tensor], Tensor]
) -> Tensor:
    """``mix(x) @ weight.T + bias`` for a linear ``mix`` over nodes, in the cheaper order.

    The two commute, so the mixing runs at the narrower width. Sparse features are projected first.
    A tie goes to mixing first when ``x`` is constant, which saves the mixing's backward pass.
    """
    out_channels, in_channels = weight.shape
    wider = in_channels > out_channels or (in_channels == out_channels and x.requires_grad)
    if x.layout != torch.strided or wider:
        return mix(linear(x, weight)) + bias
    return linear(mix(x), weight, bias)


class GCNConv(pyg.GCNConv):
    """PyTorch Geometric's layer on :func:`~moeapps.graphs.propagation.propagate`."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """New features of every node."""

        def mix(z: Tensor) -> Tensor:
            return propagate(z, edge_index, how="gcn", edge_weight=edge_weight)

        return mix_then_linear(x, self.lin.weight, self.bias, mix)


class SAGEConv(pyg.SAGEConv):
    """PyTorch Geometric's layer on :func:`~moeapps.graphs.propagation.propagate`."""

    def forward(self, x: Tensor, edge_index: Tensor, size: None = None) -> Tensor:
        """New features of every node."""

        def mix(z: Tensor) -> Tensor:
            return propagate(z, edge_index, how="mean")

        neighbours = mix_then_linear(x, self.lin_l.weight, self.lin_l.bias, mix)
        return neighbours + linear(x, self.lin_r.weight)


class GINConv(nn.Module):
    r"""``MLP((1 + eps) x + sum of neighbours)`` whose first linear layer may run before the sum.

    Args:
        in_channels: Width of the input.
        out_channels: Width of every layer of the inner MLP.
        num_layers: Layers of the inner MLP, with BatchNorm and ReLU between them.
    """

    def __init__(self, in_channels: int, out_channels: int, *, num_layers: int) -> None:
        super().__init__()
        self.lin = FeatureLinear(in_channels, out_channels)
        self.rest = nn.Sequential()
        if num_layers > 1:
            self.rest.extend([nn.BatchNorm1d(out_channels), nn.ReLU(inplace=True)])
            self.rest.append(
                pyg.MLP([out_channels] * num_layers, act="relu", norm="batch_norm", dropout=0.0)
            )

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        self.lin.reset_parameters()
        for module in self.rest:
            if isinstance(module, nn.BatchNorm1d | pyg.MLP):
                module.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """New features of every node."""

        def mix(z: Tensor) -> Tensor:
            return z + propagate(z, edge_index, how="sum")

        return self.rest(mix_then_linear(x, self.lin.weight, self.lin.bias, mix))


class GATConv(pyg.GATConv):
    """PyTorch Geometric's layer with attention kept in compressed rows."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: None = None) -> Tensor:
        """New features of every node."""
        z = linear(x, self.lin.weight).view(-1, self.heads, self.out_channels)
        to_source = (z * self.att_src).sum(-1)  # [V, H]
        to_target = (z * self.att_dst).sum(-1)
        if propagation.is_traced():
            out = self._scattered(z, to_source, to_target, edge_index)
        else:
            pattern = propagation.loop_pattern(edge_index, z.size(0))
            out = attend(
                to_source,
                to_target,
                z,
                pattern,
                negative_slope=self.negative_slope,
                dropout=self.dropout if self.training else 0.0,
            )
        out = out.flatten(1) if self.concat else out.mean(1)
        return out + self.bias

    def _scattered(
        self, z: Tensor, to_source: Tensor, to_target: Tensor, edge_index: Tensor
    ) -> Tensor:
        """The same by gather and scatter, without data-dependent shapes."""
        nodes = torch.arange(z.size(0), device=z.device)
        source = torch.cat([edge_index[0], nodes])
        target = torch.cat([edge_index[1], nodes])
        replaced = torch.cat([edge_index[0] == edge_index[1], nodes < 0])
        scores = F.leaky_relu(to_source[source] + to_target[target], self.negative_slope)
        scores = scores.masked_fill(replaced[:, None], float("-inf"))
        index = target[:, None].expand_as(scores)
        top = torch.full_like(to_target, float("-inf"))
        top = top.scatter_reduce(0, index, scores.detach(), "amax")
        exponent = (scores - top[target]).exp()
        total = torch.zeros_like(top).index_add(0, target, exponent)
        attention = F.dropout(exponent / total[target], self.dropout, self.training)
        messages = attention[:, :, None] * z[source]
        return torch.zeros_like(z).index_add(0, target, messages)


class NodeNetwork(BasicGNN):
    """PyTorch Geometric's stack of layers with the signature shared by all experts here."""

    @property
    def receptive_hops(self) -> int:
        """How far away a node can influence another."""
        return self.num_layers

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        *,
        num_sampled_nodes_per_hop: Sequence[int] | None = None,
        num_sampled_edges_per_hop: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits ``[V, O]`` of every node.

        Args:
            x: ``[V, D]``, dense or constant ``torch.sparse_csr``.
            edge_index: ``[2, M]``, ``EdgeIndex``, or transposed adjacency as ``torch.sparse_csr``.
            edge_weight: ``[M]``, for the networks that use weights.
            num_sampled_nodes_per_hop: As a sampled batch carries them; layers then skip the rows
                that no seed needs any more.
            num_sampled_edges_per_hop: Likewise.

        Raises:
            ArgumentError: When weights reach a network that ignores them, or BatchNorm is to learn
                from a single node.
        """
        if edge_weight is not None and not self.supports_edge_weight:
            raise ArgumentError(
                f"{type(self).__name__} got edge_weight and has no use for it, expected none. "
                "Leave it out, or use gcn."
            )
        check_batch(x, self)
        return super().forward(
            x,
            edge_index,
            edge_weight,
            num_sampled_nodes_per_hop=num_sampled_nodes_per_hop,
            num_sampled_edges_per_hop=num_sampled_edges_per_hop,
        )


def check_batch(x: Tensor, module: nn.Module) -> None:
    """Refuse to train BatchNorm on one row, before torch does it less clearly."""
    if module.training and not propagation.is_traced() and x.size(0) == 1:
        raise ArgumentError(
            f"{type(module).__name__} is in training mode and got one node, expected at least two: "
            "BatchNorm has no variance to learn from. Use a larger batch, or call eval()."
        )


def check_sizes(
    in_channels: int, hidden_channels: int, *, num_layers: int, out_channels: int, dropout: float
) -> None:
    """Refuse sizes no network can have."""
    sizes = {
        "in_channels": in_channels,
        "hidden_channels": hidden_channels,
        "num_layers": num_layers,
        "out_channels": out_channels,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ArgumentError(f"{name}={size} is too small, expected at least 1.")
    if not 0 <= dropout < 1:
        raise ArgumentError(f"dropout={dropout} is out of range. Choose 0 <= dropout < 1.")
