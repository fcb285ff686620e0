"""Everything that `StreamClassifier` promises, shown on the Hoeffding tree."""

import copy
import pickle
import warnings
from collections import deque

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeapps.errors import ArgumentError, CheckpointError
from moeapps.streams import compiling
from moeapps.streams.hoeffding_tree import HoeffdingTree

QUICK = {"grace_period": 25, "delta": 0.05, "tau": 0.2}


def tree(**options):
    return HoeffdingTree(**(QUICK | options))


def arrays(seed, n=1200):
    """Four columns, the last nominal; missing values; labels and values that come up late."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    y[:200] %= 2
    y[200:500] %= 3
    X = rng.normal(y[:, None], 0.8, (n, 4))
    X[:, 3] = np.clip(np.round(2 * X[:, 3]), -2, 6)
    X[:400, 3] = np.clip(X[:400, 3], 0, 2)
    X[rng.random(X.shape) < 0.05] = np.nan
    X[:150, 1] = np.nan
    w = rng.choice([0.0, 0.5, 1.0, 3.0], n)
    return X, np.array(["a", "b", "c", "d"])[y], w


def dicts(X):
    return [dict(enumerate(row)) for row in X.tolist()]


def dict_loop(model, X, y, w):
    predicted = []
    for x, label, weight in zip(dicts(X), y.tolist(), w.tolist(), strict=True):
        predicted.append(model.predict_one(x))
        model.learn_one(x, label, w=weight)
    return predicted


def test_all_ways_in_agree_exactly():
    X, y, w = arrays(0)
    frame = pd.DataFrame(X)
    models = {name: tree(nominal_attributes=[3]) for name in ("one", "many", "array", "run")}
    predicted = dict_loop(models["one"], X, y, w)
    for start in range(0, len(X), 111):
        part = slice(start, start + 111)
        models["many"].learn_many(frame[part], pd.Series(y[part]), w[part])
        models["array"].partial_fit(X[part], y[part], sample_weight=w[part])
    run = models["run"].prequential(X, y, sample_weight=w).tolist()
    assert run[1:] == predicted[1:]
    assert (predicted[0], run[0]) == (None, y[0])
    expected = models["one"].predict_proba(X)
    labels = models["one"].classes_.tolist()
    assert labels == list(dict.fromkeys(y.tolist()))
    assert models["one"].statistics()["leaves"] > 5
    for model in models.values():
        assert np.array_equal(model.predict_proba(X), expected)
        assert model.statistics() == models["one"].statistics()
        assert model.classes_.tolist() == labels
    rows = [models["one"].predict_proba_one(x) for x in dicts(X)]
    assert [[row[label] for label in labels] for row in rows] == expected.tolist()
    many = models["one"].predict_proba_many(frame)
    assert many.columns.tolist() == labels
    assert np.array_equal(many.to_numpy(), expected)
    one = [models["one"].predict_one(x) for x in dicts(X)]
    assert models["one"].predict(X).tolist() == one
    assert models["one"].predict_many(frame).tolist() == one


def test_frames_of_strings_and_bools_equal_dicts():
    X, y, _ = arrays(1)
    frame = pd.DataFrame(X, columns=["x", "b", "z", "size"])
    frame["size"] = frame["size"].map({-2: "S", -1: "S", 0: "M"}, na_action="ignore")
    frame["flag"] = (frame["x"] > 0).astype(object).where(frame["x"].notna(), None)
    one, many, run = tree(), tree(), tree()
    predicted = []
    for x, label in zip(frame.to_dict("records"), y.tolist(), strict=True):
        predicted.append(one.predict_one(x))
        one.learn_one(x, label)
    many.learn_many(frame, pd.Series(y))
    assert run.prequential(frame, y).tolist()[1:] == predicted[1:]
    expected = one.predict_proba_many(frame)
    assert expected.equals(many.predict_proba_many(frame))
    assert expected.equals(run.predict_proba_many(frame))
    assert one.statistics() == many.statistics()


@pytest.mark.parametrize("delay", [1, 2, 37, 5000])
def test_label_delay_equals_a_queue(delay):
    X, y, w = arrays(2, 600)
    model, slow = tree(nominal_attributes=[3]), tree(nominal_attributes=[3])
    queue, expected = deque(), []
    for t, x in enumerate(dicts(X)):
        if t >= delay:
            slow.learn_one(*queue.popleft())
        expected.append(slow.predict_one(x))
        queue.append((x, y[t], w[t]))
    while queue:
        slow.learn_one(*queue.popleft())
    got = model.prequential(X, y, delay=delay, sample_weight=w).tolist()
    known = [i for i, label in enumerate(expected) if label is not None]
    assert [got[i] for i in known] == [expected[i] for i in known]
    assert set(got) - set(expected) <= {y[0]}
    assert np.array_equal(model.predict_proba(X), slow.predict_proba(X))


def test_learning_and_predicting_in_turn_is_a_loop_of_both():
    X, y, _ = arrays(7, 300)
    model, slow = tree(nominal_attributes=[3]), tree(nominal_attributes=[3])
    for start in range(0, 100, 50):
        part, then = slice(start, start + 50), slice(start + 100, start + 150)
        expected = [
            slow.partial_fit(X[t : t + 1], y[t : t + 1]).predict(X[t + 100 : t + 101])[0]
            for t in range(start, start + 50)
        ]
        assert model.learn_then_predict(X[part], y[part], X[then]).tolist() == expected
    assert np.array_equal(model.predict_proba(X), slow.predict_proba(X))
    assert model.learn_then_predict(X[:0], y[:0], X[:0]).tolist() == []


def test_rows_before_the_first_late_label_are_answered_by_what_is_known():
    X, y, _ = arrays(8, 300)
    model = tree(nominal_attributes=[3]).partial_fit(X[:200], y[:200])
    expected = model.predict(X[200:230]).tolist()
    assert model.prequential(X[200:], y[200:], delay=30)[:30].tolist() == expected


def test_run_cut_into_pieces_is_the_same_run(tmp_path):
    X, y, w = arrays(3)
    whole = tree(nominal_attributes=[3]).prequential(X, y, sample_weight=w)
    model, pieces = tree(nominal_attributes=[3]), []
    for i, start in enumerate(range(0, len(X), 97)):
        part = slice(start, start + 97)
        pieces += model.prequential(X[part], y[part], sample_weight=w[part]).tolist()
        if i % 3 == 0:
            model.save(tmp_path / "model.npz")
            model = HoeffdingTree.load(tmp_path / "model.npz")
        elif i % 3 == 1:
            model = pickle.loads(pickle.dumps(model))
        else:
            model = copy.deepcopy(model)
    assert pieces == whole.tolist()


def test_arrays_and_frames_of_the_same_columns_mean_the_same():
    X, y, _ = arrays(6, 400)
    names = ["d", "c", "b", "a"]
    frame = pd.DataFrame(X, columns=names)
    model = tree(nominal_attributes=["a"]).partial_fit(frame, y)
    expected = model.predict_proba(frame)
    assert np.array_equal(model.predict_proba(X), expected)
    assert np.array_equal(model.predict_proba(frame[names[::-1]]), expected)
    assert np.array_equal(model.predict_proba_many(frame), expected)
    with pytest.raises(ArgumentError, match="'e'"):
        model.predict(frame.rename(columns={"a": "e"}))
    with pytest.raises(ArgumentError, match="learned from 0, 1"):
        tree().partial_fit(X, y).predict(frame)


def test_unknown_before_the_first_label():
    model = tree()
    assert model.predict_proba_one({"a": 1}) == {}
    assert model.predict_one({"a": 1}) is None
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    assert model.predict_many(frame).tolist() == [None, None]
    assert model.predict_proba_many(frame).shape == (2, 0)
    assert not hasattr(model, "classes_")
    assert not hasattr(model, "n_features_in_")
    with pytest.raises(ArgumentError, match="partial_fit"):
        model.predict(np.zeros((1, 2)))


def test_announced_classes_have_probability_before_they_come():
    model = tree().partial_fit(np.empty((0, 2)), [], classes=["x", "y", "z"])
    assert model.predict_proba(np.zeros((1, 2))).tolist() == [[1 / 3] * 3]
    model.partial_fit(np.zeros((2, 2)), ["y", "new"])
    assert model.classes_.tolist() == ["x", "y", "z", "new"]
    assert model.predict(np.zeros((1, 2))).tolist() == ["y"]
    assert model.n_features_in_ == 2


@pytest.mark.parametrize(
    "labels",
    [
        [True, False],
        [np.bool_(True), np.bool_(False)],
        [1, "1", 1.5],
        [None, ("a", 1), frozenset()],
        [10**30, -1],
        [np.str_("x"), np.int64(3)],
    ],
    ids=str,
)
def test_labels_are_the_callers_own_objects(labels):
    x = [[float(i), 0.0] for i in range(len(labels))] * 4
    one, many = tree(), tree()
    for features, label in zip(x, labels * 4, strict=True):
        one.learn_one(dict(enumerate(features)), label)
    for row, label in zip(x, labels, strict=False):
        got = one.predict_one(dict(enumerate(row)))
        assert got == label
        assert type(got) is type(label)
    column = np.empty(len(x), object)
    column[:] = labels * 4
    many.partial_fit(np.array(x), column)
    assert many.predict(np.array(x)).tolist() == [
        label.item() if many.classes_.dtype != object else label for label in many.predict(x)
    ]
    assert list(many.predict(np.array(x))) == labels * 4


def test_predicting_changes_nothing():
    X, y, _ = arrays(4, 300)
    model = tree(nominal_attributes=[3])
    model.partial_fit(X, y)
    before = pickle.dumps(model)
    model.predict_one({0: 1.0, "new": "x", 3: 99})
    model.predict_proba(X)
    model.predict_many(pd.DataFrame(X[:10]))
    assert pickle.dumps(model) == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.partial_fit(np.zeros(3), [0, 1, 0]), "shape"),
        (lambda m: m.partial_fit(np.zeros((3, 2)), [0, 1]), "3 rows"),
        (lambda m: m.partial_fit(np.zeros((3, 2)), np.zeros((3, 1))), "y has shape"),
        (lambda m: m.partial_fit([["a", "b"]], [0]), "DataFrame"),
        (lambda m: m.partial_fit(np.zeros((1, 2), complex), [0]), "complex"),
        (lambda m: m.partial_fit(np.zeros((1, 3)), [0]), "0, 1, 2 but .* learned from 0, 1"),
        (lambda m: m.predict(np.zeros((1, 3))), "0, 1, 2 but .* learned from 0, 1"),
        (lambda m: m.partial_fit(np.zeros((1, 2)), [[1]]), "y has shape|hashable"),
        (lambda m: m.partial_fit(np.zeros((1, 2)), [0], sample_weight=[-1.0]), "weight -1"),
        (lambda m: m.partial_fit(np.zeros((1, 2)), [0], sample_weight=[np.nan]), "weight nan"),
        (lambda m: m.partial_fit(np.zeros((2, 2)), [0, 1], sample_weight=[1.0]), "weights"),
        (lambda m: m.learn_one({"a": 1}, 0, w=-2), "weight -2"),
        (lambda m: m.learn_one({"a": 1}, [1]), "hashable"),
        (lambda m: m.learn_one({"a": [1]}, 0), "'a'"),
        (
            lambda m: m.learn_many(pd.DataFrame([[1, 2]], columns=["a", "a"]), pd.Series([0])),
            "same",
        ),
        (lambda m: m.prequential(np.zeros((2, 2)), [0, 1], delay=-1), "delay"),
        (lambda m: m.learn_then_predict(np.zeros((2, 2)), [0, 1], np.zeros((1, 2))), "row"),
    ],
)
def test_wrong_input_is_explained_and_not_learned(call, message):
    model = tree().partial_fit(np.zeros((2, 2)), [0, 1])
    before = model.statistics()
    with pytest.raises(ArgumentError, match=message):
        call(model)
    assert model.statistics() == before


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(),
    st.sampled_from(["a", "b", "", 1e300, -1e300, 1e-300, 5e-324, np.float32(3), b"x", (1,)]),
)
INSTANCES = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(["a", "b", 1, None, ("t",)]), VALUES, max_size=5),
        st.sampled_from(["x", "y", 0, True, None, (1, 2), 2.5, frozenset()]),
        st.sampled_from([0.0, 1e-9, 0.5, 1.0, 7.0, 1e9]),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(INSTANCES, st.sampled_from(["nba", "nb", "mc"]), st.booleans())
def test_anything_can_come(instances, rule, binary):
    model = tree(grace_period=2, leaf_prediction=rule, binary_split=binary)
    seen = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x, y, w in instances:
            model.learn_one(x, y, w=w)
            seen.setdefault(y)
            proba = model.predict_proba_one(x)
            assert list(proba) == list(seen)
            assert abs(sum(proba.values()) - 1) < 1e-9
            assert min(proba.values()) >= 0


def test_constant_features_and_one_class_never_split():
    X = np.ones((2000, 3))
    model = tree().partial_fit(X, np.zeros(2000, int))
    model.partial_fit(X, np.arange(2000) % 2)
    assert model.statistics()["leaves"] == 1
    assert model.predict(X[:2]).tolist() == [0, 0]


def test_saved_model_goes_on_identically_and_is_small(tmp_path):
    rng = np.random.default_rng(5)
    X = rng.normal(size=(5000, 6))
    y = (X[:, 0] * X[:, 1] > 0) + (X[:, 2] > 1)
    model = tree().partial_fit(X[:4000], y[:4000])
    model.save(tmp_path / "model.npz")
    again = HoeffdingTree.load(tmp_path / "model.npz")
    assert again._get_params() == model._get_params()
    assert np.array_equal(
        again.prequential(X[4000:], y[4000:]), model.prequential(X[4000:], y[4000:])
    )
    assert again.statistics() == model.statistics()
    live = sum(array.nbytes for array in model._state().values())
    assert (tmp_path / "model.npz").stat().st_size < 1.2 * live


def test_names_and_values_survive_saving(tmp_path):
    model = tree(nominal_attributes=("n", 3))
    rows = [({"n": 1, "b": True, 3: "u", ("t", 1): 2.5, "w": "x"}, ("up", 1))]
    rows += [({"n": 2.5, "b": False, 3: None, "w": 4}, None), ({}, np.int64(7))]
    for x, y in rows * 5:
        model.learn_one(x, y)
    model.save(tmp_path / "m.npz")
    again = HoeffdingTree.load(tmp_path / "m.npz")
    assert again.nominal_attributes == ("n", 3)
    for x, _ in rows:
        assert again.predict_proba_one(x) == model.predict_proba_one(x)
        assert list(map(type, again.predict_proba_one(x))) == list(
            map(type, model.predict_proba_one(x))
        )


def test_labels_that_files_cannot_hold_point_to_pickle(tmp_path):
    model = tree()
    model.learn_one({"a": 1}, frozenset([1]))
    with pytest.raises(ArgumentError, match="pickle"):
        model.save(tmp_path / "m.npz")
    assert list(tmp_path.iterdir()) == []
    again = pickle.loads(pickle.dumps(model))
    assert again.predict_one({"a": 1}) == frozenset([1])


def test_untrained_model_can_be_saved(tmp_path):
    tree(max_depth=4).save(tmp_path / "m.npz")
    assert HoeffdingTree.load(tmp_path / "m.npz").max_depth == 4


def test_other_class_refuses_the_file(tmp_path):
    class Other(HoeffdingTree):
        pass

    tree().save(tmp_path / "m.npz")
    with pytest.raises(CheckpointError, match=r"HoeffdingTree\.load"):
        Other.load(tmp_path / "m.npz")


def test_compiling_is_announced_once(monkeypatch, caplog):
    monkeypatch.setattr(compiling, "is_compiled", lambda: False)
    compiling.announce.cache_clear()
    for _ in range(3):
        tree().learn_one({"a": 1}, "x")
    assert [record.message for record in caplog.records] == [caplog.records[0].message]
    assert "moeapps doctor --compile" in caplog.text
    monkeypatch.undo()
    compiling.announce.cache_clear()
