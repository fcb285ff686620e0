"""Nodes of the trees: sorting an instance to its leaf, taking and freeing nodes."""

import math

import numpy as np

from moeapps.streams.compiling import inlined, kernel
from moeapps.streams.forest_state import (
    BASES,
    CLASS_ROOM,
    DEPTH,
    FEATURE,
    FREE,
    FREE_NODE,
    FREE_NODES,
    FREE_ROW,
    FREE_ROWS,
    KIND,
    LEAF,
    LEAVES,
    LEFT,
    MULTIWAY,
    NEXT,
    NODES,
    NUMERIC,
    PARENT,
    RIGHT,
    ROOT,
    ROW,
    THRESHOLD,
    TOTAL_LEAVES,
    WEIGHT,
    Forest,
)


@inlined
def find_leaf(forest: Forest, tree: int, x: np.ndarray) -> int:
    """The leaf of ``x``; where the value a split asks for is missing, along the heavier branch."""
    nodes, splits = forest.nodes, forest.splits
    node = forest.trees[tree, ROOT]
    while nodes[node, KIND] != LEAF:
        value = x[nodes[node, FEATURE]]
        kind = nodes[node, KIND]
        if value != value:
            node = _heaviest_child(forest, node)
        elif kind == NUMERIC:
            node = nodes[node, LEFT if value <= splits[node, THRESHOLD] else RIGHT]
        elif kind == MULTIWAY:
            node = _branch(forest, node, value)
        else:
            node = nodes[node, LEFT if value == splits[node, THRESHOLD] else RIGHT]
    return node


@kernel
def _heaviest_child(forest: Forest, node: int) -> int:
    best, most = forest.nodes[node, LEFT], -1.0
    child = best
    while child >= 0:
        if forest.splits[child, WEIGHT] > most:
            best, most = child, forest.splits[child, WEIGHT]
        child = forest.nodes[child, NEXT]
    return best


@kernel
def _branch(forest: Forest, node: int, value: float) -> int:
    """The child of a value; for a value that came after the split, the heaviest."""
    child = forest.nodes[node, LEFT]
    while child >= 0 and value > 0.0:
        child = forest.nodes[child, NEXT]
        value -= 1.0
    return child if child >= 0 and value == 0.0 else _heaviest_child(forest, node)


@kernel
def take_leaf(forest: Forest, tree: int, parent: int, depth: int) -> int:
    """A fresh leaf from the free lists, which must not be empty."""
    nodes, leaves, layout = forest.nodes, forest.leaves, forest.layout
    node, row = layout[FREE_NODE], layout[FREE_ROW]
    layout[FREE_NODE] = nodes[node, NEXT]
    layout[FREE_ROW] = int(leaves[row, 0])  # a free row holds the number of the next one
    layout[FREE_NODES] -= 1
    layout[FREE_ROWS] -= 1
    layout[TOTAL_LEAVES] += 1
    forest.trees[tree, NODES] += 1
    forest.trees[tree, LEAVES] += 1
    nodes[node, KIND] = LEAF
    nodes[node, FEATURE] = nodes[node, LEFT] = nodes[node, RIGHT] = nodes[node, NEXT] = -1
    nodes[node, PARENT] = parent
    nodes[node, ROW] = row
    nodes[node, DEPTH] = depth
    forest.splits[node, THRESHOLD] = forest.splits[node, WEIGHT] = 0.0
    for i in range(leaves.shape[1]):
        leaves[row, i] = 0.0
    for i in range(layout[BASES], layout[BASES] + layout[CLASS_ROOM]):
        leaves[row, i] = -math.inf
    return node


@kernel
def free_row(forest: Forest, tree: int, node: int) -> None:
    """Give back the statistics of a leaf."""
    layout, row = forest.layout, forest.nodes[node, ROW]
    forest.leaves[row, 0] = layout[FREE_ROW]
    layout[FREE_ROW] = row
    layout[FREE_ROWS] += 1
    layout[TOTAL_LEAVES] -= 1
    forest.trees[tree, LEAVES] -= 1
    forest.nodes[node, ROW] = -1


@kernel
def free_tree(forest: Forest, tree: int) -> None:
    """Give back all nodes of a tree, children before parents."""
    nodes, layout = forest.nodes, forest.layout
    node = forest.trees[tree, ROOT]
    while node >= 0:
        child = nodes[node, LEFT]
        if child >= 0:
            nodes[node, LEFT] = nodes[child, NEXT]  # take the first child off the chain
            node = child
            continue
        if nodes[node, KIND] == LEAF:
            free_row(forest, tree, node)
        parent = nodes[node, PARENT]
        nodes[node, KIND] = FREE
        nodes[node, NEXT] = layout[FREE_NODE]
        layout[FREE_NODE] = node
        layout[FREE_NODES] += 1
        node = parent
    forest.trees[tree, NODES] = 0


@kernel
def copy_nodes(forest: Forest, source: int, target: int) -> None:
    """Rebuild tree ``source`` as tree ``target``, which must be empty; both walked in step."""
    nodes = forest.nodes
    a = forest.trees[source, ROOT]
    b = _copy_node(forest, a, target, -1)
    forest.trees[target, ROOT] = b
    while True:
        if nodes[a, LEFT] >= 0:
            a = nodes[a, LEFT]
            parent = b
            b = _copy_node(forest, a, target, parent)
            nodes[parent, LEFT] = b
            continue
        while a >= 0 and nodes[a, NEXT] < 0:
            a, b = nodes[a, PARENT], nodes[b, PARENT]
        if a < 0:
            return
        a = nodes[a, NEXT]
        parent = nodes[b, PARENT]
        sibling = b
        b = _copy_node(forest, a, target, parent)
        nodes[sibling, NEXT] = b
        nodes[parent, RIGHT] = b


@kernel
def _copy_node(forest: Forest, node: int, tree: int, parent: int) -> int:
    nodes, splits, leaves = forest.nodes, forest.splits, forest.leaves
    copy = take_leaf(forest, tree, parent, nodes[node, DEPTH])
    splits[copy, THRESHOLD] = splits[node, THRESHOLD]
    splits[copy, WEIGHT] = splits[node, WEIGHT]
    if nodes[node, KIND] == LEAF:
        for i in range(leaves.shape[1]):
            leaves[nodes[copy, ROW], i] = leaves[nodes[node, ROW], i]
    else:
        free_row(forest, tree, copy)
        nodes[copy, KIND] = nodes[node, KIND]
        nodes[copy, FEATURE] = nodes[node, FEATURE]
    return copy


@inlined
def add_weight(forest: Forest, node: int, w: float) -> None:
    """Count ``w`` at a leaf and all nodes above it."""
    while node >= 0:
        forest.splits[node, WEIGHT] += w
        node = forest.nodes[node, PARENT]
