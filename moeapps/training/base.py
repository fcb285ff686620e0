"""The Lightning module that every task module of moeapps builds on."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from moeapps import gating
from moeapps.errors import ConfigError, UnknownNameError
from moeapps.gating.losses import LOSSES
from moeapps.training.callbacks import BalanceStep, GateStatistics
from moeapps.training.checkpoints import RNGState, check_state_dict


class MoEModule(pl.LightningModule):
    r"""Lightning module whose loss includes the auxiliary losses of all gates inside it.

    .. math:: L = L_{task} + \sum_i \lambda_i \, L_i(\text{routings of this step})

    It brings three callbacks: gate statistics under ``gate/<layer>/...``, the step of loss-free
    balance, and the random generators' state in each checkpoint. A checkpoint that belongs to
    another model is refused before a single tensor is copied.

    Args:
        aux_losses: Weight per loss name of :data:`moeapps.gating.losses.LOSSES`.

    Shape:
        - :meth:`shared_step` returns a scalar

    Raises:
        UnknownNameError: A name in ``aux_losses`` is not in the table.

    Notes:
        none

    Example:
        >>> import torch
        >>> from moeapps.gating import Gate, MoE, StackedMLP
        >>> class Regression(MoEModule):
        ...     def __init__(self):
        ...         super().__init__(aux_losses={"balance": 0.01})
        ...         self.model = MoE(Gate.topk(4, 3, 2), StackedMLP(3, 4, 8, 1))
        ...
        ...     def training_step(self, batch, batch_index):
        ...         x, y = batch
        ...         return self.shared_step(
        ...             lambda: (self.model(x) - y).square().mean(), batch_size=len(x)
        ...         )
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters())
        >>> module = Regression()
        >>> module.training_step((torch.randn(8, 4), torch.randn(8, 1)), 0).ndim
        0
    """

    def __init__(self, *, aux_losses: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.aux_losses = dict(aux_losses or {})
        for name in self.aux_losses:
            if name not in LOSSES:
                raise UnknownNameError("auxiliary loss", name, LOSSES)

    def shared_step(
        self,
        task_loss: Callable[[], Tensor],
        *,
        stage: str = "train",
        batch_size: int | None = None,
    ) -> Tensor:
        """Run ``task_loss``, add the auxiliary losses of the gates it used, and log both.

        Args:
            task_loss: Runs the model on the batch and returns the scalar task loss.
            stage: ``"train"`` adds the auxiliary losses; other stages only log ``<stage>/loss``.
            batch_size: Weight of this batch in the epoch's mean.

        Returns:
            The total loss, to be returned from ``training_step``.
        """
        if stage != "train" or not self.aux_losses:
            total = task_loss()
            self._log(f"{stage}/loss", total, batch_size)
            return total
        with gating.record(self) as recording:
            total = task_loss()
        for name, weight in self.aux_losses.items():
            value = recording.loss({name: 1.0})
            self._log(f"aux/{name}", value, batch_size)
            total = total + weight * value
        self._log("train/loss", total, batch_size)
        return total

    def take_from_data(self, *names: str, example: str) -> Any:
        """The trainer's data module, after it gave all hyper-parameters that are None.

        Args:
            names: Hyper-parameters, and attributes of the data module.
            example: A data module that fits, for the message.

        Raises:
            ConfigError: There is no data module, or one of another kind.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, names[0]):
            raise ConfigError(
                f"{type(self).__name__} got no data module with {names[0]}. Pass "
                f"datamodule={example}(...) to the trainer, or {names[0]}= to the module."
            )
        for name in names:
            if self.hparams[name] is None:
                self.hparams[name] = getattr(data, name)
        return data

    def _log(self, name: str, value: Tensor, batch_size: int | None) -> None:
        # Used without a trainer, as in a test or a notebook, or by one that logs nothing.
        if self._trainer is None or self._trainer.barebones:
            return
        self.log(
            name, value.detach(), prog_bar=name.endswith("/loss"), on_step=False, on_epoch=True,
            batch_size=batch_size, sync_dist=name == "train/loss" and self.trainer.world_size > 1,
        )  # fmt: skip

    def configure_callbacks(self) -> list[pl.Callback]:
        """Gate statistics, the step of loss-free balance, exact resume; the trainer's own win."""
        given = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        ours = (GateStatistics(), BalanceStep(), RNGState())
        return [callback for callback in ours if type(callback) not in given]

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch's, but a strict load that does not fit changes nothing.

        Raises:
            CheckpointError: Names or shapes differ from this model's.
        """
        if strict:
            check_state_dict(self, state_dict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
