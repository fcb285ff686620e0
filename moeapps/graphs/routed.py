"""Prediction that asks the strong expert only where the weak one is not sure.

Letters: ``V`` nodes, ``S`` requested nodes, ``n`` classes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from moeapps.errors import ArgumentError
from moeapps.graphs.models.mowst import Mowst, reads_graph
from moeapps.graphs.neighborhood import Neighborhood, estimate_edges, neighborhood
from moeapps.graphs.node_graph import take_rows

# A neighbourhood has to be gathered before it is computed on; beyond this share of the graph's
# edges the whole graph is the faster one (benchmarks/mowst_cost.py).
_FULL_SHARE = 0.5

Plan = Literal["weak only", "neighborhoods", "whole graph"]


@dataclass(frozen=True)
class RoutedPrediction:
    """Predicted classes and how they came about.

    Args:
        labels: ``[S]`` classes of the requested nodes.
        confidence: ``[S]`` the gate's ``c``.
        routed: ``[S]`` True where the strong expert answered.
        plan: What the strong expert ran on.
        reason: Why, with the numbers.

    Example:
        >>> done = RoutedPrediction(torch.tensor([1]), torch.tensor([0.9]), torch.tensor([False]),
        ...     "weak only", "no node has c <= 0.5")
        >>> print(done)
        1 nodes, 0.0 % routed to the strong expert; weak only: no node has c <= 0.5
    """

    labels: Tensor
    confidence: Tensor
    routed: Tensor
    plan: Plan
    reason: str

    def __str__(self) -> str:
        share = 100 * float(self.routed.double().mean()) if len(self.routed) else 0.0
        return (
            f"{len(self.labels)} nodes, {share:.1f} % routed to the strong expert; "
            f"{self.plan}: {self.reason}"
        )


@torch.no_grad()
def routed_predict(
    model: Mowst,
    data: Data | NodeLoader,
    tau: float | None = None,
    *,
    seeds: Tensor | None = None,
    batch_size: int | None = None,
    num_hops: int | None = None,
) -> RoutedPrediction:
    r"""Predict nodes with the weak expert, and with the strong one only where ``c <= tau``.

    .. math:: \hat y_v = \arg\max p_v \text{ if } c_v > \tau, \text{ else } \arg\max q_v

    The strong expert runs on the in-neighbourhoods of the nodes it has to answer for. Where these
    would touch about as many edges as the graph has, it runs on the whole graph instead.

    Args:
        model: In ``eval()`` mode.
        data: Graph with ``x``, ``edge_index`` and perhaps ``edge_weight``; or a ``NodeLoader``,
            which stands for its graph, input nodes and batch size. Its sampler is not used:
            prediction sees all neighbours.
        tau: Confidence above which the weak expert answers; the model's ``threshold`` by default.
        seeds: Requested nodes, numbers or mask; all nodes by default.
        batch_size: Routed nodes per neighbourhood; all at once by default.
        num_hops: How far the strong expert looks. By default its ``receptive_hops``, or
            ``num_layers + 1`` for a foreign network, whose degrees are right one hop further in.

    Returns:
        Labels equal to those of ``predict_mode="hard"``.

    Raises:
        ArgumentError: In training mode, for node numbers out of range, or when the strong expert
            does not say how far it looks.

    References:
        Zeng et al., *Mixture of Weak and Strong Experts on Graphs*, ICLR 2024.

    Example:
        >>> from moeapps.graphs import datasets, mowst
        >>> data = datasets.load("mixed-csbm", size="tiny")
        >>> model = mowst(32, 16, 2, 5).eval()
        >>> done = routed_predict(model, data, seeds=torch.arange(10))
        >>> done.labels.shape
        torch.Size([10])
    """
    if isinstance(data, NodeLoader):
        seeds = data.input_data.node if seeds is None else seeds
        batch_size = data.batch_size if batch_size is None else batch_size
        data = data.data
    if model.training:
        raise ArgumentError(
            "The model is in training mode, where dropout and BatchNorm change its answers. "
            "Call model.eval() first."
        )
    tau = model.threshold if tau is None else tau
    seeds = _node_numbers(seeds, data)
    if seeds.numel() == 0:
        none = torch.empty(0, device=seeds.device)
        return RoutedPrediction(seeds, none, none.bool(), "weak only", "no node was asked for")
    weak_logits, _, _ = _Runner(model.weak, data, batch_size).run(seeds)
    x = take_rows(data.x, seeds) if model.gate_uses_features else None
    confidence = model.route(weak_logits, x).weights[:, 0]
    routed = confidence <= tau
    labels = weak_logits.argmax(-1)
    if not bool(routed.any()):
        return RoutedPrediction(
            labels, confidence, routed, "weak only", f"no node has c <= {tau:g}"
        )
    strong = _Runner(model.strong, data, batch_size, num_hops)
    logits, plan, reason = strong.run(seeds[routed])
    labels[routed] = logits.argmax(-1)
    return RoutedPrediction(labels, confidence, routed, plan, reason)


class _Runner:
    """Runs one expert on some nodes, the cheaper way."""

    def __init__(
        self, expert: nn.Module, data: Data, batch_size: int | None, num_hops: int | None = None
    ) -> None:
        self.expert = expert
        self.data = data
        self.batch_size = batch_size
        self.num_hops = num_hops

    def run(self, nodes: Tensor) -> tuple[Tensor, Plan, str]:
        data = self.data
        if not reads_graph(self.expert):
            return self.expert(take_rows(data.x, nodes)), "weak only", "it reads no graph"
        unique, back = torch.unique(nodes, return_inverse=True)
        batches = unique.split(self.batch_size or max(unique.numel(), 1))
        hops = self.num_hops or _receptive_hops(self.expert)
        expected = sum(
            estimate_edges(
                data.edge_index,
                data.num_nodes,
                batch,
                num_hops=hops,
                edge_weight=data.edge_weight,
            )
            for batch in batches
        )
        reason = (
            f"{hops}-hop neighbourhoods of {unique.numel()} nodes hold about {expected:,.0f} "
            f"edges, the graph {data.num_edges:,}"
        )
        if expected > _FULL_SHARE * data.num_edges:
            return (
                self._call(data.x, data.edge_index, data.edge_weight)[nodes],
                "whole graph",
                reason,
            )
        logits = torch.cat([self._on(self._around(batch, hops))[: len(batch)] for batch in batches])
        return logits[back], "neighborhoods", reason

    def _around(self, batch: Tensor, hops: int) -> Neighborhood:
        data = self.data
        return neighborhood(
            data.edge_index, data.num_nodes, batch, num_hops=hops, edge_weight=data.edge_weight
        )

    def _on(self, part: Neighborhood) -> Tensor:
        return self._call(take_rows(self.data.x, part.nodes), part.edge_index, part.edge_weight)

    def _call(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
        if edge_weight is None:
            return self.expert(x, edge_index)
        return self.expert(x, edge_index, edge_weight)


def _receptive_hops(expert: nn.Module) -> int:
    if hasattr(expert, "receptive_hops"):
        return int(expert.receptive_hops)  # type: ignore[arg-type]
    if hasattr(expert, "num_layers"):
        return int(expert.num_layers) + 1  # type: ignore[arg-type]
    raise ArgumentError(
        f"{type(expert).__name__} does not say how far it looks, expected receptive_hops or "
        "num_layers on it. Pass num_hops=: its layers, plus one if they use neighbours' degrees."
    )


def _node_numbers(seeds: Tensor | None, data: Data) -> Tensor:
    if seeds is None:
        return torch.arange(data.num_nodes, device=data.x.device)
    if seeds.dtype == torch.bool:
        seeds = seeds.nonzero().squeeze(1)
    if seeds.numel() and not 0 <= int(seeds.min()) <= int(seeds.max()) < data.num_nodes:
        raise ArgumentError(
            f"seeds name nodes {int(seeds.min())}..{int(seeds.max())}, expected "
            f"0..{data.num_nodes - 1}. Check that they belong to this graph."
        )
    return seeds.to(data.x.device)
