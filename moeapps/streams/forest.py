"""A forest of compiled Hoeffding trees in one pool of memory.

Everything an ensemble needs is here: make a forest, predict, learn, reset and copy its trees, let
it grow. The kernels may be called from other compiled code. A kernel that finds the pool full
changes nothing and says so; the caller then replaces the forest by `with_room(forest)` and repeats
the call.

A row ``x`` holds the numeric columns first, then the codes of the nominal ones; NaN is a missing
value, a code of -1 a value never seen before. Numbers lie within +-1e100.

numba notices a change in a kernel's own file only: after editing one that others inline, delete
``__pycache__/*.nb?``.
"""

import math

import numpy as np

from moeapps.streams.compiling import inlined, kernel
from moeapps.streams.forest_leaf import TIE, likeliest, majority, score, update
from moeapps.streams.forest_nodes import add_weight, copy_nodes, find_leaf, free_tree, take_leaf
from moeapps.streams.forest_split import try_split
from moeapps.streams.forest_state import (
    ADAPTIVE,
    BAYES,
    BAYES_RIGHT,
    BINARY,
    COLUMNS,
    COUNTS,
    DEPTH,
    FREE_NODES,
    FREE_ROWS,
    GRACE,
    INHERITED,
    LAST_ATTEMPT,
    LEAF_LIMIT,
    LEAF_RULE,
    LEAVES,
    MAJORITY,
    MAJORITY_RIGHT,
    MAX_DEPTH,
    NODES,
    NUM_CLASSES,
    NUM_NOMINAL,
    PER_COLUMN,
    ROOT,
    ROW,
    SEEN,
    TOTAL_LEAVES,
    VALUES,
    WEIGHT,
    Forest,
    forest_arrays,
    forest_from_arrays,
    new_forest,
    with_classes,
    with_columns,
    with_room,
)

__all__ = [
    "Forest",
    "copy_tree",
    "decide",
    "decide_then_learn",
    "forest_arrays",
    "forest_from_arrays",
    "learn",
    "new_forest",
    "num_leaves",
    "num_nodes",
    "predict",
    "predict_then_learn",
    "reset",
    "with_classes",
    "with_columns",
    "with_room",
]


@inlined
def predict(forest: Forest, tree: int, x: np.ndarray, proba: np.ndarray) -> None:
    """Fill ``proba [C]`` with the class probabilities of ``x``; uniform for an untrained tree.

    Classes that the leaf of ``x`` has not seen get 0.
    """
    leaf = forest.leaves[forest.nodes[find_leaf(forest, tree, x), ROW]]
    bayes, common = _votes(leaf, forest.layout, x, forest.scores)
    _probabilities(leaf, forest.layout, forest.scores, bayes, common, proba)


@inlined
def decide(forest: Forest, tree: int, x: np.ndarray) -> int:
    """The class that `predict` finds most probable (the first of equals), at less cost."""
    leaf = forest.leaves[forest.nodes[find_leaf(forest, tree, x), ROW]]
    bayes, common = _votes(leaf, forest.layout, x, forest.scores)
    return bayes if _trusts_bayes(leaf, forest.layout) else common


@inlined
def learn(forest: Forest, tree: int, x: np.ndarray, y: int, w: float) -> bool:
    """Learn ``x`` with class ``y`` and weight ``w``; False if the pool is full: nothing changed."""
    return w <= 0.0 or decide_then_learn(forest, tree, x, y, w) >= 0


@inlined
def predict_then_learn(
    forest: Forest, tree: int, x: np.ndarray, y: int, w: float, proba: np.ndarray
) -> bool:
    """`predict`, then `learn` with its result; the instance is sorted to its leaf once."""
    node = find_leaf(forest, tree, x)
    leaf = forest.leaves[forest.nodes[node, ROW]]
    bayes, common = _votes(leaf, forest.layout, x, forest.scores)
    _probabilities(leaf, forest.layout, forest.scores, bayes, common, proba)
    if w <= 0.0:
        return True
    due = _is_due(forest, node, leaf, w)
    if due and not _has_room(forest.layout):
        return False
    _learn(forest, tree, node, leaf, x, y, w, bayes, common, due)
    return True


@inlined
def decide_then_learn(forest: Forest, tree: int, x: np.ndarray, y: int, w: float) -> int:
    """`decide`, then `learn`; returns the class decided on, or -1 if the pool is full."""
    node = find_leaf(forest, tree, x)
    leaf = forest.leaves[forest.nodes[node, ROW]]
    bayes, common = _votes(leaf, forest.layout, x, forest.scores)
    answer = bayes if _trusts_bayes(leaf, forest.layout) else common
    if w <= 0.0:
        return answer
    due = _is_due(forest, node, leaf, w)
    if due and not _has_room(forest.layout):
        return -1
    _learn(forest, tree, node, leaf, x, y, w, bayes, common, due)
    return answer


@kernel
def reset(forest: Forest, tree: int) -> None:
    """Make the tree untrained; its nodes return to the pool."""
    free_tree(forest, tree)
    forest.trees[tree, ROOT] = take_leaf(forest, tree, -1, 0)


@kernel
def copy_tree(forest: Forest, source: int, target: int) -> bool:
    """Make tree ``target`` a copy of ``source``; False if the pool is full: nothing changed."""
    trees, layout = forest.trees, forest.layout
    if source == target:
        return True
    nodes = trees[source, NODES] - trees[target, NODES]
    rows = trees[source, LEAVES] - trees[target, LEAVES]
    if nodes > layout[FREE_NODES] or rows > layout[FREE_ROWS]:
        return False
    free_tree(forest, target)
    copy_nodes(forest, source, target)
    return True


@kernel
def num_nodes(forest: Forest, tree: int) -> int:
    """Number of nodes, leaves included."""
    return forest.trees[tree, NODES]


@kernel
def num_leaves(forest: Forest, tree: int) -> int:
    """Number of leaves."""
    return forest.trees[tree, LEAVES]


@inlined
def _votes(
    leaf: np.ndarray, layout: np.ndarray, x: np.ndarray, scores: np.ndarray
) -> tuple[int, int]:
    """The classes of naive Bayes and of the majority; naive Bayes only where a rule needs it."""
    num_classes = layout[NUM_CLASSES]
    if leaf[SEEN] == 0.0:
        common = majority(leaf, layout[INHERITED], num_classes)
        return common, common
    common = majority(leaf, COUNTS, num_classes)
    if layout[LEAF_RULE] == MAJORITY:
        return common, common
    score(leaf, layout, x, scores)
    return likeliest(scores, num_classes), common


@inlined
def _trusts_bayes(leaf: np.ndarray, layout: np.ndarray) -> bool:
    rule = layout[LEAF_RULE]
    return rule == BAYES or (rule == ADAPTIVE and leaf[BAYES_RIGHT] >= leaf[MAJORITY_RIGHT])


@inlined
def _probabilities(
    leaf: np.ndarray,
    layout: np.ndarray,
    scores: np.ndarray,
    bayes: int,
    common: int,
    proba: np.ndarray,
) -> None:
    """Class probabilities from the scores and votes of `_votes`."""
    num_classes = layout[NUM_CLASSES]
    if leaf[SEEN] > 0.0 and _trusts_bayes(leaf, layout):
        best = scores[bayes]
        for c in range(num_classes):
            # Equal but for rounding means equal, here as in `likeliest`.
            gap = scores[c] - best
            proba[c] = math.exp(gap) if abs(gap) > TIE else 1.0
    else:
        start = COUNTS if leaf[SEEN] > 0.0 else layout[INHERITED]
        most = leaf[start + common]
        for c in range(num_classes):
            n = leaf[start + c]
            proba[c] = n if abs(n - most) > TIE * most else most
    total = 0.0
    for c in range(num_classes):
        total += proba[c]
    for c in range(num_classes):
        proba[c] = proba[c] / total if total > 0.0 else 1.0 / num_classes


@inlined
def _is_due(forest: Forest, node: int, leaf: np.ndarray, w: float) -> bool:
    """Whether learning weight ``w`` at this leaf lets it try to split."""
    layout = forest.layout
    weight = forest.splits[node, WEIGHT] + w
    return (
        weight - leaf[LAST_ATTEMPT] >= forest.settings[GRACE]
        and layout[TOTAL_LEAVES] < layout[LEAF_LIMIT]
        and (layout[MAX_DEPTH] < 0 or forest.nodes[node, DEPTH] < layout[MAX_DEPTH])
    )


@kernel
def _has_room(layout: np.ndarray) -> bool:
    """Whether the pool holds the children that a split may make."""
    children = 2
    if not layout[BINARY]:
        for k in range(layout[NUM_NOMINAL]):
            children = max(children, layout[COLUMNS + PER_COLUMN * k + VALUES])
    return layout[FREE_NODES] >= children and layout[FREE_ROWS] >= children


@kernel
def _learn(
    forest: Forest,
    tree: int,
    node: int,
    leaf: np.ndarray,
    x: np.ndarray,
    y: int,
    w: float,
    bayes: int,
    common: int,
    due: bool,
) -> None:
    if leaf[SEEN] > 0.0:
        if bayes == y:
            leaf[BAYES_RIGHT] += w
        if common == y:
            leaf[MAJORITY_RIGHT] += w
    update(leaf, forest.layout, x, y, w)
    add_weight(forest, node, w)
    if due and leaf[COUNTS + y] < leaf[SEEN]:
        leaf[LAST_ATTEMPT] = forest.splits[node, WEIGHT]
        try_split(forest, tree, node)
