r"""Split attempts: the best binary or multiway split of a leaf, and whether it is good enough.

A candidate splits the weight :math:`W_j` of the instances whose feature :math:`j` was known; its
merit is the information gain in bits, scaled by how much of the leaf that is:

.. math:: G = \frac{W_j}{W}\Big(H(\text{leaf}) - \sum_b \frac{W_b}{W_j} H(b)\Big)

The best two features differ beyond chance when :math:`G_1 - G_2` exceeds the Hoeffding bound
:math:`\epsilon = \sqrt{R^2 \ln(1/\delta) / 2W}`, :math:`R = \log_2` of the number of classes.
"""

import math

import numpy as np

from moeapps.streams.compiling import kernel
from moeapps.streams.forest_nodes import free_row, take_leaf
from moeapps.streams.forest_state import (
    ATTEMPTS,
    BELLS,
    BINARY,
    CLASS_ROOM,
    COLUMNS,
    COUNT_INHERITED,
    COUNTS,
    DEPTH,
    FEATURE,
    INHERITED,
    KIND,
    LAST_ATTEMPT,
    LEAF_LIMIT,
    LEFT,
    LOG_DELTA,
    MOMENTS,
    MULTIWAY,
    NEXT,
    NOMINAL,
    NUM_BINS,
    NUM_CLASSES,
    NUM_NOMINAL,
    NUM_NUMERIC,
    NUMERIC,
    NUMERIC_ROOM,
    PER_COLUMN,
    RIGHT,
    ROW,
    SEED,
    SEEN,
    SUBSPACE,
    TAU,
    THRESHOLD,
    TOTAL_LEAVES,
    VALUE_ROOM,
    VALUES,
    WEIGHT,
    WEIGHTS,
    Forest,
)
from moeapps.streams.random_draws import uniform

LEAST_SHARE = 0.01  # two branches must hold more than this share of the weight
ROUNDING = 1e-12  # a later candidate must be better by more than this


@kernel
def try_split(forest: Forest, tree: int, node: int) -> None:
    """Split the leaf if its best split is good enough; the free lists must hold the children."""
    layout, settings = forest.layout, forest.settings
    leaf = forest.leaves[forest.nodes[node, ROW]]
    num_classes = layout[NUM_CLASSES]
    total = layout[NUM_NUMERIC] + layout[NUM_NOMINAL]
    needed = max(1, round(settings[SUBSPACE] * total))
    attempt = forest.trees[tree, ATTEMPTS]
    forest.trees[tree, ATTEMPTS] += 1
    best, second = 0.0, 0.0  # no split at all is a candidate without gain
    kind, feature, threshold = -1, -1, 0.0
    for j in range(total):
        # Each set of `needed` features is equally likely to be looked at.
        if needed < total - j:
            draw = uniform(layout[SEED], tree, attempt * total + j)
            if draw * (total - j) >= needed:
                continue
        needed -= 1
        if j < layout[NUM_NUMERIC]:
            gain, value, how = _best_numeric(leaf, layout, j)
        else:
            gain, value, how = _best_nominal(leaf, layout, j - layout[NUM_NUMERIC])
        if gain > best + ROUNDING:
            best, second = gain, best
            kind, feature, threshold = how, j, value
        elif gain > second:
            second = gain
    if feature < 0:
        return
    seen = 0
    for c in range(num_classes):
        seen += leaf[COUNTS + c] > 0.0
    merit_range = math.log2(max(seen, 2))
    weight = forest.splits[node, WEIGHT] if settings[COUNT_INHERITED] else leaf[SEEN]
    bound = math.sqrt(merit_range * merit_range * settings[LOG_DELTA] / (2.0 * weight))
    if best - second > bound or bound < settings[TAU]:
        _split(forest, tree, node, kind, feature, threshold)


@kernel
def _n_log_n(n: float) -> float:
    return n * math.log2(n) if n > 0.0 else 0.0


@kernel
def _sum(counts: np.ndarray) -> float:
    total = 0.0
    for n in counts:
        total += n
    return total


@kernel
def _entropy_sum(counts: np.ndarray) -> float:
    """W times the entropy, in bits, of the classes whose weights sum up to W."""
    terms = 0.0
    for n in counts:
        terms += _n_log_n(n)
    return _n_log_n(_sum(counts)) - terms


@kernel
def _gain(parent: float, counts: np.ndarray, left: np.ndarray, seen: float) -> float:
    """Gain of a split of ``counts`` into ``left`` and the rest; 0 if one of them is tiny."""
    a, b, terms = 0.0, 0.0, 0.0
    for c in range(len(counts)):
        rest = counts[c] - left[c]
        a += left[c]
        b += rest
        terms += _n_log_n(left[c]) + _n_log_n(rest)
    if min(a, b) <= LEAST_SHARE * (a + b):
        return 0.0
    return (parent - (_n_log_n(a) + _n_log_n(b) - terms)) / seen


@kernel
def _best_numeric(leaf: np.ndarray, layout: np.ndarray, j: int) -> tuple[float, float, int]:
    """Gain and threshold of the best of evenly spaced thresholds between smallest and largest."""
    num_classes = layout[NUM_CLASSES]
    counts = np.empty(num_classes)
    low, high = math.inf, -math.inf
    for c in range(num_classes):
        at = layout[MOMENTS] + 4 * (layout[NUMERIC_ROOM] * c + j)
        counts[c] = leaf[at]
        if leaf[at] > 0.0:
            low, high = min(low, leaf[at + 2]), max(high, leaf[at + 3])
    best, threshold = 0.0, 0.0
    if not low < high:
        return best, threshold, NUMERIC
    parent = _entropy_sum(counts)
    left = np.empty(num_classes)
    bins = layout[NUM_BINS]
    for i in range(1, bins + 1):
        value = low + (high - low) * i / (bins + 1)
        weights_below(leaf, layout, j, value, left)
        gain = _gain(parent, counts, left, leaf[SEEN])
        if gain > best + ROUNDING:
            best, threshold = gain, value
    return best, threshold, NUMERIC


@kernel
def weights_below(
    leaf: np.ndarray, layout: np.ndarray, j: int, value: float, left: np.ndarray
) -> None:
    """Estimated weight of each class with feature ``j`` at most ``value``."""
    room = layout[CLASS_ROOM]
    for c in range(layout[NUM_CLASSES]):
        at = layout[MOMENTS] + 4 * (layout[NUMERIC_ROOM] * c + j)
        weight = leaf[at]
        if weight == 0.0 or value < leaf[at + 2]:
            left[c] = 0.0
        elif value >= leaf[at + 3]:
            left[c] = weight
        else:
            bell = layout[BELLS] + 2 * room * j + c
            # (value - mean) / (sd sqrt 2), with 1 / (2 variance) at hand
            z = (value - leaf[bell]) * math.sqrt(leaf[bell + room])
            left[c] = weight * 0.5 * math.erfc(-z)


@kernel
def _best_nominal(leaf: np.ndarray, layout: np.ndarray, k: int) -> tuple[float, float, int]:
    """Gain and value of the best split ``= v`` against the rest, or of one branch per value."""
    num_classes = layout[NUM_CLASSES]
    column = COLUMNS + PER_COLUMN * k
    values, width = layout[column + VALUES], layout[column + VALUE_ROOM] + 1
    start = layout[column + WEIGHTS]
    counts, left = np.empty(num_classes), np.empty(num_classes)
    for c in range(num_classes):
        counts[c] = leaf[start + c * width]
    parent = _entropy_sum(counts)
    total = _sum(counts)
    best, value, how = 0.0, 0.0, NOMINAL
    inside, branches = 0.0, 0
    for v in range(values):
        for c in range(num_classes):
            left[c] = leaf[start + c * width + 1 + v]
        if v < values - 1 or values > 2:  # of two values each stands for both
            gain = _gain(parent, counts, left, leaf[SEEN])
            if gain > best + ROUNDING:
                best, value = gain, float(v)
        inside += _entropy_sum(left)
        branches += _sum(left) > LEAST_SHARE * total
    if not layout[BINARY] and branches >= 2:
        gain = (parent - inside) / leaf[SEEN]
        if gain > best + ROUNDING:
            best, how = gain, MULTIWAY
    return best, value, how


@kernel
def _split(forest: Forest, tree: int, node: int, kind: int, feature: int, threshold: float) -> None:
    """Turn a leaf into a split whose children start with the estimated class weights."""
    nodes, layout = forest.nodes, forest.layout
    leaf = forest.leaves[nodes[node, ROW]]
    k = feature - layout[NUM_NUMERIC]
    children = layout[COLUMNS + PER_COLUMN * k + VALUES] if kind == MULTIWAY else 2
    if layout[TOTAL_LEAVES] + children - 1 > layout[LEAF_LIMIT]:
        return
    share = np.empty(layout[NUM_CLASSES])
    before = -1
    for v in range(children):
        child = take_leaf(forest, tree, node, nodes[node, DEPTH] + 1)
        _weights_of_branch(leaf, layout, kind, feature, threshold, v, share)
        _inherit(forest, child, share)
        if before < 0:
            nodes[node, LEFT] = child
        else:
            nodes[before, NEXT] = child
        before = child
    nodes[node, RIGHT] = before
    nodes[node, KIND], nodes[node, FEATURE] = kind, feature
    forest.splits[node, THRESHOLD] = threshold
    free_row(forest, tree, node)


@kernel
def _weights_of_branch(
    leaf: np.ndarray,
    layout: np.ndarray,
    kind: int,
    feature: int,
    threshold: float,
    branch: int,
    share: np.ndarray,
) -> None:
    if kind == NUMERIC:
        weights_below(leaf, layout, feature, threshold, share)
        if branch == 1:
            for c in range(len(share)):
                at = layout[MOMENTS] + 4 * (layout[NUMERIC_ROOM] * c + feature)
                share[c] = leaf[at] - share[c]
        return
    column = COLUMNS + PER_COLUMN * (feature - layout[NUM_NUMERIC])
    width = layout[column + VALUE_ROOM] + 1
    v = branch if kind == MULTIWAY else int(threshold)
    for c in range(len(share)):
        at = layout[column + WEIGHTS] + c * width
        share[c] = leaf[at + 1 + v]
        if kind == NOMINAL and branch == 1:
            share[c] = leaf[at] - share[c]


@kernel
def _inherit(forest: Forest, child: int, share: np.ndarray) -> None:
    leaf = forest.leaves[forest.nodes[child, ROW]]
    total = 0.0
    for c in range(len(share)):
        leaf[forest.layout[INHERITED] + c] = share[c]
        total += share[c]
    forest.splits[child, WEIGHT] = total
    leaf[LAST_ATTEMPT] = total
