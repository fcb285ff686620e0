"""Lightning callbacks about gates: statistics, temperature, freezing, loss-free balance."""

import math
from contextlib import ExitStack
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from moeapps import gating
from moeapps.errors import ArgumentError
from moeapps.gating.stats import DeadExperts, routing_stats


class GateStatistics(pl.Callback):
    r"""Log what the gates do in training, one epoch mean per layer and name.

    ============================== =====================================================
    ``gate/<layer>/utilisation``   :math:`\exp(H(f)) / E`: experts in effective use, 0..1
    ``gate/<layer>/entropy``       mean entropy of a row's distribution over :math:`\ln E`
    ``gate/<layer>/dead_experts``  share of dead experts over the last ``window`` steps
    ``gate/<layer>/dropped``       share of assignments lost to capacity
    ============================== =====================================================

    Args:
        every_n_steps: Look at each n-th batch of an epoch; the first is always looked at.
        window: Steps over which the mean behind ``dead_experts`` fades.
        per_expert: Also log each expert's share as ``gate/<layer>/utilisation/<expert>``.

    Notes:
        The window behind ``dead_experts`` is part of each checkpoint.

    Example:
        >>> GateStatistics(every_n_steps=10).window
        100
    """

    def __init__(
        self, every_n_steps: int = 1, *, window: int = 100, per_expert: bool = False
    ) -> None:
        if every_n_steps < 1:
            raise ArgumentError(f"every_n_steps={every_n_steps} is not a number of steps (1...).")
        self.every_n_steps = every_n_steps
        self.window = window
        self.per_expert = per_expert
        self._open = ExitStack()
        self._recording: Any = None
        self._dead: dict[str, DeadExperts] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start to record the routings of this step."""
        if batch_idx % self.every_n_steps == 0:
            self._recording = self._open.enter_context(gating.record(pl_module))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the statistics of this step's routings."""
        if self._recording is None:
            return
        routings = self._recording.routings
        self._close()
        values: dict[str, Tensor] = {}
        for layer, calls in routings.items():
            if calls:
                values.update(self._layer_values(layer, calls))
        pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop recording when a step fails or is interrupted."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Fading shares by layer."""
        return {layer: tracker.share for layer, tracker in self._dead.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        for layer, share in state_dict.items():
            self._dead[layer] = DeadExperts(len(share), window=self.window)
            self._dead[layer].share = share

    def _close(self) -> None:
        self._recording = None
        self._open.close()

    def _layer_values(self, layer: str, calls: list[gating.Routing]) -> dict[str, Tensor]:
        """Mean over the calls of one layer in one step."""
        stats = [routing_stats(call) for call in calls]
        mean = {name: torch.stack([one[name] for one in stats]).mean(0) for name in stats[0]}
        num_experts = calls[0].num_experts
        tracker = self._dead.setdefault(layer, DeadExperts(num_experts, window=self.window))
        even = math.log(max(num_experts, 2))
        prefix = f"gate/{layer}"
        values = {
            f"{prefix}/utilisation": (mean["load_entropy"] * even).exp() / num_experts,
            f"{prefix}/entropy": mean["gate_entropy"],
            f"{prefix}/dead_experts": tracker.update(
                torch.stack([c.counts() for c in calls]).sum(0)
            ),
            f"{prefix}/dropped": mean["dropped"],
        }
        if self.per_expert:
            for expert, share in enumerate(mean["utilisation"].unbind()):
                values[f"{prefix}/utilisation/{expert}"] = share
        return {name: value.float() for name, value in values.items()}


class TemperatureSchedule(pl.Callback):
    r"""Move the temperature of every gate from ``start`` to ``end`` during training.

    .. math:: \tau(t) = \tau_0 + (\tau_1 - \tau_0)\, s(t / t_{end})

    with :math:`s(u) = u` (linear), :math:`(1 - \cos \pi u)/2` (cosine), or
    :math:`\tau(t) = \tau_0 (\tau_1/\tau_0)^u` (exponential).

    Args:
        start: Temperature at step 0.
        end: Temperature from step ``steps`` on.
        steps: Optimiser steps the change takes; default the whole run.
        shape: One of the three above.

    Raises:
        ArgumentError: A temperature is not positive.

    Example:
        >>> schedule = TemperatureSchedule(2.0, 0.5, steps=10, shape="exponential")
        >>> [round(schedule.at(step, 10), 3) for step in (0, 5, 10, 99)]
        [2.0, 1.0, 0.5, 0.5]
    """

    def __init__(
        self,
        start: float,
        end: float,
        *,
        steps: int | None = None,
        shape: Literal["linear", "cosine", "exponential"] = "linear",
    ) -> None:
        if start <= 0 or end <= 0:
            raise ArgumentError(f"temperatures start={start}, end={end} must be positive.")
        if shape not in ("linear", "cosine", "exponential"):
            raise ArgumentError(f"shape={shape!r}; choose linear, cosine or exponential.")
        self.start = start
        self.end = end
        self.steps = steps
        self.shape = shape

    def at(self, step: int, steps: int) -> float:
        """Temperature at optimiser step ``step`` of a change that takes ``steps``."""
        done = min(step / max(steps, 1), 1.0)
        if self.shape == "exponential":
            return self.start * (self.end / self.start) ** done
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the temperature that belongs to this step; nothing to restore on resume."""
        steps = self.steps if self.steps is not None else trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ArgumentError(
                "TemperatureSchedule does not know how long the run is. Pass steps=, or give the "
                "trainer max_epochs or max_steps."
            )
        temperature = self.at(trainer.global_step, int(steps))
        for gate in _gates(pl_module):
            gate.temperature = temperature


class FreezeGates(pl.Callback):
    """Hold the gates' parameters still at the start of training, so that experts settle first.

    Args:
        steps: Optimiser steps for which gates get no gradient.

    Notes:
        Parameters that were frozen before training stay frozen. Gate parameters must be in the
        optimiser from the start. Under DDP use ``find_unused_parameters=True``.

    Example:
        >>> FreezeGates(100).steps
        100
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._held: list[torch.nn.Parameter] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Freeze or release the gates, by the number of steps done."""
        if trainer.global_step < self.steps:
            held = [p for gate in _gates(pl_module) for p in gate.parameters() if p.requires_grad]
            for parameter in held:
                parameter.requires_grad_(False)
            self._held += held
        else:
            self._release()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Release the gates if training ended earlier."""
        self._release()

    def _release(self) -> None:
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._held = []


class BalanceStep(pl.Callback):
    """Update the balance bias of every gate once per optimiser step (loss-free balance).

    Does nothing for gates without :class:`moeapps.gating.BalanceBias`.

    Example:
        >>> BalanceStep() is not None
        True
    """

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Move the biases against the load seen since the last step."""
        gating.step(pl_module)


def _gates(model: torch.nn.Module) -> list[gating.Gate]:
    return [module for module in model.modules() if isinstance(module, gating.Gate)]
