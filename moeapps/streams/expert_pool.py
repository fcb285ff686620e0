"""The experts of DriftMoE, side by side: Hoeffding trees in one forest, or any river classifiers.

Letters: ``N`` rows, ``K`` experts, ``C`` classes. With ``one_vs_rest`` expert ``i`` knows two
classes: 1 where the label is ``i``, 0 elsewhere.
"""

import inspect
from collections.abc import Hashable, Mapping
from typing import Any, Protocol

import numpy as np
from river.base import Classifier

from moeapps.errors import ArgumentError
from moeapps.streams.columns import Columns
from moeapps.streams.compiling import kernel
from moeapps.streams.forest import predict, predict_then_learn
from moeapps.streams.forest_nodes import take_leaf
from moeapps.streams.forest_state import (
    FREE_NODES,
    FREE_ROWS,
    LEAF_LIMIT,
    LEAVES,
    NODES,
    ROOT,
    TOTAL_LEAVES,
    Forest,
    forest_arrays,
    forest_from_arrays,
    most_children,
    new_forest,
    with_classes,
    with_columns,
    with_room,
)


class ExpertPool(Protocol):
    """What a mixture asks of its experts."""

    def test_then_train(
        self, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, train: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ask every expert about each row before it learns it.

        Args:
            rows: ``[N, D]``.
            labels: ``[N]`` class indices.
            weights: ``[N]`` instance weights.
            train: bool ``[N, K]``, who learns which row.

        Returns:
            Answers ``[N, K]``: class indices. Chances ``[N, K]``: what each expert gave to the
            label, or to 1 with ``one_vs_rest``.
        """

    def proba(self, rows: np.ndarray, experts: np.ndarray) -> np.ndarray:
        """Class probabilities ``[N, C]`` that each row gets from its own one of the experts."""

    def grow(self, num_experts: int, num_classes: int) -> None:
        """Take more experts and classes, and the columns that have come up."""

    def sizes(self) -> dict[str, int]:
        """Leaves and nodes of all experts together, if they are trees."""

    def state(self) -> dict[str, Any]:
        """Everything to go on from."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""


class TreePool:
    """Hoeffding trees in one forest, worked on in compiled code.

    A mini-batch goes expert by expert: each tree stays in the cache, and as experts do not meet
    inside a mini-batch, the result is that of the rows' own order.

    Args:
        columns: Of the rows.
        num_experts: ``K``.
        num_classes: ``C``.
        one_vs_rest: Expert ``i`` tells class ``i`` from the rest.
        settings: Passed to `new_forest`.
    """

    def __init__(
        self,
        columns: Columns,
        num_experts: int,
        num_classes: int,
        *,
        one_vs_rest: bool = False,
        **settings: Any,
    ) -> None:
        self.columns, self.one_vs_rest = columns, one_vs_rest
        self.num_classes = 2 if one_vs_rest else num_classes
        self.forest = new_forest(
            num_experts,
            num_numeric=columns.num_numeric,
            num_values=columns.num_values,
            num_classes=self.num_classes,
            **settings,
        )

    def test_then_train(
        self, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, train: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `ExpertPool.test_then_train`."""
        answers, chances = np.empty(train.shape, np.int64), np.empty(train.shape)
        proba = np.empty(self.num_classes)
        by_expert = not self._limit_is_near(int(train.sum()))
        done = 0
        while done < train.size:
            done = _test_then_train(
                self.forest, rows, labels, weights, train, self.one_vs_rest, by_expert, done,
                proba, answers, chances,
            )  # fmt: skip
            if done < train.size:
                self.forest = with_room(self.forest)
        return answers, chances

    def _limit_is_near(self, lessons: int) -> bool:
        """Whether trees could compete for the last leaves; then the order of rows decides."""
        free = int(self.forest.layout[LEAF_LIMIT] - self.forest.layout[TOTAL_LEAVES])
        return 0 < free < lessons * (most_children(self.forest) - 1)

    def proba(self, rows: np.ndarray, experts: np.ndarray) -> np.ndarray:
        """See `ExpertPool.proba`."""
        proba = np.empty((len(rows), self.num_classes))
        _proba(self.forest, rows, np.ascontiguousarray(experts), proba)
        return proba

    def grow(self, num_experts: int, num_classes: int) -> None:
        """See `ExpertPool.grow`."""
        forest = with_columns(self.forest, self.columns.num_numeric, self.columns.num_values)
        if not self.one_vs_rest:
            self.num_classes = num_classes
            forest = with_classes(forest, num_classes)
        self.forest = _with_trees(forest, num_experts)

    def sizes(self) -> dict[str, int]:
        """See `ExpertPool.sizes`."""
        trees = self.forest.trees
        return {"leaves": int(trees[:, LEAVES].sum()), "nodes": int(trees[:, NODES].sum())}

    def state(self) -> dict[str, Any]:
        """See `ExpertPool.state`."""
        return forest_arrays(self.forest)

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `ExpertPool.restore`."""
        self.forest = forest_from_arrays(state)


class RiverPool:
    """Clones of a river classifier, seeded ``seed + i`` if they take a seed.

    They see features by name and labels as class indices. The reference in correctness, not in
    speed.

    Args:
        expert: The classifier to clone.
        columns: Of the rows.
        num_experts: ``K``.
        num_classes: ``C``.
        one_vs_rest: Expert ``i`` tells class ``i`` from the rest.
        seed: Of the first expert.
    """

    def __init__(
        self,
        expert: Classifier,
        columns: Columns,
        num_experts: int,
        num_classes: int,
        *,
        one_vs_rest: bool = False,
        seed: int = 0,
    ) -> None:
        self.expert, self.columns, self.seed = expert, columns, seed
        self.one_vs_rest = one_vs_rest
        self.experts: list[Any] = []  # classifiers; some take weights
        self.grow(num_experts, num_classes)

    def test_then_train(
        self, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, train: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `ExpertPool.test_then_train`."""
        answers, chances = np.empty(train.shape, np.int64), np.empty(train.shape)
        features = [self._features(row) for row in rows]
        weighted = "w" in inspect.signature(self.expert.learn_one).parameters
        if not weighted and (weights != 1).any():
            raise ArgumentError(
                f"{type(self.expert).__name__}.learn_one takes no weight w, but some instances "
                "have a weight other than 1. Leave weights out, or use native experts."
            )
        for i, expert in enumerate(self.experts):
            for n, x in enumerate(features):
                label = int(labels[n] == i) if self.one_vs_rest else int(labels[n])
                proba = self._distribution(expert, x)
                answers[n, i] = proba.argmax()
                chances[n, i] = proba[1 if self.one_vs_rest else label]
                if train[n, i] and weighted:
                    expert.learn_one(dict(x), label, w=float(weights[n]))
                elif train[n, i]:
                    expert.learn_one(dict(x), label)
        return answers, chances

    def _features(self, row: np.ndarray) -> dict[Hashable, Any]:
        """The dict of a row: what is missing or was never learned is left out."""
        columns = self.columns
        numbers, codes = row[: columns.num_numeric], row[columns.num_numeric :]
        x = {k: v for k, v in zip(columns.numeric, numbers.tolist(), strict=True) if v == v}
        for key, names, code in zip(columns.nominal, columns.codes, codes, strict=True):
            if code >= 0:
                x[key] = [*names][int(code)]
        return x

    def _distribution(self, expert: Classifier, x: dict[Hashable, Any]) -> np.ndarray:
        given = expert.predict_proba_one(dict(x))
        proba = np.array([float(given.get(c, 0.0)) for c in range(self.num_classes)])
        total = proba.sum()
        return proba / total if total > 0 else np.full(self.num_classes, 1 / self.num_classes)

    def proba(self, rows: np.ndarray, experts: np.ndarray) -> np.ndarray:
        """See `ExpertPool.proba`."""
        return np.array(
            [
                self._distribution(self.experts[i], self._features(row))
                for row, i in zip(rows, experts, strict=True)
            ]
        ).reshape(len(rows), self.num_classes)

    def grow(self, num_experts: int, num_classes: int) -> None:
        """See `ExpertPool.grow`."""
        self.num_classes = 2 if self.one_vs_rest else num_classes
        seeded = "seed" in self.expert._get_params()
        for i in range(len(self.experts), num_experts):
            changes = {"seed": self.seed + i} if seeded else {}
            self.experts.append(self.expert.clone(changes))

    def sizes(self) -> dict[str, int]:
        """See `ExpertPool.sizes`."""
        return {}

    def state(self) -> dict[str, Any]:
        """See `ExpertPool.state`."""
        raise ArgumentError(
            f"A model whose experts are {type(self.expert).__name__}s cannot be saved as arrays. "
            "Expected native experts (expert=None); use pickle for this model."
        )

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `ExpertPool.restore`."""
        self.state()


def _with_trees(forest: Forest, num_trees: int) -> Forest:
    """The same forest and untrained trees up to ``num_trees``."""
    old = len(forest.trees)
    trees = np.vstack([forest.trees, np.zeros((num_trees - old, forest.trees.shape[1]), np.int64)])
    forest = forest._replace(trees=trees)
    for tree in range(old, num_trees):
        while min(forest.layout[FREE_NODES], forest.layout[FREE_ROWS]) < 1:
            forest = with_room(forest)
        trees[tree, ROOT] = take_leaf(forest, tree, -1, 0)
    return forest


@kernel
def _test_then_train(
    forest: Forest,
    rows: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    train: np.ndarray,
    one_vs_rest: bool,
    by_expert: bool,
    done: int,
    proba: np.ndarray,
    answers: np.ndarray,
    chances: np.ndarray,
) -> int:
    """Steps ``done``, ``done + 1``...; the number of the step that found no room, or of all."""
    num_rows, num_experts = train.shape
    for step in range(done, train.size):
        if by_expert:
            i, n = step // num_rows, step % num_rows
        else:
            n, i = step // num_experts, step % num_experts
        label = labels[n]
        if one_vs_rest:
            label = 1 if label == i else 0
        if not train[n, i]:
            predict(forest, i, rows[n], proba)
        elif not predict_then_learn(forest, i, rows[n], label, weights[n], proba):
            return step
        answers[n, i] = np.argmax(proba)
        chances[n, i] = proba[1 if one_vs_rest else label]
    return train.size


@kernel
def _proba(forest: Forest, rows: np.ndarray, experts: np.ndarray, proba: np.ndarray) -> None:
    for n in range(rows.shape[0]):
        predict(forest, experts[n], rows[n], proba[n])
