"""DriftMoE in two stages: experts on the first half of a stream, the router on the second."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from river.base import Classifier

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.streams import saving
from moeapps.streams.classifier import StreamClassifier
from moeapps.streams.clusters import KINDS, Clusters
from moeapps.streams.columns import Columns
from moeapps.streams.driftmoe import (
    ROUTERS,
    VARIANTS,
    correctness,
    gated,
    new_pool,
    router_class,
    softmax,
)
from moeapps.streams.expert_pool import ExpertPool
from moeapps.streams.router import Router

# A sample to cluster has at least this many rows, if the buffer has.
LEAST_SAMPLE = 50
COLLECT, TRAIN, ROUTE = range(3)  # stages


class TwoStageDriftMoE(StreamClassifier):
    r"""Experts first, router second: the ablation that the DriftMoE program ships.

    Variant ``"data"``: the first ``buffer_share`` of the stream is collected, a sample of it is
    standardised, whitened by its principal components and clustered; silhouette picks the number
    of clusters, which is the number of experts. Up to the middle of the stream the expert of an
    instance's cluster answers and learns. Then the experts are frozen, and the router learns from
    single instances which experts are right; the expert with the largest logit answers.

    Variant ``"task"``: up to the middle, one expert per class learns class or not, and the surest
    one answers. Then the router learns the one-hot labels and its largest logit is the answer.

    Args:
        variant: ``"data"`` or ``"task"``.
        num_instances: Length of the stream; whatever comes after trains the router.
        clustering: ``"kmeans"``, or ``"gmm"`` for a Gaussian mixture of full covariances.
        max_clusters: Largest number of experts tried, from 2.
        buffer_share: Share of the stream that is collected.
        sample_share: Share of those that is clustered; at least 50 instances.
        hidden: First hidden layer of the router; the second is half as wide.
        lr: Learning rate of the router.
        zscore: Standardise the router's inputs by the instances before (ours).
        temperature: Of the softmax in the probabilities of ``"task"``.
        router: ``"numpy"``, or ``"torch"`` for the same on the shared gating core.
        expert: Any river classifier to use instead of native trees.
        grace_period: See `HoeffdingTree`, as for all that follow.
        delta: Allowed chance of a wrong split.
        tau: Split anyway below this Hoeffding bound.
        leaf_prediction: Rule of the leaves.
        max_depth: No splits below this depth.
        binary_split: Nominal splits have two branches.
        max_leaves: Of all experts together.
        count_inherited: The weight that a split estimated for a leaf counts in its Hoeffding bound.
        nominal_attributes: Features whose numbers are names of values.
        seed: Of the sample, the clusters and the router.

    Notes:
        As in the published program, the router of ``"data"`` makes a first step of a new Adam at
        every instance, so that it has no memory: every weight moves by about ``lr``. While
        instances are collected the answer is the first class; the program gives none.

    References:
        Aspis, Cajas Ordonez, Suarez-Cetrulo, Simon Carbajo, *DriftMoE*, SYNDAiTE at ECML-PKDD 2025.
        https://arxiv.org/abs/2507.18464

    Example:
        >>> from moeapps.streams import datasets
        >>> stream = datasets.load("rbf_m", limit=4_000, seed=1)
        >>> model = TwoStageDriftMoE(num_instances=4_000, max_clusters=4, seed=1)
        >>> answers = model.prequential(stream.X, stream.y)
        >>> 2 <= len(model.statistics()["usage"]) <= 4
        True
    """

    def __init__(
        self,
        variant: str = "data",
        *,
        num_instances: int,
        clustering: str = "kmeans",
        max_clusters: int = 15,
        buffer_share: float = 0.05,
        sample_share: float = 0.05,
        hidden: int = 256,
        lr: float = 2e-3,
        zscore: bool = True,
        temperature: float = 0.8,
        router: str = "numpy",
        expert: Classifier | None = None,
        grace_period: int = 50,
        delta: float = 1e-7,
        tau: float = 0.05,
        leaf_prediction: str = "nba",
        max_depth: int | None = None,
        binary_split: bool = True,
        max_leaves: int = 10_000,
        count_inherited: bool = False,
        nominal_attributes: Sequence[Hashable] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(nominal_attributes)
        for kind, name, known in (
            ("variant", variant, VARIANTS),
            ("clustering", clustering, KINDS),
            ("router", router, ROUTERS),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        if num_instances < 4 or max_clusters < 2:
            raise ArgumentError(
                f"num_instances={num_instances}, max_clusters={max_clusters} leave no two stages. "
                "Expected at least 4 instances and 2 clusters; raise them."
            )
        for share in (buffer_share, sample_share):
            if not 0 < share <= 1:
                raise ArgumentError(
                    f"A share of {share} is not in (0, 1]. The published shares are 0.05."
                )
        self.variant = variant
        self.num_instances = num_instances
        self.clustering = clustering
        self.max_clusters = max_clusters
        self.buffer_share = buffer_share
        self.sample_share = sample_share
        self.hidden = hidden
        self.lr = lr
        self.zscore = zscore
        self.temperature = temperature
        self.router = router
        self.expert = expert
        self.grace_period = grace_period
        self.delta = delta
        self.tau = tau
        self.leaf_prediction = leaf_prediction
        self.max_depth = max_depth
        self.binary_split = binary_split
        self.max_leaves = max_leaves
        self.count_inherited = count_inherited
        self.seed = seed
        self._drawn_seed: Any = seed
        self._num_numeric = 0
        self._buffer = np.empty((0, 0))
        # Made when their stage begins.
        self._clusters: Clusters = None  # type: ignore[assignment]
        self._pool: ExpertPool = None  # type: ignore[assignment]
        self._router: Router = None  # type: ignore[assignment]
        self._usage = np.zeros(0, np.int64)
        self._selected = np.zeros(0, np.int64)

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"num_instances": 200, "buffer_share": 0.2, "max_clusters": 2, "hidden": 8}
        yield {"variant": "task", "num_instances": 200, "hidden": 8}

    def _ends(self) -> tuple[int, int]:
        """Instances after which the experts and the router start to learn."""
        half = self.num_instances // 2
        collected = int(np.ceil(self.buffer_share * self.num_instances))
        return (0 if self.variant == "task" else min(collected, half), half)

    def _stage(self, instances: int) -> int:
        return sum(instances >= end for end in self._ends())

    def _begin(self, columns: Columns, num_classes: int) -> None:
        if self._drawn_seed is None:
            self._drawn_seed = int(np.random.default_rng().integers(2**31))
        self._num_numeric = columns.num_numeric
        self._buffer = np.empty((0, len(columns)))
        if self.variant == "task":
            self._start_experts(num_classes)

    def _start_experts(self, num_experts: int) -> None:
        task = self.variant == "task"
        self._pool = new_pool(self, self._columns, num_experts, len(self._labels), one_vs_rest=task)
        self._usage, self._selected = np.zeros((2, num_experts), np.int64)

    def _start_router(self) -> None:
        self._router = router_class(self.router)(
            self._columns.num_numeric,
            len(self._columns.num_values),
            len(self._usage),
            hidden=self.hidden,
            batch_size=1,
            lr=self.lr,
            zscore=self.zscore,
            seed=self._drawn_seed,
        )

    def _cluster(self) -> None:
        """Find the clusters of the collected rows, and give each an expert."""
        rows = self._buffer
        size = max(int(np.ceil(self.sample_share * len(rows))), min(LEAST_SAMPLE, len(rows)))
        sample = np.random.default_rng(self._drawn_seed).choice(rows, size, replace=False)
        self._clusters = Clusters.fit(
            sample, self.clustering, most=self.max_clusters, seed=self._drawn_seed
        )
        self._buffer = rows[:0]
        self._start_experts(self._clusters.count)

    def _grow(self, num_numeric: int, num_values: list[int], num_classes: int) -> None:
        # Where new columns stand among the old ones.
        width = self._buffer.shape[1]
        old_numeric = self._num_numeric
        added = num_numeric - old_numeric
        places = [old_numeric] * added
        places += [width] * (num_numeric + len(num_values) - width - added)
        self._num_numeric = num_numeric
        self._buffer = np.insert(self._buffer, places, np.nan, axis=1)
        if self._clusters is not None:
            self._clusters.grow(places)
        num_experts = num_classes if self.variant == "task" else len(self._usage)
        if self._pool is not None:
            self._pool.grow(num_experts, num_classes)
            more = (0, num_experts - len(self._usage))
            self._usage, self._selected = np.pad(self._usage, more), np.pad(self._selected, more)
        if self._router is not None:
            self._router.grow(num_numeric, len(num_values), num_experts)

    def _predict_rows(self, x: np.ndarray) -> np.ndarray:
        stage = self._stage(self._num_learned)
        num_classes = len(self._labels)
        if stage == COLLECT:
            return np.full((len(x), num_classes), 1 / num_classes)
        if self.variant == "data":
            if stage == TRAIN:
                return self._pool.proba(x, self._clusters.of(x))
            return self._pool.proba(x, self._router.choose(self._router.logits(x), 1)[:, 0])
        proba = np.empty((len(x), num_classes))
        if stage == TRAIN:
            k = num_classes
            everyone = self._pool.proba(np.repeat(x, k, axis=0), np.tile(np.arange(k), len(x)))
            yes = everyone[:, 1].reshape(proba.shape).copy()
            gated(np.zeros(proba.shape, np.float32), yes, proba)
        else:
            softmax(self._router.logits(x), self.temperature, proba)
        return proba

    def _learn_rows(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> None:
        self._test_then_train_rows(x, y, w)

    def _test_then_train_rows(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        answers = np.empty(len(x), np.int64)
        steps = (self._collect, self._train, self._route)
        ends = [end - self._num_learned for end in self._ends()]
        start = 0
        while start < len(x):
            stage = self._stage(self._num_learned + start)
            part = slice(start, min([len(x), *(end for end in ends if end > start)]))
            answers[part] = steps[stage](x[part], y[part], w[part])
            start = part.stop
            if start == ends[0]:
                self._cluster()
            if start == ends[1]:
                self._start_router()
        return answers

    def _collect(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        self._buffer = np.concatenate([self._buffer, x])
        return np.zeros(len(x), np.int64)

    def _train(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        if self.variant == "data":
            own = self._clusters.of(x)
            train = own[:, None] == np.arange(len(self._usage))
            said, _ = self._pool.test_then_train(x, y, w, train)
            answers, used = said[np.arange(len(x)), own], own
        else:
            train = np.ones((len(x), len(self._usage)), bool)
            _, yes = self._pool.test_then_train(x, y, w, train)
            answers = used = yes.argmax(1)
        self._usage += np.bincount(used, minlength=len(self._usage))
        self._selected += train.sum(0)
        return answers

    def _route(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        data = self.variant == "data"
        if data:
            nobody = np.zeros((len(x), len(self._usage)), bool)
            said, chances = self._pool.test_then_train(x, y, w, nobody)
            targets = correctness(said, y, chances)
        else:
            targets = y[:, None] == np.arange(len(self._usage))
        best = np.empty(len(x), np.int64)
        for n in range(len(x)):
            if data:
                self._router.forget()
            best[n] = self._router.choose(self._router.take(x[n : n + 1]), 1)[0, 0]
            self._router.teach(targets[n : n + 1])
        self._usage += np.bincount(best, minlength=len(self._usage))
        return said[np.arange(len(x)), best] if data else best

    def _state(self) -> dict[str, Any]:
        made: dict[str, Any] = {
            "clusters": self._clusters,
            "experts": self._pool,
            "router": self._router,
        }
        return {
            **saving.joined(**{name: p.state() for name, p in made.items() if p is not None}),
            "usage": self._usage,
            "selected": self._selected,
            "seed": self._drawn_seed,
            "buffer": self._buffer,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._drawn_seed = state["seed"]
        self._num_numeric = self._columns.num_numeric
        self._buffer = state["buffer"]
        clusters = saving.part(state, "clusters")
        if clusters:
            self._clusters = Clusters(**clusters)
        experts = saving.part(state, "experts")
        if experts:
            self._start_experts(len(state["usage"]))
            self._pool.restore(experts)
        self._usage, self._selected = state["usage"], state["selected"]
        router = saving.part(state, "router")
        if router:
            self._start_router()
            self._router.restore(router)

    def _statistics(self) -> dict[str, Any]:
        sizes = {} if self._pool is None else self._pool.sizes()
        return {
            "usage": self._usage.copy(),
            "selected": self._selected.copy(),
            "living": int((self._selected > 0).sum()),
            **sizes,
        }
