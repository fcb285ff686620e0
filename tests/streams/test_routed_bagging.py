import numpy as np
import pandas as pd
import pytest
from river import checks

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.streams import adwin, datasets, routed_bagging
from moeapps.streams import forest as trees
from moeapps.streams.random_draws import poisson, uniform
from moeapps.streams.routed_bagging import RoutedBagging

SMALL = {"num_experts": 3, "seed": 4}


def stream(name="sea_a", *, limit=3_000, seed=1):
    return datasets.load(name, limit=limit, length=limit, seed=seed)


@pytest.mark.parametrize(
    "check",
    list(checks.yield_checks(RoutedBagging(num_experts=3))),
    ids=lambda check: check.__name__,
)
def test_river_check(check):
    check(RoutedBagging(num_experts=3))


def by_hand(model, X, y):
    """The documented method, instance by instance, in Python."""
    k, num_classes = model.num_experts, int(y.max()) + 1
    forest = trees.new_forest(
        2 * k, num_numeric=X.shape[1], num_values=[], num_classes=num_classes,
        grace_period=model.grace_period, delta=model.delta, tau=model.tau,
        subspace=model.subspace, seed=model.seed,
    )  # fmt: skip
    while len(forest.leaves) < 2_000:
        forest = trees.with_room(forest)
    deltas = np.geomspace(*model.drift_delta, k)
    drift, warning = adwin.new_detectors(k, deltas), adwin.new_detectors(k, 5 * deltas)
    front, challenger = [2 * i for i in range(k)], [None] * k
    right, seen = np.zeros(2 * k), np.zeros(2 * k)
    answers, resets = [], 0
    for t, (x, label) in enumerate(zip(X, y, strict=True)):
        votes = np.zeros(num_classes)
        wrong = {}
        for i in range(k):
            for tree in (front[i], challenger[i]):
                if tree is not None:
                    proba = np.empty(num_classes)
                    trees.predict(forest, tree, x, proba)
                    votes += ((right[tree] + 1) / (seen[tree] + 2)) ** 10 * proba
                    wrong[tree] = proba.argmax() != label
        answers.append(votes.argmax())
        for i in range(k):
            weight = float(poisson(model.rate, uniform(model.seed, i, t)))
            for tree in (front[i], challenger[i]):
                if tree is not None:
                    assert trees.learn(forest, tree, x, label, weight)
                    right[tree] = 0.99 * right[tree] + 1 - wrong[tree]
                    seen[tree] = 0.99 * seen[tree] + 1
            error = float(wrong[front[i]])
            idle = front[i] ^ 1
            if adwin.update(warning, i, error) and challenger[i] is None:
                challenger[i] = idle
                trees.reset(forest, idle)
                right[idle] = seen[idle] = 0
            if adwin.update(drift, i, error):
                if challenger[i] is None:
                    trees.reset(forest, idle)
                    right[idle] = seen[idle] = 0
                front[i], challenger[i] = idle, None
                adwin.reset(drift, i)
                adwin.reset(warning, i)
                resets += 1
    return np.array(answers), resets


def test_equals_the_method_written_instance_by_instance(monkeypatch):
    data = stream("rbf_f", limit=2_500)
    model = RoutedBagging(drift_delta=(0.01, 0.1), subspace=0.6, grace_period=50, **SMALL)
    monkeypatch.setattr(routed_bagging, "CHUNK", 700)
    y = np.where(np.arange(2_500) // 800 % 2, 1 - data.y, data.y)
    answers = model.prequential(data.X, y, classes=[0, 1])
    expected, resets = by_hand(model, data.X, y)
    assert np.array_equal(answers, expected)
    assert model.statistics()["resets"] == resets > 2


def test_every_interface_gives_the_same_answers():
    data = stream(limit=1_200)
    many, arrays, fitted = (RoutedBagging(**SMALL) for _ in range(3))
    one = RoutedBagging(**SMALL)
    answers = arrays.prequential(data.X, data.y)
    said = []
    for row, label in zip(data.X.tolist(), data.y.tolist(), strict=True):
        x = dict(enumerate(row))
        said.append(one.predict_one(x))
        one.learn_one(x, label)
    assert said[1:] == answers[1:].tolist()
    for start in range(0, len(data), 170):
        part = slice(start, start + 170)
        frame = pd.DataFrame(data.X[part])
        many.learn_many(frame, pd.Series(data.y[part]))
        fitted.partial_fit(data.X[part], data.y[part])
    expected = one.predict_proba_many(pd.DataFrame(data.X)).to_numpy()
    for other in (many, arrays, fitted):
        assert np.array_equal(other.predict_proba(data.X), expected[:, : len(data.class_names)])


def test_answers_do_not_depend_on_the_size_of_a_chunk_at_the_leaf_limit(monkeypatch):
    data = stream("rbf_m", limit=2_000)
    answers, leaves = [], []
    for chunk in (1, 64, 2_000):
        monkeypatch.setattr(routed_bagging, "CHUNK", chunk)
        model = RoutedBagging(max_leaves=14, grace_period=20, **SMALL)
        answers.append(model.prequential(data.X, data.y))
        leaves.append(model.statistics()["leaves"])
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[0], answers[2])
    assert leaves[0] == leaves[1] == leaves[2] <= 3 * 14 + 3


def test_a_saved_model_goes_on_as_if_nothing_had_happened(tmp_path):
    data = stream("rbf_f", limit=3_000)
    half = 2_000
    model = RoutedBagging(**SMALL)
    model.partial_fit(data.X[:half], data.y[:half])
    model.save(tmp_path / "model.npz")
    other = RoutedBagging.load(tmp_path / "model.npz")
    rest = data.X[half:], data.y[half:]
    assert np.array_equal(model.prequential(*rest), other.prequential(*rest))
    told, again = model.statistics(), other.statistics()
    assert told.keys() == again.keys()
    assert all(np.array_equal(told[name], again[name]) for name in told)


def test_weight_0_teaches_nothing_but_is_answered():
    data = stream(limit=900)
    with_idle, without = RoutedBagging(**SMALL), RoutedBagging(**SMALL)
    taught, classes = np.arange(900) % 3 > 0, [0, 1]
    weights = taught.astype(float)
    answers = with_idle.prequential(data.X, data.y, classes=classes, sample_weight=weights)
    expected = without.prequential(data.X[taught], data.y[taught], classes=classes)
    assert np.array_equal(answers[taught], expected)
    assert np.array_equal(with_idle.predict_proba(data.X), without.predict_proba(data.X))


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    data = stream(limit=1_000)
    a, b, c = (
        RoutedBagging(num_experts=3, seed=seed).partial_fit(data.X, data.y).predict_proba(data.X)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_drift_is_noticed_and_survived():
    rng = np.random.default_rng(0)
    X = rng.random((6_000, 2))
    y = (X[:, 0] > 0.5).astype(int)
    y[3_000:] = 1 - y[3_000:]
    model = RoutedBagging(num_experts=5, seed=1)
    right = model.prequential(X, y) == y
    told = model.statistics()
    assert any(3_000 <= t < 3_300 for t in told["drifts"])
    assert all(t >= 3_000 for t in told["drifts"])
    assert right[2_500:3_000].mean() > 0.97
    assert right[3_500:4_000].mean() > 0.95
    assert told["usage"].sum() == 6_000
    assert (told["selected"] > 0.99 * 6_000).all()
    assert 5 <= told["living"] <= 10


def test_labels_and_features_may_come_late():
    model = RoutedBagging(**SMALL)
    for t in range(300):
        x = {"a": t % 7} if t < 100 else {"a": t % 7, "b": "rain" if t % 2 else "sun"}
        model.learn_one(x, t % 2 if t < 200 else f"new {t % 2}")
    proba = model.predict_proba_one({"b": "sun", "c": None})
    assert list(proba) == [0, 1, "new 0", "new 1"]
    assert sum(proba.values()) == pytest.approx(1)
    assert model.predict_one({"b": "sun"}) == "new 0"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"preset": "accurat"}, UnknownNameError),
        ({"num_experts": 0}, ArgumentError),
        ({"rate": 0.0}, ArgumentError),
        ({"drift_delta": (0.1, 1.5)}, ArgumentError),
        ({"drift_delta": (0.0, 0.5)}, ArgumentError),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, error):
    with pytest.raises(error):
        RoutedBagging(**arguments)


@pytest.mark.data
def test_electricity_reaches_the_best_published_ensemble(real_data):
    data = datasets.load("electricity")
    answers = RoutedBagging("accurate", seed=1).prequential(data.X, data.y)
    assert (answers == data.y).mean() > 0.895
