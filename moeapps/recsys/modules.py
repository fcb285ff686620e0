"""The Lightning module for multi-task ranking."""

import itertools
import json
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from moeapps import gating
from moeapps.errors import ArgumentError, ConfigError, UnknownNameError
from moeapps.recsys.batch import Batch, num_rows
from moeapps.recsys.batch import to as batch_to
from moeapps.recsys.blocks import ExpertBank
from moeapps.recsys.losses import MultiTaskLoss
from moeapps.recsys.metrics import calibration_bins
from moeapps.recsys.optimizers import SPARSE_OPTIMIZERS, ranking_optimizer
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import as_schema, as_tasks
from moeapps.recsys.scoring import Collector, task_metrics
from moeapps.registry import create_model
from moeapps.training import balancing as strategies
from moeapps.training.balancing.base import (
    Balancing,
    LossBalancing,
    average_gradients,
    mean_over_processes,
)
from moeapps.training.base import MoEModule
from moeapps.training.best_weights import BestWeights
from moeapps.training.callbacks import GateStatistics
from moeapps.training.optim import OPTIMIZERS, build_schedule

_DIAGNOSED_BATCHES = 16  # for the report; moeapps diagnose takes all
_STATISTICS_EVERY = 50  # steps; looking into the gates costs as much as a small step itself


class MultiTaskRanker(MoEModule):
    r"""A ranking model on a log with several tasks.

    .. math:: L = \mathrm{balance}(L_1, \dots, L_T) + \text{what the method adds}

    with the task losses of :class:`~moeapps.recsys.losses.MultiTaskLoss` and a strategy of
    :mod:`moeapps.training.balancing`. Validation logs ``val/auc/<task>``, ``val/gauc/<task>`` (with
    a group key), ``val/logloss/<task>``, their means ``val/auc_mean`` and ``val/gauc_mean``, and
    ``val/loss``. Training ends with the weights of the best validation, never chosen on the test
    split.

    Args:
        model: Registered name, for example ``"home"``.
        model_args: Arguments of the model, without schema and tasks.
        balancing: Name of a strategy.
        balancing_args: Its arguments.
        compare_at: Where strategies that read gradients compare the tasks: at the shared
            ``"parameters"``, or at the network's ``"inputs"``, which is cheaper.
        lr: Learning rate of everything but the embeddings.
        embedding_lr: Learning rate of the embeddings; None for ``lr``.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        weight_decay: Weight decay of everything but embeddings, biases and norms.
        sparse_grad: Gradients of embeddings for the rows of the batch only, which the
            ``sparse_optimizer`` updates.
        sparse_optimizer: ``"rowwise_adagrad"`` or ``"sparse_adam"``.
        embedding_l2: Weight of the mean squared norm of a row's embeddings.
        schedule: ``"constant"`` or ``"cosine"``.
        warmup_steps: Steps of a linear warm-up.
        regression: Loss of regressions, ``"mse"`` or ``"huber"``.
        huber_delta: Of the Huber loss.
        reduction: ``"sum_tasks"``, or ``"mean_tasks"``.
        patience: Validations without a better score that end the training; None for no end.
        monitor: Logged name of the score; None for ``val/auc_mean``, or ``val/loss`` without binary
            tasks. Losses and errors should be small, AUCs large.
        schema: Features in plain form; by default the data's.
        tasks: Tasks in plain form; by default the data's.
        aux_losses: Weight per auxiliary loss of the gates.

    Raises:
        UnknownNameError: A name is not known.

    Notes:
        With several processes losses, counts and gradients are those of the global batch. Batch
        normalisation uses each process's own rows.

    Example:
        >>> from moeapps.recsys.schema import Categorical, FeatureSchema
        >>> schema = FeatureSchema([Categorical("user", 9, 4)]).to_dict()
        >>> module = MultiTaskRanker("mmoe", schema=schema, tasks=["click", "like"])
        >>> module.model({"cat": torch.tensor([[1], [2]])}).shape
        torch.Size([2, 2])
    """

    keeps_best = True
    default_epochs = 1  # ids overfit in the second epoch
    model: Ranker | None
    balancing: Balancing | None
    criterion: MultiTaskLoss | None

    def __init__(
        self,
        model: str = "home",
        *,
        model_args: dict[str, Any] | None = None,
        balancing: str = "equal",
        balancing_args: dict[str, Any] | None = None,
        compare_at: Literal["parameters", "inputs"] = "parameters",
        lr: float = 1e-3,
        embedding_lr: float | None = None,
        optimizer: str = "adam",
        weight_decay: float = 0.0,
        sparse_grad: bool = False,
        sparse_optimizer: Literal["rowwise_adagrad", "sparse_adam"] = "rowwise_adagrad",
        embedding_l2: float = 0.0,
        schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: int = 0,
        regression: Literal["mse", "huber"] = "mse",
        huber_delta: float = 1.0,
        reduction: Literal["sum_tasks", "mean_tasks"] = "sum_tasks",
        patience: int | None = 3,
        monitor: str | None = None,
        schema: dict[str, Any] | None = None,
        tasks: list[Any] | None = None,
        aux_losses: dict[str, float] | None = None,
    ) -> None:
        super().__init__(aux_losses=aux_losses)
        for kind, name, known in (
            ("balancing", balancing, strategies.BALANCINGS),
            ("place to compare tasks at", compare_at, ("parameters", "inputs")),
            ("optimiser", optimizer, OPTIMIZERS),
            ("sparse optimiser", sparse_optimizer, SPARSE_OPTIMIZERS),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        self.save_hyperparameters()
        kind = getattr(strategies, strategies.BALANCINGS[balancing])
        self.automatic_optimization = not kind.needs_gradients
        self.model = self.balancing = self.criterion = None
        self.monitor = monitor
        self.score = float("nan")
        self._rows = Collector()
        self._calibration: Any = None
        self._steps: list[Tensor] = []  # of this epoch: losses and weights of the tasks
        if schema is not None and tasks is not None:
            self.hparams["schema"] = as_schema(schema).to_dict()
            self.hparams["tasks"] = [task.to_dict() for task in as_tasks(tasks)]
            self.assemble()

    # --------------------------------------------------------------------------- data and network

    def build(self) -> Ranker:
        """Build the network from the hyper-parameters."""
        given = {"sparse_grad": True} if self.hparams["sparse_grad"] else {}
        network: Ranker = create_model(
            self.hparams["model"],
            schema=self.hparams["schema"],
            tasks=self.hparams["tasks"],
            **given,
            **(self.hparams["model_args"] or {}),
        )
        return network

    def assemble(self) -> None:
        """Build the network, its losses and their strategy from the hyper-parameters."""
        self.model = self.build()
        names = ("regression", "huber_delta", "reduction")
        options = {name: self.hparams[name] for name in names}
        self.criterion = MultiTaskLoss(self.model.tasks, **options)
        arguments = dict(self.hparams["balancing_args"] or {})
        if self.hparams["balancing"] == "uncertainty":
            kinds = [task.type == "regression" for task in self.model.tasks]
            arguments.setdefault("regression", kinds)
        self.balancing = strategies.create_balancing(
            self.hparams["balancing"], len(self.model.tasks), **arguments
        )
        if self.monitor is None:
            binary = any(task.type == "binary" for task in self.model.tasks)
            self.monitor = "val/auc_mean" if binary else "val/loss"

    @property
    def progress_metrics(self) -> tuple[str, ...]:
        """Logged names that a line of progress shows; all of them are too many."""
        return ("train/loss", "val/loss", "val/auc_mean", "val/gauc_mean", str(self.monitor))

    @property
    def monitor_mode(self) -> str:
        """``"min"`` for losses and errors, else ``"max"``."""
        metric = str(self.monitor).split("/")[1:2]
        return "min" if metric and metric[0] in ("loss", "logloss", "mse", "mae") else "max"

    def setup(self, stage: str) -> None:
        """Take schema and tasks from the data, build the network once."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "schema"):
            if self.model is None:
                raise ConfigError(
                    "MultiTaskRanker got no data module that knows its features. "
                    "Pass datamodule=RankingData(...) to the trainer, or schema= and tasks=."
                )
            return
        schema, tasks = data.schema.to_dict(), [task.to_dict() for task in data.tasks]
        if self.model is None:
            self.hparams["schema"] = self.hparams["schema"] or schema
            self.hparams["tasks"] = self.hparams["tasks"] or tasks
            self.assemble()
        self._check_data(schema, tasks)
        if self.trainer.world_size > 1 and self.hparams["sparse_grad"]:
            self.automatic_optimization = False  # DDP's own averaging knows no sparse gradients

    def _check_data(self, schema: dict[str, Any], tasks: list[dict[str, Any]]) -> None:
        """Features and tasks of the data must be those of the network."""
        if self.hparams["schema"] != schema:
            raise ArgumentError(
                "The data's features differ from those of the network: "
                f"{_difference(self.hparams['schema'], schema)}. Use the data it was built for."
            )
        ours, theirs = ([_kind(task) for task in part] for part in (self.hparams["tasks"], tasks))
        if ours != theirs:
            raise ArgumentError(
                f"The network predicts {ours}, the data has {theirs}. Use the data it was built "
                "for, or leave out tasks=."
            )

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a packed batch."""
        return batch_to(batch, device, non_blocking=True)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the network of the checkpoint: its vocabularies may differ from a new fit's."""
        stored = checkpoint.get("hyper_parameters", {})
        if stored.get("schema") and stored["schema"] != self.hparams["schema"]:
            self.hparams["schema"], self.hparams["tasks"] = stored["schema"], stored["tasks"]
            self.assemble()
            self.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the encoder, so that a checkpoint alone can predict from raw columns."""
        if self.model is not None:
            self.model.inputs.store.require_whole("A checkpoint of one file")
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            checkpoint.setdefault(type(data).__qualname__, data.state_dict())

    # ----------------------------------------------------------------------------------- training

    def configure_callbacks(self) -> list[pl.Callback]:
        """Those of every module, and early stopping with the best weights."""
        given = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        found: list[pl.Callback] = [BestWeights(self.hparams["patience"])]
        if not self.trainer.barebones:
            found += [GateStatistics(_STATISTICS_EVERY), *super().configure_callbacks()]
        kinds: dict[type, pl.Callback] = {}
        for callback in found:
            kinds.setdefault(type(callback), callback)
        return [callback for kind, callback in kinds.items() if kind not in given]

    def configure_optimizers(self) -> Any:
        """One optimiser; embeddings have their own group, or their own sparse optimiser in it."""
        assert self.model is not None
        optimizer = ranking_optimizer(self, self.model, self.hparams)
        steps = None
        if self.hparams["schedule"] == "cosine":
            steps = int(min(self.trainer.estimated_stepping_batches, 2**62))
        schedule = build_schedule(
            optimizer,
            self.hparams["schedule"],
            warmup_steps=self.hparams["warmup_steps"],
            total_steps=steps,
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """One step of the strategy."""
        assert self.balancing is not None
        if not self.automatic_optimization:
            self._own_step(batch)
            return None

        def task_loss() -> Tensor:
            losses, extra, _ = self._losses(batch)
            total, weights = cast(LossBalancing, self.balancing).total(losses)
            self._steps.append(torch.stack([losses.detach(), weights.detach()]))
            return total if extra is None else total + extra

        return self.shared_step(task_loss, batch_size=num_rows(batch))

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        """Losses of the tasks, what the method adds to them, and the network's inputs."""
        assert self.model is not None
        assert self.criterion is not None
        if "labels" not in batch:
            raise ArgumentError("A training batch has no labels. Pack it with pack(..., tasks).")
        logits, aux = self.model(batch, return_aux=True)
        losses = self.criterion(
            logits, batch["labels"], mask=batch.get("mask"), weight=batch.get("weight"),
            cut_points=self._cut_points(),
            synchronize=True,
        )  # fmt: skip
        extra = [self.model.penalty(logits)]
        if self.hparams["embedding_l2"]:
            blocks = self.model.inputs.store(batch)
            square = torch.stack([block.square().sum() for block in blocks]).sum()
            extra.append(self.hparams["embedding_l2"] * square / num_rows(batch))
        terms = [term for term in extra if term is not None]
        return losses, torch.stack(terms).sum() if terms else None, aux.inputs

    def _own_step(self, batch: Batch) -> None:
        """A step that Lightning does not take for us: of a strategy that reads gradients."""
        assert self.model is not None
        assert self.balancing is not None
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list)
        with gating.record(self.model) as recording:
            losses, extra, inputs = self._losses(batch)
        terms = [] if extra is None else [extra]
        terms += [weight * recording.loss({name: 1.0}) for name, weight in self.aux_losses.items()]
        optimizer.zero_grad()
        if terms:
            torch.stack(terms).sum().backward(retain_graph=True)
        at_inputs = self.hparams["compare_at"] == "inputs"
        weights = self.balancing.backward(
            losses, self._shared(), representation=inputs if at_inputs else None
        )
        average_gradients(p for p in self.parameters() if p.requires_grad)
        optimizer.step()
        schedule.step()  # type: ignore[union-attr]
        self._steps.append(torch.stack([losses.detach(), weights.detach()]))
        self._log("train/loss", losses.sum() + sum(terms), num_rows(batch))

    def _cut_points(self) -> dict[str, Tensor]:
        assert self.model is not None
        return {name: self.model.cut_points(name) for name in self.model.cuts}

    def _shared(self) -> list[nn.Parameter]:
        """Where tasks meet: for GradNorm the last layer of the last experts, else all of it."""
        assert self.model is not None
        if self.hparams["balancing"] == "gradnorm":
            gates = [m for m in self.model.modules() if isinstance(m, gating.Gate)]
            inner = {m for part in (self.model.towers, *gates) for m in part.modules()}
            banks = [m for m in self.model.modules() if isinstance(m, ExpertBank)]
            experts = [bank for bank in banks if bank not in inner]
            if experts:
                return [experts[-1].layers[-1][0].w]
        return list(self.model.shared_parameters())

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Show the strategy the losses after the step, if it wants them."""
        assert self.balancing is not None
        if self.balancing.needs_losses_after_step:
            with torch.no_grad():
                self.balancing.after_step(self._losses(batch)[0])

    def on_train_epoch_end(self) -> None:
        """Log the mean losses and weights of the tasks."""
        assert self.model is not None
        assert self.balancing is not None
        self.balancing.end_epoch()
        if self._steps:
            losses, weights = mean_over_processes(torch.stack(self._steps).mean(0))
            self._steps = []
            for t, task in enumerate(self.model.tasks):
                self._log(f"train/loss/{task.name}", losses[t], 1)
                self._log(f"balance/{task.name}", weights[t], 1)

    # --------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the logits."""
        self._collect(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the logits."""
        self._collect(batch)

    def _collect(self, batch: Batch) -> None:
        assert self.model is not None
        self._rows.add(self.model(batch), batch)

    def on_validation_epoch_end(self) -> None:
        """Judge all validation rows."""
        found = self._judge("val", calibration=False)
        if self.monitor not in found:
            raise UnknownNameError("monitor", self.monitor, found, "It is a logged name.")
        self.score = found.get(str(self.monitor), float("nan"))

    def on_test_epoch_end(self) -> None:
        """Judge all test rows."""
        self._judge("test", calibration=True)

    def results(self) -> dict[str, Any]:
        """Of the last test, for the report: calibration, what experts and gates do, latency."""
        from moeapps.recsys.diagnostics import diagnose
        from moeapps.recsys.serving import latency

        assert self.model is not None
        loader = self.trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        with torch.inference_mode(False):  # of a test; the diagnosis needs gradients
            batches = list(itertools.islice(loader, _DIAGNOSED_BATCHES))
        found = diagnose(self.model, batches, criterion=self.criterion)
        served = self.model.cpu().fuse_for_inference()
        times = latency(served, batches[0])
        self.model.to(self.device)
        return {
            "tasks": np.array(self.model.task_names),
            "calibration": self._calibration,
            "diagnosis": np.array(json.dumps(found.to_dict())),
            "latency": np.array(list(times.items())),
        }

    def _judge(self, split: str, *, calibration: bool) -> dict[str, float]:
        assert self.model is not None
        assert self.criterion is not None
        rows = self._rows.finish()
        logits, labels = rows["logits"], rows["labels"]
        with torch.no_grad():
            predictions = self.model.to_predictions(logits.to(self.device)).cpu()
            losses = self.criterion(
                logits.to(self.device), labels.to(self.device),
                weight=rows["weight"].to(self.device) if "weight" in rows else None,
                cut_points=self._cut_points(),
            )  # fmt: skip
        group = rows["group"].numpy() if "group" in rows else None
        found = task_metrics(
            self.model.tasks, logits.numpy(), predictions.numpy(), labels.numpy(), group,
            calibration=calibration,
        )  # fmt: skip
        found["loss"] = float(losses.sum())
        if calibration:
            binary = np.array([task.type == "binary" for task in self.model.tasks])
            bins = [calibration_bins(y, p) for y, p in zip(labels.T, predictions.T, strict=True)]
            self._calibration = np.where(binary[:, None, None], np.stack(bins), np.nan)
        found = {f"{split}/{name}": value for name, value in found.items()}
        for name, value in found.items():
            self._log(name, torch.tensor(value), 1)
        return found

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Probability, value or expected level of every task, by name."""
        assert self.model is not None
        predictions = self.model.predict_proba(batch)
        return {task.name: predictions[:, t] for t, task in enumerate(self.model.tasks)}


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The first feature that differs."""
    pairs = itertools.zip_longest(ours["features"], theirs["features"])
    for one, other in pairs:
        if one != other:
            return f"{one} in the network, {other} in the data"
    return f"group key {ours.get('group_key')!r} and {theirs.get('group_key')!r}"


def _kind(task: dict[str, Any]) -> str:
    return f"{task['name']} ({task.get('type', 'binary')})"
