"""Steps of every phase in plain torch: who learns, what is computed once, on which rows."""

import copy

import pytest
import torch
from torch import nn
from torch_geometric.nn.models import GCN, MLP

from moeapps.errors import ArgumentError
from moeapps.graphs import NodeData, mixed_csbm
from moeapps.graphs.models.mowst import Mowst, mowst
from moeapps.graphs.node_graph import NodeGraph, take_rows
from moeapps.graphs.turns import Rows, Turns, expert_logits

KINDS = ("pretrain_weak", "pretrain_strong", "weak", "strong", "joint", "gate")
PARTS = {
    "pretrain_weak": {"weak"},
    "pretrain_strong": {"strong"},
    "weak": {"weak", "gate"},
    "strong": {"strong"},
    "joint": {"weak", "gate", "strong"},
    "gate": {"gate"},
}


@pytest.fixture(scope="module")
def data():
    return mixed_csbm("tiny", seed=0)


@pytest.fixture(scope="module")
def graph(data):
    return NodeGraph.from_data(data, num_classes=5).halve_validation()


def make(dropout=0.3, **options):
    torch.manual_seed(0)
    return mowst(32, 16, 2, 5, dropout=dropout, gate_dropout=dropout, **options)


def train(turns, kind, steps=3, rows=None, optimizer=torch.optim.AdamW):
    optimizer = optimizer(turns.parameters(kind), lr=0.01)
    losses = []
    for _ in range(steps):
        loss, _ = turns.loss(kind, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_learning_parts_change(graph, kind):
    model = make()
    before = copy.deepcopy(model.state_dict())
    turns = Turns(model, graph)
    train(turns, kind)
    turns.evaluate(kind)
    changed = {
        name.partition(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == PARTS[kind]  # buffers of BatchNorm included


@pytest.mark.parametrize("kind", ["weak", "strong", "gate"])
def test_cached_and_uncached_turns_give_the_same_losses(graph, kind):
    cached, fresh = (Turns(make(dropout=0.0), graph, cache=cache) for cache in (True, False))
    # Not Adam: it makes whole steps of the rounding errors that are the gradient of a bias before
    # BatchNorm.
    a, b = (train(turns, kind, steps=8, optimizer=torch.optim.SGD) for turns in (cached, fresh))
    assert a == pytest.approx(b, abs=1e-6)
    assert a[-1] < a[0]
    one, two = cached.evaluate(kind), fresh.evaluate(kind)
    for name in ("weak_logits", "strong_logits"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.routing.weights, two.routing.weights, atol=1e-5, rtol=1e-5)


class Watched(nn.Module):
    """An expert that remembers how it was called."""

    def __init__(self, expert):
        super().__init__()
        self.expert = expert
        self.calls = []


class WatchedWeak(Watched):
    def forward(self, x):
        self.calls.append((len(x), self.training, torch.is_grad_enabled()))
        return self.expert(x)


class WatchedStrong(Watched):
    def forward(self, x, edge_index):
        self.calls.append((len(x), self.training, torch.is_grad_enabled()))
        return self.expert(x, edge_index)


def watched():
    torch.manual_seed(0)
    weak = WatchedWeak(MLP([32, 16, 5], norm="batch_norm"))
    strong = WatchedStrong(GCN(32, 16, 2, 5, norm="batch"))
    return Mowst(weak, strong, out_channels=5)


def test_weak_turn_needs_the_strong_expert_once_and_its_own_rows_only(graph):
    model = watched()
    turns = Turns(model, graph)
    for _ in range(4):
        turns.loss("weak")[0].backward()
        turns.evaluate("weak")
    assert model.strong.calls == [(len(graph.y), False, False)]
    train_rows, val_rows = len(graph.rows["train"]), len(graph.rows["val"])
    assert model.weak.calls == 4 * [(train_rows, True, True), (val_rows, False, False)]


def test_strong_turn_needs_weak_expert_and_gate_once(graph):
    model = watched()
    turns = Turns(model, graph)
    for _ in range(4):
        turns.loss("strong")[0].backward()
        turns.evaluate("strong")
    needed = sum(len(graph.rows[split]) for split in ("train", "val", "gate"))
    assert model.weak.calls == [(needed, False, False)]
    every = len(graph.y)
    assert model.strong.calls == 4 * [(every, True, True), (every, False, False)]


def test_pretraining_leaves_the_other_expert_alone(graph):
    model = watched()
    turns = Turns(model, graph)
    turns.loss("pretrain_weak")
    turns.evaluate("pretrain_weak")
    assert model.strong.calls == []
    turns.loss("pretrain_strong")
    turns.evaluate("pretrain_strong")
    assert len(model.weak.calls) == 2


def test_start_forgets_what_was_kept(graph):
    turns = Turns(make(), graph)
    old = turns.evaluate("weak").strong_logits
    with torch.no_grad():
        for p in turns.model.strong.parameters():
            p.add_(1)
    assert torch.equal(turns.evaluate("weak").strong_logits, old)
    turns.start()
    assert not torch.equal(turns.evaluate("weak").strong_logits, old)


def test_another_phase_does_not_see_the_last_ones_cache(graph):
    turns = Turns(make(), graph)
    turns.loss("strong")
    loss, routing = turns.loss("weak")
    assert routing is not None
    assert loss.isfinite()


def test_cache_made_in_inference_mode_serves_training(graph):
    turns = Turns(make(), graph)
    with torch.inference_mode():
        turns.evaluate("weak")
    turns.loss("weak")[0].backward()


def test_strong_turn_minimises_the_strong_share_of_the_mowst_loss(graph):
    model = make(dropout=0.0)
    turns = Turns(model, graph)
    rows = turns.rows["train"]
    loss, _ = turns.loss("strong")
    model.weak.eval(), model.gate.eval(), model.strong.train()
    with torch.no_grad():
        c = model.route(model.weak(rows.x)).weights[:, 0]
        logits = expert_logits(model.strong, rows)
        ce = nn.functional.cross_entropy(logits, rows.y, reduction="none")
    torch.testing.assert_close(loss, ((1 - c) * ce).mean())


def test_no_row_gives_a_zero_loss_attached_to_the_parameters(graph):
    turns = Turns(make(), graph)
    none = Rows.of_graph(graph, torch.zeros(0, dtype=torch.long))
    for kind in KINDS:
        loss, _ = turns.loss(kind, none)
        loss.backward()
        assert loss.item() == 0
        for p in turns.parameters(kind):
            assert p.grad is not None
            assert not p.grad.any()


def test_one_training_node_and_batchnorm_is_explained(data):
    data = data.clone()
    data.train_mask = torch.zeros_like(data.train_mask)
    data.train_mask[(~data.val_mask & ~data.test_mask).nonzero()[0]] = True
    turns = Turns(make(), NodeGraph.from_data(data, num_classes=5))
    for kind in ("pretrain_weak", "weak", "joint"):
        with pytest.raises(ArgumentError, match="BatchNorm"):
            turns.check(kind)
    turns.check("strong")  # sees all nodes
    turns.loss("strong")
    free = Mowst(nn.Linear(32, 5), GCN(32, 8, 2, 5), out_channels=5, monotone=True)
    turns = Turns(free, turns.graph)
    turns.check("weak")
    turns.loss("weak")


def test_only_message_passing_phases_need_the_graph(graph):
    turns = Turns(make(), graph)
    assert [kind for kind in KINDS if turns.needs_graph(kind)] == [
        "pretrain_strong",
        "strong",
        "joint",
    ]
    weak_gnn = Mowst(GCN(32, 8, 2, 5), GCN(32, 8, 2, 5), out_channels=5)
    assert Turns(weak_gnn, graph).needs_graph("weak")


def test_full_neighbourhoods_give_the_whole_graphs_loss(data):
    module = NodeData.from_data(data, loader="neighbor", num_neighbors=[-1, -1], batch_size=400)
    batch = next(iter(module.train_dataloader()))
    graph = NodeGraph.from_data(data, num_classes=5)
    model = make(dropout=0.0)
    turns = Turns(model, graph)
    rows = Rows.of_batch(batch)
    assert set(rows.index.tolist()) == set(graph.rows["train"].tolist())
    model.eval()
    whole = expert_logits(model.strong, Rows.of_graph(graph, rows.index))
    torch.testing.assert_close(expert_logits(model.strong, rows), whole)
    a, _ = turns.loss("weak", rows)
    b, _ = turns.loss("weak")
    torch.testing.assert_close(a, b)


def test_seeds_drawn_by_confidence_are_weighted_back(data):
    graph = NodeGraph.from_data(data, num_classes=5)
    turns = Turns(make(dropout=0.0), graph)
    c = turns.confidence()
    train_rows = graph.rows["train"]
    torch.testing.assert_close(
        c[train_rows], turns._frozen.routing.weights[:, 0][: len(train_rows)]
    )
    module = NodeData.from_data(data, loader="neighbor", num_neighbors=[-1, -1], batch_size=400)
    module.confidence = c
    batch = next(iter(module.train_dataloader()))
    rows = Rows.of_batch(batch)
    assert rows.weight.shape == rows.index.shape
    weighted, _ = turns.loss("strong", rows)
    logits = expert_logits(turns.model.strong, rows)
    ce = nn.functional.cross_entropy(logits, rows.y, reduction="none")
    expected = (rows.weight * (1 - c[rows.index]) * ce).mean()
    torch.testing.assert_close(weighted, expected)


def test_edge_weights_travel_with_whole_graph_and_batches(data):
    data = data.clone()
    data.edge_weight = torch.rand(data.num_edges)
    graph = NodeGraph.from_data(data, num_classes=5)
    model = make(dropout=0.0).eval()
    rows = Rows.of_graph(graph, graph.rows["val"])
    direct = model.strong(data.x, data.edge_index, data.edge_weight)[rows.index]
    torch.testing.assert_close(expert_logits(model.strong, rows), direct)


def test_validation_halves_are_disjoint_and_seeded(data):
    whole = NodeGraph.from_data(data, num_classes=5)
    halved = whole.halve_validation()
    both = torch.cat([halved.rows["val"], halved.rows["gate"]])
    assert torch.equal(both.sort().values, whole.rows["val"])
    assert torch.equal(halved.rows["gate"], whole.halve_validation().rows["gate"])


def test_rows_of_sparse_features(data):
    index = torch.tensor([5, 0, 7])
    sparse = take_rows(data.x.to_sparse_csr(), index)
    torch.testing.assert_close(sparse.to_dense(), data.x[index])
