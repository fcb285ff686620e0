"""Training with Lightning. Names load on first use, so importing this costs nothing."""

from moeapps.lazy import lazy_names

_NAMES = {
    "AtomicCheckpointIO": "moeapps.training.checkpoints",
    "BalanceStep": "moeapps.training.callbacks",
    "BestWeights": "moeapps.training.best_weights",
    "FreezeGates": "moeapps.training.callbacks",
    "GateStatistics": "moeapps.training.callbacks",
    "MetricsLog": "moeapps.training.metrics_log",
    "ResultsWriter": "moeapps.training.keeper",
    "RunFolder": "moeapps.training.runs",
    "RunKeeper": "moeapps.training.keeper",
    "JointOptimizer": "moeapps.training.rowwise",
    "LineProgress": "moeapps.training.progress",
    "MoEModule": "moeapps.training.base",
    "RNGState": "moeapps.training.checkpoints",
    "RowwiseAdagrad": "moeapps.training.rowwise",
    "TemperatureSchedule": "moeapps.training.callbacks",
    "build_optimizer": "moeapps.training.optim",
    "build_schedule": "moeapps.training.optim",
    "create_balancing": "moeapps.training.balancing",
    "load_model": "moeapps.training.export",
    "load_checkpoint": "moeapps.training.checkpoints",
    "parameter_groups": "moeapps.training.optim",
    "progress_bar": "moeapps.training.progress",
}

__all__ = [*_NAMES]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
