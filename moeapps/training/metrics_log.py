"""``metrics.csv``: a Lightning logger whose rows survive a kill and a resume, none twice."""

import csv
import io
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from moeapps.data.integrity import atomic_write

_FLUSH_SECONDS = 1.0


class MetricsLog(Logger):
    """Append one row per step to a CSV file.

    Values logged for one step share a row. A metric seen for the first time adds a column, and the
    file is written anew. :meth:`state_dict` counts the rows that belong to a checkpoint: after
    :meth:`load_state_dict` the rows that a killed run wrote later are gone, and the resumed run
    writes them again.

    Args:
        path: The CSV file.

    Notes:
        Rows reach the disk at most a second after the next row began.

    Example:
        >>> import tempfile
        >>> log = MetricsLog(Path(tempfile.mkdtemp()) / "metrics.csv")
        >>> log.log_metrics({"val/acc": 0.5}, step=0)
        >>> log.finalize("success")
        >>> print(log.path.read_text().strip())
        step,val/acc
        0,0.5
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = ["step"]
        self._done = 0  # rows that are complete, on disk or waiting
        self._waiting: list[dict[str, float]] = []
        self._open: dict[str, float] = {}  # the row of the current step
        self._flushed_at = time.monotonic()

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.stem

    @property
    def version(self) -> str:
        """Empty: one file per run."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of ``step``."""
        number = float(step or 0)
        if self._open and self._open["step"] != number:
            self._waiting.append(self._open)
            self._done += 1
            self._open = {}
            if time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
                self._flush()
        self._open["step"] = number
        self._open.update({name: float(value) for name, value in metrics.items()})

    def state_dict(self) -> dict[str, Any]:
        """Rows written so far, for a checkpoint."""
        self._flush()
        return {"rows": self._done, "open": dict(self._open), "columns": list(self._columns)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut the file back to the rows of a checkpoint."""
        self._done, self._open, self._waiting = int(state["rows"]), dict(state["open"]), []
        self._columns = list(state["columns"])
        self._rewrite(keep=self._done)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last row too."""
        if self._open:
            self._waiting.append(self._open)
            self._done += 1
            self._open = {}
        self._flush()

    @rank_zero_only
    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        if not self._waiting:
            return
        new = [name for row in self._waiting for name in row if name not in self._columns]
        if new or not self.path.exists():
            self._columns += list(dict.fromkeys(new))
            self._rewrite(keep=self._done - len(self._waiting))
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(self._lines(self._waiting))
        self._waiting = []

    def _rewrite(self, keep: int) -> None:
        """Write the header and the first ``keep`` rows of the file anew."""
        old: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                old = list(csv.DictReader(file))[:keep]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self._columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(old)
        with atomic_write(self.path) as target:
            target.write(buffer.getvalue().encode())

    def _lines(self, rows: list[dict[str, float]]) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        for row in rows:
            writer.writerow([_text(row[name]) if name in row else "" for name in self._columns])
        return buffer.getvalue()


def _text(value: float) -> str:
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e15
    return str(int(value)) if whole else repr(value)
