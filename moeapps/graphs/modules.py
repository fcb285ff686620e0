"""The two Lightning modules for node classification: one network, and Mowst in turns."""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moeapps.errors import CollapseWarning, ConfigError, UnknownNameError
from moeapps.gating import Routing
from moeapps.graphs.metrics import METRICS, accuracy, expected_share
from moeapps.graphs.models.mowst import Mowst, MowstOutput, mowst, mowst_loss, reads_graph
from moeapps.graphs.node_graph import NodeGraph
from moeapps.graphs.schedule import TurnSchedule
from moeapps.graphs.turn_module import TurnModule
from moeapps.graphs.turns import Outputs, Rows, Turns, cross_entropy, expert_logits
from moeapps.registry import create_model

COLLAPSE_EPOCHS = 5
COLLAPSE_SHARE = 0.01


class NodeClassifier(TurnModule):
    r"""One network on nodes, cross-entropy, early stopping on the validation metric.

    Args:
        network: Registered name, for example ``"gcn"``.
        hidden_channels: Hidden width.
        num_layers: Depth.
        dropout: Dropout.
        network_arguments: More arguments of the network.
        optimizer: ``"adamw"``, ``"adam"`` or ``"sgd"``.
        lr: Learning rate.
        weight_decay: Weight decay.
        epochs: Longest training.
        patience: Epochs without a better validation metric that end the training.
        metric: ``"accuracy"`` or ``"auroc"``; by default what the data asks for.
        in_channels: Width of the features; by default the data's.
        out_channels: Classes; by default the data's.
        aux_losses: Weight per auxiliary loss of the network's gates.

    Notes:
        none

    Example:
        >>> module = NodeClassifier("gcn", hidden_channels=16, in_channels=8, out_channels=3)
        >>> type(module.model).__name__
        'GCN'
    """

    model: nn.Module

    def __init__(
        self,
        network: str = "gcn",
        *,
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.3,
        network_arguments: dict[str, Any] | None = None,
        optimizer: str = "adamw",
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        epochs: int = 300,
        patience: int = 30,
        metric: str | None = None,
        in_channels: int | None = None,
        out_channels: int | None = None,
        aux_losses: dict[str, float] | None = None,
    ) -> None:
        schedule = TurnSchedule(single="train", pretrain="none", epochs=epochs, patience=patience)
        super().__init__(schedule, aux_losses=aux_losses)
        self.save_hyperparameters()
        if in_channels is not None and out_channels is not None:
            self.model = self.build()

    def build(self) -> nn.Module:
        """Build the network from the hyper-parameters."""
        sizes = ("in_channels", "hidden_channels", "num_layers", "out_channels", "dropout")
        arguments = {name: self.hparams[name] for name in sizes}
        arguments.update(self.hparams["network_arguments"] or {})
        return create_model(self.hparams["network"], **arguments)

    def start_turn(self) -> None:
        """Keep the rows of each split at hand."""
        if self.graph is not None:
            self._split_rows = {
                split: Rows.of_graph(self.graph, self.graph.rows[split])
                for split in ("train", "val")
            }

    def learning(self) -> nn.Module:
        """The network."""
        return self.model

    def tell_data(self, data: Any) -> None:
        """Ask for neighbourhoods if the network reads them."""
        data.sample_neighbors = reads_graph(self.model)

    def loss(self, rows: Rows | None) -> tuple[Tensor, Routing | None]:
        """Mean cross-entropy."""
        self.model.train()
        rows = self._split_rows["train"] if rows is None else rows
        return cross_entropy(expert_logits(self.model, rows), rows.y), None

    def outputs(self, kind: str, rows: Rows | None) -> Outputs:
        """The network's logits."""
        self.model.eval()
        rows = self._split_rows["val"] if rows is None else rows
        with torch.no_grad():
            return Outputs(rows.y, strong_logits=expert_logits(self.model, rows))

    def measure(self, kind: str, outputs: Outputs) -> dict[str, Tensor]:
        """Loss, accuracy and the metric, which is the score."""
        logits = outputs.strong_logits
        assert logits is not None
        measures = {"loss": cross_entropy(logits, outputs.y), "acc": accuracy(logits, outputs.y)}
        if self.hparams["metric"] != "accuracy":
            measures[self.hparams["metric"]] = METRICS[self.hparams["metric"]](logits, outputs.y)
        score = "acc" if self.hparams["metric"] == "accuracy" else self.hparams["metric"]
        return {**measures, "score": measures[score]}

    def arrays(self, outputs: Outputs) -> dict[str, Tensor]:
        """Which nodes are right."""
        assert outputs.strong_logits is not None
        return {"correct": outputs.strong_logits.argmax(-1) == outputs.y}

    def predictions(self, outputs: Outputs) -> dict[str, Tensor]:
        """Labels and probabilities."""
        assert outputs.strong_logits is not None
        logits = outputs.strong_logits
        return {"label": logits.argmax(-1), "probability": logits.softmax(-1)}


class MowstClassifier(TurnModule):
    r"""Mowst or Mowst* on nodes, trained in turns.

    Mowst: the strong expert is pretrained; then weak expert and gate learn from the Mowst loss with
    the strong expert frozen, and the strong expert from :math:`\frac1{|T|}\sum (1-c_v)
    \mathrm{CE}(q_v)` with weak expert and gate frozen, turn by turn, each with early stopping. A
    turn that does not beat the best of all earlier turns is rolled back. Mowst* (``joint``): one
    optimiser over everything after pretraining. Frozen experts are in evaluation mode, and what
    they give is computed once per turn: a weak turn passes no messages.

    Epochs are chosen by the exact expected accuracy of the mixture (the ROC-AUC of the soft mixture
    where the data asks for it), for Mowst* by the validation loss.

    Args:
        strong: Registered name of the strong expert.
        weak: Registered name of the weak expert.
        hidden_channels: Hidden width of both experts.
        num_layers: Depth of both experts.
        dropout: Dropout of both experts.
        weak_arguments: More arguments of the weak expert.
        strong_arguments: More arguments of the strong expert.
        joint: Mowst* when true.
        gate: ``"learned"``, ``"learned+features"``, ``"hyper"`` or ``"power"``.
        gate_hidden: Hidden width of the gate; by default the experts'.
        gate_layers: Layers of the gate; by default the experts'.
        gate_dropout: Dropout of the gate.
        monotone: A learned gate that never falls when a dispersion grows.
        power: Exponent of the ``"power"`` gate.
        detach_dispersion: Whether the gradient stops at the dispersion.
        mix: What Mowst* mixes: ``"prob"`` or ``"logit"``.
        predict_mode: ``"soft"``, ``"hard"`` or ``"sample"``; by default soft if joint, else hard.
        threshold: Confidence above which ``"hard"`` takes the weak expert.
        pretrain: ``"none"``, ``"weak"``, ``"strong"`` or ``"both"``.
        gate_data: ``"train"``, or ``"val"``: after pretraining both experts, fit only the gate, on
            half of the validation nodes; the other half chooses epochs throughout.
        draw_by_confidence: With neighbour batches: draw the seeds of strong turns in proportion to
            :math:`1 - c_v + 0.05` and weight them by the inverse.
        optimizer: ``"adamw"``, ``"adam"`` or ``"sgd"``.
        lr_pretrain: Learning rate of pretraining.
        lr: Learning rate of the turns, or of the joint phase.
        weight_decay: Weight decay.
        epochs: Longest turn.
        patience: Epochs without a better score that end a turn.
        rounds: Most rounds of a weak and a strong turn.
        round_patience: Rounds without a turn that counts that end the training.
        sample_seed: Seed of the draws of ``predict_mode="sample"``.
        metric: ``"accuracy"`` or ``"auroc"``; by default what the data asks for.
        in_channels: Width of the features; by default the data's.
        out_channels: Classes; by default the data's.
        aux_losses: Weight per auxiliary loss of the gate.

    Notes:
        Departures from the released code: frozen experts stay in evaluation mode; the gate is saved
        and restored with the experts; Mowst* stops early; the expected accuracy is exact instead of
        a mean of 50 draws.

    References:
        Zeng et al., *Mixture of Weak and Strong Experts on Graphs*, ICLR 2024.
        https://arxiv.org/abs/2311.05185

    Example:
        >>> module = MowstClassifier("gcn", hidden_channels=16, in_channels=8, out_channels=3)
        >>> module.schedule.phase
        'pretrain_strong'
    """

    model: Mowst

    def __init__(
        self,
        strong: str = "gcn",
        weak: str = "mlp",
        *,
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.3,
        weak_arguments: dict[str, Any] | None = None,
        strong_arguments: dict[str, Any] | None = None,
        joint: bool = False,
        gate: str = "learned",
        gate_hidden: int | None = None,
        gate_layers: int | None = None,
        gate_dropout: float = 0.3,
        monotone: bool = False,
        power: float = 1.0,
        detach_dispersion: bool = True,
        mix: Literal["prob", "logit"] = "prob",
        predict_mode: Literal["soft", "hard", "sample"] | None = None,
        threshold: float = 0.5,
        pretrain: Literal["none", "weak", "strong", "both"] = "strong",
        gate_data: Literal["train", "val"] = "train",
        draw_by_confidence: bool = False,
        optimizer: str = "adamw",
        lr_pretrain: float = 0.01,
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        epochs: int = 300,
        patience: int = 30,
        rounds: int = 10,
        round_patience: int = 2,
        sample_seed: int = 0,
        metric: str | None = None,
        in_channels: int | None = None,
        out_channels: int | None = None,
        aux_losses: dict[str, float] | None = None,
    ) -> None:
        if gate_data not in ("train", "val"):
            raise UnknownNameError("gate_data", gate_data, ("train", "val"))
        if gate_data == "val" and pretrain != "both":
            raise ConfigError(
                f"gate_data='val' fits the gate between two trained experts, but "
                f"pretrain={pretrain!r} leaves one untrained. Use pretrain='both'."
            )
        single = "gate" if gate_data == "val" else "joint" if joint else None
        schedule = TurnSchedule(
            single=single,
            pretrain=pretrain,
            epochs=epochs,
            patience=patience,
            rounds=rounds,
            round_patience=round_patience,
        )
        super().__init__(schedule, aux_losses=aux_losses)
        self.save_hyperparameters()
        self._turns: Turns | None = None
        self._confidences: list[Tensor] = []
        self._collapsed_epochs = 0
        self._warned = False
        if in_channels is not None and out_channels is not None:
            self.model = self.build()

    def build(self) -> Mowst:
        """Build the mixture from the hyper-parameters."""
        names = (
            "in_channels", "hidden_channels", "num_layers", "out_channels", "strong", "weak",
            "dropout", "weak_arguments", "strong_arguments", "joint", "gate", "gate_hidden",
            "gate_layers", "gate_dropout", "monotone", "power", "detach_dispersion", "mix",
            "predict_mode", "threshold",
        )  # fmt: skip
        return mowst(**{name: self.hparams[name] for name in names})

    def prepare_graph(self, graph: NodeGraph) -> NodeGraph:
        """With ``gate_data="val"`` half of the validation nodes teach the gate."""
        return graph.halve_validation() if self.hparams["gate_data"] == "val" else graph

    def start_turn(self) -> None:
        """Forget what frozen experts gave."""
        if self.graph is not None:
            self.turns.start()

    @property
    def turns(self) -> Turns:
        """The steps on the current graph."""
        assert self.graph is not None
        if self._turns is None or self._turns.graph is not self.graph:
            self._turns = Turns(self.model, self.graph)
        return self._turns

    def learning(self) -> nn.Module:
        """What learns in the current phase."""
        self.turns.check(self.schedule.kind)
        return nn.ModuleList(self.turns.learning(self.schedule.kind))

    def tell_data(self, data: Any) -> None:
        """Ask for neighbourhoods where messages are passed, and for seeds drawn by confidence."""
        kind = self.schedule.kind
        data.sample_neighbors = self.turns.needs_graph(kind)
        by_confidence = self.hparams["draw_by_confidence"] and kind == "strong"
        data.confidence = self.turns.confidence() if by_confidence else None

    def loss(self, rows: Rows | None) -> tuple[Tensor, Routing | None]:
        """The loss of the current phase."""
        return self.turns.loss(self.schedule.kind, rows)

    def outputs(self, kind: str, rows: Rows | None) -> Outputs:
        """What the experts that matter in this phase say."""
        return self.turns.evaluate(kind, rows)

    def gate_learns(self) -> bool:
        """Whether the current phase trains the gate."""
        return self.model.gate in self.turns.learning(self.schedule.kind)

    def watch(self, c: Tensor) -> None:
        """Collect the confidence of an epoch's training nodes."""
        self._confidences.append(c)

    def on_train_epoch_end(self) -> None:
        """Guard against a collapsed gate, then follow the schedule."""
        if self._confidences:
            c = torch.cat(self._confidences)
            self._confidences = []
            self._log("gate/c_mean_train", c.mean(), 1)
            self._log("gate/c_std_train", c.std(correction=0), 1)
            self._guard(float(c.mean()))
        super().on_train_epoch_end()

    def _guard(self, mean: float) -> None:
        collapsed = not COLLAPSE_SHARE <= mean <= 1 - COLLAPSE_SHARE
        self._collapsed_epochs = self._collapsed_epochs + 1 if collapsed else 0
        if self._collapsed_epochs != COLLAPSE_EPOCHS or self._warned:
            return
        self._warned = True
        used, idle = ("weak", "strong") if mean > 0.5 else ("strong", "weak")
        warnings.warn(
            f"The mean confidence over the training nodes has been {mean:.3f} for "
            f"{COLLAPSE_EPOCHS} epochs: the mixture equals its {used} expert and the {idle} one "
            f"learns nothing. Expected 0.01 to 0.99. Pretrain the {idle} expert (pretrain=), fit "
            "the gate on validation nodes (gate_data='val'), or use one network.",
            CollapseWarning,
            stacklevel=2,
        )

    def measure(self, kind: str, outputs: Outputs) -> dict[str, Tensor]:
        """Losses, accuracies of both experts and of the mixture, confidence, and the score."""
        y, weak, strong, routing = (
            outputs.y,
            outputs.weak_logits,
            outputs.strong_logits,
            outputs.routing,
        )
        metric = self.hparams["metric"]
        if weak is None or strong is None or routing is None:
            alone, name = (strong, "acc_strong") if weak is None else (weak, "acc_weak")
            assert alone is not None
            acc = accuracy(alone, y)
            measures = {"loss": cross_entropy(alone, y), "acc": acc, name: acc}
            if metric != "accuracy":
                measures[metric] = METRICS[metric](alone, y)
            return {**measures, "score": acc if metric == "accuracy" else measures[metric]}
        # Every epoch of a turn ends here, so nothing is computed twice, or without need.
        mode = self.model.predict_mode
        needs_mixture = self.model.joint or mode == "soft" or metric != "accuracy"
        mixture = self.model.mixture(weak, strong, routing) if needs_mixture else None
        weak_right, strong_right = weak.argmax(-1) == y, strong.argmax(-1) == y
        if mode == "soft":
            assert mixture is not None
            right = mixture.argmax(-1) == y
        else:
            trust = self.model.trust(routing, mode, generator=self._generator())
            right = torch.where(trust, weak_right, strong_right)
        c = routing.weights[:, 0]
        measures = {
            "acc": right.float().mean(),
            "acc_weak": weak_right.float().mean(),
            "acc_strong": strong_right.float().mean(),
            "acc_expected": expected_share(weak_right, strong_right, c),
            "c_mean": c.mean(),
            "c_std": c.std(correction=0),
        }
        score = measures["acc_expected"]
        if metric != "accuracy":
            assert mixture is not None
            measures[metric] = score = METRICS[metric](mixture, y)
        if self.model.joint:
            assert mixture is not None
            measures["loss"] = cross_entropy(mixture, y)
            score = -measures["loss"]
        else:
            measures["loss"] = mowst_loss(weak, strong, routing, y)
        return {**measures, "score": score}

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.hparams["sample_seed"])

    def _output(self, outputs: Outputs) -> MowstOutput:
        assert outputs.weak_logits is not None
        assert outputs.strong_logits is not None
        assert outputs.routing is not None
        parts = (outputs.weak_logits, outputs.strong_logits, outputs.routing)
        return MowstOutput(self.model.mixture(*parts), *parts)

    def _predict(self, output: MowstOutput) -> Tensor:
        return self.model.predict(output, generator=self._generator())

    def arrays(self, outputs: Outputs) -> dict[str, Tensor]:
        """Confidence, and which nodes each expert and the mixture get right."""
        output = self._output(outputs)
        return {
            "confidence": output.routing.weights[:, 0],
            "weak_correct": output.weak_logits.argmax(-1) == outputs.y,
            "strong_correct": output.strong_logits.argmax(-1) == outputs.y,
            "mixture_correct": self._predict(output) == outputs.y,
        }

    def predictions(self, outputs: Outputs) -> dict[str, Tensor]:
        """Labels by ``predict_mode``, probabilities of the soft mixture, confidence."""
        output = self._output(outputs)
        return {
            "label": self._predict(output),
            "probability": output.prediction.softmax(-1),
            "confidence": output.routing.weights[:, 0],
        }
