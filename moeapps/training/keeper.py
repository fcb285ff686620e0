"""Lightning callback that keeps a run folder usable at every moment."""

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from moeapps.training.best_weights import BestWeights
from moeapps.training.metrics_log import MetricsLog
from moeapps.training.runs import RunFolder

CONFIG_KEY = "moeapps_config"
# A run that is stopped early should not have to start again.
FIRST_SECONDS = 1.0


class RunKeeper(Checkpoint):
    """Write ``last.ckpt`` by time and ``best.ckpt`` by validation score; keep both exact.

    Both are written between two epochs, when schedulers have stepped and metrics are logged, so
    that a resumed run repeats nothing and skips nothing. The best weights are held in memory and
    written with ``last.ckpt``: epochs of a few milliseconds are not spent on writing files.

    A module says how it chooses: ``monitor`` (a logged name) and ``monitor_mode``. A module with
    ``keeps_best = True`` puts its own best weights back when training ends.

    Args:
        run: The run folder.
        log: Its metrics; their position is part of each checkpoint.
        config: Configuration of the run, stored in each checkpoint so that the file is enough.
        every_seconds: Least time between two writes, the first after one second at most. Zero
            writes after every epoch.
        on_start: Called once when training really begins.

    Notes:
        none
    """

    def __init__(
        self,
        run: RunFolder,
        log: MetricsLog,
        *,
        config: dict[str, Any],
        every_seconds: float = 10.0,
        on_start: Callable[[], None] | None = None,
    ) -> None:
        self.run = run
        self.metrics_log = log
        self.config = config
        self.every_seconds = every_seconds
        self.on_start = on_start
        self.best_score: float | None = None
        self.best_epoch = -1
        self.interrupted = False
        self._best_weights: dict[str, torch.Tensor] | None = None
        self._best_is_written = True
        self._written_at = time.monotonic()
        self._started_epoch = -1

    # -- between two epochs ---------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell that everything was found and fits; let the first checkpoint come soon."""
        self._written_at = time.monotonic() - max(0.0, self.every_seconds - FIRST_SECONDS)
        if self.on_start is not None:
            self.on_start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what stands between the epochs, if it is time."""
        first = self._started_epoch < 0
        self._started_epoch = trainer.current_epoch
        due = time.monotonic() - self._written_at >= self.every_seconds
        if due and not first and not is_trial(trainer):
            self.write(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the weights if they are the best so far."""
        name = getattr(pl_module, "monitor", None)
        if name is None or getattr(pl_module, "keeps_best", False):
            return
        if name not in trainer.callback_metrics:
            return
        score = float(trainer.callback_metrics[name])
        sign = -1.0 if getattr(pl_module, "monitor_mode", "max") == "min" else 1.0
        better = self.best_score is None or sign * score > sign * self.best_score
        if better and np.isfinite(score):
            self.best_score, self.best_epoch = score, trainer.current_epoch
            self._best_weights = {
                key: value.detach().cpu().clone() for key, value in pl_module.state_dict().items()
            }
            self._best_is_written = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of the training."""
        if not is_trial(trainer):
            self.write(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the best weights, which no file may hold yet. The epoch under way is lost.

        Checkpoint callbacks come last, so a module that keeps its best weights has put them back.
        """
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        if trainer.state.fn != TrainerFn.FITTING or self._started_epoch < 0:
            return
        if getattr(pl_module, "keeps_best", False):
            self.write_best(trainer, pl_module.state_dict())
        else:
            self._write_best(trainer)

    # -- writing --------------------------------------------------------------------------------

    def write(self, trainer: pl.Trainer) -> None:
        """Write ``last.ckpt``, and ``best.ckpt`` if it is out of date."""
        trainer.save_checkpoint(self.run.last, weights_only=False)
        self._write_best(trainer)
        self._written_at = time.monotonic()

    def best_facts(self, pl_module: pl.LightningModule) -> dict[str, Any]:
        """By what, with which score and when the best weights were chosen; for the report.

        ``last`` says that none were: the module was told to take those of the end.
        """
        for callback in pl_module.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, BestWeights):
                self.best_score, self.best_epoch = callback.score, callback.epoch
        return {
            "monitor": getattr(pl_module, "monitor", None),
            "score": self.best_score,
            "epoch": self.best_epoch if self.best_epoch >= 0 else None,
            "last": pl_module.hparams.get("select") == "last",
        }

    def write_best(self, trainer: pl.Trainer, weights: dict[str, torch.Tensor]) -> None:
        """Write ``best.ckpt``: weights and what rebuilds the module, without optimiser states."""
        module = trainer.lightning_module
        checkpoint: dict[str, Any] = {
            "state_dict": weights,
            "epoch": trainer.current_epoch if self.best_epoch < 0 else self.best_epoch,
            "global_step": trainer.global_step,
            "pytorch-lightning_version": pl.__version__,
            "hyper_parameters": dict(module.hparams),
            CONFIG_KEY: self.config,
        }
        module.on_save_checkpoint(checkpoint)
        trainer.strategy.save_checkpoint(checkpoint, self.run.best)

    def _write_best(self, trainer: pl.Trainer) -> None:
        if self._best_is_written or self._best_weights is None or is_trial(trainer):
            return
        self.write_best(trainer, self._best_weights)
        self._best_is_written = True

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the configuration; mark the loops as standing between two epochs."""
        checkpoint[CONFIG_KEY] = self.config
        if "loops" not in checkpoint:
            return
        # Lightning records the next epoch as begun and the last one's batches as the next one's;
        # resuming from that skips an epoch.
        loop = checkpoint["loops"]["fit_loop"]
        epochs = loop["epoch_progress"]
        for counter in (epochs["total"], epochs["current"]):
            counter["ready"] = counter["started"] = counter["completed"]
        batches = loop["epoch_loop.batch_progress"]
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False

    def state_dict(self) -> dict[str, Any]:
        """Position in the metrics, and the best weights."""
        return {
            "log": self.metrics_log.state_dict(),
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "best_weights": self._best_weights,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.metrics_log.load_state_dict(state_dict["log"])
        self.best_score = state_dict["best_score"]
        self.best_epoch = state_dict["best_epoch"]
        self._best_weights = state_dict["best_weights"]
        self._best_is_written = self._best_weights is None


def is_trial(trainer: pl.Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which leaves no checkpoints."""
    return bool(getattr(trainer, "fast_dev_run", False))


class ResultsWriter(pl.Callback):
    """After a test, write ``results.npz`` from the module's ``results()``.

    Args:
        run: The run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the arrays, if the module has any."""
        results = getattr(pl_module, "results", None)
        if results is not None:
            self.run.write_results(results())
