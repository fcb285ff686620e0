"""Progress of ``moeapps stream``: a moving table on a terminal, now and then a line elsewhere."""

import time
from typing import TYPE_CHECKING, Any

from moeapps.cli.console import messages
from moeapps.streams.metrics import Counts, accuracy, kappa_m, kappa_temporal

if TYPE_CHECKING:
    from moeapps.streams.evaluation import Evaluation, Record

EVERY = 5.0  # seconds between two lines


class Progress:
    """Shows how far a run is and how its models do, over the last windows.

    Args:
        num_seeds: Seeds in all.
    """

    def __init__(self, num_seeds: int) -> None:
        self.num_seeds = num_seeds
        self._out = messages()
        self._live: Any = None
        self._said = 0.0
        self._began: tuple[int, float, int] | None = None  # seed, time, instances then

    def __enter__(self) -> "Progress":
        self._said = time.monotonic()
        if self._out.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._out, transient=True, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, evaluation: "Evaluation", index: int, seed: int) -> None:
        """Called after every window."""
        now = time.monotonic()
        if self._began is None or self._began[0] != seed:
            self._began = seed, now, evaluation.done
        if self._live is not None:
            self._live.update(self._table(evaluation, index, seed, now))
        elif now - self._said >= EVERY:
            self._said = now
            told = "; ".join(
                f"{name}: " + ", ".join(f"{key} {text}" for key, text in numbers(record).items())
                for name, record in evaluation.records.items()
            )
            self._out.print(f"{self._where(evaluation, index, seed, now)}; {told}", markup=False)

    def _where(self, evaluation: "Evaluation", index: int, seed: int, now: float) -> str:
        assert self._began is not None
        total, done = len(evaluation.stream), evaluation.done
        text = f"{evaluation.stream.name}: {done:,}/{total:,} ({done / total:.0%})"
        if self.num_seeds > 1:
            text += f", seed {seed} ({index + 1} of {self.num_seeds})"
        _, began, start = self._began
        if done > start:
            text += f", {(now - began) * (total - done) / (done - start):.0f} s left"
        return text

    def _table(self, evaluation: "Evaluation", index: int, seed: int, now: float) -> Any:
        from rich.table import Table

        table = Table(
            title=self._where(evaluation, index, seed, now), title_justify="left", box=None
        )
        table.add_column("")
        rows = {name: numbers(record) for name, record in evaluation.records.items()}
        for key in next(iter(rows.values())):
            table.add_column(key, justify="right")
        for name, row in rows.items():
            table.add_row(name, *row.values())
        return table


def numbers(record: "Record", last: int = 10) -> dict[str, str]:
    """What a line of progress says about a model, over its last windows."""
    recent = Counts(*(part[-last:] for part in record.windows())).summed()
    instances = sum(n for n, *_ in record.counts)
    return {
        "accuracy": f"{accuracy(recent):.1%}",
        "kappa-M": f"{kappa_m(recent):.1%}",
        "kappa-temporal": f"{kappa_temporal(recent):.1%}",
        "drifts": str(len(record.drifts)),
        "instances/s": f"{instances / max(record.seconds, 1e-9):,.0f}",
    }
