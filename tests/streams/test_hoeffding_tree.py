import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from river import checks, datasets, tree
from river.datasets import synth

from moeapps.streams.hoeffding_tree import HoeffdingTree


@pytest.mark.parametrize(
    "check", list(checks.yield_checks(HoeffdingTree())), ids=lambda check: check.__name__
)
def test_river_accepts_the_tree(check):
    check(HoeffdingTree().clone())


def array_of(rows):
    X = np.array([list(x.values()) for x, _ in rows], float)
    return X, np.array([y for _, y in rows])


def hits_of_river(model, rows):
    hits = []
    for x, y in rows:
        hits.append(model.predict_one(x) == y)
        model.learn_one(x, y)
    return np.array(hits)


def hits_of_ours(model, rows):
    X, y = array_of(rows)
    return model.prequential(X, y) == y


def test_single_leaf_equals_rivers_on_nominal_features():
    rows = list(synth.LED(seed=4, noise_percentage=0.1).take(20_000))
    names = list(rows[0][0])
    model = HoeffdingTree(max_depth=0, nominal_attributes=list(range(len(names))))
    ours = hits_of_ours(model, rows)
    theirs = hits_of_river(
        tree.HoeffdingTreeClassifier(grace_period=10**9, nominal_attributes=names), rows
    )
    assert model.statistics()["leaves"] == 1
    # In the beginning many counts are 0: river ignores them, Laplace's rule does not.
    assert ours[:500].mean() > theirs[:500].mean() + 0.01
    assert abs(ours[500:].mean() - theirs[500:].mean()) < 0.0005


STREAMS = {
    "SEA": (lambda: synth.SEA(noise=0.1, seed=1), 20_000, []),
    "RBF": (lambda: synth.RandomRBF(seed_model=3, seed_sample=4, n_features=10), 10_000, []),
    "Agrawal": (
        lambda: synth.Agrawal(classification_function=0, seed=1),
        5_000,
        ["elevel", "car", "zipcode"],
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_accuracy_is_at_least_rivers(name):
    make, length, nominal = STREAMS[name]
    rows = list(make().take(length))
    keys = list(rows[0][0])
    ours = HoeffdingTree(nominal_attributes=[keys.index(key) for key in nominal])
    theirs = tree.HoeffdingTreeClassifier(nominal_attributes=nominal)
    assert hits_of_ours(ours, rows).mean() >= hits_of_river(theirs, rows).mean()


@pytest.mark.data
def test_accuracy_on_electricity_is_above_rivers(real_data):
    table = np.loadtxt(real_data / "streams" / "elec.csv", delimiter=",", skiprows=1)
    rows = [(dict(enumerate(row[:-1])), int(row[-1])) for row in table.tolist()]
    theirs = hits_of_river(tree.HoeffdingTreeClassifier(), rows).mean()
    assert hits_of_ours(HoeffdingTree(), rows).mean() > theirs + 0.005


def test_tree_is_many_times_faster_than_rivers():
    # 25 times and more is shown by the benchmark; here a bound that a busy machine meets too.
    rows = list(synth.RandomRBF(seed_model=3, seed_sample=4, n_features=10).take(3000))
    X, y = array_of(rows)
    HoeffdingTree().prequential(X, y)  # compiles
    start = time.process_time()
    hits_of_river(tree.HoeffdingTreeClassifier(), rows)
    river = time.process_time() - start
    start = time.process_time()
    for _ in range(10):
        HoeffdingTree().prequential(X, y)
    assert river > 10 * (time.process_time() - start) / 10


def test_text_features_need_no_encoding():
    rows = list(datasets.Phishing())
    named = [({key: f"{key}={value}" for key, value in x.items()}, y) for x, y in rows]
    keys = list(rows[0][0])
    declared = HoeffdingTree(nominal_attributes=keys)
    hits = hits_of_river(HoeffdingTree(), named)
    assert np.array_equal(hits, hits_of_river(declared, rows))
    assert hits.mean() > 0.85


def test_max_size_bounds_the_leaves():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, 4))
    y = (X > 0).sum(1) % 2
    small = HoeffdingTree(grace_period=20, delta=0.2, tau=0.5, max_size=0.02).partial_fit(X, y)
    large = HoeffdingTree(grace_period=20, delta=0.2, tau=0.5).partial_fit(X, y)
    assert len(pickle.dumps(small)) < 0.1 * 2**20 < len(pickle.dumps(large))


def test_importing_streams_loads_neither_numba_nor_river():
    code = "import sys, moeapps.streams; print({'numba', 'river', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
