"""Message passing against dense matrices, in float64, values and gradients."""

import gc

import numpy as np
import pytest
import torch
import torch_geometric.nn as pyg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import EdgeIndex

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.graphs import propagation
from moeapps.graphs.csr import Operator, Pattern
from moeapps.graphs.propagation import linear, operator, propagate, scatter_propagate

HOWS = ["gcn", "sum", "mean", "hop1", "hop2"]


def dense_operator(edge_index, num_nodes, how, weight=None):
    """The matrix of each operator, entry by entry from its definition."""
    weight = torch.ones(edge_index.size(1), dtype=torch.float64) if weight is None else weight
    a = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
    for (source, target), w in zip(edge_index.t().tolist(), weight, strict=True):
        a[target, source] += w
    if how == "sum":
        return a
    if how == "mean":
        return a / a.sum(1, keepdim=True).clamp(min=1)
    if how == "gcn":
        for node in range(num_nodes):
            own = [
                w
                for (s, t), w in zip(edge_index.t().tolist(), weight, strict=True)
                if s == t == node
            ]
            a[node, node] = max(own) if own else 1.0
        return normalized(a)
    one = (a != 0).double().fill_diagonal_(0)
    if how == "hop1":
        return normalized(one)
    two = ((one @ one) > 0).double().fill_diagonal_(0) * (1 - one)
    return normalized(two)


def normalized(a):
    degree = a.sum(1)
    root = torch.where(degree > 0, degree.clamp(min=1e-300) ** -0.5, 0.0)
    return root[:, None] * a * root


def random_graph(seed, num_nodes=12, num_edges=40, kind="directed"):
    g = torch.Generator().manual_seed(seed)
    edges = torch.randint(num_nodes - 2, (2, num_edges), generator=g)  # the last two are isolated
    if kind == "undirected":
        edges = torch.cat([edges, edges.flip(0)], 1)
    if kind == "empty":
        edges = edges[:, :0]
    return edges, torch.randn(num_nodes, 5, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["directed", "undirected", "empty"])
@pytest.mark.parametrize("how", HOWS)
def test_values_and_gradients_equal_the_dense_matrix(how, kind):
    edges, x = random_graph(0, kind=kind)
    matrix = dense_operator(edges, len(x), how)
    x.requires_grad_()
    out = propagate(x, edges, how=how)
    torch.testing.assert_close(out, matrix @ x)
    grad = torch.randn(out.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(out, x, grad)
    torch.testing.assert_close(found, matrix.t() @ grad)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 9), st.integers(0, 30), st.sampled_from(HOWS))
def test_fast_path_equals_scatter_on_any_graph(seed, num_nodes, num_edges, how):
    edges, x = random_graph(seed, num_nodes, num_edges)
    torch.testing.assert_close(propagate(x, edges, how=how), scatter_propagate(x, edges, how=how))


@pytest.mark.parametrize("how", ["gcn", "sum"])
def test_edge_weights_equal_the_dense_matrix_in_every_form(how):
    edges, x = random_graph(3)
    weight = torch.rand(edges.size(1), dtype=torch.float64)
    expected = dense_operator(edges, len(x), how, weight) @ x
    torch.testing.assert_close(propagate(x, edges, how=how, edge_weight=weight), expected)
    learned = weight.clone().requires_grad_()
    torch.testing.assert_close(propagate(x, edges, how=how, edge_weight=learned), expected)


def test_learned_edge_weights_get_their_gradient():
    edges, x = random_graph(4, num_nodes=6, num_edges=9)
    weight = (torch.rand(9, dtype=torch.float64) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: propagate(x, edges, how="sum", edge_weight=w), weight)


def test_gcn_equals_pyg_with_and_without_weights():
    edges, x = random_graph(5, kind="undirected")
    edges = torch.unique(
        edges, dim=1
    ).contiguous()  # PyG keeps any one of several self loops of a node
    weight = torch.rand(edges.size(1), dtype=torch.float64)
    for w in (None, weight):
        conv = pyg.GCNConv(5, 5, bias=False).double()
        with torch.no_grad():
            conv.lin.weight.copy_(torch.eye(5))
        torch.testing.assert_close(propagate(x, edges, edge_weight=w), conv(x, edges, w).detach())


def test_second_derivative_is_right():
    edges, x = random_graph(6, num_nodes=6, num_edges=12)
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: propagate(z, edges, how="mean").pow(3), x)


@pytest.mark.parametrize("how", HOWS)
def test_input_forms_agree(how):
    edges, x = random_graph(7, kind="undirected")
    edges = torch.unique(edges, dim=1).contiguous()
    size = (len(x), len(x))
    plain = propagate(x.float(), edges, how=how)
    indexed = propagate(x.float(), EdgeIndex(edges, sparse_size=size), how=how)
    adjacency = torch.sparse_coo_tensor(edges.flip(0), torch.ones(edges.size(1)), size)
    compressed = propagate(x.float(), adjacency.coalesce().to_sparse_csr(), how=how)
    int32 = propagate(x.float(), edges.int(), how=how)
    for other in (indexed, compressed, int32):
        torch.testing.assert_close(other, plain, rtol=0, atol=1e-5)


def test_adjacency_values_are_edge_weights():
    edges, x = random_graph(8)
    edges = torch.unique(edges, dim=1).contiguous()
    weight = torch.rand(edges.size(1), dtype=torch.float64)
    adjacency = torch.sparse_coo_tensor(edges.flip(0), weight, (len(x), len(x))).to_sparse_csr()
    torch.testing.assert_close(propagate(x, adjacency), propagate(x, edges, edge_weight=weight))
    with pytest.raises(ArgumentError, match="no use for them"):
        propagate(x, adjacency, how="mean")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    edges, x = random_graph(9)
    half = x.to(dtype).requires_grad_()
    out = propagate(half, edges)
    assert out.dtype == dtype
    torch.testing.assert_close(out, propagate(half.detach().float(), edges).to(dtype))
    out.sum().backward()
    assert half.grad.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert propagate(x.float(), edges).dtype == torch.float32


def test_undirected_operator_is_its_own_transpose_and_directed_keeps_one():
    edges, x = random_graph(10, kind="undirected")
    assert operator(edges, len(x)).is_symmetric
    assert operator(edges, len(x)).transpose is operator(edges, len(x))
    assert not operator(edges, len(x), how="mean").is_symmetric
    directed, x = random_graph(10)
    kept = operator(directed, len(x)).transpose
    assert kept is operator(directed, len(x)).transpose
    weight = torch.rand(edges.size(1))
    assert not operator(edges, len(x), edge_weight=weight).is_symmetric


# ---------------------------------------------------------------------------------------- cache


def test_conversion_happens_once_per_graph():
    edges, x = random_graph(11)
    assert operator(edges, len(x)) is operator(edges, len(x))
    assert operator(edges, len(x)) is not operator(edges.clone(), len(x))


def test_two_graphs_in_a_row_do_not_share():
    x = torch.eye(4, dtype=torch.float64)
    memory = np.zeros((2, 1), dtype=np.int64)
    for target in (1, 2, 3, 1):  # each graph lies where the freed one before it lay
        memory[1, 0] = target
        edges = torch.from_numpy(memory)
        assert propagate(x, edges, how="sum")[target, 0] == 1
        del edges


def test_writing_into_the_graph_is_noticed():
    x = torch.eye(4, dtype=torch.float64)
    edges = torch.tensor([[0], [1]])
    assert propagate(x, edges, how="sum")[1, 0] == 1
    edges[1, 0] = 2
    assert propagate(x, edges, how="sum")[2, 0] == 1
    weight = torch.ones(1, dtype=torch.float64)
    assert propagate(x, edges, how="sum", edge_weight=weight)[2, 0] == 1
    weight.mul_(3)
    assert propagate(x, edges, how="sum", edge_weight=weight)[2, 0] == 3


def test_one_weight_on_two_graphs_gives_two_results():
    x = torch.eye(4, dtype=torch.float64)
    weight = torch.full((1,), 2.0, dtype=torch.float64)
    for target in (1, 2, 1):
        edges = torch.tensor([[0], [target]])
        assert propagate(x, edges, how="sum", edge_weight=weight)[target, 0] == 2


def test_nothing_outlives_its_graph():
    gc.collect()
    before = len(propagation._CACHE)
    edges, x = random_graph(12)
    weight = torch.rand(edges.size(1), dtype=torch.float64)
    x.requires_grad_()
    for how in HOWS:
        propagate(x, edges, how=how).sum().backward()
    propagate(x, edges, edge_weight=weight).sum().backward()
    assert len(propagation._CACHE) == before + 2
    del edges, weight
    gc.collect()
    assert len(propagation._CACHE) == before


def test_a_graph_first_met_in_inference_mode_still_trains():
    edges, x = random_graph(13)
    with torch.inference_mode():
        propagate(x, edges)
    x.requires_grad_()
    propagate(x, edges).sum().backward()
    assert x.grad is not None


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("edges", "text"),
    [
        (torch.tensor([[0], [7]]), "expected 0..3"),
        (torch.tensor([[-1], [0]]), "expected 0..3"),
        (torch.tensor([[0.0], [1.0]]), "expected integers"),
        (torch.tensor([0, 1]), "expected \\[2, M\\]"),
        (torch.eye(3).to_sparse_csr(), "expected \\[4, 4\\]"),
        (torch.eye(4).to_sparse(), "to_sparse_csr"),
    ],
)
def test_bad_graphs_are_refused(edges, text):
    with pytest.raises(ArgumentError, match=text):
        propagate(torch.eye(4), edges)


def test_bad_arguments_are_refused():
    x, edges = torch.eye(4), torch.tensor([[0], [1]])
    with pytest.raises(UnknownNameError, match="mean"):
        propagate(x, edges, how="meen")
    with pytest.raises(ArgumentError, match="one number per edge"):
        propagate(x, edges, edge_weight=torch.ones(2))
    with pytest.raises(ArgumentError, match="no use for them"):
        propagate(x, edges, how="mean", edge_weight=torch.ones(1))
    with pytest.raises(ArgumentError, match="no use for them"):
        scatter_propagate(x, edges, how="mean", edge_weight=torch.ones(1))
    with pytest.raises(ArgumentError, match="expected one of them"):
        propagate(x, torch.eye(4).to_sparse_csr(), edge_weight=torch.ones(4))
    with pytest.raises(ArgumentError, match="cannot be traced"):
        scatter_propagate(x, torch.eye(4).to_sparse_csr())


# ------------------------------------------------------------------------------ sparse features


def test_sparse_features_equal_dense_ones_with_gradients():
    x = torch.randn(6, 4, dtype=torch.float64) * (torch.rand(6, 4) > 0.6)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    dense = torch.autograd.grad(linear(x, weight, bias).pow(2).sum(), (weight, bias))
    sparse = linear(x.to_sparse_csr(), weight, bias)
    torch.testing.assert_close(sparse, linear(x, weight, bias))
    torch.testing.assert_close(torch.autograd.grad(sparse.pow(2).sum(), (weight, bias)), dense)
    with pytest.raises(ArgumentError, match="to_sparse_csr"):
        linear(x.to_sparse(), weight)


def test_operator_transpose_equals_the_transposed_matrix():
    pattern, _ = Pattern.from_pairs(torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2]), (2, 4))
    op = Operator(pattern, torch.tensor([1.0, 2.0, 3.0]))
    dense = pattern.matrix(op.values).to_dense()
    torch.testing.assert_close(op.transpose @ torch.eye(2), dense.t())
