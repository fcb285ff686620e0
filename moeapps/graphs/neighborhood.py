"""The part of a graph that some nodes' predictions depend on.

Letters: ``V`` nodes of the graph, ``v`` nodes of the part, ``m`` its edges, ``S`` seeds.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moeapps.graphs.csr import Operator, Pattern, spread
from moeapps.graphs.propagation import Graph, How, bind, graph_of


@dataclass(frozen=True)
class Neighborhood:
    """A part of a graph on which a network gives its seeds what it gives them on the whole.

    Args:
        nodes: ``[v]`` numbers in the whole graph, the seeds first.
        edge_index: ``[2, m]`` in-edges of every node but the farthest. Our own layers
            meet the whole graph's degrees and two-hop pairs through it, not the part's.
        edge_weight: ``[m]``, or None where the graph has none.
    """

    nodes: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None


class _Part(Graph):
    """Operators of a whole graph, cut to a part of it."""

    def __init__(self, whole: Graph, nodes: Tensor, place: Tensor, num_inner: int) -> None:
        self.whole = whole
        self.nodes = nodes
        self.place = place
        self.num_inner = num_inner
        self.operators = {}
        self.pattern, entry = self._cut(whole.pattern)
        self.weight = None if whole.weight is None else whole.weight[entry]

    def _cut(self, pattern: Pattern) -> tuple[Pattern, Tensor]:
        return pattern.restrict(self.nodes, self.place, num_inner=self.num_inner)

    @property
    def with_loops(self) -> tuple[Pattern, Tensor | None]:
        pattern, weight = self.whole.with_loops
        cut, entry = self._cut(pattern)
        return cut, None if weight is None else weight[entry]

    def _build(self, how: How, dtype: torch.dtype) -> Operator:
        operator = self.whole.operator(how, dtype)
        cut, entry = self._cut(operator.pattern)
        return Operator(cut, operator.values[entry])


def neighborhood(
    edge_index: Tensor,
    num_nodes: int,
    seeds: Tensor,
    *,
    num_hops: int,
    edge_weight: Tensor | None = None,
) -> Neighborhood:
    """Everything within ``num_hops`` in-edges of the seeds.

    The whole graph is converted on first use and kept as long as ``edge_index`` lives.

    Args:
        edge_index: Whole graph, in any form :func:`~moeapps.graphs.propagation.propagate` takes.
        num_nodes: ``V``.
        seeds: ``[S]`` distinct nodes.
        num_hops: How far the network looks.
        edge_weight: ``[M]`` or None.

    Example:
        >>> path = torch.tensor([[0, 1, 2], [1, 2, 3]])
        >>> part = neighborhood(path, 4, torch.tensor([3]), num_hops=2)
        >>> part.nodes.tolist(), part.edge_index.tolist()
        ([3, 2, 1], [[1, 2], [0, 1]])
    """
    whole = graph_of(edge_index, num_nodes, edge_weight)
    place = torch.full((num_nodes,), -1, device=seeds.device)
    hops = [seeds]
    place[seeds] = torch.arange(seeds.numel(), device=seeds.device)
    total = seeds.numel()
    for _ in range(num_hops):
        last = hops[-1]
        _, entry = spread(whole.pattern.crow[last], whole.pattern.degree[last])
        met = whole.pattern.col[entry]
        new = torch.unique(met[place[met] < 0])
        place[new] = torch.arange(total, total + new.numel(), device=seeds.device)
        total += new.numel()
        hops.append(new)
    nodes = torch.cat(hops)
    with torch.inference_mode(False), torch.no_grad():
        part = _Part(whole, nodes, place, total - hops[-1].numel())
        pairs = torch.stack([part.pattern.col, part.pattern.row])
    bind(pairs, total, part)
    if part.weight is not None:  # whoever passes the weights meets the same graph
        bind(pairs, total, part, edge_weight=part.weight)
    return Neighborhood(nodes, pairs, part.weight)


def estimate_edges(
    edge_index: Tensor,
    num_nodes: int,
    seeds: Tensor,
    *,
    num_hops: int,
    edge_weight: Tensor | None = None,
) -> float:
    r"""Expected edges of a neighbourhood, from degrees alone.

    The seeds' own in-edges are counted, :math:`e_1 = \sum_{s} d_s`. Each later hop multiplies the
    nodes newly met by the mean degree a random edge leads to, :math:`\sum d^2 / \sum d`; :math:`e`
    edges into ``V`` nodes meet :math:`V (1 - \exp(-e / V))` of them.

    Example:
        >>> ring = torch.stack([torch.arange(100), (torch.arange(100) + 1) % 100])
        >>> round(estimate_edges(ring, 100, torch.tensor([0]), num_hops=2), 2)
        2.0
    """
    graph = graph_of(edge_index, num_nodes, edge_weight)
    edges = total = float(graph.pattern.degree[seeds].sum())
    for _ in range(num_hops - 1):
        edges = num_nodes * -math.expm1(-edges / num_nodes) * graph.onward_degree
        total += edges
    return min(total, float(graph.pattern.col.numel()))
