"""TAME: experts for tasks nobody announces, switched by the loss, found again by a selector."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from river.base import Classifier
from torch import Tensor, nn

from moeapps import gating
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.streams.classifier import StreamClassifier
from moeapps.streams.columns import Columns
from moeapps.streams.expert_pool import ExpertPool, RiverPool, TreePool
from moeapps.streams.hoeffding_tree import HoeffdingTree
from moeapps.streams.tame_experts import (
    Batch,
    Experts,
    TorchExperts,
    TreeExperts,
    default_module,
)
from moeapps.streams.tame_mixture import Mixture
from moeapps.streams.tame_rows import RowEncoder

ANSWERS = ("selector", "active")


class TAME(StreamClassifier):
    r"""Task-agnostic mixture of experts for continual learning.

    One expert is active and learns each mini-batch. When its smoothed loss
    :math:`s = \alpha L + (1-\alpha) s` exceeds the mean plus three standard deviations of its last
    ``window`` losses, the data have changed: the first older expert whose loss fits takes over, or
    a new one is made. A selector learns from samples of what each expert has learned, and answers
    by

    .. math:: \hat y = \arg\max_c f_{e(x),c}(x), \qquad e(x) = \arg\max_e\, z_e(x)

    Args:
        module: ``module(num_features, num_classes)`` makes an expert that gives logits; by default
            an MLP with one hidden layer of 100 units.
        expert: A river classifier instead (:class:`HoeffdingTree`, for example), cloned for every
            expert. It learns row by row, and its loss is the log loss smoothed with 0.02.
        selector: ``selector(num_features, num_experts)`` makes the net behind the selector; by
            default an MLP with one hidden layer of 256 units.
        batch_size: Rows of a mini-batch, where rows come one by one or as arrays; by default 128,
            and 1 with ``expert``.
        window: Losses the threshold looks at. Keep it well below the length of a task.
        smoothing: :math:`\alpha`.
        hold: Batches that wait while the smoothed loss rises, so that the old expert does not learn
            the first batches of a change; whoever wins learns them.
        max_experts: At this number the expert with the lowest smoothed loss is taken again.
        buffer_size: Rows kept of each expert's data, a uniform sample.
        select_every: The selector takes as many steps after every so many mini-batches.
        answer: Who answers: the expert that the ``"selector"`` names, for tasks with inputs of
            their own; or the ``"active"`` one, for concepts that replace each other.
        loss_fn: Name of a loss in ``torch.nn.functional``, or a callable with its signature.
        optimizer_fn: ``optimizer_fn(parameters, lr=lr)``; by default SGD with momentum 0.9 and
            weight decay 5e-4.
        lr: Learning rate of the experts.
        gradient_clip_value: Largest norm of an expert's gradient.
        published: Detect as the paper does: sigmoid before the loss, no losses left out, no
            waiting, a window that starts at :math:`\ln C`; and a selector trained by
            :meth:`consolidate` only.
        device: Where the experts of ``module`` live.
        nominal_attributes: Features whose numbers are names of values.
        seed: Of initial weights, samples and everything else that is random.

    Shape:
        - :meth:`learn_batch`: x ``[B, ...]``, y ``[B]``
        - arrays as of every stream classifier: X ``[N, d]``, y ``[N]``

    Raises:
        ArgumentError: Arguments exclude each other, or the data do not fit what was learned before.

    Notes:
        Departures from the paper. A new expert's first ``window / 2`` losses do not count, and
        there is no alarm before ``window / 2`` losses do. Without sigmoid. Waiting batches. Buffers
        are per expert: per class they would tell the task. One buffer serves the selector and
        pruning. The selector learns during the stream. A row in a second epoch is a new row, as a
        stream has no row numbers. Rows are not scaled: a missing value is 0, a nominal one a
        one-hot vector, numbers beyond :math:`\pm 10^6` count as that; scale them before. Modules
        give logits, and their first and last linear layers grow with features and classes.

    References:
        Zhu, Majzoubi, Jain, Choromanska, *TAME: Task Agnostic Continual Learning using Multiple
        Experts*, CVPR 2024 workshop on continual learning. https://arxiv.org/abs/2210.03869

    Example:
        >>> y = torch.arange(64) % 2
        >>> x = torch.stack([y, 1 - y], 1) + torch.linspace(0, 0.5, 64)[:, None]
        >>> model = TAME(window=20, seed=0)
        >>> for _ in range(60):  # one task
        ...     model.learn_batch(x, y)
        >>> for _ in range(30):  # another one
        ...     model.learn_batch(x - 3, 1 - y)
        >>> model.statistics()["living"]
        2
        >>> (model.predict(torch.cat([x, x - 3])) == torch.cat([y, 1 - y]).numpy()).all()
        np.True_
    """

    def __init__(
        self,
        module: Callable[[int, int], nn.Module] | None = None,
        *,
        expert: Classifier | None = None,
        selector: Callable[[int, int], nn.Module] | None = None,
        batch_size: int | None = None,
        window: int = 100,
        smoothing: float = 0.2,
        hold: int = 8,
        max_experts: int | None = None,
        buffer_size: int = 1000,
        select_every: int = 64,
        answer: str = "selector",
        loss_fn: str | Callable[..., Tensor] = "cross_entropy",
        optimizer_fn: Callable[..., torch.optim.Optimizer] | None = None,
        lr: float = 0.1,
        gradient_clip_value: float | None = None,
        published: bool = False,
        device: str = "cpu",
        nominal_attributes: Sequence[Hashable] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(nominal_attributes)
        if module is not None and expert is not None:
            raise ArgumentError("TAME got module and expert, expected one kind. Leave one out.")
        if answer not in ANSWERS:
            raise UnknownNameError("answer", answer, ANSWERS)
        for name, number in (("window", window), ("buffer_size", buffer_size)):
            if number < 2:
                raise ArgumentError(f"{name}={number} is too small. Choose 2 or more.")
        for name, count in (("batch_size", batch_size), ("max_experts", max_experts)):
            if count is not None and count < 1:
                raise ArgumentError(f"{name}={count} is not a number from 1. Choose one, or None.")
        self.module = module
        self.expert = expert
        self.selector = selector
        self.batch_size = batch_size
        self.window = window
        self.smoothing = smoothing
        self.hold = hold
        self.max_experts = max_experts
        self.buffer_size = buffer_size
        self.select_every = select_every
        self.answer = answer
        self.loss_fn = loss_fn
        self.optimizer_fn = optimizer_fn
        self.lr = lr
        self.gradient_clip_value = gradient_clip_value
        self.published = published
        self.device = device
        self.seed = seed
        self._encoder = RowEncoder()
        self._from_rows = True  # not from tensors
        self._waiting = _no_rows(0)  # rows, labels and weights that do not fill a batch yet
        self._rng = np.random.default_rng(seed)
        self._mixture: Mixture | None = None

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {}
        yield {"batch_size": 16, "window": 4, "select_every": 4, "lr": 0.01}
        yield {"expert": HoeffdingTree(grace_period=20), "window": 20, "answer": "active"}

    # ------------------------------------------------------------------------------------ tensors

    def learn_batch(self, x: Tensor, y: Tensor) -> None:
        """Learn one mini-batch of any size and shape, one step.

        A model learns either from tensors or from rows (dicts, arrays, frames), not from both.

        Args:
            x: ``[B, ...]``, finite.
            y: ``[B]`` labels, whole numbers.

        Raises:
            ArgumentError: Shapes or values cannot work, or the model learned from rows before.
        """
        x = self._checked(x)
        if y.shape != x.shape[:1] or y.is_floating_point():
            raise ArgumentError(
                f"y is {y.dtype} {list(y.shape)}, expected {len(x)} whole numbers for x "
                f"{list(x.shape)}. Give one class per row."
            )
        if len(x) == 0:
            return
        codes, new = self._labels.codes(y.cpu().numpy())
        for _, label in new:
            self._labels.add(label)
        if not self._begun:
            self._begun, self._from_rows = True, False
            self._start(tuple(x.shape[1:]), len(self._labels))
        elif new:
            self._learned.widen(self._learned.shape, len(self._labels))
        self._learned.observe(Batch(x, torch.from_numpy(codes), torch.ones(len(x))))
        self._num_learned += len(x)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Probabilities ``[N, C]``, columns in the order of ``classes_``.

        Args:
            X: Rows ``[N, d]``; or, after :meth:`learn_batch`, inputs ``[N, ...]``, in one pass.
        """
        if self._from_rows:
            return super().predict_proba(X)
        x = self._checked(torch.as_tensor(X))
        return self._learned.answer(_inputs(x)).numpy()

    def _checked(self, x: Tensor) -> Tensor:
        if self._begun and self._from_rows:
            raise ArgumentError(
                "This model learned from rows (dicts, arrays or frames), so it takes no tensors. "
                "Use partial_fit and predict with arrays, or a new model."
            )
        x = x.detach().cpu().float()
        shape = None if self._mixture is None else self._mixture.shape
        if x.ndim < 2 or shape not in (None, x.shape[1:]):
            expected = "..." if shape is None else ", ".join(map(str, shape))
            raise ArgumentError(
                f"x has shape {list(x.shape)}, expected [B, {expected}]. Give a batch of inputs."
            )
        if not x.isfinite().all():
            raise ArgumentError(
                "x has NaN or infinite values, expected numbers. Replace them, for example by 0 "
                "with torch.nan_to_num."
            )
        return x

    # --------------------------------------------------------------------------------------- rows

    def _begin(self, columns: Columns, num_classes: int) -> None:
        self._encoder.grow(columns.num_numeric, columns.num_values)
        self._waiting = _no_rows(len(columns))
        self._start((self._encoder.num_inputs,), num_classes)

    def _grow(self, num_numeric: int, num_values: list[int], num_classes: int) -> None:
        self._need_rows()
        switcher = self._learned.switcher
        layout = num_numeric, len(num_values)
        rows, *rest = self._waiting
        self._waiting = (self._encoder.laid_out(rows, *layout), *rest)
        held = [self._encoder.laid_out(np.asarray(b.rows), *layout) for b in switcher.held]
        self._encoder.grow(num_numeric, num_values)
        switcher.held = [
            batch._replace(rows=rows, x=self._encoder(rows))
            for batch, rows in zip(switcher.held, held, strict=True)
        ]
        self._learned.widen((self._encoder.num_inputs,), num_classes)

    def _predict_rows(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        # One row at a time: products of other shapes would differ in the last bit.
        self._need_rows()
        return np.concatenate(
            [self._learned.answer(_inputs(self._encoder(r), r)).numpy() for r in x[:, None]]
            or [np.empty((0, len(self._labels)))]
        )

    def _learn_rows(self, x: NDArray[Any], y: NDArray[Any], w: NDArray[Any]) -> None:
        self._need_rows()
        taught = w > 0
        new = (x[taught], y[taught], w[taught])
        rows, codes, weights = map(np.concatenate, zip(self._waiting, new, strict=True))
        size = self.batch_size or (128 if self.expert is None else 1)
        done = len(rows) - len(rows) % size
        for start in range(0, done, size):
            part = slice(start, start + size)
            self._learned.observe(
                Batch(
                    self._encoder(rows[part]),
                    torch.from_numpy(codes[part]),
                    torch.from_numpy(weights[part]).float(),
                    rows[part],
                )
            )
        self._waiting = (rows[done:].copy(), codes[done:].copy(), weights[done:].copy())

    def _test_then_train_rows(
        self, x: NDArray[Any], y: NDArray[Any], w: NDArray[Any]
    ) -> NDArray[np.int64]:
        answers = np.empty(len(x), np.int64)
        for t in range(len(x)):
            row = x[t : t + 1]
            batch = _inputs(self._encoder(row), row)
            who = self._learned.who(batch.x)
            self._learned.answered(int(who[0]))
            answers[t] = self._learned.answer_of(batch, who).argmax()
            self._learn_rows(row, y[t : t + 1], w[t : t + 1])
        return answers

    def _need_rows(self) -> None:
        if not self._from_rows:
            raise ArgumentError(
                "This model learned from tensors, so it takes no dicts or arrays to learn. Use "
                "learn_batch, or a new model."
            )

    # ------------------------------------------------------------------------------------ learning

    @property
    def _learned(self) -> Mixture:
        assert self._mixture is not None  # after _start
        return self._mixture

    def _start(self, shape: tuple[int, ...], num_classes: int) -> None:
        self._mixture = Mixture(
            self._new_experts(), shape, num_classes, settings=self, rng=self._rng
        )

    def _new_experts(self) -> Experts:
        if self.expert is not None:
            return TreeExperts(self._new_pool)
        return TorchExperts(
            self.module or default_module,
            loss_fn=self.loss_fn,
            optimizer_fn=self.optimizer_fn,
            lr=self.lr,
            gradient_clip_value=self.gradient_clip_value,
            squash=self.published,
            device=self.device,
        )

    def _new_pool(self, num_experts: int, num_classes: int) -> ExpertPool:
        seed = int(self._rng.integers(2**31))
        assert self.expert is not None
        if not isinstance(self.expert, HoeffdingTree):
            return RiverPool(self.expert, self._columns, num_experts, num_classes, seed=seed)
        settings = self.expert._get_params()
        del settings["nominal_attributes"]
        max_bytes = int(settings.pop("max_size") * 2**20)
        return TreePool(self._columns, num_experts, num_classes, max_bytes=max_bytes, **settings)

    def consolidate(
        self,
        *,
        expert_sparsity: float = 0.98,
        selector_sparsity: float = 0.5,
        epochs: int = 200,
    ) -> Self:
        """Make the model small after the stream: train the selector, prune, retrain.

        Every expert loses the smallest of its weights and is retrained on the sample of its data,
        the selector likewise. Learning may go on afterwards; then weights grow back.

        Args:
            expert_sparsity: Share of each expert's weights that become 0; with 0, and trees, the
                experts stay as they are.
            selector_sparsity: Share of the selector's weights that become 0.
            epochs: Of each retraining, and of the selector's training before it.
        """
        self._learned.consolidate(
            expert_sparsity=expert_sparsity, selector_sparsity=selector_sparsity, epochs=epochs
        )
        return self

    def recorded(self) -> tuple[Tensor, Tensor]:
        """The sampled inputs ``[N, ...]``, and which expert learned each, ``[N]``."""
        samples = self._learned.samples
        owner = [torch.full((len(x),), expert) for expert, x in enumerate(samples)]
        return torch.cat([x for x in samples if len(x)]), torch.cat(owner)

    def set_selector(self, gate: gating.Gate) -> None:
        """Use a selector that was trained elsewhere.

        Args:
            gate: Built by :func:`moeapps.streams.tame_selector.new_gate` with the same factory.

        Raises:
            CheckpointError: It is for other inputs or experts.
        """
        self._learned.selector.replace(gate, self._learned.shape, len(self._learned.experts))

    # ------------------------------------------------------------------------------- files, numbers

    def _statistics(self) -> dict[str, Any]:
        return {"living": 0, "drifts": []} if self._mixture is None else self._mixture.statistics()

    def _state(self) -> dict[str, Any]:
        rows, y, w = self._waiting
        return {
            **self._learned.state(),
            "waiting_rows": rows,
            "waiting_y": y,
            "waiting_w": w,
            "encoder": self._encoder.state(),
            "shape": list(self._learned.shape),
            "from_rows": self._from_rows,
            "rng": self._rng.bit_generator.state,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._encoder.restore(state["encoder"])
        self._from_rows = state["from_rows"]
        self._waiting = tuple(state[f"waiting_{name}"] for name in ("rows", "y", "w"))
        self._start(tuple(state["shape"]), len(self._labels))
        self._learned.restore(state)
        self._rng.bit_generator.state = state["rng"]


def _no_rows(width: int) -> tuple[NDArray[Any], ...]:
    return np.empty((0, width)), np.empty(0, np.int64), np.empty(0)


def _inputs(x: Tensor, rows: NDArray[np.float64] | None = None) -> Batch:
    """Inputs without labels."""
    return Batch(x, torch.zeros(0), torch.zeros(0), rows)
