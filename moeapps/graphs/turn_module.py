"""The Lightning side of training by turns: optimisers, best weights, logs, checkpoints."""

from abc import ABC, abstractmethod
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from moeapps.errors import ArgumentError, CheckpointError, ConfigError, UnknownNameError
from moeapps.gating import Routing
from moeapps.graphs.metrics import METRICS, local_homophily
from moeapps.graphs.node_graph import NodeGraph
from moeapps.graphs.schedule import PHASES, TurnSchedule
from moeapps.graphs.turns import Outputs, Rows
from moeapps.training.base import MoEModule
from moeapps.training.checkpoints import check_state_dict
from moeapps.training.optim import build_optimizer

_KEY = "moeapps_turns"


class _RestoreBest(pl.Callback):
    """A training that fails or is interrupted leaves the module with its best weights."""

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(pl_module, TurnModule) and trainer.state.fn == TrainerFn.FITTING:
            pl_module.use_best()


class TurnModule(MoEModule, ABC):
    """Node classification in turns: one Lightning epoch is one epoch of the current turn.

    A subclass builds the network and says what learns, what it costs and how good it is. Here are
    the new optimiser per turn, early stopping and rollback by a
    :class:`~moeapps.graphs.schedule.TurnSchedule`, the best weights, and checkpoints from which a
    run continues inside a turn. Training ends by itself; leave the trainer's ``max_epochs`` at -1.

    The trainer's data module gives ``data``, ``num_features``, ``num_classes`` and ``metric``.
    The subclass's hyper-parameters include ``in_channels``, ``out_channels``, ``metric``,
    ``optimizer``, ``lr``, ``lr_pretrain`` and ``weight_decay``.

    Args:
        schedule: Phases and early stopping.
        aux_losses: Weight per auxiliary loss of the gates.
    """

    keeps_best = True
    model: nn.Module | None

    def __init__(
        self, schedule: TurnSchedule, *, aux_losses: dict[str, float] | None = None
    ) -> None:
        super().__init__(aux_losses=aux_losses)
        self.automatic_optimization = False
        self.schedule = schedule
        self.model = None
        self.graph: NodeGraph | None = None
        self.best: dict[str, Tensor] | None = None
        self.turn_best: dict[str, Tensor] | None = None
        self._full_batch = True
        self._all: Outputs | None = None  # of all nodes, after a test
        self._score: float | None = None

    # ------------------------------------------------------------------------ what a subclass says

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the network from the hyper-parameters."""

    @abstractmethod
    def start_turn(self) -> None:
        """Forget what was computed from weights or a phase that changed."""

    @abstractmethod
    def learning(self) -> nn.Module:
        """What learns in the current phase."""

    @abstractmethod
    def tell_data(self, data: Any) -> None:
        """Tell the data module what batches the current phase needs."""

    @abstractmethod
    def loss(self, rows: Rows | None) -> tuple[Tensor, Routing | None]:
        """Training loss of a step, by default of the training split; routing if a gate learns."""

    @abstractmethod
    def outputs(self, kind: str, rows: Rows | None) -> Outputs:
        """What a phase of this kind says about some rows, by default of the validation split."""

    @abstractmethod
    def measure(self, kind: str, outputs: Outputs) -> dict[str, Tensor]:
        """Named scalars; the one called ``score`` chooses the best epoch of a turn."""

    @abstractmethod
    def arrays(self, outputs: Outputs) -> dict[str, Tensor]:
        """Per-node arrays for the report."""

    @abstractmethod
    def predictions(self, outputs: Outputs) -> dict[str, Tensor]:
        """What ``predict`` returns for some nodes."""

    def gate_learns(self) -> bool:
        """Whether the current phase trains a gate, so that auxiliary losses apply."""
        return True

    def watch(self, c: Tensor) -> None:
        """Look at the confidence in the training nodes of a step."""

    def prepare_graph(self, graph: NodeGraph) -> NodeGraph:
        """Change the splits, if the method asks for it."""
        return graph

    # --------------------------------------------------------------------------- data and network

    def setup(self, stage: str) -> None:
        """Take sizes from the data, build the network once, check the graph."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if getattr(data, "data", None) is None:
            raise ConfigError(
                f"{type(self).__name__} got no data module with a graph. "
                "Pass datamodule=NodeData(...) to the trainer."
            )
        sizes = {"in_channels": data.num_features, "out_channels": data.num_classes}
        for name, found in sizes.items():
            if self.hparams[name] is None:
                self.hparams[name] = found
            elif self.hparams[name] != found:
                raise ArgumentError(
                    f"The network has {name}={self.hparams[name]} and the data {found}. "
                    "Use the data it was built for, or leave the argument out."
                )
        if self.hparams["metric"] is None:
            self.hparams["metric"] = data.metric
        if self.hparams["metric"] not in METRICS:
            raise UnknownNameError("metric", self.hparams["metric"], METRICS)
        self._full_batch = getattr(data, "loader", "full") == "full"
        if self.trainer.world_size > 1 and self._full_batch:
            raise ConfigError(
                f"Full-batch training got {self.trainer.world_size} devices, but one graph is one "
                "batch. Use devices=1, or the data module's loader='neighbor'."
            )
        if self.model is None:
            self.model = self.build()
        graph = NodeGraph.from_data(data.data, num_classes=self.hparams["out_channels"])
        self.graph = self.prepare_graph(graph)

    def _place(self) -> None:
        """Put the graph where the network is; Lightning moves the network only."""
        assert self.graph is not None
        self.graph = self.graph.to(self.device)
        self.start_turn()

    # ----------------------------------------------------------------------------------- training

    def configure_callbacks(self) -> list[pl.Callback]:
        """Those of every module, and the best weights after an interrupt."""
        own = [] if self.trainer.barebones else super().configure_callbacks()
        return [*own, _RestoreBest()]

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """A new optimiser for the current turn."""
        if self.schedule.phase == "done":
            return None
        learning = self.learning()
        if next(learning.parameters(), None) is None:
            raise ArgumentError(
                f"Nothing learns in phase {self.schedule.phase!r}: its parts have no parameters. "
                "Use gate='learned', or gate_data='train'."
            )
        return build_optimizer(
            learning,
            self.hparams["optimizer"],
            lr=self.hparams["lr_pretrain" if self.schedule.pretraining else "lr"],
            weight_decay=self.hparams["weight_decay"],
            fused=self.device.type in ("cpu", "cuda"),
        )

    def on_fit_start(self) -> None:
        """Check that every epoch will be validated: turns are judged by it."""
        if self.trainer.check_val_every_n_epoch != 1 or self.trainer.limit_val_batches == 0:
            raise ConfigError(
                "Turns are judged after every epoch, but the trainer skips validations. "
                "Leave out check_val_every_n_epoch and limit_val_batches."
            )
        self._place()
        if not self._full_batch:
            # Batches change with the turn, and a resumed epoch must draw what the lost one drew.
            self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        if self.schedule.phase == "done":
            self.trainer.should_stop = True
        else:
            self.tell_data(self.trainer.datamodule)  # type: ignore[attr-defined]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One optimiser step of the current turn."""
        rows = None if self._full_batch else Rows.of_batch(batch)
        routing: Routing | None = None

        def task_loss() -> Tensor:
            nonlocal routing
            loss, routing = self.loss(rows)
            return loss

        assert self.graph is not None
        size = len(self.graph.rows["train"] if rows is None else rows.index)
        if self.gate_learns():
            loss = self.shared_step(task_loss, batch_size=max(1, size))
        else:  # there is no routing for an auxiliary loss to read
            loss = task_loss()
            self._log("train/loss", loss, max(1, size))
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if routing is not None:
            self.watch(routing.weights.detach()[:, 0])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate the validation nodes on the whole graph; keep the score for the schedule."""
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        kind = self.schedule.kind if fitting else "done"
        self._score = self._log_measures(self.outputs(kind, None), "val", kind)
        if fitting:
            self._log("phase", torch.tensor(float(PHASES.index(kind))), 1)

    def on_train_epoch_end(self) -> None:
        """Tell the schedule how the epoch did, and follow it."""
        if self._score is None:
            raise ConfigError(
                "An epoch ended without validation, and turns are judged by it. Expected a "
                "validation loader with one batch or more; check the data module."
            )
        # Every process evaluated the same weights on the same graph; one of them decides.
        score = self.trainer.strategy.broadcast(self._score, src=0)
        self._score = None
        step = self.schedule.step(score)
        if step.improved:
            assert self.model is not None
            self.turn_best = {k: v.clone() for k, v in self.model.state_dict().items()}
        if not step.ended:
            return
        self._end_turn(step.accepted)
        if self.schedule.phase == "done":
            self.trainer.should_stop = True
        else:
            self.trainer.strategy.setup_optimizers(self.trainer)  # moments start anew
            self.tell_data(self.trainer.datamodule)  # type: ignore[attr-defined]

    def _end_turn(self, accepted: bool) -> None:
        if accepted:
            self.best = self.turn_best
        self.turn_best = None
        self._load(self.best)

    def on_train_end(self) -> None:
        """A training that was stopped from outside ends with its best weights too."""
        if self.schedule.phase != "done":
            self._end_turn(self.schedule.finish())

    def use_best(self) -> None:
        """Put the best weights so far into the model. Without effect on a finished training."""
        if self.schedule.phase != "done":
            self._load(self.turn_best if self.schedule.leading else self.best)

    def _load(self, weights: dict[str, Tensor] | None) -> None:
        if weights is not None and self.model is not None:
            self.model.load_state_dict(weights)
        self.start_turn()

    # --------------------------------------------------------------------------------- evaluation

    def all_outputs(self) -> Outputs:
        """What the model says about all nodes."""
        assert self.graph is not None
        nodes = torch.arange(len(self.graph.y), device=self.graph.y.device)
        return self.outputs("done", Rows.of_graph(self.graph, nodes))

    def _log_measures(self, outputs: Outputs, split: str, kind: str) -> float:
        measures = self.measure(kind, outputs)
        score = measures.pop("score")
        suffix = "" if split == "val" else f"_{split}"
        for name, value in measures.items():
            is_gate = name.startswith("c_")
            self._log(f"gate/{name}{suffix}" if is_gate else f"{split}/{name}", value, 1)
        return float(score)

    def on_validation_start(self) -> None:
        """Outside of training the best weights are judged."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._place()
            self.use_best()

    def on_test_start(self) -> None:
        """The best weights are tested, also those of a checkpoint from inside a turn."""
        self._place()
        self.use_best()

    def on_predict_start(self) -> None:
        """The best weights predict."""
        self._place()
        self.use_best()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate all nodes, for the report, and judge the test nodes."""
        assert self.graph is not None
        self._all = self.all_outputs()
        self._log_measures(self._all.pick(self.graph.rows["test"]), "test", "done")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Predict all nodes.

        Returns:
            ``label`` ``[V]`` and ``probability`` ``[V, n]``; a mixture adds ``confidence`` ``[V]``.
        """
        return self.predictions(self.all_outputs())

    def results(self) -> dict[str, np.ndarray]:
        """Per-node arrays of the last test, and the turns, for the report."""
        if self._all is None or self.graph is None:
            raise ConfigError("There are no results before a test. Call trainer.test(...) first.")
        arrays = {
            "label": self.graph.y,
            "local_homophily": local_homophily(self.graph.edge_index, self.graph.y),
            **self.arrays(self._all),
        }
        data = self.trainer.datamodule.data  # type: ignore[attr-defined]
        for name in ("train_mask", "val_mask", "test_mask", "kind"):
            if data.get(name) is not None:
                arrays[name] = data[name]
        turns = self.schedule.history
        return {
            **{name: value.cpu().numpy() for name, value in arrays.items()},
            "turn_phase": np.array([turn.phase for turn in turns]),
            "turn_start": np.array([turn.start for turn in turns]),
            "turn_epochs": np.array([turn.epochs for turn in turns]),
            "turn_best": np.array([turn.best for turn in turns]),
            "turn_accepted": np.array([turn.accepted for turn in turns]),
        }

    # -------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add where the training stands and the best weights."""
        checkpoint[_KEY] = {
            "schedule": self.schedule.state_dict(),
            "best": self.best,
            "turn_best": self.turn_best,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue where the checkpoint stands.

        Raises:
            CheckpointError: It was not written by a module that trains in turns, or does not fit.
        """
        state = checkpoint.get(_KEY)
        if state is None or self.model is None:
            raise CheckpointError(
                f"The checkpoint was not written by {type(self).__name__}. "
                "Use one from the same kind of run."
            )
        for weights in (state["best"], state["turn_best"]):
            if weights is not None:
                check_state_dict(self.model, weights)
        self.schedule.load_state_dict(state["schedule"])
        self.best, self.turn_best = state["best"], state["turn_best"]
