"""DriftMoE: equal to its equations followed instance by instance, through every interface."""

import math
import pickle

import numpy as np
import pandas as pd
import pytest
import river.checks
from river import forest, linear_model, naive_bayes, tree

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.streams import datasets
from moeapps.streams.driftmoe import DriftMoE
from moeapps.streams.expert_pool import TreePool
from moeapps.streams.hoeffding_tree import HoeffdingTree
from moeapps.streams.router import Router

TREE = {"grace_period": 50, "delta": 0.01, "tau": 0.2}
# Small, but several mini-batches, splits and an incomplete mini-batch at the end.
SMALL = {"hidden": 16, "num_experts": 4, "top_k": 2, "seed": 3, **TREE}


def drifting(n, *, seed=0, d=5, num_classes=3):
    """Nearest of a few centres that change place half way."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(2, num_classes, d))
    rows = rng.normal(size=(n, d))
    concept = np.arange(n) * 2 // n
    labels = ((rows[:, None] - centres[concept]) ** 2).sum(2).argmin(1)
    return rows, np.where(rng.random(n) < 0.1, rng.integers(0, num_classes, n), labels)


ROWS, LABELS = drifting(1_500)


class ByTheBook:
    """Sections 3.2 and 3.3 of the method, one instance at a time, in plain Python.

    Only the arithmetic of the router, which has its own test, is not written out again.
    """

    def __init__(self, mode, experts, router, *, top_k=2, num_classes=3):
        self.mode, self.experts, self.router = mode, experts, router
        self.top_k, self.num_classes = top_k, num_classes
        self.usage = [0] * len(experts)
        self.selected = [0] * len(experts)

    def distribution(self, expert, x, classes):
        p = expert.predict_proba_one(x)
        if not p:
            return [1 / classes] * classes
        return [p.get(c, 0.0) for c in range(classes)]

    def step(self, x, y):
        """The answer to ``x``, then learning from ``y``."""
        row = np.array([list(x.values())])
        z = self.router.take(row)[0].tolist()
        ranked = sorted(range(len(z)), key=lambda i: (-z[i], i))
        if self.mode == "data":
            p = [self.distribution(e, x, self.num_classes) for e in self.experts]
            said = [q.index(max(q)) for q in p]
            answer = said[ranked[0]]
            targets = [float(s == y) for s in said]
            if not any(targets):
                given = [q[y] for q in p]
                targets[given.index(max(given))] = 1.0
            taught = ranked[: self.top_k]
            for i in taught:
                self.experts[i].learn_one(x, y)
            self.usage[ranked[0]] += 1
        else:
            yes = [self.distribution(e, x, 2)[1] for e in self.experts]
            if self.mode == "experts":
                score = [q / (1 + math.exp(-s)) for q, s in zip(yes, z, strict=True)]
                answer = score.index(max(score))
                targets = [float((q > 0.5) == (y == i)) for i, q in enumerate(yes)]
            else:
                answer = ranked[0]
                targets = [float(y == i) for i in range(len(z))]
            taught = range(len(self.experts))
            for i in taught:
                self.experts[i].learn_one(x, int(y == i))
            self.usage[answer] += 1
        for i in taught:
            self.selected[i] += 1
        self.router.teach(np.array([targets]))
        return answer


def book_answers(mode, new_expert, rows, labels, **changes):
    k = 4 if mode == "data" else 3
    batch = {"data": 256, "experts": 64, "published": 1}[mode]
    dropout = 0.2 if mode == "published" else 0.0
    settings = {"hidden": 16, "batch_size": batch, "dropout": dropout, "seed": 3} | changes
    book = ByTheBook(
        mode, [new_expert() for _ in range(k)], Router(rows.shape[1], 0, k, **settings)
    )
    names = [f"x{j}" for j in range(rows.shape[1])]
    answers = [
        book.step(dict(zip(names, row.tolist(), strict=True)), int(y))
        for row, y in zip(rows, labels, strict=True)
    ]
    return np.array(answers), book


def new_tree(mode):
    """An untrained tree that numbers its classes as the mixture does, so that ties fall alike."""
    classes = [0, 1, 2] if mode == "data" else [0, 1]
    return HoeffdingTree(**TREE).partial_fit(np.empty((0, 5)), [], classes=classes)


def arguments(mode):
    return ("data", {}) if mode == "data" else ("task", {"task_mode": mode})


@pytest.mark.parametrize("mode", ["data", "experts", "published"])
def test_native_experts_follow_the_equations(mode):
    variant, mode_args = arguments(mode)
    model = DriftMoE(variant, **(SMALL | mode_args), count_inherited=True)  # as the tree does
    answers = model.prequential(ROWS, LABELS, classes=[0, 1, 2])
    expected, book = book_answers(mode, lambda: new_tree(mode), ROWS, LABELS)
    assert (answers == expected).all()
    assert model.statistics()["usage"].tolist() == book.usage
    assert model.statistics()["selected"].tolist() == book.selected


@pytest.mark.parametrize("mode", ["data", "experts"])
def test_river_experts_follow_the_equations(mode):
    variant, mode_args = arguments(mode)
    expert = tree.HoeffdingTreeClassifier(**TREE)
    model = DriftMoE(variant, **(SMALL | mode_args | {"expert": expert}))
    answers = model.prequential(ROWS, LABELS, classes=[0, 1, 2])
    expected, book = book_answers(mode, expert.clone, ROWS, LABELS)
    assert (answers == expected).all()
    assert model.statistics()["selected"].tolist() == book.selected


# Which interfaces and orders give the same.

MODES = {
    "data": {"variant": "data"},
    "experts": {"variant": "task"},
    "published": {"variant": "task", "task_mode": "published"},
    "torch": {"variant": "data", "router": "torch"},
    "river": {"variant": "data", "expert": tree.HoeffdingTreeClassifier(**TREE)},
}


def mixed(n=700):
    """Rows with a nominal column, gaps and a column that comes late; a class that comes late."""
    rows, labels = drifting(n, seed=5)
    rng = np.random.default_rng(6)
    rows[:, 1] = rng.integers(0, 4, n)
    rows[300:, 1] += rng.integers(0, 2, n - 300)
    rows[rng.random(rows.shape) < 0.05] = np.nan
    rows[:200, 3] = np.nan
    labels[(labels == 2) & (np.arange(n) < 250)] = 1
    return rows, labels


def new_model(mode, **changes):
    return DriftMoE(**(SMALL | MODES[mode] | {"nominal_attributes": (1,)} | changes))


def one_by_one(model, rows, labels):
    answers, proba = [], []
    for row, y in zip(rows, labels.tolist(), strict=True):
        x = {j: v for j, v in enumerate(row.tolist()) if v == v}
        proba.append(model.predict_proba_one(x))
        answers.append(model.predict_one(x))
        model.learn_one(x, y)
    return answers, proba


@pytest.mark.parametrize("mode", MODES)
def test_all_interfaces_agree_exactly(mode):
    rows, labels = mixed(320 if mode in ("torch", "river") else 700)
    single, many, fitted, streamed = (new_model(mode) for _ in range(4))
    answers, probas = one_by_one(single, rows, labels)
    assert streamed.prequential(rows, labels)[1:].tolist() == answers[1:]
    for cut in (slice(0, 37), slice(37, 300), slice(300, None)):
        many.learn_many(pd.DataFrame(rows[cut]), pd.Series(labels[cut]))
    fitted.partial_fit(rows, labels)
    expected = single.predict_proba_many(pd.DataFrame(rows)).to_numpy()
    for other in (many, streamed):
        assert (other.predict_proba_many(pd.DataFrame(rows)).to_numpy() == expected).all()
    assert (fitted.predict_proba(rows) == expected).all()
    for other in (many, fitted, streamed):
        for name in ("usage", "selected"):
            a, b = single.statistics()[name], other.statistics()[name]
            assert (a == b).all(), name
    for answer, proba in zip(answers[1:], probas[1:], strict=True):
        assert abs(sum(proba.values()) - 1) < 1e-9
        assert answer == max(proba, key=proba.get)


@pytest.mark.parametrize("variant", ["data", "task"])
def test_expert_by_expert_is_instance_by_instance(variant, monkeypatch):
    by_expert = DriftMoE(variant, **SMALL)
    answers = by_expert.prequential(ROWS, LABELS)
    monkeypatch.setattr(TreePool, "_limit_is_near", lambda *_: True)  # then it goes by instance
    by_instance = DriftMoE(variant, **SMALL)
    assert (by_instance.prequential(ROWS, LABELS) == answers).all()
    assert by_expert.statistics()["leaves"] == by_instance.statistics()["leaves"] > 10
    assert (by_expert.predict_proba(ROWS) == by_instance.predict_proba(ROWS)).all()


def test_experts_share_the_last_leaves_in_the_order_of_the_instances():
    whole, pieces = (DriftMoE(**(SMALL | {"max_leaves": 9})) for _ in range(2))
    answers = whole.prequential(ROWS, LABELS)
    singles = [
        pieces.prequential(ROWS[t : t + 1], LABELS[t : t + 1], classes=[0, 1, 2])[0]
        for t in range(len(ROWS))
    ]
    assert answers.tolist() == singles
    assert whole.statistics()["leaves"] == 9


def test_late_labels_are_a_queue():
    delay, queue, expected = 40, [], []
    by_hand, model = DriftMoE(**SMALL), DriftMoE(**SMALL)
    by_hand.partial_fit(np.empty((0, 5)), [], classes=[0, 1, 2])
    for row, y in zip(ROWS, LABELS, strict=True):
        if len(queue) == delay:
            x, label = queue.pop(0)
            by_hand.partial_fit(x, label)
        expected.append(by_hand.predict(row[None])[0])
        queue.append((row[None], [y]))
    answers = model.prequential(ROWS, LABELS, classes=[0, 1, 2], delay=delay)
    assert answers.tolist() == expected
    for x, label in queue:
        by_hand.partial_fit(x, label)
    assert (model.predict_proba(ROWS) == by_hand.predict_proba(ROWS)).all()


def test_both_routers_give_the_same_answers():
    mine, torchs = DriftMoE(**SMALL), DriftMoE(**(SMALL | {"router": "torch"}))
    assert (mine.prequential(ROWS, LABELS) == torchs.prequential(ROWS, LABELS)).all()
    np.testing.assert_allclose(mine.gate_proba(ROWS), torchs.gate_proba(ROWS), atol=1e-4)


def test_gate_is_the_softmax_of_the_logits_at_the_temperature():
    model = DriftMoE(**(SMALL | {"temperature": 0.5})).partial_fit(ROWS, LABELS)
    scaled = model._router.logits(ROWS).astype(float) / 0.5
    expected = np.exp(scaled) / np.exp(scaled).sum(1, keepdims=True)
    np.testing.assert_allclose(model.gate_proba(ROWS), expected, rtol=1e-6)


# What the model does.


def test_answer_is_that_of_the_best_ranked_expert():
    model = DriftMoE(**SMALL).partial_fit(ROWS, LABELS)
    best = model.gate_proba(ROWS).argmax(1)
    assert len(np.unique(best)) > 1
    expected = model._pool.proba(ROWS, best)
    assert (model.predict_proba(ROWS) == expected).all()


def test_every_instance_trains_top_k_experts():
    model = DriftMoE(**SMALL).partial_fit(ROWS, LABELS)
    statistics = model.statistics()
    assert statistics["selected"].sum() == 2 * len(ROWS)
    assert statistics["usage"].sum() == len(ROWS)
    assert statistics["living"] == (statistics["selected"] > 0).sum()


def test_leaves_that_count_what_they_saw_alone_split_later():
    own, inherited = (DriftMoE(**SMALL, count_inherited=c) for c in (False, True))
    rows, labels = drifting(6_000)
    for model in (own, inherited):
        model.partial_fit(rows, labels)
    assert 4 < own.statistics()["leaves"] < inherited.statistics()["leaves"]


def test_published_settings_are_the_papers():
    data, task = DriftMoE.published(seed=1), DriftMoE.published("task", seed=1)
    assert (data.num_experts, data.top_k, data.hidden, data.lr) == (12, 3, 256, 2e-3)
    assert (data.zscore, data.grace_period, data.delta, data.tau) == (False, 50, 1e-7, 0.05)
    data.partial_fit(ROWS[:10], LABELS[:10])
    task.partial_fit(ROWS[:10], LABELS[:10])
    assert (data._router.batch_size, data._router.dropout) == (256, 0.0)
    assert (task._router.batch_size, task._router.dropout, task._router.steps) == (1, 0.2, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "low", "high"), [("led_a", 73.3, 74.0), ("led_g", 72.4, 73.3), ("sea_a", 88.7, 89.2)]
)
def test_a_million_instances_give_the_published_accuracy(name, low, high):
    stream = datasets.load(name, seed=1)
    model = DriftMoE.published(seed=1, nominal_attributes=stream.nominal)
    right = model.prequential(stream.X, stream.y) == stream.y
    assert low < 100 * right.mean() < high


def test_nothing_is_learned_before_it_is_predicted():
    stream = datasets.load("led", limit=20_000, seed=1)
    model = DriftMoE.published(seed=1, nominal_attributes=stream.nominal)
    right = model.prequential(stream.X, stream.y) == stream.y
    assert 0.70 < right.mean() < 0.74 + 3 * np.sqrt(0.74 * 0.26 / len(right))  # Bayes has 74.0 %


def test_published_task_ignores_its_experts():
    one = new_model("published", grace_period=50)
    other = new_model("published", grace_period=1_000_000, leaf_prediction="mc")
    rows, labels = mixed()
    assert (one.prequential(rows, labels) == other.prequential(rows, labels)).all()


def test_learns_what_one_linear_model_cannot():
    model = DriftMoE("task", seed=1, hidden=32)
    rows, labels = drifting(6_000, seed=2)
    right = model.prequential(rows, labels) == labels
    assert right[4_500:].mean() > 0.7


def test_experts_may_be_any_river_classifier():
    expert = linear_model.LogisticRegression()
    model = DriftMoE("task", expert=expert, seed=1, hidden=32)
    right = model.prequential(ROWS, LABELS) == LABELS
    assert right[500:].mean() > 0.6
    assert not expert.weights  # the experts are clones


def test_river_experts_get_seeds_of_their_own():
    expert = forest.ARFClassifier(n_models=1)
    model = DriftMoE(expert=expert, num_experts=3, top_k=1, seed=10, hidden=8)
    model.partial_fit(ROWS[:5], LABELS[:5])
    assert [e.seed for e in model._pool.experts] == [10, 11, 12]


def test_river_experts_see_names_and_values_and_no_gaps():
    seen = []

    class Witness(tree.HoeffdingTreeClassifier):
        def learn_one(self, x, y, *, w=1.0):
            seen.append((x, y, w))
            super().learn_one(x, y, w=w)

    model = DriftMoE(expert=Witness(), num_experts=1, top_k=1, hidden=8, seed=1)
    model.learn_one({"b": 2.5, "a": "red", "c": None}, "yes", w=2.0)
    model.learn_one({"a": True}, "no")
    assert seen == [({"b": 2.5, "a": "red"}, 0, 2.0), ({"a": True}, 1, 1.0)]


def test_weights_are_refused_where_experts_cannot_use_them():
    model = DriftMoE(expert=naive_bayes.GaussianNB(), hidden=8, seed=1)
    model.learn_one({"a": 1.0}, True)
    with pytest.raises(ArgumentError, match="GaussianNB"):
        model.learn_one({"a": 1.0}, True, w=2.0)


# Files and faults.


@pytest.mark.parametrize("mode", ["data", "experts", "published", "torch"])
def test_saved_model_goes_on_bit_for_bit(mode, tmp_path):
    rows, labels = mixed()
    model = new_model(mode, batch_size=None if mode == "published" else 64)
    model.partial_fit(rows[:363], labels[:363])  # in the middle of a mini-batch
    assert mode == "published" or model._router.filled > 0
    model.save(tmp_path / "model.npz")
    copies = [DriftMoE.load(tmp_path / "model.npz"), pickle.loads(pickle.dumps(model))]
    expected = model.prequential(rows[363:], labels[363:])
    for copy in copies:
        assert (copy.prequential(rows[363:], labels[363:]) == expected).all()
        assert (copy._router.parameters == model._router.parameters).all()
        assert (copy.statistics()["usage"] == model.statistics()["usage"]).all()


def test_file_is_no_larger_than_what_is_alive(tmp_path):
    model = DriftMoE(seed=1).partial_fit(ROWS, LABELS)
    model.save(tmp_path / "model.npz")
    forest = model._pool.forest
    live = model._router.parameters.nbytes + sum(a.nbytes for a in forest)
    assert (tmp_path / "model.npz").stat().st_size < 1.2 * live


def test_river_experts_cannot_be_saved_but_pickled(tmp_path):
    model = new_model("river").partial_fit(ROWS[:300], LABELS[:300])
    with pytest.raises(ArgumentError, match="use pickle"):
        model.save(tmp_path / "model.npz")
    copy = pickle.loads(pickle.dumps(model))
    cut = slice(300, 500)
    a, b = (m.prequential(ROWS[cut], LABELS[cut]) for m in (model, copy))
    assert (a == b).all()


@pytest.mark.parametrize("mode", ["data", "experts", "published"])
def test_odd_features_and_labels_do_no_harm(mode):
    model = new_model(mode, num_experts=2, top_k=1)
    odd = [{}, {"a": 1e300}, {"a": float("nan"), "b": "x"}, {"a": -1e300, "b": True}, {"b": None},
           {"c": float("inf")}, {"a": 3, "b": 7.5}]  # fmt: skip
    labels = ["up", 1, None, ("t", 2), False, "up", 2.5]
    for _ in range(40):
        for x, y in zip(odd, labels, strict=True):
            model.learn_one(x, y)
    for x in odd:
        proba = model.predict_proba_one(x)
        assert list(proba) == ["up", 1, None, ("t", 2), False, 2.5]
        assert abs(sum(proba.values()) - 1) < 1e-9


def test_same_seed_same_answers_and_another_seed_others():
    one, same, other = (DriftMoE(**(SMALL | {"seed": seed})) for seed in (1, 1, 2))
    answers = one.prequential(ROWS, LABELS)
    assert (same.prequential(ROWS, LABELS) == answers).all()
    assert (other.prequential(ROWS, LABELS) != answers).any()


def test_senseless_arguments_are_refused():
    with pytest.raises(UnknownNameError, match="'data'"):
        DriftMoE("dta")
    with pytest.raises(UnknownNameError, match="'published'"):
        DriftMoE("task", task_mode="publishd")
    with pytest.raises(UnknownNameError, match="'numpy'"):
        DriftMoE(router="nunpy")
    with pytest.raises(ArgumentError, match="top_k=5"):
        DriftMoE(num_experts=4, top_k=5)
    with pytest.raises(ArgumentError, match="temperature"):
        DriftMoE(temperature=0.0)


QUICK, SLOW = [], []
for params in DriftMoE._unit_test_params():
    (SLOW if params.get("task_mode") == "published" else QUICK).append(params)
SLOW += [
    {"variant": "task", "expert": tree.HoeffdingTreeClassifier(), "hidden": 8, "batch_size": 32},
    {"variant": "data", "router": "torch", "hidden": 8, "batch_size": 32},
]


def river_checks(settings, *marks):
    for number, params in enumerate(settings):
        model = DriftMoE(**params)
        for check in river.checks.yield_checks(model):
            name = f"{params['variant']}{number}-{check.__name__}"
            yield pytest.param(model, check, id=name, marks=marks)


@pytest.mark.parametrize(
    ("model", "check"), [*river_checks(QUICK), *river_checks(SLOW, pytest.mark.slow)]
)
def test_passes_the_checks_of_river(model, check):
    check(model.clone())
