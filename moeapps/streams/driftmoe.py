"""DriftMoE: a neural router over tree experts that learn online."""

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from river.base import Classifier

from moeapps.errors import ArgumentError, MissingExtraError, UnknownNameError
from moeapps.streams import saving
from moeapps.streams.classifier import StreamClassifier
from moeapps.streams.columns import Columns
from moeapps.streams.compiling import kernel
from moeapps.streams.expert_pool import ExpertPool, RiverPool, TreePool
from moeapps.streams.router import Router

VARIANTS = ("data", "task")
TASK_MODES = ("experts", "published")
ROUTERS = ("numpy", "torch")
# Rows of a mini-batch of the router, by variant and, for "task", by mode.
BATCH_SIZES = {"data": 256, "experts": 64, "published": 1}


class DriftMoE(StreamClassifier):
    r"""Mixture of Hoeffding trees behind a router that learns which of them will be right.

    Variant ``"data"``: every expert knows all classes. With router logits :math:`z`, distributions
    :math:`p_i` and answers :math:`\hat y_i = \arg\max p_i` of the experts,

    .. math::
        \hat y = \hat y_{i^*}, \quad i^* = \arg\max_i z_i, \qquad
        m_i = 1\{\hat y_i = y\}, \quad m_{\arg\max_i p_i(y)} = 1 \text{ if all are } 0

    the router learns the targets :math:`m` by binary cross-entropy, one Adam step per mini-batch,
    and the ``top_k`` experts of :math:`z` learn the instance. Expert by expert inside a mini-batch
    is the same as instance by instance, as the router is constant there.

    Variant ``"task"``: expert :math:`i` says with what probability :math:`q_i` the class is
    :math:`i`, and all experts learn every instance. In task mode ``"experts"``

    .. math:: \hat y = \arg\max_i \sigma(z_i)\, q_i, \qquad
        m_i = 1\{\text{expert } i \text{ is right}\}

    In task mode ``"published"`` :math:`\hat y = \arg\max z` and :math:`m` is the one-hot label: as
    the published program does it, the experts change nothing, so this is an online MLP.

    Args:
        variant: ``"data"`` or ``"task"``.
        task_mode: ``"experts"`` (ours) or ``"published"``; only read by the variant ``"task"``.
        num_experts: Experts of the variant ``"data"``; ``"task"`` has one per class.
        top_k: How many experts learn an instance (``"data"``).
        batch_size: Mini-batch of the router; by default 256 (``"data"``), 64 (``"experts"``) or 1
            (``"published"``).
        hidden: First hidden layer of the router; the second is half as wide.
        lr: Learning rate of the router.
        dropout: Of the router's first hidden layer when it learns in task mode ``"published"``.
            Nothing else drops: the published data variant keeps its router in evaluation mode.
        zscore: Standardise the router's inputs by the instances before (ours); False for raw ones.
        temperature: Of the softmax in `gate` and in the probabilities of ``"published"``.
        router: ``"numpy"``, or ``"torch"`` for the same on the shared gating core (slower).
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
        seed: Of the router; river experts get ``seed``, ``seed + 1``...

    Shape:
        - rows ``[N, D]`` -> labels ``[N]``, probabilities ``[N, C]``

    Notes:
        Departures from the published program: inputs are standardised and nominal splits are
        binary by default (`published` gives its settings); labels that come late are learned with
        their own instances; a class that comes up late gets an expert and an output then; instance
        weights reach the experts, while the router counts every instance once. A river tree as
        ``expert`` skips zero probabilities and predicts from the weight its leaves inherit, which
        costs accuracy on nominal streams of many classes.

    References:
        Aspis, Cajas Ordonez, Suarez-Cetrulo, Simon Carbajo, *DriftMoE*, SYNDAiTE at ECML-PKDD 2025.
        https://arxiv.org/abs/2507.18464

    Example:
        >>> from moeapps.streams import datasets
        >>> stream = datasets.load("sea_a", limit=5_000, seed=1)
        >>> model = DriftMoE(seed=1)
        >>> answers = model.prequential(stream.X, stream.y)
        >>> bool((answers == stream.y).mean() > 0.8)
        True
    """

    def __init__(
        self,
        variant: str = "data",
        *,
        task_mode: str = "experts",
        num_experts: int = 12,
        top_k: int = 3,
        batch_size: int | None = None,
        hidden: int = 256,
        lr: float = 2e-3,
        dropout: float = 0.2,
        zscore: bool = True,
        temperature: float = 0.8,
        router: str = "numpy",
        expert: Classifier | None = None,
        grace_period: float = 50,
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
            ("task_mode", task_mode, TASK_MODES),
            ("router", router, ROUTERS),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        if not 1 <= top_k <= num_experts:
            raise ArgumentError(
                f"top_k={top_k} does not fit num_experts={num_experts}. Choose 1..{num_experts}."
            )
        if temperature <= 0:
            raise ArgumentError(f"temperature={temperature} is not positive. The paper has 0.8.")
        self.variant = variant
        self.task_mode = task_mode
        self.num_experts = num_experts
        self.top_k = top_k
        self.batch_size = batch_size
        self.hidden = hidden
        self.lr = lr
        self.dropout = dropout
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
        # Made for the first instance.
        self._router: Router = None  # type: ignore[assignment]
        self._pool: ExpertPool = None  # type: ignore[assignment]
        self._drawn_seed = seed
        self._usage = np.zeros(0, np.int64)  # how often each expert gave the answer
        self._selected = np.zeros(0, np.int64)  # how often each expert learned

    @classmethod
    def published(cls, variant: str = "data", **changes: Any) -> Self:
        """The settings of the published program: raw inputs, multiway nominal splits.

        Args:
            variant: ``"data"`` or ``"task"``.
            changes: Other arguments, such as ``seed``.

        Example:
            >>> model = DriftMoE.published("task", seed=3)
            >>> model.task_mode, model.zscore
            ('published', False)
        """
        settings: dict[str, Any] = {
            "task_mode": "published",
            "zscore": False,
            "binary_split": False,
        }
        return cls(variant, **(settings | changes))

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        from river.tree import HoeffdingTreeClassifier

        small = {"hidden": 8, "batch_size": 32}
        few = {"num_experts": 3, "top_k": 1}
        yield {"variant": "data", **small}
        yield {"variant": "data", "expert": HoeffdingTreeClassifier(), **small, **few}
        yield {"variant": "task", **small}
        yield {"variant": "task", "task_mode": "published", "hidden": 8}

    def gate_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        r"""How far the router trusts each expert, :math:`\mathrm{softmax}(z / T)`.

        Args:
            X: ``[N, d]`` array or DataFrame, as for `predict`.

        Returns:
            ``[N, K]``, rows of sum 1.
        """
        self._need_labels()
        batch = self._array_batch(X, learning=False)
        logits = self._router.logits(batch.encode(0, len(batch)))
        proba = np.empty(logits.shape)
        softmax(logits, self.temperature, proba)
        return proba

    @property
    def _mode(self) -> str:
        return "data" if self.variant == "data" else self.task_mode

    def _begin(self, columns: Columns, num_classes: int) -> None:
        if self._drawn_seed is None:
            self._drawn_seed = int(np.random.default_rng().integers(2**31))
        task = self.variant == "task"
        num_experts = num_classes if task else self.num_experts
        self._router = router_class(self.router)(
            columns.num_numeric,
            len(columns.num_values),
            num_experts,
            hidden=self.hidden,
            batch_size=self.batch_size or BATCH_SIZES[self._mode],
            lr=self.lr,
            dropout=self.dropout if self._mode == "published" else 0.0,
            zscore=self.zscore,
            seed=self._drawn_seed,
        )
        self._pool = new_pool(self, columns, num_experts, num_classes, one_vs_rest=task)
        self._usage, self._selected = np.zeros((2, num_experts), np.int64)

    def _grow(self, num_numeric: int, num_values: list[int], num_classes: int) -> None:
        num_experts = num_classes if self.variant == "task" else self.num_experts
        self._pool.grow(num_experts, num_classes)
        # An untrained expert says no, which is right about the rows that wait for their step.
        target = 1.0 if self._mode == "experts" else 0.0
        self._router.grow(num_numeric, len(num_values), num_experts, target=target)
        more = (0, num_experts - len(self._usage))
        self._usage, self._selected = np.pad(self._usage, more), np.pad(self._selected, more)

    def _predict_rows(self, x: np.ndarray) -> np.ndarray:
        logits = self._router.logits(x)
        if self.variant == "data":
            return self._pool.proba(x, self._router.choose(logits, 1)[:, 0])
        yes = logits
        if self.task_mode == "experts":
            n, k = logits.shape
            everyone = self._pool.proba(np.repeat(x, k, axis=0), np.tile(np.arange(k), n))
            yes = everyone[:, 1].reshape(n, k).copy()
        return self._task_proba(logits, yes)

    def _learn_rows(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> None:
        self._test_then_train_rows(x, y, w)

    def _test_then_train_rows(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        step = self._data_rows if self.variant == "data" else self._task_rows
        answers = np.empty(len(x), np.int64)
        start = 0
        while start < len(x):
            part = slice(start, start + self._router.room)
            answers[part] = step(x[part], y[part], w[part])
            start = part.stop
        return answers

    def _data_rows(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Rows that share one state of the router."""
        logits = self._router.take(x)
        chosen = self._router.choose(logits, self.top_k)
        train = np.zeros(logits.shape, bool)
        np.put_along_axis(train, chosen, True, axis=1)
        said, chances = self._pool.test_then_train(x, y, w, train)
        self._router.teach(correctness(said, y, chances))
        best = chosen[:, 0]
        self._usage += np.bincount(best, minlength=self.num_experts)
        self._selected += train.sum(0)
        return said[np.arange(len(x)), best]

    def _task_rows(self, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Rows that share one state of the router."""
        logits = self._router.take(x)
        said, yes = self._pool.test_then_train(x, y, w, np.ones(logits.shape, bool))
        own = y[:, None] == np.arange(logits.shape[1])
        answers = self._task_proba(logits, yes).argmax(1)
        self._router.teach(said == own if self.task_mode == "experts" else own)
        self._usage += np.bincount(answers, minlength=len(self._usage))
        self._selected += len(x)
        return answers

    def _task_proba(self, logits: np.ndarray, yes: np.ndarray) -> np.ndarray:
        proba = np.empty(logits.shape)
        if self.task_mode == "experts":
            gated(logits, yes, proba)
        else:
            softmax(logits, self.temperature, proba)
        return proba

    def _state(self) -> dict[str, Any]:
        return {
            **saving.joined(router=self._router.state(), experts=self._pool.state()),
            "usage": self._usage,
            "selected": self._selected,
            "seed": self._drawn_seed,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._drawn_seed = state["seed"]
        self._begin(self._columns, len(self._labels))
        self._router.restore(saving.part(state, "router"))
        self._pool.restore(saving.part(state, "experts"))
        self._usage, self._selected = state["usage"], state["selected"]

    def _statistics(self) -> dict[str, Any]:
        sizes = self._pool.sizes() if self._begun else {}
        return {
            "usage": self._usage.copy(),
            "selected": self._selected.copy(),
            "living": int((self._selected > 0).sum()),
            **sizes,
        }


def router_class(name: str) -> type[Router]:
    """The router's class by its name; torch is imported for its own only."""
    if name == "numpy":
        return Router
    try:
        from moeapps.streams.torch_router import TorchRouter
    except ImportError as error:
        raise MissingExtraError("streams", "torch") from error
    return TorchRouter


def new_pool(
    model: Any, columns: Columns, num_experts: int, num_classes: int, *, one_vs_rest: bool
) -> ExpertPool:
    """The experts a model's arguments ask for."""
    if model.expert is not None:
        return RiverPool(
            model.expert,
            columns,
            num_experts,
            num_classes,
            one_vs_rest=one_vs_rest,
            seed=model._drawn_seed,
        )
    return TreePool(
        columns,
        num_experts,
        num_classes,
        one_vs_rest=one_vs_rest,
        grace_period=model.grace_period,
        delta=model.delta,
        tau=model.tau,
        leaf_prediction=model.leaf_prediction,
        max_depth=model.max_depth,
        binary_split=model.binary_split,
        max_leaves=model.max_leaves,
        count_inherited=model.count_inherited,
    )


def correctness(said: np.ndarray, y: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """Who was right, ``[N, K]``; where nobody was, who gave the label the best chance."""
    right = said == y[:, None]
    nobody = np.flatnonzero(~right.any(1))
    right[nobody, chances[nobody].argmax(1)] = True
    return right


@kernel
def gated(logits: np.ndarray, yes: np.ndarray, proba: np.ndarray) -> None:
    r"""Fill ``proba [N, K]`` with the normalised :math:`\sigma(z_i)\, q_i`."""
    for n in range(logits.shape[0]):
        total = 0.0
        for i in range(logits.shape[1]):
            proba[n, i] = yes[n, i] / (1 + math.exp(-np.float64(logits[n, i])))
            total += proba[n, i]
        for i in range(logits.shape[1]):
            proba[n, i] = proba[n, i] / total if total > 0 else 1 / logits.shape[1]


@kernel
def softmax(logits: np.ndarray, temperature: float, proba: np.ndarray) -> None:
    """Fill ``proba [N, K]``; row by row, so that a row's bits depend on nothing but the row."""
    for n in range(logits.shape[0]):
        best = logits[n].max()
        total = 0.0
        for i in range(logits.shape[1]):
            proba[n, i] = math.exp(np.float64(logits[n, i] - best) / temperature)
            total += proba[n, i]
        for i in range(logits.shape[1]):
            proba[n, i] /= total
