"""Every sampled edge exists, seeds come first, fan-outs hold, and draws are uniform."""

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.data.lightning import LightningNodeData
from torch_geometric.loader import NodeLoader
from torch_geometric.sampler import EdgeSamplerInput, NodeSamplerInput
from torch_geometric.utils import k_hop_subgraph

from moeapps.errors import ArgumentError
from moeapps.graphs import graphsage
from moeapps.graphs.sampling import CSRNeighborSampler


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    edges = torch.randint(98, (2, 600), generator=g)  # nodes 98 and 99 are isolated
    return Data(
        x=torch.arange(100.0)[:, None], y=torch.zeros(100, dtype=torch.long), edge_index=edges
    )


def sample(sampler, seeds):
    seeds = torch.as_tensor(seeds)
    return sampler.sample_from_nodes(NodeSamplerInput(torch.arange(len(seeds)), seeds))


def test_every_sampled_edge_exists_and_fanout_is_respected(data):
    out = sample(CSRNeighborSampler(data, [4, 2]), [3, 50, 99, 7])
    assert out.node[:4].tolist() == [3, 50, 99, 7]
    assert torch.equal(
        torch.stack([out.node[out.row], out.node[out.col]]), data.edge_index[:, out.edge]
    )
    assert len(out.edge.unique()) == len(out.edge)
    assert len(out.node.unique()) == len(out.node)
    degree = torch.bincount(data.edge_index[1], minlength=100)
    drawn = torch.bincount(out.col, minlength=len(out.node))
    first, second = out.num_sampled_nodes[:2]
    limit = torch.full_like(drawn, 4)
    limit[first : first + second] = 2
    limit[first + second :] = 0
    assert torch.equal(drawn, torch.minimum(limit, degree[out.node]))
    assert sum(out.num_sampled_nodes) == len(out.node)
    assert sum(out.num_sampled_edges) == len(out.edge)


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_fanout_minus_one_is_the_full_neighbourhood(data, hops):
    seeds = torch.tensor([1, 98])
    out = sample(CSRNeighborSampler(data, [-1] * hops), seeds)
    nodes, _, _, _ = k_hop_subgraph(seeds, hops, data.edge_index, num_nodes=100)
    assert torch.equal(out.node.sort().values, nodes)
    inner = out.node[: -out.num_sampled_nodes[-1] or None]
    assert len(out.edge) == int(torch.isin(data.edge_index[1], inner).sum())


def test_full_neighbourhood_gives_the_whole_graphs_predictions(data):
    model = graphsage(1, 8, 2, 3).eval()
    batch = next(
        iter(NodeLoader(data, CSRNeighborSampler(data, [-1, -1]), torch.arange(10), batch_size=10))
    )
    whole = model(data.x, data.edge_index)[:10]
    torch.testing.assert_close(model(batch.x, batch.edge_index)[:10], whole)
    trimmed = model(
        batch.x,
        batch.edge_index,
        num_sampled_nodes_per_hop=batch.num_sampled_nodes,
        num_sampled_edges_per_hop=batch.num_sampled_edges,
    )
    torch.testing.assert_close(trimmed[:10], whole)


def test_draws_are_uniform_over_neighbours():
    star = Data(edge_index=torch.stack([torch.arange(1, 7), torch.zeros(6, dtype=torch.long)]))
    star.num_nodes = 7
    sampler = CSRNeighborSampler(star, [3], seed=1)
    out = sample(sampler, [0] * 4000)  # repeats draw their own neighbours
    share = torch.bincount(out.node[out.row], minlength=7)[1:] / 4000
    torch.testing.assert_close(share, torch.full((6,), 0.5), atol=0.03, rtol=0)


def test_repeated_seeds_keep_their_places_and_their_own_neighbours(data):
    out = sample(CSRNeighborSampler(data, [-1]), [5, 5, 6])
    assert out.node[:3].tolist() == [5, 5, 6]
    degree = torch.bincount(data.edge_index[1], minlength=100)
    assert torch.bincount(out.col, minlength=3)[:3].tolist() == degree[[5, 5, 6]].tolist()


def test_same_seed_same_samples_and_calls_do_not_disturb_each_other(data):
    a, b = (CSRNeighborSampler(data, [3, 3], seed=5) for _ in range(2))
    for seeds in ([1, 2], [3], [1, 2]):
        x, y = sample(a, seeds), sample(b, seeds)
        assert torch.equal(x.node, y.node)
        assert torch.equal(x.edge, y.edge)
    assert not torch.equal(sample(a, range(50)).edge, sample(a, range(50)).edge)


def test_an_interrupted_call_leaves_no_marks(data, monkeypatch):
    sampler = CSRNeighborSampler(data, [3, 3])

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("moeapps.graphs.sampling.CSRNeighborSampler._draw", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sample(sampler, [1, 2, 3])
    assert (sampler._place == -1).all()


def test_workers_draw_different_samples(data):
    loader = NodeLoader(
        data,
        CSRNeighborSampler(data, [2]),
        torch.zeros(4, dtype=torch.long),
        batch_size=1,
        num_workers=2,
    )
    drawn = {tuple(batch.e_id.tolist()) for batch in loader}
    assert len(drawn) > 1


def test_no_edges(data):
    data.edge_index = data.edge_index[:, :0]
    out = sample(CSRNeighborSampler(data, [3, -1]), [0, 1])
    assert out.node.tolist() == [0, 1]
    assert out.row.numel() == out.edge.numel() == 0


def test_lightning_node_data_takes_it(data):
    mask = torch.arange(100) < 40
    data.train_mask, data.val_mask = mask, ~mask
    module = LightningNodeData(data, node_sampler=CSRNeighborSampler(data, [3, 3]), batch_size=16)
    seen = torch.cat([batch.n_id[: batch.batch_size] for batch in module.train_dataloader()])
    assert seen.sort().values.tolist() == list(range(40))


def test_wrong_use_is_explained(data):
    sampler = CSRNeighborSampler(data, [2])
    with pytest.raises(ArgumentError, match="expected nodes"):
        sampler.sample_from_edges(EdgeSamplerInput(None, torch.tensor([0]), torch.tensor([1])))
    for bad in ([], [0], [-2]):
        with pytest.raises(ArgumentError, match="one number per hop"):
            CSRNeighborSampler(data, bad)
    with pytest.raises(ArgumentError, match="edge_index"):
        CSRNeighborSampler(Data(x=torch.eye(2)), [2])
