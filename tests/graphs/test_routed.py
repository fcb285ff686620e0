"""Routed prediction equals ``hard`` and asks the strong expert only where it has to."""

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from moeapps.errors import ArgumentError
from moeapps.graphs import CSRNeighborSampler, Mowst, mowst, routed_predict
from moeapps.graphs.models.experts import gcn, mlp

SEEDS = torch.tensor([3, 17, 150, 399])


@pytest.fixture(scope="module")
def data():
    g = torch.Generator().manual_seed(0)
    edges = torch.randint(398, (2, 500), generator=g)
    x = torch.randn(400, 6, generator=g, dtype=torch.float64)
    return Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], 1))


def mixture(strong="gcn", **arguments):
    torch.manual_seed(0)
    model = mowst(6, 8, 2, 4, strong=strong, gate="power", **arguments).eval()
    return model.double()


def middle(model, data):
    """A threshold that sends about half of the nodes each way."""
    return float(model(data.x, data.edge_index, return_routing=True).routing.weights[:, 0].median())


def hard(model, data, tau):
    output = model(data.x, data.edge_index, return_routing=True)
    return model.predict(output, "hard", threshold=tau)


def count_calls(model):
    sizes = []
    model.strong.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize("strong", ["gcn", "graphsage", "gat", "gin", "gin_skip", "h2gcn"])
def test_labels_equal_hard(data, strong):
    model = mixture(strong)
    tau = middle(model, data)
    expected = hard(model, data, tau)
    everywhere = routed_predict(model, data, tau)
    assert torch.equal(everywhere.labels, expected)
    assert 0.4 < everywhere.routed.double().mean() < 0.6
    some = routed_predict(model, data, tau, seeds=SEEDS)
    assert torch.equal(some.labels, expected[SEEDS])
    for batch_size in (1, 2):
        parts = routed_predict(model, data, 2.0, seeds=SEEDS, batch_size=batch_size)
        assert torch.equal(parts.labels, hard(model, data, 2.0)[SEEDS])
        assert strong == "h2gcn" or parts.plan == "neighborhoods"


def test_strong_sees_the_unsure_seeds_and_their_neighbourhood_only(data):
    model = mixture()
    tau = middle(model, data)
    sizes = count_calls(model)
    done = routed_predict(model, data, tau, seeds=SEEDS)
    unsure = int(done.routed.sum())
    assert 0 < unsure < len(SEEDS)
    assert torch.equal(done.routed, done.confidence <= tau)
    assert len(sizes) == 1
    assert unsure <= sizes[0] < 150
    assert done.plan == "neighborhoods"
    assert "2-hop" in str(done)


def test_sure_requests_never_call_strong(data):
    model = mixture()
    sizes = count_calls(model)
    done = routed_predict(model, data, -1.0, seeds=SEEDS)
    assert done.plan == "weak only"
    assert sizes == []
    assert "no node" in done.reason


def test_whole_graph_is_chosen_where_neighbourhoods_cover_it(data):
    model = mixture()
    sizes = count_calls(model)
    done = routed_predict(model, data, 2.0)
    assert done.plan == "whole graph"
    assert sizes == [400]
    assert f"{data.num_edges:,}" in done.reason


def test_threshold_of_the_model_is_the_default_and_masks_are_seeds(data):
    model = mixture(threshold=0.05)
    mask = torch.zeros(400, dtype=torch.bool)
    mask[SEEDS] = True
    done = routed_predict(model, data, seeds=mask)
    assert torch.equal(done.routed, done.confidence <= 0.05)
    assert torch.equal(done.labels, hard(model, data, 0.05)[SEEDS])


def test_a_loader_stands_for_its_graph_and_seeds(data):
    model = mixture()
    loader = NodeLoader(data, CSRNeighborSampler(data, [1]), SEEDS, batch_size=2)
    sizes = count_calls(model)
    done = routed_predict(model, loader, 2.0)
    assert len(sizes) == 2
    assert torch.equal(done.labels, hard(model, data, 2.0)[SEEDS])


def test_repeated_and_no_seeds(data):
    model = mixture()
    twice = routed_predict(model, data, 2.0, seeds=torch.tensor([5, 5, 2]))
    assert torch.equal(twice.labels, hard(model, data, 2.0)[[5, 5, 2]])
    none = routed_predict(model, data, seeds=torch.tensor([], dtype=torch.long))
    assert none.labels.numel() == 0


def test_edge_weights_and_sparse_features(data):
    weighted = data.clone()
    weighted.edge_weight = torch.rand(data.num_edges, dtype=torch.float64)
    model = mixture()
    output = model(weighted.x, weighted.edge_index, weighted.edge_weight, return_routing=True)
    expected = model.predict(output, "hard", threshold=2.0)
    done = routed_predict(model, weighted, 2.0, seeds=SEEDS)
    assert done.plan == "neighborhoods"
    assert torch.equal(done.labels, expected[SEEDS])
    weighted.x = weighted.x.to_sparse_csr()
    again = routed_predict(model, weighted, 2.0, seeds=SEEDS)
    assert torch.equal(again.labels, done.labels)


def test_foreign_networks_and_weak_experts_that_read_the_graph(data):
    torch.manual_seed(0)
    model = Mowst(gcn(6, 8, 1, 4), pyg.GCN(6, 8, 2, 4), out_channels=4, gate="power")
    model.eval().double()
    expected = hard(model, data, 0.5)
    done = routed_predict(model, data, 0.5, seeds=SEEDS)
    assert "3-hop" in done.reason
    assert torch.equal(done.labels, expected[SEEDS])


def test_what_cannot_be_answered_is_refused(data):
    class Custom(nn.Module):
        def forward(self, x, edge_index):
            return x[:, :4]

    model = Mowst(mlp(6, 8, 2, 4), Custom(), out_channels=4, gate="power").eval().double()
    with pytest.raises(ArgumentError, match="num_hops"):
        routed_predict(model, data, 2.0, seeds=SEEDS)
    done = routed_predict(model, data, 2.0, seeds=SEEDS, num_hops=1)
    assert torch.equal(done.labels, data.x[SEEDS, :4].argmax(-1))
    with pytest.raises(ArgumentError, match="seeds name nodes"):
        routed_predict(model, data, seeds=torch.tensor([400]))
    with pytest.raises(ArgumentError, match="eval"):
        routed_predict(model.train(), data)
