"""Keep the weights of the best validation, stop when it gets no better, end with them."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn


class BestWeights(pl.Callback):
    """Early stopping on the module's own score, which ends with the best weights in the module.

    After each validation the module has a ``score`` (a number; NaN never counts as better), and
    ``monitor_mode`` says whether it should be large (``"max"``) or small (``"min"``). A validation
    within an epoch counts as well as one at its end. All processes of a parallel training must
    compute the same score.

    Args:
        patience: Validations in a row without a better score that end the training; None never
            ends it.

    Notes:
        The best weights are part of each checkpoint, so that a resumed run still has them.
    """

    def __init__(self, patience: int | None = 3) -> None:
        self.patience = patience
        self.score: float | None = None
        self.epoch = -1
        self.waited = 0
        self._weights: dict[str, torch.Tensor] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare, remember, and stop if it is time."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        score = float(pl_module.score)  # type: ignore[arg-type]
        sign = -1.0 if getattr(pl_module, "monitor_mode", "max") == "min" else 1.0
        if np.isfinite(score) and (self.score is None or sign * score > sign * self.score):
            self.score, self.epoch, self.waited = score, trainer.current_epoch, 0
            self._weights = {
                name: value.detach().clone() for name, value in pl_module.state_dict().items()
            }
            return
        self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the best weights back, after the last checkpoint was written."""
        self._restore(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """A training that fails or is interrupted leaves the best weights too."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._restore(pl_module)

    def _restore(self, pl_module: pl.LightningModule) -> None:
        if self._weights is not None:
            pl_module.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {
            "score": self.score, "epoch": self.epoch, "waited": self.waited,
            "weights": self._weights,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.score, self.epoch = state_dict["score"], state_dict["epoch"]
        self.waited, self._weights = state_dict["waited"], state_dict["weights"]
