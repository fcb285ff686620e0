"""Message passing over a whole graph: one conversion per graph, then sparse products.

An ``edge_index`` is read as source -> target and turned into rows per target once. The result lives
as long as the tensor it came from and is never kept on a module, so two graphs cannot mix.

Letters: ``V`` nodes, ``M`` directed edges, ``D`` width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary
from torch_geometric import EdgeIndex

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.graphs.csr import Operator, Pattern

How = Literal["gcn", "sum", "mean", "hop1", "hop2"]


def propagate(
    x: Tensor, edge_index: Tensor, *, how: How = "gcn", edge_weight: Tensor | None = None
) -> Tensor:
    r"""Aggregate each node's in-neighbours, :math:`y_i = \sum_j P_{ij} x_j`.

    ====== =========================================================================================
    how    P
    ====== =========================================================================================
    gcn    :math:`\hat D^{-1/2} (A + I) \hat D^{-1/2}`, a self loop kept where there is one
    sum    :math:`A`, an edge that occurs twice counts twice
    mean   :math:`D^{-1} A`, 0 for a node without in-neighbours
    hop1   :math:`D_1^{-1/2} A_1 D_1^{-1/2}`, pairs exactly one hop apart, no self loops
    hop2   :math:`D_2^{-1/2} A_2 D_2^{-1/2}`, pairs exactly two hops apart, no self loops
    ====== =========================================================================================

    Args:
        x: Node features. Half precision is raised to float32 inside.
        edge_index: ``[2, M]`` indices, an ``EdgeIndex``, or the transposed adjacency as
            ``torch.sparse_csr`` (row = target) whose values are edge weights.
        how: Which operator, see the table.
        edge_weight: One weight per edge, for ``gcn`` and ``sum``. Weights that need a gradient take
            the slower gather-scatter path.

    Shape:
        - x ``[V, D]``, edge_weight ``[M]``
        - output ``[V, D]``

    Raises:
        ArgumentError: When shapes or node numbers do not fit, or weights are given to an operator
            that has none.

    Notes:
        Inside ``torch.compile`` and ``torch.export`` nothing is cached and the operations are plain
        gather and scatter; ``hop2`` builds a dense ``[V, V]`` matrix there. Degrees count in-edges.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> propagate(x, edge_index, how="mean")
        tensor([[2.],
                [2.],
                [2.]])
    """
    if how not in get_args(How):
        raise UnknownNameError("propagation", how, get_args(How))
    learned = edge_weight is not None and edge_weight.requires_grad and torch.is_grad_enabled()
    if learned or is_traced():
        return scatter_propagate(x, edge_index, how=how, edge_weight=edge_weight)
    return operator(edge_index, x.size(0), how=how, edge_weight=edge_weight, dtype=x.dtype) @ x


def operator(
    edge_index: Tensor,
    num_nodes: int,
    *,
    how: How = "gcn",
    edge_weight: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Operator:
    """The cached sparse operator that :func:`propagate` multiplies with."""
    graph = graph_of(edge_index, num_nodes, edge_weight)
    return graph.operator(how, torch.float64 if dtype == torch.float64 else torch.float32)


def loop_pattern(edge_index: Tensor, num_nodes: int) -> Pattern:
    """Cached pattern of the edges with exactly one self loop per node, as attention uses."""
    return graph_of(edge_index, num_nodes, None).with_loops[0]


def is_traced() -> bool:
    """Whether the caller is being compiled or exported, where caches must stay out."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` where ``x`` may be a constant ``torch.sparse_csr`` matrix.

    Args:
        x: ``[V, D]`` dense or sparse; sparse features are transposed once, for the gradient.
        weight: ``[O, D]``.
        bias: ``[O]``.

    Example:
        >>> x = Pattern.from_pairs(torch.arange(3), torch.arange(3), (3, 3))[0].ones
        >>> linear(x, torch.arange(6.0).view(2, 3))
        tensor([[0., 3.],
                [1., 4.],
                [2., 5.]])
    """
    if x.layout == torch.strided or is_traced():
        return F.linear(x, weight, bias)
    if x.layout != torch.sparse_csr:
        raise ArgumentError(
            f"Features have layout {x.layout}, expected dense or torch.sparse_csr. "
            "Convert them with x.to_sparse_csr()."
        )
    features = _cached(x, None, 0, lambda: _Features(x))
    out = features.operator(weight.dtype) @ weight.t()
    return out if bias is None else out + bias


# ---------------------------------------------------------------------------------------- cache

_CACHE = WeakTensorKeyDictionary()
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Entry:
    source: TensorWeakRef
    marks: tuple
    value: Any


def _marks(tensor: Tensor) -> tuple:
    """What changes when a tensor is written to or given other storage."""
    parts = [tensor]
    if tensor.layout == torch.sparse_csr:
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return tuple(
        (part.data_ptr(), part.shape, part.dtype, 0 if part.is_inference() else part._version)
        for part in parts
    )


def _cached(source: Tensor, weight: Tensor | None, extra: int, build: Callable[[], _T]) -> _T:
    # Keyed by the weight where there is one, so several weightings of a graph live side by side.
    # The address alone would not do: a freed graph's memory is soon used by the next one.
    key = source if weight is None else weight
    marks = (extra, _marks(source), None if weight is None else _marks(weight))
    entry = _CACHE.get(key)
    if entry is None or entry.marks != marks or entry.source() is not source:
        with torch.inference_mode(False), torch.no_grad():
            entry = _Entry(TensorWeakRef(source), marks, build())
        _CACHE[key] = entry
    return entry.value


def bind(
    edge_index: Tensor, num_nodes: int, graph: "Graph", *, edge_weight: Tensor | None = None
) -> None:
    """Make propagation over ``edge_index`` use a graph that was prepared elsewhere."""
    key = edge_index if edge_weight is None else edge_weight
    marks = (num_nodes, _marks(edge_index), None if edge_weight is None else _marks(edge_weight))
    _CACHE[key] = _Entry(TensorWeakRef(edge_index), marks, graph)


class _Features:
    """A sparse feature matrix as an operator per dtype."""

    def __init__(self, x: Tensor) -> None:
        self.pattern = Pattern(x.crow_indices(), x.col_indices(), x.size(1))
        self.values = x.values()
        self.operators: dict[torch.dtype, Operator] = {}

    def operator(self, dtype: torch.dtype) -> Operator:
        if dtype not in self.operators:
            self.operators[dtype] = Operator(self.pattern, self.values.to(dtype))
        return self.operators[dtype]


class Graph:
    """One graph as rows per target, and every operator asked of it so far."""

    def __init__(self, edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None) -> None:
        shape = (num_nodes, num_nodes)
        if edge_index.layout == torch.sparse_csr:
            crow, col, values = (
                edge_index.crow_indices().long(),
                edge_index.col_indices().long(),
                edge_index.values(),
            )
            row = Pattern(crow, col, num_nodes).row
            weight = None if bool((values == 1).all()) else values
        else:
            (col, row), weight = edge_index.long(), edge_weight
        self.pattern, order = Pattern.from_pairs(row, col, shape)
        self.weight = None if weight is None else weight.detach()[order]
        self.operators: dict[tuple[str, torch.dtype], Operator] = {}

    @cached_property
    def with_loops(self) -> tuple[Pattern, Tensor | None]:
        """The graph with one self loop per node; a loop that is there keeps its weight."""
        pattern, weight = self.pattern, self.weight
        nodes = torch.arange(pattern.num_rows, device=pattern.col.device)
        is_loop = pattern.row == pattern.col
        row = torch.cat([pattern.row[~is_loop], nodes])
        col = torch.cat([pattern.col[~is_loop], nodes])
        looped, order = Pattern.from_pairs(row, col, (nodes.numel(), nodes.numel()))
        if weight is None:
            return looped, None
        loops = _loop_weight(pattern.col, pattern.row, weight, nodes.numel())
        return looped, torch.cat([weight[~is_loop], loops])[order]

    @cached_property
    def onward_degree(self) -> float:
        """Mean in-degree of the node that a random edge comes from, if edges were shuffled."""
        degree = self.pattern.degree.double()
        return float(degree.square().sum() / degree.sum().clamp(min=1))

    @cached_property
    def hops(self) -> tuple[Pattern, Pattern]:
        """Pairs exactly one and exactly two hops apart."""
        size = self.pattern.num_rows
        crow, col = self.pattern.crow.cpu().numpy(), self.pattern.col.cpu().numpy()
        one = scipy.sparse.csr_array((np.ones(col.size, np.float32), col, crow), shape=(size, size))
        one.setdiag(0)
        one.sum_duplicates()
        one.eliminate_zeros()
        one.data[:] = 1
        two = one @ one
        two.setdiag(0)
        two = two - two.multiply(one)
        two.eliminate_zeros()
        return self._from_scipy(one), self._from_scipy(two)

    def _from_scipy(self, matrix: scipy.sparse.csr_array) -> Pattern:
        matrix.sort_indices()
        device = self.pattern.col.device
        crow = torch.from_numpy(matrix.indptr.astype(np.int64)).to(device)
        col = torch.from_numpy(matrix.indices.astype(np.int64)).to(device)
        return Pattern(crow, col, matrix.shape[1])

    def operator(self, how: How, dtype: torch.dtype) -> Operator:
        """The operator, built on first use."""
        if (how, dtype) not in self.operators:
            if self.weight is not None and how not in ("gcn", "sum"):
                raise ArgumentError(
                    f"propagation {how!r} got edge weights and has no use for them, expected none. "
                    "Leave edge_weight out, or use how='gcn' or how='sum'."
                )
            with torch.inference_mode(False), torch.no_grad():
                self.operators[how, dtype] = self._build(how, dtype)
        return self.operators[how, dtype]

    def _build(self, how: How, dtype: torch.dtype) -> Operator:
        if how == "gcn":
            pattern, weight = self.with_loops
            values = _values(pattern, weight, dtype)
            degree = values.new_zeros(pattern.num_rows).index_add(0, pattern.row, values)
            return Operator(pattern, values * _pair_scale(pattern, degree))
        if how == "sum":
            return Operator(self.pattern, _values(self.pattern, self.weight, dtype))
        if how == "mean":
            share = self.pattern.degree.to(dtype).reciprocal()
            return Operator(self.pattern, share[self.pattern.row])
        pattern = self.hops[how == "hop2"]
        return Operator(pattern, _pair_scale(pattern, pattern.degree.to(dtype)))


def _values(pattern: Pattern, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    if weight is None:
        return torch.ones(pattern.col.numel(), dtype=dtype, device=pattern.col.device)
    return weight.to(dtype)


def _pair_scale(pattern: Pattern, degree: Tensor) -> Tensor:
    """``d_i^-1/2 d_j^-1/2`` per entry, multiplied so that (i, j) and (j, i) round alike."""
    root = _inverse_root(degree)
    return root[pattern.row] * root[pattern.col]


def _inverse_root(degree: Tensor) -> Tensor:
    return torch.where(degree == 0, 0.0, degree.rsqrt())


def graph_of(edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None) -> Graph:
    """The cached rows-per-target form of a graph."""
    if isinstance(edge_index, EdgeIndex):
        edge_index = edge_index.as_tensor()
    if edge_index.layout not in (torch.strided, torch.sparse_csr):
        raise ArgumentError(
            f"edge_index has layout {edge_index.layout}, expected [2, M] indices or a "
            "torch.sparse_csr adjacency. Convert it with to_sparse_csr()."
        )

    def build() -> Graph:
        _check(edge_index, num_nodes, edge_weight)
        return Graph(edge_index, num_nodes, edge_weight)

    return _cached(edge_index, edge_weight, num_nodes, build)


def _check(edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None) -> None:
    if edge_index.layout == torch.sparse_csr:
        if edge_index.shape != (num_nodes, num_nodes):
            raise ArgumentError(
                f"The adjacency is {list(edge_index.shape)}, expected [{num_nodes}, {num_nodes}] "
                f"for {num_nodes} rows of features. Build both from the same graph."
            )
        if edge_weight is not None:
            raise ArgumentError(
                "A sparse adjacency and edge_weight were both given, expected one of them. "
                "Put the weights into the adjacency's values."
            )
        return
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ArgumentError(
            f"edge_index has shape {list(edge_index.shape)}, expected [2, M] indices or a "
            "torch.sparse_csr adjacency. Stack the source and target rows."
        )
    if edge_index.is_floating_point() or edge_index.dtype == torch.bool:
        raise ArgumentError(
            f"edge_index has dtype {edge_index.dtype}, expected integers. Convert it with .long()."
        )
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < num_nodes:
        raise ArgumentError(
            f"edge_index names nodes {int(edge_index.min())}..{int(edge_index.max())}, expected "
            f"0..{num_nodes - 1} for {num_nodes} rows of features. Check that x and edge_index "
            "belong to the same graph."
        )
    if edge_weight is not None and edge_weight.shape != edge_index.shape[1:]:
        raise ArgumentError(
            f"edge_weight has shape {list(edge_weight.shape)}, expected "
            f"[{edge_index.size(1)}]: one number per edge."
        )


# ------------------------------------------------------------------------------------ reference


def scatter_propagate(
    x: Tensor, edge_index: Tensor, *, how: How = "gcn", edge_weight: Tensor | None = None
) -> Tensor:
    """:func:`propagate` by gather and scatter: slow, traceable, differentiable in the weights.

    Shape:
        as :func:`propagate`; ``edge_index`` must be ``[2, M]`` or an ``EdgeIndex``
    """
    if isinstance(edge_index, EdgeIndex):
        edge_index = edge_index.as_tensor()
    if edge_index.layout != torch.strided:
        raise ArgumentError(
            "A sparse adjacency cannot be traced, expected a [2, M] edge_index here. "
            "Pass the plain edge_index when compiling or exporting."
        )
    if edge_weight is not None and how not in ("gcn", "sum"):
        raise ArgumentError(
            f"propagation {how!r} got edge weights and has no use for them, expected none. "
            "Leave edge_weight out, or use how='gcn' or how='sum'."
        )
    source, target = edge_index[0], edge_index[1]
    size = x.size(0)
    wide = x if x.dtype == torch.float64 else x.float()
    weight = wide.new_ones(source.size(0)) if edge_weight is None else edge_weight.to(wide.dtype)
    if how in ("hop1", "hop2"):
        return (_dense_hops(edge_index, wide)[how == "hop2"] @ wide).to(x.dtype)
    if how == "gcn":
        loop = _loop_weight(source, target, weight, size)
        weight = torch.where(source == target, 0.0, weight)
        root = _inverse_root(loop.index_add(0, target, weight))
        scaled = root[:, None] * wide
        out = (loop[:, None] * scaled).index_add(0, target, weight[:, None] * scaled[source])
        return (root[:, None] * out).to(x.dtype)
    out = torch.zeros_like(wide).index_add(0, target, weight[:, None] * wide[source])
    if how == "mean":
        out = out / wide.new_zeros(size).index_add(0, target, weight).clamp(min=1)[:, None]
    return out.to(x.dtype)


def _loop_weight(source: Tensor, target: Tensor, weight: Tensor, size: int) -> Tensor:
    """``[V]`` weight of each node's self loop: its own (the largest of several) or 1."""
    none = float("-inf")
    own = torch.where(source == target, weight, none)
    loop = weight.new_full((size,), none).scatter_reduce(0, target, own, "amax")
    return torch.where(loop == none, 1.0, loop)


def _dense_hops(edge_index: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised one- and two-hop matrices, ``[V, V]`` each."""
    size = like.size(0)
    away = 1 - torch.eye(size, dtype=like.dtype, device=like.device)
    one = like.new_zeros(size, size).index_put((edge_index[1], edge_index[0]), like.new_ones(()))
    one = one * away
    two = ((one @ one) > 0) * away * (1 - one)
    return _normalize_dense(one), _normalize_dense(two)


def _normalize_dense(adjacency: Tensor) -> Tensor:
    root = _inverse_root(adjacency.sum(1))
    return root[:, None] * adjacency * root
