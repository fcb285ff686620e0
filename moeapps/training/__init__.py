"""Training with Lightning. Names load on first use, so importing this costs nothing."""

import importlib
from typing import Any

_NAMES = {
    "AtomicCheckpointIO": "moeapps.training.checkpoints",
    "BalanceStep": "moeapps.training.callbacks",
    "FreezeGates": "moeapps.training.callbacks",
    "GateStatistics": "moeapps.training.callbacks",
    "MetricsLog": "moeapps.training.metrics_log",
    "ResultsWriter": "moeapps.training.keeper",
    "RunFolder": "moeapps.training.runs",
    "RunKeeper": "moeapps.training.keeper",
    "LineProgress": "moeapps.training.progress",
    "MoEModule": "moeapps.training.base",
    "RNGState": "moeapps.training.checkpoints",
    "TemperatureSchedule": "moeapps.training.callbacks",
    "build_optimizer": "moeapps.training.optim",
    "build_schedule": "moeapps.training.optim",
    "load_model": "moeapps.training.export",
    "load_checkpoint": "moeapps.training.checkpoints",
    "parameter_groups": "moeapps.training.optim",
    "progress_bar": "moeapps.training.progress",
}

__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
