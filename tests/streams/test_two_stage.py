"""Experts on the first half, router on the second; and the clusters between them."""

import pickle

import numpy as np
import pandas as pd
import pytest
import river.checks
from river import tree
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.streams.clusters import Clusters
from moeapps.streams.driftmoe import DriftMoE
from moeapps.streams.hoeffding_tree import HoeffdingTree
from moeapps.streams.prequential_folds import kfold_prequential
from moeapps.streams.router import Router
from moeapps.streams.two_stage import TwoStageDriftMoE

N = 600
SMALL = {"num_instances": N, "buffer_share": 0.1, "max_clusters": 4, "hidden": 16, "seed": 3}
TREE = {"grace_period": 50, "delta": 1e-7, "tau": 0.05}


def clustered(n=N, *, seed=0):
    """Three clusters; where in a cluster an instance lies decides, by another rule in each."""
    rng = np.random.default_rng(seed)
    home = rng.integers(0, 3, n)
    offsets = rng.normal(size=(n, 3))
    rules = np.column_stack([offsets[:, 0], offsets[:, 1], -offsets[:, 0]])
    centres = np.array([[0, 0, 0], [20, 0, 20], [0, 20, 20]])
    return centres[home] + offsets, (rules[np.arange(n), home] > 0).astype(int)


ROWS, LABELS = clustered()


# Clusters.


@pytest.mark.parametrize("kind", ["kmeans", "gmm"])
def test_clusters_are_those_of_scikit_learn(kind):
    rows, _ = make_blobs(300, 3, centers=4, random_state=1)
    rows = rows * [1.0, 100.0, 0.01] + [5.0, 0.0, -3.0]
    clusters = Clusters.fit(rows, kind, most=8, seed=0)
    assert clusters.count == 4
    white = PCA(whiten=True).fit_transform(StandardScaler().fit_transform(rows))
    theirs = (
        KMeans(4, n_init=10, random_state=0)
        if kind == "kmeans"
        else GaussianMixture(4, random_state=0)
    ).fit_predict(white)
    pairs = set(zip(clusters.of(rows).tolist(), theirs.tolist(), strict=True))
    assert len(pairs) == 4


def test_constant_columns_and_gaps_do_not_spoil_clusters():
    rows, _ = make_blobs(200, 2, centers=3, random_state=1)
    odd = np.column_stack([rows, np.full(200, 7.0), rows[:, 0] * 2])
    odd[::17, 1] = np.nan
    clusters = Clusters.fit(odd, "kmeans", most=6, seed=0)
    assert clusters.whitening.shape == (4, 2)
    assert np.isfinite(clusters.whitening).all()
    assert clusters.count == 3


def test_rows_that_hardly_differ_are_one_cluster():
    clusters = Clusters.fit(np.ones((10, 2)), "kmeans", most=5, seed=0)
    assert clusters.count == 1
    assert clusters.of(np.array([[3.0, np.nan]])).tolist() == [0]


def test_new_columns_leave_clusters_alone():
    clusters = Clusters.fit(ROWS[:100], "gmm", most=4, seed=0)
    before = clusters.of(ROWS)
    clusters.grow([2, 3])
    wide = np.insert(ROWS, [2, 3], 1e6, axis=1)
    assert (clusters.of(wide) == before).all()


# The two stages against the description, one instance at a time.


def answer_of(expert, x):
    proba = expert.predict_proba_one(x)
    p = [proba.get(c, 0.0) for c in (0, 1)] if proba else [0.5, 0.5]
    return p.index(max(p)), p


def test_data_variant_follows_the_description():
    model = TwoStageDriftMoE(**SMALL, count_inherited=True)
    answers = model.prequential(ROWS, LABELS, classes=[0, 1])
    rng = np.random.default_rng(3)
    sample = rng.choice(ROWS[:60], 50, replace=False)
    clusters = Clusters.fit(sample, "kmeans", most=4, seed=3)
    assert clusters.count == 3
    experts = [
        HoeffdingTree(**TREE).partial_fit(np.empty((0, 3)), [], classes=[0, 1]) for _ in range(3)
    ]
    router = Router(3, 0, 3, hidden=16, batch_size=1, seed=3)
    for t, (row, y) in enumerate(zip(ROWS, LABELS.tolist(), strict=True)):
        x = dict(enumerate(row.tolist()))
        if t < 60:
            assert answers[t] == 0
        elif t < 300:
            expert = experts[clusters.of(row[None])[0]]
            assert answers[t] == answer_of(expert, x)[0]
            expert.learn_one(x, y)
        else:
            said, p = zip(*(answer_of(expert, x) for expert in experts), strict=True)
            router.forget()
            z = router.take(row[None])[0]
            assert answers[t] == said[z.argmax()]
            right = [s == y for s in said]
            if not any(right):
                right[int(np.argmax([q[y] for q in p]))] = True
            router.teach(np.array([right]))
    assert (answers[400:] == LABELS[400:]).mean() > 0.6


def test_task_variant_follows_the_description():
    model = TwoStageDriftMoE("task", **SMALL, count_inherited=True)
    answers = model.prequential(ROWS, LABELS, classes=[0, 1])
    experts = [
        HoeffdingTree(**TREE).partial_fit(np.empty((0, 3)), [], classes=[0, 1]) for _ in range(2)
    ]
    router = Router(3, 0, 2, hidden=16, batch_size=1, seed=3)
    for t, (row, y) in enumerate(zip(ROWS, LABELS.tolist(), strict=True)):
        x = dict(enumerate(row.tolist()))
        if t < 300:
            yes = [answer_of(expert, x)[1][1] for expert in experts]
            assert answers[t] == yes.index(max(yes))
            for i, expert in enumerate(experts):
                expert.learn_one(x, int(y == i))
        else:
            z = router.take(row[None])[0]
            assert answers[t] == z.argmax()
            router.teach(np.array([[y == 0, y == 1]]))


@pytest.mark.parametrize("clustering", ["kmeans", "gmm"])
def test_each_cluster_gets_an_expert_that_knows_it(clustering):
    rows, labels = clustered(6_000, seed=1)
    model = TwoStageDriftMoE(**(SMALL | {"num_instances": 6_000, "clustering": clustering}))
    right = model.prequential(rows, labels) == labels
    assert right[2_000:3_000].mean() > 0.9
    assert model.statistics()["selected"].sum() == 3_000 - 600
    assert model.statistics()["usage"].sum() == 6_000 - 600


def test_experts_rest_in_the_second_stage():
    model = TwoStageDriftMoE(**SMALL).partial_fit(ROWS[:300], LABELS[:300])
    before = model._pool.state()
    model.partial_fit(ROWS[300:], LABELS[300:])
    for name, array in model._pool.state().items():
        assert (array == before[name]).all()


# Interfaces, files, river.


def untidy():
    rows, labels = clustered()
    rng = np.random.default_rng(1)
    rows[:, 2] = rng.integers(0, 3, N)
    rows[rng.random(rows.shape) < 0.03] = np.nan
    rows[:350, 1] = np.nan  # comes when the router learns
    labels[200:][rng.random(N - 200) < 0.3] = 2
    return rows, labels


@pytest.mark.parametrize("variant", ["data", "task"])
def test_all_interfaces_of_the_two_stages_agree_exactly(variant):
    rows, labels = untidy()
    single, many, fitted, streamed = (
        TwoStageDriftMoE(variant, nominal_attributes=(2,), **SMALL) for _ in range(4)
    )
    answers = []
    for row, y in zip(rows, labels.tolist(), strict=True):
        x = {j: v for j, v in enumerate(row.tolist()) if v == v}
        answers.append(single.predict_one(x))
        single.learn_one(x, y)
    assert streamed.prequential(rows, labels)[1:].tolist() == answers[1:]
    for cut in (slice(0, 37), slice(37, 310), slice(310, None)):
        many.learn_many(pd.DataFrame(rows[cut]), pd.Series(labels[cut]))
    fitted.partial_fit(rows, labels)
    expected = single.predict_proba_many(pd.DataFrame(rows)).to_numpy()
    for other in (many, streamed, fitted):
        assert (other.predict_proba_many(pd.DataFrame(rows)).to_numpy() == expected).all()


@pytest.mark.parametrize("variant", ["data", "task"])
@pytest.mark.parametrize("stop", [30, 150, 401])
def test_saved_stage_goes_on_bit_for_bit(variant, stop, tmp_path):
    rows, labels = untidy()
    model = TwoStageDriftMoE(variant, nominal_attributes=(2,), **SMALL)
    model.partial_fit(rows[:stop], labels[:stop])
    model.save(tmp_path / "model.npz")
    copies = [TwoStageDriftMoE.load(tmp_path / "model.npz"), pickle.loads(pickle.dumps(model))]
    expected = model.prequential(rows[stop:], labels[stop:])
    for copy in copies:
        assert (copy.prequential(rows[stop:], labels[stop:]) == expected).all()
        assert (copy.predict_proba(rows) == model.predict_proba(rows)).all()


def test_river_experts_serve_in_both_stages():
    expert = tree.HoeffdingTreeClassifier(grace_period=50)
    model = TwoStageDriftMoE(**(SMALL | {"expert": expert}))
    right = model.prequential(ROWS, LABELS) == LABELS
    assert right[200:300].mean() > 0.6


def test_senseless_stages_are_refused():
    with pytest.raises(UnknownNameError, match="'kmeans'"):
        TwoStageDriftMoE(num_instances=100, clustering="k-means")
    with pytest.raises(ArgumentError, match="num_instances=3"):
        TwoStageDriftMoE(num_instances=3)
    with pytest.raises(ArgumentError, match="share of 0"):
        TwoStageDriftMoE(num_instances=100, buffer_share=0)


@pytest.mark.parametrize(
    ("model", "check"),
    [
        pytest.param(model, check, id=f"{model.variant}-{check.__name__}")
        for params in TwoStageDriftMoE._unit_test_params()
        for model in [TwoStageDriftMoE(**params)]
        for check in river.checks.yield_checks(model)
    ],
)
def test_two_stages_pass_the_checks_of_river(model, check):
    check(model.clone())


# Prequential cross-validation.


def test_folds_answer_what_they_have_not_learned():
    rows, labels = ROWS[:200], LABELS[:200]
    model = DriftMoE(num_experts=3, top_k=2, hidden=8, batch_size=16, seed=0)
    answers = kfold_prequential(model, rows, labels, k=4, seed=7)
    drawn = np.random.default_rng(7).integers(4, size=200)
    copies = [model.clone({"seed": 7 + i}) for i in range(4)]
    for t, (row, y) in enumerate(zip(rows, labels.tolist(), strict=True)):
        x = dict(enumerate(row.tolist()))
        said = copies[drawn[t]].predict_one(x)
        assert answers[t] == (labels[0] if said is None else said)
        for i, copy in enumerate(copies):
            if i != drawn[t]:
                copy.learn_one(x, y)
    assert not model._begun


def test_folds_take_labels_of_any_kind():
    names = np.array(["no", "perhaps"])[LABELS]
    answers = kfold_prequential(HoeffdingTree(), ROWS, names, k=3)
    assert set(answers) == {"no", "perhaps"}
    with pytest.raises(ArgumentError, match="k=1"):
        kfold_prequential(HoeffdingTree(), ROWS, names, k=1)
