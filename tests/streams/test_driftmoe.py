"""DriftMoE: equal to its equations followed instance by instance, through every interface."""

import math

import numpy as np
import pytest

from moeapps.streams.driftmoe import DriftMoE
from moeapps.streams.hoeffding_tree import HoeffdingTree
from moeapps.streams.router import Router

# Small, but several mini-batches, splits and an incomplete mini-batch at the end.
SMALL = {"hidden": 16, "num_experts": 4, "top_k": 2, "grace_period": 50, "delta": 0.01, "seed": 3}
TREE = {"grace_period": 50, "delta": 0.01, "tau": 0.05}


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
    model = DriftMoE(variant, **(SMALL | mode_args))
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
