"""When a turn ends, whether it counts and what comes next. Pure Python: no torch, no Lightning.

The caller trains one epoch, scores it and calls ``step(score)``; the answer says whether to keep a
copy of the weights and whether the turn is over. ``state_dict()`` is plain numbers and strings.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from moeapps.errors import ArgumentError, UnknownNameError

PRETRAIN = ("none", "weak", "strong", "both")
# Kinds of phases; a metrics file holds the place in this list.
PHASES = ("done", "pretrain_weak", "pretrain_strong", "weak", "strong", "joint", "gate", "train")


class Step(NamedTuple):
    """What one scored epoch means.

    Args:
        improved: The best epoch of its turn so far: keep a copy of the weights.
        ended: The turn is over; the schedule already stands at the next phase.
        accepted: The ended turn counts: go back to its best epoch. Otherwise it is rolled back: go
            back to the best of the earlier turns.
    """

    improved: bool
    ended: bool
    accepted: bool


@dataclass
class Turn:
    """One turn that was played, for reports.

    Args:
        phase: ``"pretrain_weak"``, ``"weak:1"``, ...
        start: Number of epochs trained before it, over all turns.
        epochs: Epochs it took.
        best: Its best score; higher is better.
        accepted: Whether it was kept.
    """

    phase: str
    start: int
    epochs: int = 0
    best: float = -math.inf
    accepted: bool = False


class EarlyStopping:
    """Early stopping of one turn.

    Args:
        max_epochs: Longest turn.
        patience: Epochs in a row that may pass without a better score.

    Example:
        >>> stopping = EarlyStopping(100, 2)
        >>> [stopping.step(score) for score in (0.1, 0.5, 0.4, 0.5)]
        [True, True, False, False]
        >>> stopping.ended, stopping.best
        (True, 0.5)
    """

    def __init__(self, max_epochs: int, patience: int) -> None:
        for name, value in (("max_epochs", max_epochs), ("patience", patience)):
            if value < 1:
                raise ArgumentError(f"{name}={value} is too small. Choose 1 or more.")
        self.max_epochs = max_epochs
        self.patience = patience
        self.reset()

    def reset(self) -> None:
        """Start over."""
        self.epoch = 0
        self.best = -math.inf
        self.since = 0

    @property
    def ended(self) -> bool:
        """Whether the turn is over."""
        return self.epoch >= self.max_epochs or self.since >= self.patience

    def step(self, score: float) -> bool:
        """Count an epoch; true if its score, higher is better, is the best so far. NaN never is."""
        self.epoch += 1
        improved = score > self.best
        if improved:
            self.best, self.since = score, 0
        else:
            self.since += 1
        return improved

    def state_dict(self) -> dict[str, Any]:
        """Progress as plain numbers."""
        return {"epoch": self.epoch, "best": self.best, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.epoch, self.best, self.since = state["epoch"], state["best"], state["since"]


class TurnSchedule:
    """The phases of Mowst and Mowst*, in order.

    Mowst: pretraining, then rounds of a weak and a strong turn until ``round_patience`` rounds in a
    row bring nothing. A turn counts only if its best score beats the best of all earlier turns.
    Anything else: pretraining, then a single phase.

    Args:
        single: Name of the only phase after pretraining; None plays rounds of turns.
        pretrain: ``"none"``, ``"weak"``, ``"strong"`` or ``"both"``.
        epochs: Longest turn.
        patience: Epochs without a better score that end a turn.
        rounds: Most rounds.
        round_patience: Rounds without a counting turn that end the training.

    Example:
        >>> schedule = TurnSchedule(pretrain="strong", epochs=1, rounds=1)
        >>> phases = [schedule.phase]
        >>> while schedule.phase != "done":
        ...     _ = schedule.step(0.5)
        ...     phases.append(schedule.phase)
        >>> phases
        ['pretrain_strong', 'weak:1', 'strong:1', 'done']
    """

    def __init__(
        self,
        *,
        single: str | None = None,
        pretrain: Literal["none", "weak", "strong", "both"] = "strong",
        epochs: int = 300,
        patience: int = 30,
        rounds: int = 10,
        round_patience: int = 2,
    ) -> None:
        if pretrain not in PRETRAIN:
            raise UnknownNameError("pretrain", pretrain, PRETRAIN)
        for name, value in (("rounds", rounds), ("round_patience", round_patience)):
            if value < 1:
                raise ArgumentError(f"{name}={value} is too small. Choose 1 or more.")
        self.single = single
        self.pretrain = pretrain
        self.rounds = rounds
        self.round_patience = round_patience
        self.turn = EarlyStopping(epochs, patience)
        self.total_epochs = 0
        self.best = -math.inf
        self.barren_rounds = 0
        self.history: list[Turn] = []
        self._begin(self._first())

    def _first(self) -> str:
        if self.pretrain in ("weak", "both"):
            return "pretrain_weak"
        return "pretrain_strong" if self.pretrain == "strong" else self._main()

    def _main(self) -> str:
        return self.single or "weak:1"

    def _begin(self, phase: str) -> None:
        self.phase = phase
        self.turn.reset()
        if phase != "done":
            self.history.append(Turn(phase, self.total_epochs))

    @property
    def kind(self) -> str:
        """The phase without its round: ``"weak"`` for ``"weak:3"``."""
        return self.phase.partition(":")[0]

    @property
    def pretraining(self) -> bool:
        """Whether one expert is trained alone; its scores are not compared with a mixture's."""
        return self.phase.startswith("pretrain")

    @property
    def leading(self) -> bool:
        """Whether the best epoch of the current turn is the best of the whole training so far."""
        return self.turn.best > -math.inf and (self.pretraining or self.turn.best > self.best)

    def step(self, score: float) -> Step:
        """Count one trained epoch of the current phase.

        Args:
            score: Validation score of the epoch; higher is better, NaN counts as no improvement.

        Raises:
            ArgumentError: When the training is done.
        """
        if self.phase == "done":
            raise ArgumentError("The schedule is done; there is no epoch to count.")
        improved = self.turn.step(score)
        self.total_epochs += 1
        self.history[-1].epochs = self.turn.epoch
        self.history[-1].best = self.turn.best
        if not self.turn.ended:
            return Step(improved, False, False)
        return Step(improved, True, self._end())

    def finish(self) -> bool:
        """Break off where the training stands; true if the current turn's best epoch counts."""
        accepted = self.phase != "done" and self.turn.epoch > 0 and self._accept()
        self.phase = "done"
        return accepted

    def _accept(self) -> bool:
        accepted = self.leading
        self.history[-1].accepted = accepted
        if accepted and not self.pretraining:
            self.best = self.turn.best
        return accepted

    def _end(self) -> bool:
        accepted = self._accept()
        self._begin(self._next())
        return accepted

    def _next(self) -> str:
        if self.phase == "pretrain_weak":
            return "pretrain_strong" if self.pretrain == "both" else self._main()
        if self.phase == "pretrain_strong":
            return self._main()
        if self.kind == "weak":
            return self.phase.replace("weak", "strong")
        if self.kind != "strong":
            return "done"
        fruitful = any(turn.accepted for turn in self.history[-2:])
        self.barren_rounds = 0 if fruitful else self.barren_rounds + 1
        number = int(self.phase.partition(":")[2])
        if number >= self.rounds or self.barren_rounds >= self.round_patience:
            return "done"
        return f"weak:{number + 1}"

    def state_dict(self) -> dict[str, Any]:
        """Progress as plain numbers, strings and lists."""
        return {
            "phase": self.phase,
            "turn": self.turn.state_dict(),
            "total_epochs": self.total_epochs,
            "best": self.best,
            "barren_rounds": self.barren_rounds,
            "history": [asdict(turn) for turn in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`, inside a turn if it was taken there."""
        self.phase = state["phase"]
        self.turn.load_state_dict(state["turn"])
        self.total_epochs = state["total_epochs"]
        self.best = state["best"]
        self.barren_rounds = state["barren_rounds"]
        self.history = [Turn(**turn) for turn in state["history"]]
