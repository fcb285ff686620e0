"""What a model did in a test-then-train run, window by window."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moeapps.streams.metrics import Counts


@dataclass
class Record:
    """What one model did, one entry per window.

    Args:
        ends: Instance after the last of each window.
        counts: Instances, and how many the model, the majority class and the last label got right.
        living: Experts that are alive at the end of each window; NaN if the model does not say.
        usage: How often each expert gave the answer within each window; may grow over time.
        drifts: Instances at which the model saw a change. A model that only counts its changes
            has the end of the window instead.
        seconds: CPU time of the model's own work.
        predictions: Class index per instance, -1 = no answer; only if wanted.
    """

    ends: list[int] = field(default_factory=list)
    counts: list[tuple[int, int, int, int]] = field(default_factory=list)
    living: list[float] = field(default_factory=list)
    usage: list[np.ndarray] = field(default_factory=list)
    drifts: list[int] = field(default_factory=list)
    seconds: float = 0.0
    predictions: list[np.ndarray] = field(default_factory=list)

    def windows(self) -> Counts:
        """The counts per window."""
        return Counts(*np.array(self.counts, np.int64).reshape(-1, 4).T)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays."""
        experts = max(map(len, self.usage), default=0)
        usage = np.zeros((len(self.usage), experts))
        for row, part in zip(usage, self.usage, strict=True):
            row[: len(part)] = part
        return {
            "ends": np.array(self.ends, np.int64),
            "counts": np.array(self.counts, np.int64).reshape(-1, 4),
            "living": np.array(self.living, float),
            "usage": usage,
            "drifts": np.array(self.drifts, np.int64),
            "seconds": np.array(self.seconds),
            "predictions": np.concatenate([np.empty(0, np.int32), *self.predictions]),
        }

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Record":
        """The record with these arrays."""
        return cls(
            arrays["ends"].tolist(),
            [(n, model, majority, last) for n, model, majority, last in arrays["counts"].tolist()],
            arrays["living"].tolist(),
            list(arrays["usage"]),
            arrays["drifts"].tolist(),
            float(arrays["seconds"]),
            [arrays["predictions"]],
        )
