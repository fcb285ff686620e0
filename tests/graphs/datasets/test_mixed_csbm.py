import numpy as np
import pytest
import torch

from moeapps.errors import ArgumentError
from moeapps.graphs.datasets import load
from moeapps.graphs.datasets.mixed_csbm import MixedCSBM, mixed_csbm


@pytest.fixture(scope="module")
def graphs():
    return [mixed_csbm(seed=seed) for seed in range(5)]


def homophily(data, kind=None):
    source, target = data.edge_index
    same = (data.y[source] == data.y[target]).float()
    return float((same if kind is None else same[data.kind[source] == kind]).mean())


def reference_edges(model, y, kind, rng):
    """The generator's text, one draw after the other."""
    nodes = np.arange(len(y))
    edges = []
    for source in rng.integers(len(y), size=int(len(y) * model.avg_degree / 2)):
        same_kind = rng.random() < model.p_within
        target_kind = kind[source] if same_kind else 1 - kind[source]
        stays = rng.random() < (1 / model.num_classes if kind[source] else model.h_struct)
        others = [c for c in range(model.num_classes) if c != y[source]]
        target_class = y[source] if stays else rng.choice(others)
        target = rng.choice(nodes[(kind == target_kind) & (y == target_class)])
        edges.append((source, target))
    return np.array(edges).T


def test_size_and_masks(graphs, check_data):
    for data in graphs:
        check_data(data, 3000, 32)
        assert data.is_undirected()
        assert not data.has_self_loops()
        assert torch.bincount(data.y).tolist() == [600] * 5
        masks = [int(data[m].sum()) for m in ("train_mask", "val_mask", "test_mask")]
        assert masks == [1500, 750, 750]


def test_edge_statistics_are_those_of_the_specification(graphs):
    mean = lambda values: sum(values) / len(graphs)  # noqa: E731
    assert mean(d.num_edges for d in graphs) == pytest.approx(35_700, rel=0.005)
    assert mean(homophily(d) for d in graphs) == pytest.approx(0.52, abs=0.01)
    assert mean(homophily(d, 1) for d in graphs) == pytest.approx(0.24, abs=0.01)
    assert mean(homophily(d, 0) for d in graphs) == pytest.approx(0.81, abs=0.01)
    assert mean(float(d.kind.float().mean()) for d in graphs) == pytest.approx(0.5, abs=0.01)


def test_features_are_scaled_orthonormal_means_plus_noise(graphs):
    data = graphs[0]
    means = {}
    for kind, scale in ((1, 4.0), (0, 0.4)):
        rows = [data.x[(data.kind == kind) & (data.y == c)] for c in range(5)]
        means[kind] = torch.stack([r.mean(0) for r in rows])
        gram = means[kind] @ means[kind].T
        # About 300 rows per mean: its noise adds 32 / 300 to the squared length.
        expected = scale**2 * torch.eye(5) + 32 / 300 * torch.eye(5)
        assert torch.allclose(gram, expected, atol=1.5 if kind else 0.15)
        spread = torch.cat([r - r.mean(0) for r in rows]).std()
        assert float(spread) == pytest.approx(1.0, abs=0.02)
    cosine = torch.nn.functional.cosine_similarity(means[1], means[0])
    assert (cosine > 0.5).all()  # both kinds use the same directions


def test_drawing_agrees_with_the_slow_reference():
    model = MixedCSBM(num_nodes=1500)
    data = model.sample(seed=3)
    y, kind = data.y.numpy(), data.kind.numpy()
    fast = model._draw_edges(np.random.default_rng(0), y, kind)
    slow = reference_edges(model, y, kind, np.random.default_rng(1))
    assert fast.shape == slow.shape
    for source_kind in (0, 1):
        for statistic in (lambda e: y[e[0]] == y[e[1]], lambda e: kind[e[0]] == kind[e[1]]):
            rates = [statistic(e)[kind[e[0]] == source_kind].mean() for e in (fast, slow)]
            assert rates[0] == pytest.approx(rates[1], abs=0.03)
    # Targets are uniform inside their cell: no node is hit far more often than the others.
    hits = np.bincount(fast[1], minlength=1500)
    assert hits.max() < 25
    assert hits.mean() == pytest.approx(6)


def test_local_homophily_is_the_share_of_like_neighbours(graphs):
    data = graphs[0]
    for node in (0, 17, 2999):
        neighbours = data.edge_index[1][data.edge_index[0] == node]
        share = (data.y[neighbours] == data.y[node]).float().mean()
        assert float(data.local_homophily[node]) == pytest.approx(float(share))
    assert mixed_csbm("tiny", avg_degree=0.5).local_homophily.isnan().any()


def test_same_seed_same_graph_and_split_changes_masks_only():
    first, again, split, seed = (
        mixed_csbm("tiny", seed=s, split=p) for s, p in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.edge_index, again.edge_index)
    assert torch.equal(first.test_mask, again.test_mask)
    assert torch.equal(first.x, split.x)
    assert not torch.equal(first.test_mask, split.test_mask)
    assert not torch.equal(first.y, seed.y)


def test_global_random_state_is_untouched():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    mixed_csbm("tiny")
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


def test_decoy_features_look_clustered_but_tell_nothing():
    data = mixed_csbm(decoy=True)
    feature = data.kind == 1
    assert (data.decoy[~feature] == -1).all()
    decoy, y = data.decoy[feature], data.y[feature]
    agreement = float((decoy == y).float().mean())
    assert agreement == pytest.approx(0.2, abs=0.05)
    x = data.x[feature]
    means = torch.stack([x[decoy == c].mean(0) for c in range(5)])
    assert means.norm(dim=1).tolist() == pytest.approx([4] * 5, abs=0.5)
    by_class = torch.stack([x[y == c].mean(0) for c in range(5)])
    assert float((by_class - x.mean(0)).norm(dim=1).max()) < 1.5


def test_decoy_neighbourhoods_are_homophilous_for_both_kinds():
    data = mixed_csbm(decoy=True)
    assert homophily(data, 1) == pytest.approx(homophily(data, 0), abs=0.03)
    assert homophily(data, 1) > 0.75


def test_large_graph_has_its_size():
    data = mixed_csbm("large")
    assert data.x.shape == (100_000, 128)
    assert data.num_edges == pytest.approx(1_000_000, rel=0.01)


@pytest.mark.parametrize("feat_ratio", [0.0, 1.0])
def test_one_kind_alone_works(feat_ratio):
    data = mixed_csbm("tiny", feat_ratio=feat_ratio)
    assert data.kind.unique().tolist() == [int(feat_ratio)]
    assert data.num_edges > 3000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes=1"),
        ({"num_classes": 33}, "num_classes=33"),
        ({"p_within": 1.5}, "p_within=1.5"),
        ({"h_feat": -0.1}, "h_feat=-0.1"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"mu": 3}, "has no mu"),
        ({"size": "huge"}, "size='huge'"),
    ],
)
def test_bad_parameters_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        mixed_csbm(**{"size": "tiny", **arguments})


def test_number_of_classes_follows_the_parameters():
    from moeapps.graphs import NodeData

    module = NodeData("mixed-csbm", dataset_args={"size": "tiny", "num_classes": 7})
    module.setup()
    assert module.num_classes == module.data.num_classes == 7


def test_it_loads_by_name():
    by_name = load("mixed_csbm", size="tiny", seed=3, split=1)
    assert torch.equal(by_name.x, mixed_csbm("tiny", seed=3, split=1).x)
