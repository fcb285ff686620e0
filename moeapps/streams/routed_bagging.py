"""RoutedBagging: bagged trees that watch themselves for drift and vote by recent accuracy."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.streams import adwin, saving
from moeapps.streams.adwin import Detectors, new_detectors
from moeapps.streams.classifier import StreamClassifier
from moeapps.streams.columns import Columns
from moeapps.streams.compiling import kernel
from moeapps.streams.forest import (
    Forest,
    forest_arrays,
    forest_from_arrays,
    new_forest,
    num_leaves,
    num_nodes,
    predict,
    predict_then_learn,
    reset,
    with_classes,
    with_columns,
    with_room,
)
from moeapps.streams.forest_state import FREE_NODES, FREE_ROWS, LEAF_LIMIT, TOTAL_LEAVES
from moeapps.streams.random_draws import poisson, uniform

PRESETS = {"fast": 5, "balanced": 10, "accurate": 20}  # experts
POWER = 10  # of a tree's accuracy: its say in the vote
DECAY = 0.99  # per instance, of what counts as lately
WARNING_RATIO = 5.0  # a warning may be this many times as likely to be false as a drift
# Rows that one expert learns before the next one's turn: its tree stays in the processor's cache.
CHUNK = 2048
MAX_EVENTS = 10_000  # of the most careful expert; the latest ones are kept

# Columns of `Bagging.state`.
PLACE, CHALLENGED, USED, LEARNED, DRIFTS = range(5)
# First axis of `Bagging.records`; the last holds decayed weights of right answers and of all.
RIGHT, SEEN = range(2)
# Kinds of events.
WARNING, DRIFT = range(2)
ROOM = 4  # for one instance two trees may split, each into two


class Bagging(NamedTuple):
    """Everything that changes while learning.

    Expert ``i`` owns trees ``2i`` and ``2i + 1``: one holds its place, the other is its challenger
    or waits, untrained, to become one.

    Args:
        forest: All trees.
        detectors: ``2i`` watches expert ``i`` for drift, ``2i + 1`` warns.
        state: ``[K, 5]`` which of its trees holds the place, whether the other is a challenger,
            how often it had most say, instances learned, drifts.
        records: ``[2K, 2]`` decayed number of right answers and of answers of each tree.
    """

    forest: Forest
    detectors: Detectors
    state: np.ndarray
    records: np.ndarray


class RoutedBagging(StreamClassifier):
    r"""Online bagging of trees that differ in how soon they suspect a drift, with a gated vote.

    Tree :math:`i` learns every instance with a weight drawn from Poisson(``rate``). ADWIN detectors
    watch its errors: at a warning a challenger starts to learn beside it, at a drift the challenger
    takes its place. The detectors of the experts are graded from careful to quick. Which of them
    are right depends on the stream, and the gate finds out: trees and challengers vote by their
    share of right answers lately,

    .. math::
        \hat y = \arg\max_c \sum_i a_i^{10}\, p_i(c), \qquad
        a_i = \frac{1 + \sum_t 0.99^{T-t}\, 1\{\hat y_{i,t} = y_t\}}{2 + \sum_t 0.99^{T-t}}

    Args:
        preset: ``"fast"`` has 5 experts, ``"balanced"`` 10, ``"accurate"`` 20.
        num_experts: Another number of experts; time and memory grow in proportion.
        rate: Mean training weight of an instance; smaller is faster and suits noisy streams.
        drift_delta: ADWIN's delta of the most careful and of the quickest expert; those between
            are spaced evenly in the logarithm.
        grace_period: See `HoeffdingTree`, as for all that follow.
        delta: Allowed chance of a wrong split.
        tau: Split anyway below this Hoeffding bound.
        leaf_prediction: Rule of the leaves.
        subspace: Share of the features that a split attempt looks at, drawn anew each time.
        max_leaves: Per expert: all trees stop splitting when together they have that many each.
        max_size: They also stop when the leaves take this many MiB.
        nominal_attributes: Features whose numbers are names of values.
        seed: Of the training weights and the subspaces.

    Shape:
        - rows ``[N, D]`` -> labels ``[N]``, probabilities ``[N, C]``

    Notes:
        Ours; no paper. From adaptive random forests it differs in the graded detectors, the vote of
        the challengers, the gate (theirs is the plain accuracy since the last reset) and in that
        splits look at all features. A neural router over the experts as in `DriftMoE` added nothing
        to this gate, and routing the training cost more accuracy than fewer experts do. In
        `statistics`, ``drifts`` and ``warnings`` are those of the most careful expert.

    References:
        Gomes et al., *Adaptive random forests for evolving data stream classification*, 2017.
        https://doi.org/10.1007/s10994-017-5642-8

    Example:
        >>> from moeapps.streams import datasets
        >>> stream = datasets.load("sea_a", limit=5_000, seed=1)
        >>> model = RoutedBagging("fast", seed=1)
        >>> answers = model.prequential(stream.X, stream.y)
        >>> bool((answers == stream.y).mean() > 0.85)
        True
    """

    def __init__(
        self,
        preset: str = "balanced",
        *,
        num_experts: int | None = None,
        rate: float = 6.0,
        drift_delta: tuple[float, float] = (1e-3, 0.5),
        grace_period: float = 200,
        delta: float = 0.02,
        tau: float = 0.05,
        leaf_prediction: str = "nba",
        subspace: float = 1.0,
        max_leaves: int = 10_000,
        max_size: float = 300.0,
        nominal_attributes: Sequence[Hashable] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(nominal_attributes)
        if preset not in PRESETS:
            raise UnknownNameError("preset", preset, PRESETS)
        if num_experts is not None and num_experts < 1:
            raise ArgumentError(
                f"num_experts={num_experts} leaves nobody to ask. Choose at least 1, or leave it "
                f"out for the {PRESETS[preset]} of the preset."
            )
        if not 0 < rate <= 100:
            raise ArgumentError(
                f"rate={rate} is no mean training weight. Expected a number above 0 and up to 100; "
                "6 suits most streams."
            )
        if not 0 < min(drift_delta) <= max(drift_delta) < 1:
            raise ArgumentError(
                f"drift_delta={drift_delta} does not hold two probabilities. Expected numbers "
                "between 0 and 1, such as (0.001, 0.5)."
            )
        self.preset = preset
        self.num_experts = num_experts
        self.rate = rate
        self.drift_delta = drift_delta
        self.grace_period = grace_period
        self.delta = delta
        self.tau = tau
        self.leaf_prediction = leaf_prediction
        self.subspace = subspace
        self.max_leaves = max_leaves
        self.max_size = max_size
        self.seed = seed
        self._drawn_seed = 0 if seed is None else seed  # until the first instance
        self._time = 0  # instances with weight
        self._events = np.empty((0, 2), np.int64)  # of expert 0: time, kind
        self._bagging = self._new_bagging(0, [], 1)

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"num_experts": 3}

    def _new_bagging(self, num_numeric: int, num_values: list[int], num_classes: int) -> Bagging:
        k = self.num_experts or PRESETS[self.preset]
        forest = new_forest(
            2 * k,
            num_numeric=num_numeric,
            num_values=num_values,
            num_classes=num_classes,
            grace_period=self.grace_period,
            delta=self.delta,
            tau=self.tau,
            leaf_prediction=self.leaf_prediction,
            max_leaves=self.max_leaves * k,
            max_bytes=int(self.max_size * 2**20),
            subspace=self.subspace,
            seed=self._drawn_seed,
        )
        deltas = np.geomspace(*self.drift_delta, k)
        warnings = np.minimum(WARNING_RATIO * deltas, 0.9)
        detectors = new_detectors(2 * k, np.column_stack([deltas, warnings]).ravel())
        return Bagging(forest, detectors, np.zeros((k, 5), np.int64), np.zeros((2 * k, 2)))

    def _begin(self, columns: Columns, num_classes: int) -> None:
        if self.seed is None:
            self._drawn_seed = int(np.random.default_rng().integers(2**31))
        self._bagging = self._new_bagging(columns.num_numeric, columns.num_values, num_classes)

    def _grow(self, num_numeric: int, num_values: list[int], num_classes: int) -> None:
        forest = with_columns(self._bagging.forest, num_numeric, num_values)
        self._bagging = self._bagging._replace(forest=with_classes(forest, num_classes))

    def _predict_rows(self, x: np.ndarray) -> np.ndarray:
        votes = np.zeros((len(x), len(self._labels)))
        _predict_rows(self._bagging, x, votes)
        return votes / votes.sum(1, keepdims=True)

    def _learn_rows(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> None:
        self._test_then_train_rows(x, y, w)

    def _test_then_train_rows(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        answers = np.empty(len(x), np.int64)
        start = 0
        while start < len(x):
            part = slice(start, start + self._chunk())
            answers[part] = self._learn_chunk(x[part], y[part], w[part])
            start = part.stop
        return answers

    def _chunk(self) -> int:
        """Rows for one turn: so few that nobody can reach the leaf limit within them."""
        layout, trees = self._bagging.forest.layout, len(self._bagging.records)
        return int(np.clip((layout[LEAF_LIMIT] - layout[TOTAL_LEAVES]) // trees, 1, CHUNK))

    def _learn_chunk(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        k = len(self._bagging.state)
        votes, most = np.zeros((len(x), len(self._labels))), np.zeros((len(x), 2))
        times = self._time - 1 + np.cumsum(w > 0.0)
        # Row 0 holds their number: per detector of expert 0 one each time it looks.
        events = np.zeros((1 + 2 * (len(x) // adwin.CLOCK + 1), 2), np.int64)
        expert, row = 0, 0
        while expert < k:
            expert, row = _learn_rows(
                self._bagging, x, y, w, times, self.rate, self._drawn_seed, expert, row,
                votes, most, events,
            )  # fmt: skip
            if expert < k:
                self._bagging = self._bagging._replace(forest=with_room(self._bagging.forest))
        self._time = int(times[-1]) + 1
        if events[0, 0]:
            new = events[1 : 1 + events[0, 0]]
            self._events = np.concatenate([self._events, new])[-MAX_EVENTS:]
        taught = w > 0.0
        self._bagging.state[:, USED] += np.bincount(most[taught, 1].astype(int), minlength=k)
        return (votes / votes.sum(1, keepdims=True)).argmax(1)

    def _state(self) -> dict[str, Any]:
        forest, detectors, state, records = self._bagging
        return {
            **saving.joined(forest=forest_arrays(forest), detectors=detectors._asdict()),
            "state": state,
            "records": records,
            "events": self._events,
            "time": self._time,
            "seed": self._drawn_seed,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._bagging = Bagging(
            forest_from_arrays(saving.part(state, "forest")),
            Detectors(**saving.part(state, "detectors")),
            state["state"],
            state["records"],
        )
        self._events, self._time, self._drawn_seed = state["events"], state["time"], state["seed"]

    def _statistics(self) -> dict[str, Any]:
        forest, _, state, _ = self._bagging
        trees = range(len(forest.trees))
        times, kinds = self._events.T
        return {
            "drifts": times[kinds == DRIFT].tolist(),
            "warnings": times[kinds == WARNING].tolist(),
            "resets": int(state[:, DRIFTS].sum()),
            "living": len(state) + int(state[:, CHALLENGED].sum()),
            "usage": state[:, USED].copy(),
            "selected": state[:, LEARNED].copy(),
            "leaves": sum(int(num_leaves(forest, tree)) for tree in trees),
            "nodes": sum(int(num_nodes(forest, tree)) for tree in trees),
        }


@kernel
def _weight(records: np.ndarray, tree: int) -> float:
    """Say of a tree: a power of its share of right answers lately, 1/2 before the first."""
    return ((records[tree, RIGHT] + 1.0) / (records[tree, SEEN] + 2.0)) ** POWER


@kernel
def _vote(records: np.ndarray, tree: int, proba: np.ndarray, votes: np.ndarray) -> float:
    weight = _weight(records, tree)
    for c in range(len(proba)):
        votes[c] += weight * proba[c]
    return weight


@kernel
def _turn(
    forest: Forest,
    records: np.ndarray,
    tree: int,
    x: np.ndarray,
    y: int,
    weight: float,
    taught: bool,
    proba: np.ndarray,
    votes: np.ndarray,
) -> tuple[float, float]:
    """A tree votes and learns; returns its say and whether it was wrong."""
    predict_then_learn(forest, tree, x, y, weight, proba)
    say = _vote(records, tree, proba, votes)
    wrong = 1.0 if proba.argmax() != y else 0.0
    if taught:
        records[tree, RIGHT] = DECAY * records[tree, RIGHT] + 1.0 - wrong
        records[tree, SEEN] = DECAY * records[tree, SEEN] + 1.0
    return say, wrong


@kernel
def _predict_rows(bagging: Bagging, x: np.ndarray, votes: np.ndarray) -> None:
    """Add up the votes ``[N, C]``."""
    forest, _, state, records = bagging
    proba = np.empty(votes.shape[1])
    for i in range(len(state)):
        front = 2 * i + state[i, PLACE]
        for t in range(len(x)):
            for tree in (front, front ^ 1):
                if tree == front or state[i, CHALLENGED]:
                    predict(forest, tree, x[t], proba)
                    _vote(records, tree, proba, votes[t])


@kernel
def _learn_rows(
    bagging: Bagging,
    x: np.ndarray,
    y: np.ndarray,
    w: np.ndarray,
    times: np.ndarray,
    rate: float,
    seed: int,
    first: int,
    start: int,
    votes: np.ndarray,
    most: np.ndarray,
    events: np.ndarray,
) -> tuple[int, int]:
    """Vote on rows, then learn each, expert by expert from expert ``first`` and row ``start`` on.

    Returns:
        Expert and row at which the pool is full; the number of experts and 0 when all is done.
    """
    forest, detectors, state, records = bagging
    proba = np.empty(votes.shape[1])
    for i in range(first, len(state)):
        for t in range(start, len(x)):
            if forest.layout[FREE_NODES] < ROOM or forest.layout[FREE_ROWS] < ROOM:
                return i, t
            taught = w[t] > 0.0
            weight = w[t] * poisson(rate, uniform(seed, i, times[t])) if taught else 0.0
            front = 2 * i + state[i, PLACE]
            challenger = front ^ 1
            challenged = state[i, CHALLENGED]
            say, wrong = _turn(forest, records, front, x[t], y[t], weight, taught, proba, votes[t])
            if challenged:
                say += _turn(
                    forest, records, challenger, x[t], y[t], weight, taught, proba, votes[t]
                )[0]
            if say > most[t, 0]:
                most[t, 0], most[t, 1] = say, i
            if not taught:
                continue
            state[i, LEARNED] += weight > 0.0
            if adwin.update(detectors, 2 * i + 1, wrong) and not challenged:
                state[i, CHALLENGED] = 1
                _note(events, times[t], i, WARNING)
            if adwin.update(detectors, 2 * i, wrong):
                reset(forest, front)
                records[front] = 0.0
                state[i, PLACE] ^= 1
                state[i, CHALLENGED] = 0
                state[i, DRIFTS] += 1
                adwin.reset(detectors, 2 * i)
                adwin.reset(detectors, 2 * i + 1)
                _note(events, times[t], i, DRIFT)
        start = 0
    return len(state), 0


@kernel
def _note(events: np.ndarray, time: int, expert: int, kind: int) -> None:
    """Keep what happened to expert 0, the most careful one; the quick ones see drifts often."""
    if expert == 0:
        events[0, 0] += 1
        events[events[0, 0]] = time, kind
