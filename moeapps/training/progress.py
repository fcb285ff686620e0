"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any, TextIO

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar


def progress_bar(every_seconds: float = 5.0, *, stream: TextIO | None = None) -> ProgressBar:
    """Rich bar when ``stream`` is a terminal, else :class:`LineProgress`.

    Args:
        every_seconds: Least time between two lines.
        stream: Where to look and write; default standard error.

    Example:
        >>> import io
        >>> type(progress_bar(stream=io.StringIO())).__name__
        'LineProgress'
    """
    stream = stream if stream is not None else sys.stderr
    return RichProgressBar() if stream.isatty() else LineProgress(every_seconds, stream=stream)


class LineProgress(ProgressBar):
    """One line at most every few seconds: epoch, phase, batch, losses and metrics, time left.

    For logs, pipes and notebooks, where a moving bar leaves thousands of lines. The phase is the
    Lightning module's attribute ``phase``, if it has one; its ``progress_metrics`` names the
    metrics to show, by default all. The first and the last epoch's end always get a line.

    Args:
        every_seconds: Least time between two lines.
        stream: Where to write; default standard error.

    Notes:
        The time left assumes that the run takes all its epochs; stopping early ends it sooner.

    Example:
        >>> LineProgress(10.0).every_seconds
        10.0
    """

    def __init__(self, every_seconds: float = 5.0, *, stream: TextIO | None = None) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._stream = stream
        self._enabled = True
        self._last = float("-inf")
        self._began = 0.0
        self._began_at = 0.0  # share of the work that was done when this process began
        self._loss: float | None = None

    def disable(self) -> None:
        """Write nothing from now on."""
        self._enabled = False

    def enable(self) -> None:
        """Write again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start(self._train_share(trainer, 0))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a line if it is time."""
        if not self._due():
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        running = {"loss": float(loss)} if isinstance(loss, torch.Tensor) else {}
        self._write_training(trainer, pl_module, batch_idx + 1, running)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a line if it is time, or if this epoch is the first or the last."""
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop
        if last or trainer.current_epoch == 0 or self._due():
            self._write_training(trainer, pl_module, 0, {})

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of a validation on its own."""
        if trainer.state.fn == "validate":
            self._start(0.0)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a line if it is time."""
        self.has_dataloader_changed(dataloader_idx)  # the totals below belong to this loader
        total = self.total_val_batches_current_dataloader
        alone = trainer.state.fn == "validate"
        # Within a training a validation of one batch is part of the epoch's own line.
        if not trainer.sanity_checking and (alone or total > 1):
            self._evaluated("validate", batch_idx, total, timed=alone)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start(0.0)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a line if it is time."""
        self.has_dataloader_changed(dataloader_idx)  # the totals below belong to this loader
        self._evaluated("test", batch_idx, self.total_test_batches_current_dataloader)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start(0.0)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a line if it is time."""
        self.has_dataloader_changed(dataloader_idx)  # the totals below belong to this loader
        self._evaluated("predict", batch_idx, self.total_predict_batches_current_dataloader)

    def _start(self, share: float) -> None:
        self._began, self._began_at = time.monotonic(), share

    def _due(self) -> bool:
        return time.monotonic() - self._last >= self.every_seconds

    def _evaluated(self, what: str, batch_idx: int, total: float, *, timed: bool = True) -> None:
        if self._due():
            share = (batch_idx + 1) / total if 0 < total < float("inf") else None
            times = self._times(share) if timed else []
            self._write([what, f"batch {batch_idx + 1}/{total}", *times])

    def _train_share(self, trainer: pl.Trainer, batches: int) -> float:
        """Share of the planned epochs, or else steps, that is done; 0 if nothing is planned."""
        per_epoch = self.total_train_batches
        part = batches / per_epoch if 0 < per_epoch < float("inf") else 0.0
        if trainer.max_epochs and trainer.max_epochs > 0:
            return min((trainer.current_epoch + part) / trainer.max_epochs, 1.0)
        return min(trainer.global_step / trainer.max_steps, 1.0) if trainer.max_steps > 0 else 0.0

    def _write_training(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batches: int,
        running: dict[str, float],
    ) -> None:
        """``batches`` is how far into the epoch we are, 0 at its end."""
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "?"
        parts = [f"epoch {trainer.current_epoch + 1}/{epochs}"]
        phase = getattr(pl_module, "phase", None)
        if phase:
            parts.append(str(phase))
        if batches and self.total_train_batches > 1:
            parts.append(f"batch {batches}/{self.total_train_batches}")
        shown = getattr(pl_module, "progress_metrics", None)
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/", "val/")) and (shown is None or name in shown)
        }
        parts += [f"{name} {value:.4g}" for name, value in (running | metrics).items()]
        share = self._train_share(trainer, batches or int(min(self.total_train_batches, 2**31)))
        self._write([*parts, *self._times(share)])

    def _times(self, share: float | None) -> list[str]:
        elapsed = time.monotonic() - self._began
        times = [f"{_clock(elapsed)} elapsed"]
        if share is not None and share > self._began_at:
            left = elapsed * (1 - share) / (share - self._began_at)
            times.append(f"{_clock(left)} left")
        return times

    def _write(self, parts: list[str]) -> None:
        self._last = time.monotonic()
        if self._enabled and (self._trainer is None or self._trainer.is_global_zero):
            stream = self._stream if self._stream is not None else sys.stderr
            stream.write(" | ".join(parts) + "\n")
            stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
