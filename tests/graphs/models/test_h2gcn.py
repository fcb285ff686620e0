"""H2GCN against its formula on dense matrices."""

import pytest
import torch

from moeapps.errors import ArgumentError
from moeapps.graphs import H2GCN


def hop_matrices(edges, num_nodes):
    reach = [set(edges[0, edges[1] == v].tolist()) - {v} for v in range(num_nodes)]
    two = [set().union(*(reach[u] for u in reach[v])) - reach[v] - {v} for v in range(num_nodes)]
    matrices = []
    for pairs in (reach, two):
        matrix = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
        for v, sources in enumerate(pairs):
            for u in sources:
                size = len(pairs[v]) * len(pairs[u])
                matrix[v, u] = size**-0.5 if size else 0.0
        matrices.append(matrix)
    return matrices


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("width", [3, 5])  # below and above twice the outputs: both orders
def test_equals_the_formula_with_gradients(directed, num_layers, width):
    torch.manual_seed(0)
    edges = torch.randint(9, (2, 14))
    if not directed:
        edges = torch.cat([edges, edges.flip(0)], 1)
    x = torch.randn(11, 4, dtype=torch.float64)
    model = H2GCN(4, width, num_layers, 2, dropout=0.0).double()
    one, two = hop_matrices(edges, len(x))
    r = (x @ model.embed.weight.t()).relu()
    parts = [r]
    for _ in range(num_layers):
        r = torch.cat([one @ r, two @ r], 1)
        parts.append(r)
    expected = model.classify(torch.cat(parts, 1))
    out = model(x, edges)
    torch.testing.assert_close(out, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(out.pow(2).sum(), parameters),
        torch.autograd.grad(expected.pow(2).sum(), parameters),
    )


def test_dropout_sees_every_round():
    torch.manual_seed(0)
    edges = torch.randint(9, (2, 40))
    x = torch.randn(9, 4)
    model = H2GCN(4, 8, 2, 2, dropout=0.5)
    mean = torch.stack([model(x, edges) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, model.eval()(x, edges), atol=0.05, rtol=0)


def test_classifier_sees_seven_widths():
    assert H2GCN(4, 3, 2, 2).classify.in_features == 7 * 3


def test_duplicate_edges_and_self_loops_change_nothing():
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    messy = torch.cat([edges, edges, torch.tensor([[1], [1]])], 1)
    x = torch.randn(4, 4)
    model = H2GCN(4, 3, 2, 2).eval()
    torch.testing.assert_close(model(x, messy), model(x, edges))


def test_edge_weights_are_refused():
    with pytest.raises(ArgumentError, match="no use"):
        H2GCN(4, 3, 2, 2)(torch.randn(2, 4), torch.tensor([[0], [1]]), torch.ones(1))
