"""Results of ``moeapps stream``: records of every model and seed, and the numbers of a table."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from moeapps.streams.metrics import (
    accuracy,
    kappa_m,
    kappa_temporal,
    recovery_time,
    usage_entropy,
)
from moeapps.streams.record import Record

if TYPE_CHECKING:
    from moeapps.streams.evaluation import Evaluation
    from moeapps.training.runs import RunFolder


class Results:
    """Records of every model and seed, and what the report needs to know of the stream.

    Args:
        models: Names in order.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self.models = list(models)
        self.records: dict[tuple[str, int], Record] = {}
        self.complete: list[int] = []
        self.facts: dict[str, np.ndarray] = {}

    def add(self, seed: int, evaluation: "Evaluation", *, complete: bool = False) -> None:
        """Take over the records of a seed."""
        stream = evaluation.stream
        self.facts = {
            "title": np.array(stream.card.title),
            "synthetic": np.array(stream.card.synthetic),
            "length": np.array(len(stream)),
            "drifts": np.array(stream.drifts, np.int64),
            "drift_width": np.array(stream.drift_width),
        }
        for name, record in evaluation.records.items():
            self.records[name, seed] = record
        if complete:
            self.complete.append(seed)

    @property
    def seeds(self) -> list[int]:
        """Seeds with any record, in order of their runs."""
        return list(dict.fromkeys(seed for _, seed in self.records))

    @property
    def drifts(self) -> list[int]:
        """True changes of the stream."""
        return [int(drift) for drift in self.facts["drifts"]]

    def of(self, name: str) -> list[Record]:
        """Records of a model, one per seed."""
        return [self.records[name, seed] for seed in self.seeds]

    def write(self, run: "RunFolder") -> None:
        """Write ``results.npz``."""
        arrays = {f"stream/{key}": value for key, value in self.facts.items()}
        arrays["complete"] = np.array(self.complete, np.int64)
        for (name, seed), record in self.records.items():
            for key, value in record.arrays().items():
                arrays[f"{self.models.index(name)}/{seed}/{key}"] = value
        run.write_results(arrays)

    @classmethod
    def read(cls, run: "RunFolder", models: Sequence[str]) -> "Results":
        """The results in a run folder; empty if it has none yet."""
        results = cls(models)
        parts: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        for key, value in run.read_results().items():
            owner, _, rest = key.partition("/")
            if owner == "complete":
                results.complete = value.tolist()
            elif owner == "stream":
                results.facts[rest] = value
            else:
                seed, _, name = rest.partition("/")
                parts.setdefault((results.models[int(owner)], int(seed)), {})[name] = value
        results.records = {key: Record.of(part) for key, part in parts.items()}
        return results

    def mean(
        self, name: str, measure: Callable[[Record], np.ndarray | Sequence[float]]
    ) -> np.ndarray:
        """A measure per window, mean of the seeds; NaN from where no seed has got."""
        longest = len(self.ends)
        rows = np.full((len(self.seeds), longest), np.nan)
        for row, record in zip(rows, self.of(name), strict=True):
            values = measure(record)
            row[: len(values)] = values
        counted = np.isfinite(rows).any(axis=0)
        means = np.full(longest, np.nan)
        means[counted] = np.nanmean(rows[:, counted], axis=0)
        return means

    @property
    def ends(self) -> np.ndarray:
        """Ends of the windows of the longest run."""
        return np.array(max((record.ends for record in self.records.values()), key=len))

    def recovery(self, name: str) -> np.ndarray:
        """Instances to recover ``[seeds, changes]``."""
        drifts, width = self.drifts, float(self.facts["drift_width"])
        times = [
            recovery_time(
                accuracy(record.windows()), np.array(record.ends), drift,
                width=width, until=following - width,
            )
            for record in self.of(name)
            for drift, following in pairwise([*drifts, np.inf])
        ]  # fmt: skip
        return np.array(times).reshape(len(self.seeds), len(drifts))


def summary(results: Results) -> dict[str, dict[str, list[float]]]:
    """Numbers of every model, one per seed."""
    found = {}
    for name in results.models:
        totals = [record.windows().summed() for record in results.of(name)]
        recovery = results.recovery(name)
        found[name] = {
            "accuracy": [float(accuracy(t)) for t in totals],
            "kappa_m": [float(kappa_m(t)) for t in totals],
            "kappa_temporal": [float(kappa_temporal(t)) for t in totals],
            "instances_per_cpu_second": [
                float(t.total / max(record.seconds, 1e-9))
                for t, record in zip(totals, results.of(name), strict=True)
            ],
            "drifts": [float(len(record.drifts)) for record in results.of(name)],
            "usage_entropy": [_entropy(record) for record in results.of(name)],
            "recovery": [float(value) for value in recovery[np.isfinite(recovery)]],
        }
    return found


def _entropy(record: Record) -> float:
    usage = record.arrays()["usage"].sum(axis=0)
    return float(usage_entropy(usage)) if usage.sum() else float("nan")
