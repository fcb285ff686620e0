"""Neighbour sampling in plain torch, for PyTorch Geometric's loaders.

Letters: ``V`` nodes, ``M`` directed edges, ``F`` nodes on the frontier, ``K`` fan-out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torch_geometric.data import Data
from torch_geometric.sampler import (
    BaseSampler,
    EdgeSamplerInput,
    NegativeSampling,
    NodeSamplerInput,
    SamplerOutput,
)

from moeapps.errors import ArgumentError
from moeapps.graphs.csr import Pattern, spread

_FREE = torch.iinfo(torch.long).max


class CSRNeighborSampler(BaseSampler):
    r"""Samples in-neighbours of seeds hop by hop, uniformly and without replacement.

    A node with degree :math:`d` keeps :math:`\min(d, K)` distinct in-edges, chosen by Floyd's
    algorithm for all nodes at once, so the work does not grow with the degree. Needs neither
    pyg-lib nor torch-sparse.

    Args:
        data: Graph with ``edge_index`` (source -> target).
        num_neighbors: Fan-out ``K`` per hop, nearest hop first; -1 keeps every in-edge.
        seed: Same seed, same samples in the same order of calls. Loader workers draw from their own
            streams.

    Shape:
        A sampled batch holds the seeds first (as given, repeats included), then newly met nodes hop
        by hop. Edges are local ``[2, m]``, hop by hop, with their places in ``edge_index`` as
        ``e_id``. A node's in-edges are drawn once, when it is first met.

    Raises:
        ArgumentError: For a fan-out of 0 or below -1, or without ``edge_index``.

    Notes:
        Samples one graph for all seeds of a batch (PyTorch Geometric's ``disjoint=False``); no
        times and no edge weights.

    References:
        Hamilton, Ying, Leskovec, *Inductive Representation Learning on Large Graphs*, NeurIPS 2017.
        Bentley, Floyd, *A Sample of Brilliance*, CACM 1987.

    Example:
        >>> from torch_geometric.loader import NodeLoader
        >>> data = Data(x=torch.eye(4), edge_index=torch.tensor([[1, 2, 3, 0], [0, 0, 0, 1]]))
        >>> sampler = CSRNeighborSampler(data, [2])
        >>> batch = next(iter(NodeLoader(data, sampler, torch.tensor([0]), batch_size=1)))
        >>> batch.n_id[:1].tolist(), batch.num_nodes, batch.num_edges
        ([0], 3, 2)
    """

    def __init__(self, data: Data, num_neighbors: Sequence[int], *, seed: int = 0) -> None:
        if not isinstance(data.edge_index, Tensor) or data.edge_index.layout != torch.strided:
            raise ArgumentError(
                "The sampler needs data.edge_index as [2, M] indices. Set it, or convert a sparse "
                "adjacency with torch_geometric.utils.to_edge_index."
            )
        self.num_neighbors = [int(fanout) for fanout in num_neighbors]
        if not self.num_neighbors or any(k < -1 or k == 0 for k in self.num_neighbors):
            raise ArgumentError(
                f"num_neighbors={list(num_neighbors)} cannot be sampled, expected one number per "
                "hop: at least 1, or -1 for all neighbours."
            )
        size = int(data.num_nodes)
        source, target = torch.as_tensor(data.edge_index).cpu().long()
        self.pattern, self.edge = Pattern.from_pairs(target, source, (size, size))
        self.generator = torch.Generator().manual_seed(seed)
        self._worker_seed: int | None = None
        self._place = torch.full((size,), -1)  # global node -> place in the batch; -1 between calls

    def sample_from_nodes(self, index: NodeSamplerInput, **kwargs: object) -> SamplerOutput:
        """Sampled neighbourhood of ``index.node``."""
        self._follow_worker()
        try:
            return self._sample(index)
        except BaseException:  # an interrupt too: half-written marks would spoil the next batch
            self._place.fill_(-1)
            raise

    def _sample(self, index: NodeSamplerInput) -> SamplerOutput:
        place = self._place
        seeds = index.node.cpu().long()
        nodes, sources, targets, edges = [seeds], [], [], []
        sampled_nodes, sampled_edges = [seeds.numel()], []
        _number(place, seeds, start=0)
        frontier, start, total = seeds, 0, seeds.numel()
        for fanout in self.num_neighbors:
            owner, position = self._draw(frontier, fanout)
            neighbours = self.pattern.col[position]
            new = neighbours[place[neighbours] < 0]
            new = new[_number(place, new, start=total)]
            place[new] = torch.arange(total, total + new.numel())
            sources.append(place[neighbours])
            targets.append(owner + start)
            edges.append(self.edge[position])
            nodes.append(new)
            sampled_nodes.append(new.numel())
            sampled_edges.append(position.numel())
            frontier, start, total = new, total, total + new.numel()
        node = torch.cat(nodes)
        place[node] = -1
        return SamplerOutput(
            node=node,
            row=torch.cat(sources),
            col=torch.cat(targets),
            edge=torch.cat(edges),
            num_sampled_nodes=sampled_nodes,
            num_sampled_edges=sampled_edges,
            metadata=(index.input_id, index.time),
        )

    def sample_from_edges(
        self, index: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None
    ) -> SamplerOutput:
        """Not offered: this sampler starts from nodes.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError(
            "CSRNeighborSampler got edges to start from, expected nodes. Use it in NodeLoader, or "
            "LinkNeighborLoader with pyg-lib for links."
        )

    def _follow_worker(self) -> None:
        worker = get_worker_info()
        if worker is not None and worker.seed != self._worker_seed:
            self._worker_seed = worker.seed
            self.generator.manual_seed(worker.seed)

    def _draw(self, frontier: Tensor, fanout: int) -> tuple[Tensor, Tensor]:
        """In-edges kept for each frontier node: whose they are, and their places in the pattern."""
        first = self.pattern.crow[frontier]
        degree = self.pattern.crow[frontier + 1] - first
        if fanout < 0:
            return spread(first, degree)
        many = (degree > fanout).nonzero().squeeze(1)
        few = (degree <= fanout).nonzero().squeeze(1)
        owner, position = spread(first[few], degree[few])
        drawn = first[many, None] + _floyd(degree[many], fanout, self.generator)
        owners = torch.cat([few[owner], many.repeat_interleave(fanout)])
        return owners, torch.cat([position, drawn.flatten()])


def _floyd(degree: Tensor, fanout: int, generator: torch.Generator) -> Tensor:
    """``[F, K]`` distinct numbers below each degree (all above K), uniform over subsets."""
    chosen = degree.new_empty(degree.numel(), fanout)
    uniform = torch.rand(fanout, degree.numel(), generator=generator, dtype=torch.float64)
    for step in range(fanout):
        last = degree - fanout + step
        draw = (uniform[step] * (last + 1)).long()
        taken = (chosen[:, :step] == draw[:, None]).any(1)
        chosen[:, step] = torch.where(taken, last, draw)
    return chosen


def _number(place: Tensor, nodes: Tensor, *, start: int) -> Tensor:
    """Mark nodes with the place of their first occurrence; True where a node occurs first."""
    order = torch.arange(start, start + nodes.numel())
    place[nodes] = _FREE
    place.scatter_reduce_(0, nodes, order, "amin")
    return place[nodes] == order
