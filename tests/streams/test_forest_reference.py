"""The compiled forest against a slow, obvious tree written from the equations."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from moeapps.streams import forest
from moeapps.streams.random_draws import uniform

TIE = 1e-9


class Node:
    def __init__(self, depth, inherited):
        self.depth = depth
        self.inherited = inherited
        self.weight = sum(inherited.values())
        self.last_attempt = self.weight
        self.n = defaultdict(float)
        self.right_majority = self.right_bayes = 0.0
        self.gauss = {}  # (feature, class) -> [weight, mean, M2, smallest, largest]
        self.counts = defaultdict(Counter)  # (feature, class) -> weight of each value
        self.split = None  # (kind, feature, value), children
        self.children = []


class ReferenceTree:
    """One Hoeffding tree in dictionaries."""

    def __init__(
        self,
        num_numeric,
        num_values,
        num_classes,
        grace_period,
        delta,
        tau,
        leaf_prediction="nba",
        binary_split=True,
        max_depth=None,
        max_leaves=10_000,
        subspace=1.0,
        seed=0,
        count_inherited=True,
    ):
        self.__dict__.update(locals())
        self.root = Node(0, {})
        self.leaves = 1
        self.attempts = 0

    # Sorting.

    def leaf(self, x):
        path = [self.root]
        while path[-1].split is not None:
            (kind, feature, value), children = path[-1].split, path[-1].children
            known = x[feature]
            if math.isnan(known):
                branch = None
            elif kind == "numeric":
                branch = 0 if known <= value else 1
            elif kind == "nominal":
                branch = 0 if known == value else 1
            else:
                branch = int(known) if 0 <= known < len(children) else None
            if branch is None:
                branch = max(range(len(children)), key=lambda b: children[b].weight)
            path.append(children[branch])
        return path

    # Predicting.

    def score(self, leaf, x, c):
        score = math.log(leaf.n[c])
        for j in range(self.num_numeric):
            if math.isnan(x[j]) or (j, c) not in leaf.gauss:
                continue
            weight, mean, m2, _, _ = leaf.gauss[j, c]
            variance = m2 / (weight - 1) if weight > 1 else 0.0
            if variance > 0:
                score -= 0.5 * math.log(2 * math.pi * variance) + min(
                    (x[j] - mean) ** 2 / (2 * variance), 1e9
                )
            elif x[j] != mean:
                score -= 1e9
        for k, values in enumerate(self.num_values):
            v = x[self.num_numeric + k]
            if not math.isnan(v):
                counts = leaf.counts[k, c]
                score += math.log(counts[v] + 1) - math.log(sum(counts.values()) + values)
        return score

    def first_best(self, scores, slack):
        best = max(scores.values())
        return min(c for c, score in scores.items() if score >= best - slack(best))

    def votes(self, leaf, x):
        seen = {c: n for c, n in leaf.n.items() if n > 0}
        if not seen:
            return None, None
        scores = {c: self.score(leaf, x, c) for c in seen}
        bayes = self.first_best(scores, lambda best: TIE)
        return bayes, self.first_best(seen, lambda best: TIE * best)

    def trusts_bayes(self, leaf):
        if self.leaf_prediction == "nba":
            return leaf.right_bayes >= leaf.right_majority
        return self.leaf_prediction == "nb"

    def predict(self, x):
        leaf = self.leaf(x)[-1]
        seen = {c: n for c, n in leaf.n.items() if n > 0}
        if seen and self.trusts_bayes(leaf):
            scores = {c: self.score(leaf, x, c) for c in seen}
            most = max(scores.values())
            weights = {c: math.exp(score - most) for c, score in scores.items()}
        else:
            weights = seen or leaf.inherited or dict.fromkeys(range(self.num_classes), 1.0)
        total = sum(weights.values())
        return [weights.get(c, 0.0) / total for c in range(self.num_classes)]

    # Learning.

    def learn(self, x, y, w):
        if w == 0:
            return
        path = self.leaf(x)
        leaf = path[-1]
        bayes, majority = self.votes(leaf, x)
        leaf.right_bayes += w * (bayes == y)
        leaf.right_majority += w * (majority == y)
        leaf.n[y] += w
        for j in range(self.num_numeric):
            if math.isnan(x[j]):
                continue
            s = leaf.gauss.setdefault((j, y), [0.0, 0.0, 0.0, math.inf, -math.inf])
            s[0] += w
            delta = x[j] - s[1]
            s[1] += delta * (w / s[0])
            s[2] += w * delta * (x[j] - s[1])
            s[3], s[4] = min(s[3], x[j]), max(s[4], x[j])
        for k in range(len(self.num_values)):
            v = x[self.num_numeric + k]
            if not math.isnan(v):
                leaf.counts[k, y][v] += w
        for node in path:
            node.weight += w
        if (
            leaf.weight - leaf.last_attempt >= self.grace_period
            and sum(n > 0 for n in leaf.n.values()) > 1
            and self.leaves < self.max_leaves
            and (self.max_depth is None or leaf.depth < self.max_depth)
        ):
            leaf.last_attempt = leaf.weight
            self.try_split(leaf)

    def try_split(self, leaf):
        per_feature = [(0.0, -1, None, None)]
        for feature in self.subspace_features():
            if feature < self.num_numeric:
                candidates = self.numeric_candidates(leaf, feature)
            else:
                candidates = self.nominal_candidates(leaf, feature - self.num_numeric)
            best = (0.0, feature, None, None)
            for split, branches in candidates:
                gain = self.gain(leaf, branches)
                if gain > best[0] + 1e-12:
                    best = (gain, feature, split, branches)
            per_feature.append(best)
        winner = per_feature[0]
        for candidate in per_feature[1:]:
            if candidate[0] > winner[0] + 1e-12:
                winner = candidate
        if winner[2] is None:
            return
        second = max(c[0] for c in per_feature if c is not winner)
        seen = sum(n > 0 for n in leaf.n.values())
        weight = leaf.weight if self.count_inherited else sum(leaf.n.values())
        bound = math.sqrt(math.log2(max(2, seen)) ** 2 * math.log(1 / self.delta) / (2 * weight))
        if winner[0] - second > bound or bound < self.tau:
            _, feature, (kind, value), branches = winner
            if self.leaves + len(branches) - 1 > self.max_leaves:
                return
            leaf.split = kind, feature, value
            leaf.children = [Node(leaf.depth + 1, branch) for branch in branches]
            self.leaves += len(branches) - 1

    def subspace_features(self):
        total = self.num_numeric + len(self.num_values)
        needed = max(1, round(self.subspace * total))
        chosen = []
        for j in range(total):
            left = total - j
            draw = uniform(self.seed, 0, self.attempts * total + j)
            if draw * left < needed - len(chosen) or left == needed - len(chosen):
                chosen.append(j)
        self.attempts += 1
        assert len(chosen) == needed
        return chosen

    def numeric_candidates(self, leaf, j):
        stats = {c: s for (i, c), s in leaf.gauss.items() if i == j}
        if not stats:
            return
        low, high = min(s[3] for s in stats.values()), max(s[4] for s in stats.values())
        if low == high:
            return
        for i in range(1, 11):
            value = low + (high - low) * i / 11
            left, right = {}, {}
            for c, (weight, mean, m2, smallest, largest) in stats.items():
                if value < smallest:
                    left[c] = 0.0
                elif value >= largest:
                    left[c] = weight
                else:
                    variance = m2 / (weight - 1) if weight > 1 else 0.0
                    if variance > 0:
                        z = (value - mean) / math.sqrt(variance)
                        left[c] = weight * 0.5 * math.erfc(-z / math.sqrt(2))
                    else:
                        left[c] = weight * (value > mean)
                right[c] = weight - left[c]
            yield ("numeric", value), [left, right]

    def nominal_candidates(self, leaf, k):
        counts = {c: s for (i, c), s in leaf.counts.items() if i == k}
        values = range(self.num_values[k])
        for v in values if len(values) > 2 else values[:1]:
            left = {c: s[v] for c, s in counts.items()}
            right = {c: sum(s.values()) - s[v] for c, s in counts.items()}
            yield ("nominal", v), [left, right]
        if not self.binary_split:
            yield ("multiway", None), [{c: s[v] for c, s in counts.items()} for v in values]

    def gain(self, leaf, branches):
        weights = [sum(branch.values()) for branch in branches]
        known = sum(weights)
        if sum(weight > 0.01 * known for weight in weights) < 2:
            return 0.0
        parent = Counter()
        for branch in branches:
            parent.update(branch)
        after = sum(w / known * entropy(b) for w, b in zip(weights, branches, strict=True))
        return known / sum(leaf.n.values()) * (entropy(parent) - after)


def entropy(counts):
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values() if n > 0)


def probabilities(trees, X, y, w, num_classes):
    probas = np.empty((len(X), num_classes))
    for t in range(len(X)):
        while not forest.predict_then_learn(trees, 0, X[t], y[t], w[t], probas[t]):
            trees = forest.with_room(trees)
    return probas, trees


NUM_VALUES = [2, 4, 7]


def mixed_stream(seed, n=2500, missing=0.1):
    """Four numeric and three nominal features that tell something of three classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    late = np.arange(n) > n // 3
    X = np.empty((n, 7))
    X[:, 0] = rng.normal(y * (1 + late), 1.0)
    X[:, 1] = np.round(rng.normal(0, 2, n))
    X[:, 2] = np.where(late & (rng.random(n) < 0.3), 5.0, 0.1)  # constant at first
    X[:, 3] = rng.exponential(10.0 ** rng.integers(-3, 3, n))
    for j, values in enumerate(NUM_VALUES, 4):
        informed = rng.random(n) < 0.5 * (X[:, 1] > 0)
        X[:, j] = np.where(informed, y % values, rng.integers(0, values, n))
    X[rng.random(X.shape) < missing] = np.nan
    w = rng.choice([0.0, 0.25, 1.0, 1.0, 2.0], n)
    return X, y, w


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"binary_split": False},
        {"leaf_prediction": "mc"},
        {"leaf_prediction": "nb"},
        {"subspace": 0.6, "seed": 9},
        {"count_inherited": False},
        {"max_depth": 2},
        {"max_leaves": 6},
    ],
    ids=str,
)
def test_forest_equals_the_reference(options, seed):
    X, y, w = mixed_stream(seed)
    settings = {"num_numeric": 4, "num_values": NUM_VALUES, "num_classes": 3}
    # No sum of weights is the grace period, so rounding cannot decide when to try.
    settings |= {"grace_period": 40.1, "delta": 0.05, "tau": 0.15} | options
    trees = forest.new_forest(1, **settings)
    probas, trees = probabilities(trees, X, y, w, 3)
    reference = ReferenceTree(**settings)
    for t in range(len(X)):
        np.testing.assert_allclose(probas[t], reference.predict(X[t]), atol=1e-7, err_msg=str(t))
        reference.learn(X[t], int(y[t]), w[t])
    assert forest.num_leaves(trees, 0) == reference.leaves
    assert reference.leaves > 3


def test_growing_forest_equals_the_reference():
    X, y, w = mixed_stream(5)
    y[:300] %= 1  # one class, then two, then three
    y[300:600] %= 2
    X[:900, 5] %= 2  # two of four values at first, then three
    X[900, 5] = 2
    X[:500, 3] = np.nan  # columns that come later
    X[:1200, 6] = np.nan
    settings = {"grace_period": 40.1, "delta": 0.05, "tau": 0.15}
    stages = {0: (3, [2, 2], 1), 300: (3, [2, 2], 2), 500: (4, [2, 2], 2), 600: (4, [2, 2], 3)}
    stages |= {900: (4, [2, 3], 3), 901: (4, [2, 4], 3), 1200: (4, [2, 4, 7], 3)}
    trees = forest.new_forest(1, num_numeric=3, num_values=[2, 2], num_classes=1, **settings)
    reference = ReferenceTree(4, [2, 2, 0], 1, **settings)
    starts = [*stages, len(X)]
    for start, stop in itertools.pairwise(starts):
        num_numeric, num_values, num_classes = stages[start]
        trees = forest.with_columns(trees, num_numeric, num_values)
        trees = forest.with_classes(trees, num_classes)
        reference.num_values = [*num_values, 0][:3]
        reference.num_classes = num_classes
        own = [*range(num_numeric), *range(4, 4 + len(num_values))]
        rows = slice(start, stop)
        part = np.ascontiguousarray(X[rows][:, own])
        probas, trees = probabilities(trees, part, y[rows], w[rows], num_classes)
        for t, proba in enumerate(probas, start):
            x = X[t]
            np.testing.assert_allclose(proba, reference.predict(x), atol=1e-7, err_msg=str(t))
            reference.learn(x, int(y[t]), w[t])
    assert forest.num_leaves(trees, 0) == reference.leaves > 10


@pytest.mark.parametrize("binary", [True, False])
def test_value_never_seen_equals_the_reference(binary):
    X, y, w = mixed_stream(6)
    settings = {
        "num_numeric": 4,
        "num_values": NUM_VALUES,
        "num_classes": 3,
        "binary_split": binary,
    }
    settings |= {"grace_period": 40.1, "delta": 0.05, "tau": 0.15}
    _, trees = probabilities(forest.new_forest(1, **settings), X, y, w, 3)
    reference = ReferenceTree(**settings)
    for t in range(len(X)):
        reference.learn(X[t], int(y[t]), w[t])
    X[:, 4:][np.random.default_rng(0).random((len(X), 3)) < 0.5] = -1
    proba = np.empty(3)
    for x in X[::10]:
        forest.predict(trees, 0, x, proba)
        np.testing.assert_allclose(proba, reference.predict(x), atol=1e-7)
