"""What a forest of Hoeffding trees keeps in memory, and how that memory grows.

All trees share one table of nodes and one pool of leaf rows, so that a model of many trees is a few
arrays and nothing else. A leaf row is laid out for the two loops that matter: predicting runs over
classes for one feature value, learning runs over features for one class.

Letters: ``R`` room for classes, ``V`` room for the values of a nominal column.

====================  ===========  ===============================================================
part of a row         shape        holds
====================  ===========  ===============================================================
head                  ``[4]``      weight seen; right votes of majority and naive Bayes; weight at
                                   the last split attempt
counts                ``[R]``      weight of each class
bases                 ``[R]``      the part of the naive Bayes score that does not depend on x
inherited             ``[R]``      class weights estimated by the split that made the leaf
bells                 ``[d,2,R]``  mean and 1 / (2 variance) of each numeric column
moments               ``[R,d,4]``  weight, sum of squared deviations, smallest, largest value
logs                  ``[V,R]``    per nominal column: ln(count + 1)
weights               ``[R,1+V]``  per nominal column: weight of all values, and of each
====================  ===========  ===============================================================
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moeapps.errors import ArgumentError

# Columns of `nodes`. Children are chained by NEXT from LEFT; free nodes are chained by NEXT.
KIND, FEATURE, LEFT, RIGHT, NEXT, PARENT, ROW, DEPTH = range(8)
# Kinds of nodes.
FREE, LEAF, NUMERIC, NOMINAL, MULTIWAY = -1, 0, 1, 2, 3
# Columns of `splits`.
THRESHOLD, WEIGHT = range(2)
# Columns of `trees`.
ROOT, NODES, LEAVES, ATTEMPTS = range(4)
# Head of a leaf row.
SEEN, MAJORITY_RIGHT, BAYES_RIGHT, LAST_ATTEMPT = range(4)
HEAD = 4
# Entries of `layout`; then four per nominal column, from COLUMNS on.
(
    NUM_NUMERIC,
    NUM_NOMINAL,
    NUM_CLASSES,
    NUMERIC_ROOM,
    CLASS_ROOM,
    BASES,
    INHERITED,
    BELLS,
    MOMENTS,
    FREE_NODE,
    FREE_NODES,
    FREE_ROW,
    FREE_ROWS,
    TOTAL_LEAVES,
    LEAF_LIMIT,
    MAX_LEAVES,
    MAX_BYTES,
    LEAF_RULE,
    BINARY,
    MAX_DEPTH,
    NUM_BINS,
    SEED,
    COLUMNS,
) = range(23)
COUNTS = HEAD
# Per nominal column in `layout`: known values, room for values, places of `logs` and `weights`.
VALUES, VALUE_ROOM, LOGS, WEIGHTS = range(4)
PER_COLUMN = 4
# Entries of `settings`.
GRACE, LOG_DELTA, TAU, SUBSPACE, COUNT_INHERITED = range(5)
# Leaf rules.
RULES = ("mc", "nb", "nba")
MAJORITY, BAYES, ADAPTIVE = range(3)


class Forest(NamedTuple):
    """State of many Hoeffding trees.

    Args:
        nodes: ``[nodes, 8]`` kind, feature, first and second child, sibling, parent, leaf row,
            depth.
        splits: ``[nodes, 2]`` threshold or nominal value; weight that reached the node.
        leaves: ``[rows, width]`` statistics of the leaves.
        trees: ``[trees, 4]`` root, nodes, leaves, split attempts.
        layout: sizes, places within a leaf row, free lists and whole-number settings.
        settings: grace period, ln(1/delta), tau, share of features tried at a split, whether
            inherited weight counts in the bound.
        scores: ``[R]`` working memory.
    """

    nodes: np.ndarray
    splits: np.ndarray
    leaves: np.ndarray
    trees: np.ndarray
    layout: np.ndarray
    settings: np.ndarray
    scores: np.ndarray

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickles and copies hold neither free nor working memory: predicting does not change them.
        return forest_from_arrays, (forest_arrays(self),)


def new_forest(
    num_trees: int,
    *,
    num_numeric: int,
    num_values: Sequence[int],
    num_classes: int,
    grace_period: float = 200,
    delta: float = 1e-7,
    tau: float = 0.05,
    leaf_prediction: str = "nba",
    max_depth: int | None = None,
    num_bins: int = 10,
    binary_split: bool = True,
    max_leaves: int = 10_000,
    max_bytes: int | None = None,
    subspace: float = 1.0,
    count_inherited: bool = True,
    seed: int = 0,
) -> Forest:
    """``num_trees`` untrained trees in one pool.

    Args:
        num_trees: Number of trees.
        num_numeric: Numeric columns; they come first in a row.
        num_values: Number of values of each nominal column; these follow, as codes from 0.
        num_classes: Number of classes.
        grace_period: Weight a leaf must see between two split attempts.
        delta: Allowed chance that a split is not the best one.
        tau: Split anyway once the Hoeffding bound is below this.
        leaf_prediction: ``"mc"`` majority class, ``"nb"`` naive Bayes, ``"nba"`` the one of the
            two that was right more often in this leaf.
        max_depth: No splits below this depth.
        num_bins: Thresholds tried per numeric column.
        binary_split: Nominal splits have two branches; otherwise also one branch per value.
        max_leaves: All trees together stop splitting at this many leaves.
        max_bytes: They also stop when the leaf rows take this much memory.
        subspace: Share of the columns that a split attempt looks at, drawn anew each time.
        count_inherited: The weight that a split estimated for a leaf counts in the Hoeffding bound;
            otherwise only what the leaf has seen itself, which makes smaller trees.
        seed: Names the draws of the subspaces.

    Example:
        >>> forest = new_forest(2, num_numeric=3, num_values=[2, 5], num_classes=4)
        >>> forest.trees.shape, forest.leaves.shape
        ((2, 4), (2, 152))
    """
    _check(grace_period, delta, tau, leaf_prediction, num_bins, max_leaves, subspace)
    layout = np.zeros(COLUMNS + PER_COLUMN * len(num_values), np.int64)
    layout[[NUM_NUMERIC, NUM_NOMINAL, NUM_CLASSES]] = num_numeric, len(num_values), num_classes
    layout[[MAX_LEAVES, MAX_BYTES]] = max_leaves, -1 if max_bytes is None else max_bytes
    layout[LEAF_RULE] = RULES.index(leaf_prediction)
    layout[[BINARY, NUM_BINS, SEED]] = binary_split, num_bins, seed
    layout[MAX_DEPTH] = -1 if max_depth is None else max_depth
    layout[COLUMNS + VALUES :: PER_COLUMN] = num_values
    width = _place(layout, num_numeric, num_classes, num_values)
    settings = np.array([grace_period, np.log(1 / delta), tau, subspace, float(count_inherited)])
    nodes = np.full((num_trees, 8), -1, np.int64)
    nodes[:, KIND], nodes[:, DEPTH], nodes[:, ROW] = LEAF, 0, np.arange(num_trees)
    trees = np.zeros((num_trees, 4), np.int64)
    trees[:, ROOT], trees[:, NODES], trees[:, LEAVES] = np.arange(num_trees), 1, 1
    layout[TOTAL_LEAVES] = num_trees
    layout[[FREE_NODE, FREE_ROW]] = -1
    leaves = np.zeros((num_trees, width))
    leaves[:, layout[BASES] : layout[BASES] + layout[CLASS_ROOM]] = -np.inf
    splits = np.zeros((num_trees, 2))
    return Forest(nodes, splits, leaves, trees, layout, settings, np.zeros(layout[CLASS_ROOM]))


def _check(
    grace_period: float,
    delta: float,
    tau: float,
    leaf_prediction: str,
    num_bins: int,
    max_leaves: int,
    subspace: float,
) -> None:
    if leaf_prediction not in RULES:
        raise ArgumentError(
            f"leaf_prediction={leaf_prediction!r} is not a rule. Expected one of "
            f"{', '.join(map(repr, RULES))}; 'nba' suits most streams."
        )
    for name, value, good, expected in (
        ("grace_period", grace_period, grace_period > 0, "a positive weight"),
        ("delta", delta, 0 < delta < 1, "a number between 0 and 1"),
        ("tau", tau, tau >= 0, "a number not below 0"),
        ("num_bins", num_bins, num_bins >= 1, "a whole number from 1"),
        ("max_leaves", max_leaves, max_leaves >= 1, "a whole number from 1"),
        ("subspace", subspace, 0 < subspace <= 1, "a share above 0 and up to 1"),
    ):
        if not good:
            raise ArgumentError(
                f"{name}={value!r} cannot work. Expected {expected}; leave it out for the default."
            )


def _place(
    layout: np.ndarray, numeric_room: int, class_room: int, value_rooms: Sequence[int]
) -> int:
    """Write the places of the parts of a leaf row into ``layout``; return the row's width."""
    r, d = class_room, numeric_room
    layout[[NUMERIC_ROOM, CLASS_ROOM]] = d, r
    layout[BASES], layout[INHERITED], layout[BELLS] = HEAD + r, HEAD + 2 * r, HEAD + 3 * r
    layout[MOMENTS] = layout[BELLS] + 2 * d * r
    end = int(layout[MOMENTS]) + 4 * d * r
    layout[COLUMNS + VALUE_ROOM :: PER_COLUMN] = value_rooms
    for part in (LOGS, WEIGHTS):
        for k, room in enumerate(value_rooms):
            layout[COLUMNS + PER_COLUMN * k + part] = end
            end += (room + (part == WEIGHTS)) * r
    limit = layout[MAX_LEAVES]
    if layout[MAX_BYTES] >= 0:
        limit = min(limit, layout[MAX_BYTES] // (8 * end))
    layout[LEAF_LIMIT] = max(limit, 1)
    return end


def most_children(forest: Forest) -> int:
    """Free nodes and rows that one split may need."""
    layout = forest.layout
    values = layout[COLUMNS + VALUES :: PER_COLUMN]
    return 2 if layout[BINARY] else max([2, *values])


def with_room(forest: Forest) -> Forest:
    """The same forest in a pool of twice the size, or of the size that its leaf limit asks for."""
    layout = forest.layout.copy()
    old = len(forest.leaves)
    limit = int(layout[LEAF_LIMIT]) + len(forest.trees)
    rows = max(old + most_children(forest), min(2 * old, limit) if old < limit else 2 * old)
    leaves = np.zeros((rows, forest.leaves.shape[1]))
    leaves[:old] = forest.leaves
    # A free row holds the number of the next one.
    leaves[old:, 0] = [*range(old + 1, rows), layout[FREE_ROW]]
    layout[FREE_ROW] = old
    layout[FREE_ROWS] += rows - old
    old = len(forest.nodes)
    count = old + 2 * (rows - len(forest.leaves))
    nodes = np.full((count, 8), -1, np.int64)
    nodes[:old] = forest.nodes
    nodes[old:, NEXT] = [*range(old + 1, count), layout[FREE_NODE]]
    layout[FREE_NODE] = old
    layout[FREE_NODES] += count - old
    splits = np.zeros((count, 2))
    splits[:old] = forest.splits
    return forest._replace(nodes=nodes, splits=splits, leaves=leaves, layout=layout)


def with_classes(forest: Forest, num_classes: int) -> Forest:
    """The same forest for ``num_classes`` classes; the new ones have not been seen yet."""
    layout = forest.layout
    room = int(layout[CLASS_ROOM])
    if num_classes > room:
        rooms = [*map(int, layout[COLUMNS + VALUE_ROOM :: PER_COLUMN])]
        room = max(num_classes, 2 * room)
        forest = _moved(forest, int(layout[NUMERIC_ROOM]), room, rooms)
    forest.layout[NUM_CLASSES] = num_classes
    return forest


def with_columns(forest: Forest, num_numeric: int, num_values: Sequence[int]) -> Forest:
    """The same forest for more numeric columns, nominal columns or nominal values."""
    layout = forest.layout
    old_values = [*map(int, layout[COLUMNS + VALUES :: PER_COLUMN])]
    old_values += [0] * (len(num_values) - len(old_values))
    old_rooms = [int(layout[NUMERIC_ROOM]), *map(int, layout[COLUMNS + VALUE_ROOM :: PER_COLUMN])]
    needs = [num_numeric, *num_values]
    had = old_rooms + [0] * (len(needs) - len(old_rooms))
    rooms = [
        old if need <= old else max(need, 2 * old) for need, old in zip(needs, had, strict=True)
    ]
    if rooms != old_rooms:
        forest = _moved(forest, rooms[0], int(layout[CLASS_ROOM]), rooms[1:])
    layout = forest.layout
    added = num_numeric - layout[NUM_NUMERIC]
    if added:
        nominal = (forest.nodes[:, KIND] == NOMINAL) | (forest.nodes[:, KIND] == MULTIWAY)
        forest.nodes[nominal, FEATURE] += added
    layout[NUM_NUMERIC] = num_numeric
    for k, (known, values) in enumerate(zip(old_values, num_values, strict=True)):
        if values != known:
            _widen(forest, k, known, values)
    return forest


def _widen(forest: Forest, k: int, known: int, values: int) -> None:
    """Laplace's rule counts the known values: correct the bases for a new number of them."""
    layout = forest.layout
    layout[COLUMNS + PER_COLUMN * k + VALUES] = values
    rows = _used_rows(forest)
    bases = int(layout[BASES])
    counts = forest.leaves[rows, COUNTS : COUNTS + layout[CLASS_ROOM]]
    weight = _part(forest, WEIGHTS, k)[rows, :, 0]
    change = np.log(weight + values) - (np.log(weight + known) if known else 0.0)
    seen = counts > 0
    block = forest.leaves[rows, bases : bases + layout[CLASS_ROOM]]
    block[seen] -= change[seen]
    forest.leaves[rows, bases : bases + layout[CLASS_ROOM]] = block


def _used_rows(forest: Forest) -> np.ndarray:
    return forest.nodes[forest.nodes[:, KIND] == LEAF, ROW]


def _part(forest: Forest, part: int, k: int) -> np.ndarray:
    """View of ``logs`` ``[rows, V, R]`` or ``weights`` ``[rows, R, 1+V]`` of nominal column k."""
    layout, rows = forest.layout, len(forest.leaves)
    column = COLUMNS + PER_COLUMN * k
    start, room = int(layout[column + part]), int(layout[column + VALUE_ROOM])
    r = int(layout[CLASS_ROOM])
    shape = (room, r) if part == LOGS else (r, room + 1)
    return forest.leaves[:, start : start + shape[0] * shape[1]].reshape(rows, *shape)


def _moved(
    forest: Forest, numeric_room: int, class_room: int, value_rooms: Sequence[int]
) -> Forest:
    """The same forest with wider leaf rows."""
    old = forest.layout
    layout = np.zeros(COLUMNS + PER_COLUMN * len(value_rooms), np.int64)
    layout[: len(old)] = old
    layout[NUM_NOMINAL] = len(value_rooms)
    width = _place(layout, numeric_room, class_room, value_rooms)
    rows = len(forest.leaves)
    wide = forest._replace(
        leaves=np.zeros((rows, width)), layout=layout, scores=np.zeros(class_room)
    )
    _copy_parts(forest, wide)
    return wide


def _copy_parts(old: Forest, new: Forest) -> None:
    """Fill the wider rows of ``new``; what is not in ``old`` is as in a fresh leaf."""
    rows = len(old.leaves)

    def view(forest: Forest, start: int, *shape: int) -> np.ndarray:
        end = start + int(np.prod(shape))
        return forest.leaves[:, start:end].reshape(rows, *shape)  # shares memory: rows are flat

    def parts(forest: Forest) -> Iterator[np.ndarray]:
        layout = [*map(int, forest.layout)]
        r, d = layout[CLASS_ROOM], layout[NUMERIC_ROOM]
        yield view(forest, 0, HEAD)
        yield view(forest, COUNTS, r)
        yield view(forest, layout[BASES], r)
        yield view(forest, layout[INHERITED], r)
        yield view(forest, layout[BELLS], d, 2, r)
        yield view(forest, layout[MOMENTS], r, d, 4)
        for column in range(COLUMNS, len(old.layout), PER_COLUMN):
            room = layout[column + VALUE_ROOM]
            yield view(forest, layout[column + LOGS], room, r)
            yield view(forest, layout[column + WEIGHTS], r, room + 1)

    new.leaves[:, new.layout[BASES] : new.layout[INHERITED]] = -np.inf
    for source, target in zip(parts(old), parts(new), strict=True):
        target[(slice(None), *map(slice, source.shape[1:]))] = source


def forest_arrays(forest: Forest) -> dict[str, np.ndarray]:
    """The arrays of a forest without its free memory, for saving."""
    used = np.flatnonzero(forest.nodes[:, KIND] >= LEAF)
    number = np.full(len(forest.nodes) + 1, -1)  # the last one translates -1
    number[used] = np.arange(len(used))
    nodes = forest.nodes[used]
    links = [LEFT, RIGHT, NEXT, PARENT]
    nodes[:, links] = number[nodes[:, links]]
    leaf = nodes[:, KIND] == LEAF
    rows = nodes[leaf, ROW]
    nodes[leaf, ROW] = np.arange(len(rows))
    trees, layout = forest.trees.copy(), forest.layout.copy()
    trees[:, ROOT] = number[trees[:, ROOT]]
    layout[[FREE_NODE, FREE_ROW]] = -1
    layout[[FREE_NODES, FREE_ROWS]] = 0
    return {
        "nodes": nodes,
        "splits": forest.splits[used],
        "leaves": forest.leaves[rows],
        "trees": trees,
        "layout": layout,
        "settings": forest.settings.copy(),
    }


def forest_from_arrays(arrays: Mapping[str, np.ndarray]) -> Forest:
    """The forest whose `forest_arrays` these are."""
    names = [name for name in Forest._fields if name != "scores"]
    own = {name: np.ascontiguousarray(arrays[name]).copy() for name in names}
    return Forest(**own, scores=np.zeros(own["layout"][CLASS_ROOM]))
