"""A part of a graph gives its seeds what the whole gives them."""

import pytest
import torch
from torch_geometric.utils import k_hop_subgraph

from moeapps.graphs import propagation
from moeapps.graphs.neighborhood import estimate_edges, neighborhood
from moeapps.graphs.propagation import propagate


def random_graph(seed=0, num_nodes=60, num_edges=110):
    g = torch.Generator().manual_seed(seed)
    edges = torch.randint(num_nodes - 2, (2, num_edges), generator=g)
    return edges, torch.randn(num_nodes, 3, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_nodes_are_the_k_hop_neighbourhood_seeds_first(hops):
    edges, x = random_graph()
    seeds = torch.tensor([7, 3, 59])
    part = neighborhood(edges, len(x), seeds, num_hops=hops)
    assert part.nodes[:3].tolist() == [7, 3, 59]
    expected, _, _, _ = k_hop_subgraph(seeds, hops, edges, num_nodes=len(x))
    assert part.nodes.sort().values.tolist() == expected.tolist()
    assert len(part.nodes) < len(x)


@pytest.mark.parametrize(
    ("how", "reach"), [("gcn", 1), ("sum", 1), ("mean", 1), ("hop1", 1), ("hop2", 2)]
)
def test_two_rounds_on_the_part_equal_two_rounds_on_the_whole(how, reach):
    edges, x = random_graph(1)
    seeds = torch.tensor([5, 20, 41])
    part = neighborhood(edges, len(x), seeds, num_hops=2 * reach)
    whole = propagate(propagate(x, edges, how=how), edges, how=how)
    local = propagate(x[part.nodes], part.edge_index, how=how)
    local = propagate(local, part.edge_index, how=how)
    torch.testing.assert_close(local[:3], whole[seeds])


def test_weights_come_along_and_may_be_passed_or_not():
    edges, x = random_graph(2)
    weight = torch.rand(edges.size(1), dtype=torch.float64)
    seeds = torch.tensor([0, 1])
    part = neighborhood(edges, len(x), seeds, num_hops=1, edge_weight=weight)
    whole = propagate(x, edges, edge_weight=weight)[seeds]
    for given in (None, part.edge_weight):
        local = propagate(x[part.nodes], part.edge_index, edge_weight=given)
        torch.testing.assert_close(local[:2], whole)


def test_foreign_layers_are_right_one_hop_further():
    from torch_geometric.nn import GCNConv

    edges, x = random_graph(3)
    conv = GCNConv(3, 2).double()
    seeds = torch.tensor([4, 9])
    part = neighborhood(edges, len(x), seeds, num_hops=2)
    torch.testing.assert_close(conv(x[part.nodes], part.edge_index)[:2], conv(x, edges)[seeds])


def test_part_is_forgotten_with_its_edges():
    edges, x = random_graph(4)
    propagate(x, edges)
    before = len(propagation._CACHE)
    part = neighborhood(edges, len(x), torch.tensor([0]), num_hops=1)
    assert len(propagation._CACHE) == before + 1
    del part
    assert len(propagation._CACHE) == before


def test_estimate_is_exact_on_one_hop_and_close_on_a_random_graph():
    edges, x = random_graph(5, num_nodes=3000, num_edges=15000)
    seeds = torch.arange(20)
    one = neighborhood(edges, len(x), seeds, num_hops=1).edge_index.size(1)
    assert estimate_edges(edges, len(x), seeds, num_hops=1) == one
    two = neighborhood(edges, len(x), seeds, num_hops=2).edge_index.size(1)
    assert 0.6 * two < estimate_edges(edges, len(x), seeds, num_hops=2) < 1.6 * two
    assert estimate_edges(edges, len(x), torch.arange(3000), num_hops=3) == 15000
