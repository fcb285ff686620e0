import numpy as np
import pytest

from moeapps.errors import ArgumentError
from moeapps.streams import forest
from moeapps.streams.forest_state import FREE_NODES, FREE_ROWS, TOTAL_LEAVES

QUICK = {"grace_period": 20, "delta": 0.1, "tau": 0.2}


def stream(seed, n=1500):
    """Two numeric and two nominal features, three classes, some values missing."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    X = rng.normal(y[:, None], 1.0, (n, 4))
    X[:, 2:] = (X[:, 2:] > [0.5, 1.5]) + (X[:, 2:] > 1.0)
    X[rng.random(X.shape) < 0.05] = np.nan
    return X, y


def make(num_trees=1, **options):
    shape = {"num_numeric": 2, "num_values": [3, 3], "num_classes": 3}
    return forest.new_forest(num_trees, **(shape | QUICK | options))


def grown(trees, tree, X, y):
    for t in range(len(X)):
        while not forest.learn(trees, tree, X[t], y[t], 1.0):
            trees = forest.with_room(trees)
    return trees


def probabilities(trees, tree, X):
    proba = np.empty((len(X), 3))
    for t in range(len(X)):
        forest.predict(trees, tree, X[t], proba[t])
    return proba


def same(a, b):
    return all(np.array_equal(u, v, equal_nan=True) for u, v in zip(a, b, strict=True))


def copies(trees):
    return forest.Forest(*(array.copy() for array in trees))


def test_untrained_tree_is_uniform():
    X, _ = stream(0, 5)
    assert np.array_equal(probabilities(make(), 0, X), np.full((5, 3), 1 / 3))


def test_full_pool_changes_nothing():
    X, y = stream(0)
    trees = make()
    full = 0
    for t in range(len(X)):
        before = copies(trees)
        while not forest.learn(trees, 0, X[t], y[t], 1.0):
            full += 1
            assert same(trees[:-1], before[:-1])  # all but the working memory
            assert forest.decide_then_learn(trees, 0, X[t], y[t], 1.0) == -1
            assert same(trees[:-1], before[:-1])
            trees = forest.with_room(trees)
    assert full >= 3


def test_trees_of_one_pool_do_not_meet():
    X, y = stream(1)
    together = make(3)
    for start in range(0, len(X), 50):
        part = slice(start, start + 50)
        together = grown(together, 0, X[part], y[part])
        together = grown(together, 2, X[part], (y[part] + 1) % 3)
    alone = grown(make(), 0, X, y)
    other = grown(make(), 0, X, (y + 1) % 3)
    assert np.array_equal(probabilities(together, 0, X), probabilities(alone, 0, X))
    assert np.array_equal(probabilities(together, 2, X), probabilities(other, 0, X))
    assert np.array_equal(probabilities(together, 1, X), np.full((len(X), 3), 1 / 3))


def test_subspaces_differ_between_trees_and_not_between_runs():
    X, y = stream(1)
    trees = make(2, subspace=0.5, seed=3)
    trees = grown(grown(trees, 0, X, y), 1, X, y)
    again = make(2, subspace=0.5, seed=3)
    again = grown(grown(again, 1, X, y), 0, X, y)
    first, second = (probabilities(trees, tree, X) for tree in (0, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, probabilities(again, 0, X))
    assert np.array_equal(second, probabilities(again, 1, X))


@pytest.mark.parametrize("binary", [True, False])
def test_reset_gives_all_memory_back(binary):
    X, y = stream(2)
    trees = grown(make(2, binary_split=binary), 0, X, y)
    trees = grown(trees, 1, X, y)
    shape, kept = trees.leaves.shape, probabilities(trees, 1, X)
    for _ in range(5):
        forest.reset(trees, 0)
        assert np.array_equal(probabilities(trees, 0, X), np.full((len(X), 3), 1 / 3))
        trees = grown(trees, 0, X, y)
    assert trees.leaves.shape == shape
    assert np.array_equal(probabilities(trees, 1, X), kept)
    assert np.array_equal(probabilities(trees, 0, X), kept)
    forest.reset(trees, 0)
    forest.reset(trees, 1)
    assert trees.layout[FREE_NODES] == len(trees.nodes) - 2
    assert trees.layout[FREE_ROWS] == len(trees.leaves) - 2
    assert trees.layout[TOTAL_LEAVES] == 2


@pytest.mark.parametrize("binary", [True, False])
def test_copy_answers_like_its_source_and_then_goes_its_own_way(binary):
    X, y = stream(3)
    trees = grown(make(2, binary_split=binary), 0, X, y)
    trees = grown(trees, 1, X[:200], y[:200])  # something to overwrite
    source = probabilities(trees, 0, X)
    before = copies(trees)
    while not forest.copy_tree(trees, 0, 1):
        assert same(trees, before)
        trees = forest.with_room(trees)
        before = copies(trees)
    assert np.array_equal(probabilities(trees, 1, X), source)
    assert forest.num_nodes(trees, 1) == forest.num_nodes(trees, 0) > 3
    assert forest.num_leaves(trees, 1) == forest.num_leaves(trees, 0)
    trees = grown(trees, 1, X, (y + 1) % 3)
    assert np.array_equal(probabilities(trees, 0, X), source)
    assert not np.array_equal(probabilities(trees, 1, X), source)


def test_decision_is_the_first_most_probable_class():
    X, y = stream(4)
    for rule in ("nba", "nb", "mc"):
        trees = make(leaf_prediction=rule)
        for _ in range(8):
            trees = forest.with_room(trees)
        spare = copies(trees)
        proba = np.empty(3)
        for t in range(len(X)):
            decided = forest.decide(trees, 0, X[t])
            assert decided == forest.decide_then_learn(trees, 0, X[t], y[t], 1.0)
            forest.predict_then_learn(spare, 0, X[t], y[t], 1.0, proba)
            assert decided == proba.argmax()
        assert same(trees[:-1], spare[:-1])


def test_arrays_hold_no_free_memory_and_make_the_same_forest():
    X, y = stream(5, 3000)
    trees = grown(grown(make(2), 0, X[:1500], y[:1500]), 1, X[:700], y[:700])
    forest.reset(trees, 1)
    arrays = forest.forest_arrays(trees)
    assert len(arrays["nodes"]) == forest.num_nodes(trees, 0) + 1 < len(trees.nodes)
    assert len(arrays["leaves"]) == forest.num_leaves(trees, 0) + 1 < len(trees.leaves)
    again = forest.forest_from_arrays(arrays)
    for tree in (0, 1):
        trees = grown(trees, tree, X[1500:], y[1500:])
        again = grown(again, tree, X[1500:], y[1500:])
        assert np.array_equal(probabilities(trees, tree, X), probabilities(again, tree, X))
    assert forest.num_nodes(trees, 0) == forest.num_nodes(again, 0)


@pytest.mark.parametrize("limit", [{"max_leaves": 7}, {"max_bytes": 7 * 91 * 8}])
def test_memory_is_flat_at_the_limit(limit):
    X, y = stream(6, 4000)
    trees = grown(make(2, **limit), 0, X[:2000], y[:2000])
    trees = grown(trees, 1, X[:2000], y[:2000])
    bytes_then = sum(array.nbytes for array in trees)
    before = probabilities(trees, 0, X)
    trees = grown(grown(trees, 0, X, y), 1, X, y)
    assert sum(array.nbytes for array in trees) == bytes_then
    assert forest.num_leaves(trees, 0) + forest.num_leaves(trees, 1) == trees.layout[TOTAL_LEAVES]
    assert 5 <= trees.layout[TOTAL_LEAVES] <= 8
    assert not np.array_equal(probabilities(trees, 0, X), before)  # it still learns


def test_weight_two_is_the_instance_twice_in_one_leaf():
    X, y = stream(7, 300)
    once, twice = make(max_depth=0), make(max_depth=0)
    for t in range(len(X)):
        forest.learn(once, 0, X[t], y[t], 2.0)
        for _ in range(2):
            forest.learn(twice, 0, X[t], y[t], 1.0)
    assert np.allclose(probabilities(once, 0, X), probabilities(twice, 0, X), atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"leaf_prediction": "bayes"},
        {"grace_period": 0},
        {"delta": 1.0},
        {"tau": -0.1},
        {"subspace": 0.0},
        {"max_leaves": 0},
        {"num_bins": 0},
    ],
    ids=str,
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        make(**wrong)
