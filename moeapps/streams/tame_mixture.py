"""TAME on mini-batches: experts, their switching, samples of their data, and the selector."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeapps.streams.tame_experts import Batch, Experts, TorchExperts, below
from moeapps.streams.tame_selector import Reservoir, Selector
from moeapps.streams.tame_switching import LossWatch, Switcher

_HISTORY = ("num_batches", "num_seen", "switches", "usage", "selected")


class Mixture:
    """What :class:`moeapps.streams.TAME` learns, whatever way the data come in.

    Args:
        experts: None yet; the first is made here.
        shape: Of one input.
        num_classes: Known classes.
        settings: The estimator, for its parameters.
        rng: Of everything random.
    """

    def __init__(
        self,
        experts: Experts,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        settings: Any,
        rng: np.random.Generator,
    ) -> None:
        half = settings.window // 2
        rule: dict[str, Any] = {"burn_in": half, "least": half}
        if settings.published:
            rule = {"start": math.log(num_classes)}
        self.switcher = Switcher(
            experts,
            partial(LossWatch, window=settings.window, smoothing=settings.smoothing, **rule),
            hold=0 if settings.published else settings.hold,
            max_experts=settings.max_experts,
            rng=rng,
            learned=self._remember,
        )
        self.shape = shape
        self.num_classes = num_classes
        self.rng = rng
        self.by_selector = settings.answer == "selector"
        # How often the selector learns during the stream.
        self.select_every = settings.select_every if self.by_selector else 0
        if settings.published:
            self.select_every = 0
        self.buffer_size = settings.buffer_size
        self.selector = Selector(settings.selector)
        self.reservoirs: list[Reservoir] = []  # what each expert has learned
        self.num_batches = 0
        self.num_seen = 0
        self.switches: list[int] = []  # rows seen at each change of the active expert
        self.usage: list[int] = []  # how often each expert gave the answer
        self.selected: list[int] = []  # how many rows each expert learned
        self.switcher.create(shape, num_classes)

    @property
    def experts(self) -> Experts:
        """All experts."""
        return self.switcher.pool

    def observe(self, batch: Batch) -> None:
        """Learn one mini-batch, and let the selector learn now and then."""
        self.num_seen += len(batch.y)
        if self.switcher.observe(batch, self.num_classes):
            self.switches.append(self.num_seen)
        self.num_batches += 1
        due = self.select_every > 0 and self.num_batches % self.select_every == 0
        if due and len(self.reservoirs) > 1:
            self.selector.fit(self.samples, steps=self.select_every, rng=self.rng)

    def _remember(self, expert: int, batch: Batch) -> None:
        while len(self.reservoirs) <= expert:
            self.reservoirs.append(Reservoir(self.buffer_size))
            self.selected.append(0)
        self.selected[expert] += len(batch.y)
        self.reservoirs[expert].add(batch.x, batch.y, self.rng.random(len(batch.y)))

    @property
    def samples(self) -> list[Tensor]:
        """Inputs that each expert has learned from."""
        return [reservoir.x for reservoir in self.reservoirs]

    def who(self, x: Tensor) -> Tensor:
        """The expert that answers each input, ``[B]``."""
        if not self.by_selector or self.selector.gate is None:
            return torch.full((len(x),), self.switcher.active)
        return self.selector(x)

    def answered(self, expert: int) -> None:
        """Count an answer of a test-then-train run."""
        self.usage += [0] * (expert + 1 - len(self.usage))
        self.usage[expert] += 1

    def answer(self, batch: Batch) -> Tensor:
        """Class probabilities ``[B, C]``, float64."""
        return self.answer_of(batch, self.who(batch.x))

    def answer_of(self, batch: Batch, who: Tensor) -> Tensor:
        """Class probabilities that each input gets from its own one of the experts."""
        proba = torch.zeros(len(batch.x), self.num_classes, dtype=torch.float64)
        for expert in sorted(set(who.tolist())):
            mine = who == expert
            rows = None if batch.rows is None else batch.rows[mine.numpy()]
            part = batch._replace(x=batch.x[mine], rows=rows)
            proba[mine] = self.experts.predict(expert, part)
        return proba

    def widen(self, shape: tuple[int, ...], num_classes: int) -> None:
        """More features or classes."""
        self.shape, self.num_classes = shape, num_classes
        if len(shape) == 1:
            for reservoir in self.reservoirs:
                reservoir.widen(shape[0])
        self.experts.widen(shape, num_classes)

    def consolidate(self, *, expert_sparsity: float, selector_sparsity: float, epochs: int) -> None:
        """Train the selector; prune and retrain it and the experts."""
        if isinstance(self.experts, TorchExperts) and expert_sparsity > 0:
            for i, reservoir in enumerate(self.reservoirs):
                self.experts.prune(
                    i, reservoir.x, reservoir.y, expert_sparsity, epochs=epochs, rng=self.rng
                )
        if len(self.reservoirs) > 1:
            rows = sum(map(len, self.reservoirs))
            steps = epochs * math.ceil(rows / self.selector.batch_size)
            self.selector.fit(self.samples, steps=steps, rng=self.rng)
            if selector_sparsity > 0:
                self.selector.prune(self.samples, selector_sparsity, epochs=epochs, rng=self.rng)

    def statistics(self) -> dict[str, Any]:
        """Experts, switches, and how often each expert learned and answered."""
        count = len(self.experts)
        return {
            "living": count,
            "active": self.switcher.active,
            "drifts": list(self.switches),
            "usage": np.array(self.usage + [0] * (count - len(self.usage))),
            "selected": np.array(self.selected + [0] * (count - len(self.selected))),
        }

    def state(self) -> dict[str, Any]:
        """Arrays and JSON values to go on from."""
        parts: dict[str, dict[str, Any]] = {
            "experts": self.experts.state(),
            "selector": self.selector.state(),
        }
        for i, reservoir in enumerate(self.reservoirs):
            parts[f"buffer{i}"] = reservoir.state()
        for i, batch in enumerate(self.switcher.held):
            arrays = {k: v.numpy() for k, v in batch._asdict().items() if isinstance(v, Tensor)}
            parts[f"held{i}"] = arrays if batch.rows is None else {**arrays, "rows": batch.rows}
        return {
            **{f"{part}/{k}": v for part, values in parts.items() for k, v in values.items()},
            "switcher": self.switcher.state(),
            "counts": [len(self.reservoirs), len(self.switcher.held)],
            "selector_size": [list(self.selector.shape), self.selector.num_experts],
            "history": {name: getattr(self, name) for name in _HISTORY},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        for _ in range(len(state["switcher"]["watches"]) - 1):
            self.switcher.create(self.shape, self.num_classes)
        self.experts.restore(below("experts/", state))
        self.switcher.restore(state["switcher"])
        shape, num_experts = state["selector_size"]
        self.selector.restore(below("selector/", state), tuple(shape), num_experts)
        num_reservoirs, num_held = state["counts"]
        self.reservoirs = [Reservoir(self.buffer_size) for _ in range(num_reservoirs)]
        for i, reservoir in enumerate(self.reservoirs):
            reservoir.restore(below(f"buffer{i}/", state))
        for i in range(num_held):
            arrays = below(f"held{i}/", state)
            rows = arrays.pop("rows", None)
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            self.switcher.held.append(Batch(**tensors, rows=rows))
        for name in _HISTORY:
            setattr(self, name, state["history"][name])
