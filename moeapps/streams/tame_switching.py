"""When TAME leaves the active expert: its recent losses, their threshold, and the held batches."""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from moeapps.streams.tame_experts import Batch, Experts

SD_FLOOR = 0.005  # of the published program: equal losses do not make every batch a change
NUM_SD = 3.0


class LossWatch:
    r"""Losses of one expert while it was active, and the threshold they imply.

    .. math:: s = \alpha L + (1 - \alpha)\, s_{last}, \qquad
        \tau = \mathrm{mean}(window) + 3 \max(\mathrm{sd}(window), 0.005)

    Nothing changes while the expert is inactive, so its threshold is frozen.

    Args:
        window: How many recorded losses the threshold looks at.
        smoothing: :math:`\alpha`.
        burn_in: First losses that do not enter the window: those of the initial descent would
            lift the threshold above any later jump.
        least: No alarm before the window holds as many losses.
        start: A loss the window starts with (published rule).

    Notes:
        ``burn_in`` and ``least`` are departures from the paper, where they are 0.

    Example:
        >>> watch = LossWatch(window=4, least=2)
        >>> for _ in range(9):
        ...     watch.record(0.3)
        >>> round(watch.threshold, 3), watch.alarms(watch.after(0.3)), watch.alarms(watch.after(2))
        (0.315, False, True)
    """

    def __init__(
        self,
        *,
        window: int = 100,
        smoothing: float = 0.2,
        burn_in: int = 0,
        least: int = 0,
        start: float | None = None,
    ) -> None:
        self.smoothing = smoothing
        self.burn_in = burn_in
        self.least = least
        self.losses: deque[float] = deque([] if start is None else [start], maxlen=window)
        self.smooth = math.nan  # no loss yet
        self.recorded = 0
        self._measure()

    def after(self, loss: float, smooth: float | None = None) -> float:
        """What :math:`s` becomes with ``loss``, from its last value or from ``smooth``."""
        last = self.smooth if smooth is None else smooth
        if self.recorded <= self.burn_in and smooth is None:
            return loss  # the first that counts
        return self.smoothing * loss + (1 - self.smoothing) * last

    def record(self, loss: float) -> None:
        """Take the loss of a batch the expert learns from."""
        self.smooth = self.after(loss)
        self.recorded += 1
        if self.recorded > self.burn_in:
            self.losses.append(loss)
            self._measure()

    def _measure(self) -> None:
        losses = np.array(self.losses)
        self.mean = float(losses.mean()) if len(losses) else -math.inf
        self.sd = max(float(losses.std()), SD_FLOOR) if len(losses) else 0.0

    @property
    def threshold(self) -> float:
        r""":math:`\tau`; minus infinity without losses."""
        return self.mean + NUM_SD * self.sd

    def alarms(self, smooth: float) -> bool:
        """Whether the active expert's ``s`` says that the data changed; NaN does."""
        if len(self.losses) < self.least:
            return math.isnan(smooth)
        return not smooth <= self.threshold

    def rises(self, smooth: float) -> bool:
        """Whether ``s`` is more than one standard deviation above the mean."""
        return len(self.losses) >= self.least and smooth > self.mean + self.sd

    def fits(self, smooth: float) -> bool:
        """Whether an inactive expert's ``s`` says that the data are its own."""
        return smooth < self.threshold

    def state(self) -> dict[str, Any]:
        """Everything that changes, as plain values."""
        smooth = None if math.isnan(self.smooth) else self.smooth
        return {"losses": list(self.losses), "smooth": smooth, "recorded": self.recorded}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self.losses = deque(state["losses"], maxlen=self.losses.maxlen)
        self.smooth = math.nan if state["smooth"] is None else state["smooth"]
        self.recorded = state["recorded"]
        self._measure()


class Switcher:
    """Sends every mini-batch to the expert it belongs to.

    The active expert keeps the batch while its smoothed loss stays below its threshold. Above it,
    the first expert in order of creation whose loss fits takes over, and if none does, a new one.
    While the smoothed loss rises, batches wait in a short queue, so that the old expert is not
    overwritten before the switch; whoever wins learns them.

    Args:
        pool: The experts.
        make_watch: Makes the watch of a new expert.
        hold: Most batches that wait.
        max_experts: At this number the expert with the lowest smoothed loss is taken again, and
            its window starts anew.
        rng: Seeds of new experts and of what is random in a step.
        learned: Called with expert and batch after each step.

    Notes:
        Inactive experts are evaluated only when the active one is left. The losses are the same as
        with an evaluation at every batch: of an inactive expert only the current loss counts.
    """

    def __init__(
        self,
        pool: Experts,
        make_watch: Callable[[], LossWatch],
        *,
        hold: int,
        max_experts: int | None,
        rng: np.random.Generator,
        learned: Callable[[int, Batch], None],
    ) -> None:
        self.pool = pool
        self.make_watch = make_watch
        self.hold = hold
        self.max_experts = max_experts
        self.rng = rng
        self.learned = learned
        self.watches: list[LossWatch] = []
        self.active = 0
        self.held: list[Batch] = []
        self.smooth = math.nan  # of the active expert, with the batches that wait

    def create(self, shape: tuple[int, ...], num_classes: int) -> int:
        """Add an expert and return its number."""
        self.pool.add(shape, num_classes, seed=int(self.rng.integers(2**62)))
        self.watches.append(self.make_watch())
        return len(self.watches) - 1

    def observe(self, batch: Batch, num_classes: int) -> bool:
        """Learn one mini-batch; whether another expert took over."""
        before = self.active
        watch = self.watches[before]
        losses = {before: self.pool.loss(before, batch)}
        self.smooth = watch.after(losses[before], self.smooth if self.held else None)
        if watch.alarms(self.smooth):
            self.active = self._successor(batch, num_classes, losses)
        elif watch.rises(self.smooth) and len(self.held) < self.hold:
            self.held.append(batch)
            return False
        held, self.held = self.held, []
        for waiting in held:
            self._learn(waiting)
        self._learn(batch, None if held else losses.get(self.active))
        return self.active != before

    def _successor(self, batch: Batch, num_classes: int, losses: dict[int, float]) -> int:
        smooth = {self.active: self.smooth}
        for i, watch in enumerate(self.watches):
            if i != self.active:
                losses[i] = self.pool.loss(i, batch)
                smooth[i] = watch.after(losses[i])
                if watch.fits(smooth[i]):
                    return i
        if self.max_experts is None or len(self.watches) < self.max_experts:
            return self.create(tuple(batch.x.shape[1:]), num_classes)
        closest = min(smooth, key=lambda i: math.inf if math.isnan(smooth[i]) else smooth[i])
        self.watches[closest] = self.make_watch()  # it has a new task to learn
        return closest

    def _learn(self, batch: Batch, loss: float | None = None) -> None:
        expert = self.active
        self.watches[expert].record(self.pool.loss(expert, batch) if loss is None else loss)
        self.pool.learn(expert, batch, seed=int(self.rng.integers(2**62)))
        self.learned(expert, batch)

    def state(self) -> dict[str, Any]:
        """Everything but experts and held batches, as JSON values."""
        smooth = None if math.isnan(self.smooth) else self.smooth
        watches = [watch.state() for watch in self.watches]
        return {"active": self.active, "smooth": smooth, "watches": watches}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state` with as many experts."""
        self.active = state["active"]
        self.smooth = math.nan if state["smooth"] is None else state["smooth"]
        for watch, one in zip(self.watches, state["watches"], strict=True):
            watch.restore(one)
