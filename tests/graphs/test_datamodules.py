"""NodeData: what it hands out, how features are scaled, how seeds are drawn, what it refuses."""

import pytest
import torch
from torch_geometric.data import Data

from moeapps.errors import ArgumentError, ConfigError, UnknownNameError
from moeapps.graphs import NodeData, datasets
from moeapps.graphs.datamodules import scale_features

TINY = {"size": "tiny"}


def own_graph(**changes):
    g = torch.Generator().manual_seed(0)
    masks = torch.zeros(3, 30, dtype=torch.bool)
    masks[0, :10] = masks[1, 10:20] = masks[2, 20:] = True
    data = Data(
        x=torch.rand(30, 4, generator=g),
        y=torch.arange(30) % 3,
        edge_index=torch.randint(30, (2, 60), generator=g),
        train_mask=masks[0],
        val_mask=masks[1],
        test_mask=masks[2],
    )
    for name, value in changes.items():
        data[name] = value
    return data


def ready(**arguments):
    module = NodeData("mixed-csbm", dataset_args=TINY, **arguments)
    module.setup()
    return module


def test_full_loaders_hand_out_the_same_graph_every_time():
    module = ready()
    for loader in (
        module.train_dataloader(),
        module.val_dataloader(),
        module.test_dataloader(),
        module.predict_dataloader(),
    ):
        batches = list(loader)
        assert len(batches) == 1
        assert batches[0].edge_index is module.data.edge_index  # what caches are keyed by
    assert (module.num_features, module.num_classes, module.metric) == (32, 5, "accuracy")


def test_setup_again_keeps_the_graph():
    module = ready()
    data = module.data
    module.setup("test")
    assert module.data is data


def test_neighbour_batches_cover_training_seeds_once_and_evaluation_sees_the_whole_graph():
    module = ready(loader="neighbor", num_neighbors=[3, 2], batch_size=64)
    seeds = []
    for batch in module.train_dataloader():
        seeds.append(batch.n_id[: batch.batch_size])
        torch.testing.assert_close(batch.x, module.data.x[batch.n_id])
        assert len(batch.num_sampled_nodes) == 3
    assert torch.equal(torch.cat(seeds).sort().values, module.data.train_mask.nonzero().squeeze(1))
    (whole,) = module.val_dataloader()
    assert whole is module.data


def test_weak_turn_batches_have_rows_and_no_edges():
    module = ready(loader="neighbor", batch_size=64)
    module.sample_neighbors = False
    seeds = []
    for batch in module.train_dataloader():
        assert batch.edge_index is None
        assert len(batch.x) == batch.batch_size
        torch.testing.assert_close(batch.y, module.data.y[batch.n_id])
        seeds.append(batch.n_id)
    seeds = torch.cat(seeds)
    assert torch.equal(seeds.sort().values, module.data.train_mask.nonzero().squeeze(1))
    assert not torch.equal(seeds, seeds.sort().values)


def test_draws_by_confidence_are_unbiased():
    module = ready(loader="neighbor", num_neighbors=[1], batch_size=200)
    size = module.data.num_nodes
    module.confidence = torch.rand(size, generator=torch.Generator().manual_seed(0))
    rows = module.data.train_mask.nonzero().squeeze(1)
    value = torch.arange(size, dtype=torch.float32)
    means, drawn = [], torch.zeros(size)
    for epoch in range(60):
        generator = torch.Generator().manual_seed(epoch)
        for batch in module.neighbor_loader(rows, generator=generator):
            seeds = batch.n_id[: batch.batch_size]
            means.append((batch.seed_weight * value[seeds]).mean())
            drawn += torch.bincount(seeds, minlength=size)
    assert torch.stack(means).mean() == pytest.approx(float(value[rows].mean()), rel=0.03)
    chance = 1 - module.confidence[rows] + 0.05
    expected = drawn.sum() * chance / chance.sum()
    assert torch.corrcoef(torch.stack([drawn[rows], expected]))[0, 1] > 0.95


def test_same_seed_same_batches_and_another_seed_others():
    def ids(seed):
        module = ready(loader="neighbor", num_neighbors=[2], batch_size=50, seed=seed)
        return [batch.n_id.tolist() for batch in module.train_dataloader()]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_an_epoch_draws_the_same_whatever_came_before():
    module = ready(loader="neighbor", num_neighbors=[2], batch_size=50)
    first = [batch.n_id.tolist() for batch in module.train_dataloader()]
    again = [batch.n_id.tolist() for batch in module.train_dataloader()]
    assert first == again  # the epoch is part of the seed, not how often one has drawn


def test_features_are_scaled_as_named():
    x = torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, 2.0]])
    rows = scale_features(x, "row")
    torch.testing.assert_close(rows.sum(1), torch.tensor([1.0, 0.0, 1.0]))
    columns = scale_features(x, "standard")
    torch.testing.assert_close(columns.mean(0), torch.zeros(2))
    torch.testing.assert_close(columns.std(0, correction=0), torch.ones(2))
    constant = scale_features(torch.ones(3, 1), "standard")
    torch.testing.assert_close(constant, torch.zeros(3, 1))
    assert scale_features(x, "none") is x
    assert NodeData("Cora")._scaling == "row"
    assert NodeData("mixed_csbm")._scaling == "none"


def test_sparse_features_equal_the_dense_ones():
    assert torch.equal(ready(sparse=True).data.x.to_dense(), ready().data.x)


def test_to_undirected_adds_reverses():
    assert not own_graph().is_undirected()
    module = NodeData.from_data(own_graph(), to_undirected=True)
    assert module.data.is_undirected()


def test_own_graph_is_taken_and_left_alone():
    column = own_graph().train_mask[:, None]
    masks = torch.cat([~column & False, column], 1)
    data = own_graph(train_mask=masks, y=(torch.arange(30) % 3)[:, None])
    module = NodeData.from_data(data, split=1, metric="auroc", features="standard")
    module.setup()
    assert module.data.y.shape == module.data.train_mask.shape == (30,)
    assert int(module.data.train_mask.sum()) == 10
    assert (module.num_classes, module.metric) == (3, "auroc")
    assert data.train_mask.shape == (30, 2)
    assert not torch.equal(data.x, module.data.x)
    with pytest.raises(ArgumentError, match=r"Choose 0\.\.1"):
        NodeData.from_data(data, split=2)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"x": torch.full((30, 4), float("nan"))}, "NaN"),
        ({"y": torch.zeros(30, dtype=torch.long)}, "at least 2"),
        ({"y": torch.arange(30) - 3}, "expected 0"),
        ({"train_mask": torch.zeros(30, dtype=torch.bool)}, "empty"),
        ({"edge_index": torch.tensor([[0], [30]])}, "0..29"),
    ],
)
def test_graphs_that_cannot_be_trained_on_are_refused(changes, text):
    with pytest.raises(ArgumentError, match=text):
        NodeData.from_data(own_graph(**changes))


def test_bad_options_are_refused():
    with pytest.raises(UnknownNameError, match="neighbor"):
        NodeData("cora", loader="neighbour")
    with pytest.raises(UnknownNameError, match="standard"):
        NodeData("cora", features="standart")
    with pytest.raises(UnknownNameError, match="cora"):
        NodeData("corra").setup()
    with pytest.raises(ConfigError, match="sparse"):
        NodeData("cora", sparse=True, loader="neighbor")
    with pytest.raises(ArgumentError, match="batch_size=0"):
        NodeData("cora", batch_size=0)


@pytest.mark.data
def test_cora_rows_sum_to_one(real_data):
    module = NodeData("cora", root=real_data)
    module.setup()
    assert (module.num_features, module.num_classes) == (1433, 7)
    torch.testing.assert_close(module.data.x.sum(1), torch.ones(2708))


def test_hyper_parameters_are_plain():
    module = ready(loader="neighbor", num_neighbors=[5, 5])
    assert module.hparams["dataset"] == "mixed-csbm"
    assert module.hparams["num_neighbors"] == [5, 5]
    assert "mixed-csbm" in datasets.list_datasets()
