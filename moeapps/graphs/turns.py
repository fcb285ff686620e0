"""What one epoch of each phase computes, with everything frozen computed once per turn.

Plain torch: the Lightning modules in :mod:`moeapps.graphs.modules` add optimisers, logs and
checkpoints. A *kind* is a phase without its round: ``pretrain_weak``, ``pretrain_strong``,
``weak``, ``strong``, ``joint`` or ``gate``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.errors import ArgumentError
from moeapps.gating import Routing
from moeapps.graphs.models.mowst import (
    Mowst,
    MowstOutput,
    full_precision,
    mix_losses,
    reads_graph,
)
from moeapps.graphs.node_graph import NodeGraph, take_rows

NEEDS_FROZEN = ("weak", "strong", "gate")


@dataclass(frozen=True)
class Rows:
    """The ``N`` nodes that one step is about.

    Args:
        index: Their numbers in the whole graph ``[N]``.
        x: Their features ``[N, d]``.
        y: Their labels ``[N]``.
        graph: What an expert that reads the graph is called with.
        place: Where these nodes stand in such an expert's output ``[N]``.
        weight: What each node's loss counts ``[N]``; None counts all alike.
    """

    index: Tensor
    x: Tensor
    y: Tensor
    graph: tuple[Any, ...]
    place: Tensor
    weight: Tensor | None = None

    @classmethod
    def of_graph(cls, graph: NodeGraph, index: Tensor) -> "Rows":
        """Some nodes of a whole graph."""
        inputs: tuple[Any, ...] = (graph.x, graph.edge_index)
        if graph.edge_weight is not None:
            inputs = (*inputs, graph.edge_weight)
        return cls(index, take_rows(graph.x, index), graph.y[index], inputs, index)

    @classmethod
    def of_batch(cls, batch: Any) -> "Rows":
        """The seed nodes of a neighbour batch: its first ``batch.batch_size`` rows."""
        size = int(batch.batch_size)
        inputs: tuple[Any, ...] = (batch.x, batch.get("edge_index"))
        if batch.get("edge_weight") is not None:
            inputs = (*inputs, batch.edge_weight)
        place = torch.arange(size, device=batch.x.device)
        return cls(
            batch.n_id[:size],
            take_rows(batch.x, place),
            batch.y[:size],
            inputs,
            place,
            batch.get("seed_weight"),
        )


@dataclass(frozen=True)
class Outputs:
    """What was computed for ``N`` nodes; None where a phase does not need it.

    Args:
        y: Labels ``[N]``.
        weak_logits: ``[N, n]``.
        strong_logits: ``[N, n]``.
        routing: Weights ``[c, 1 - c]``, ``[N, 2]``.
    """

    y: Tensor
    weak_logits: Tensor | None = None
    strong_logits: Tensor | None = None
    routing: Routing | None = None

    def pick(self, place: Tensor) -> "Outputs":
        """Those of some of the nodes."""
        return Outputs(
            self.y[place],
            _pick(self.weak_logits, place),
            _pick(self.strong_logits, place),
            None if self.routing is None else self.routing.select_rows(place),
        )


@dataclass(frozen=True)
class _Frozen:
    """What the frozen parts gave for ``N`` nodes; None where the phase does not need it."""

    kind: str
    weak_logits: Tensor | None
    strong_logits: Tensor | None
    strong_loss: Tensor | None
    routing: Routing | None

    def pick(self, place: Tensor) -> "_Frozen":
        """Those of some of the nodes."""
        return _Frozen(
            self.kind,
            _pick(self.weak_logits, place),
            _pick(self.strong_logits, place),
            _pick(self.strong_loss, place),
            None if self.routing is None else self.routing.select_rows(place),
        )


def _pick(kept: Tensor | None, place: Tensor) -> Tensor | None:
    return None if kept is None else kept.index_select(0, place)


def expert_logits(expert: nn.Module, rows: Rows) -> Tensor:
    """Logits ``[N, n]`` of an expert; one that does not read the graph is called on N rows only."""
    if reads_graph(expert):
        return expert(*rows.graph).index_select(0, rows.place)
    return expert(rows.x)


def cross_entropy(logits: Tensor, y: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy in at least float32."""
    return F.cross_entropy(full_precision(logits), y, reduction=reduction)


class Turns:
    """The steps of all phases, on one model and one graph.

    Args:
        model: The mixture.
        graph: Where frozen experts are evaluated, on the model's device.
        cache: Whether the outputs of frozen parts are computed once per turn, on the whole graph.
            Without it every step computes them anew on its own batch.

    Notes:
        Call :meth:`start` when a turn begins and whenever weights are changed from outside.
    """

    def __init__(self, model: Mowst, graph: NodeGraph, *, cache: bool = True) -> None:
        self.model = model
        self.graph = graph
        self.cache = cache
        self.rows = {
            split: Rows.of_graph(graph, index)
            for split, index in graph.rows.items()
            if split != "test"
        }
        self._frozen: _Frozen | None = None

    # ---------------------------------------------------------------------------- who learns what

    def learning(self, kind: str) -> list[nn.Module]:
        """The parts of the model that learn in this kind of phase."""
        weak, gate, strong = self.model.weak, self.model.gate, self.model.strong
        parts: dict[str, list[nn.Module]] = {
            "pretrain_weak": [weak],
            "pretrain_strong": [strong],
            "weak": [weak, gate],
            "strong": [strong],
            "joint": [weak, gate, strong],
            "gate": [gate],
        }
        return parts[kind]

    def parameters(self, kind: str) -> list[nn.Parameter]:
        """The parameters that learn in this kind of phase."""
        return [p for part in self.learning(kind) for p in part.parameters()]

    def needs_graph(self, kind: str) -> bool:
        """Whether a training step of this kind passes messages."""
        parts = self.learning(kind)
        if not self.cache and kind in NEEDS_FROZEN:
            parts = [self.model.weak, self.model.strong]
        return any(reads_graph(part) for part in parts)

    def training_rows(self, kind: str) -> Rows:
        """The nodes that a phase of this kind learns from."""
        return self.rows["gate" if kind == "gate" else "train"]

    def check(self, kind: str) -> None:
        """Refuse a training split that BatchNorm cannot normalise.

        Raises:
            ArgumentError: It has one node, and a learning part has BatchNorm and sees rows only.
        """
        on_rows = [part for part in self.learning(kind) if not reads_graph(part)]
        has_norm = any(isinstance(m, nn.BatchNorm1d) for part in on_rows for m in part.modules())
        if has_norm and len(self.training_rows(kind).index) == 1:
            raise ArgumentError(
                f"Phase {kind!r} has one node to learn from, and BatchNorm cannot normalise one "
                "row. Expected two or more: choose another split, or a weak expert and a gate "
                "without BatchNorm (monotone=True, or gate='power')."
            )

    # -------------------------------------------------------------------------------- the experts

    def start(self) -> None:
        """Forget what the frozen parts gave; the next step computes it anew."""
        self._frozen = None

    def _frozen_at(self, kind: str, rows: Rows) -> _Frozen | None:
        """What the parts that are frozen in this phase give for these rows."""
        if kind not in NEEDS_FROZEN:
            return None
        if not self.cache:
            return self._compute_frozen(kind, rows)
        if self._frozen is None or self._frozen.kind != kind:
            used = torch.cat([rows.index for rows in self.rows.values()])
            self._slot = torch.full_like(self.graph.y, -1)
            self._slot[used] = torch.arange(len(used), device=used.device)
            self._frozen = self._compute_frozen(kind, Rows.of_graph(self.graph, used))
        return self._frozen.pick(self._slot[rows.index])

    def _compute_frozen(self, kind: str, rows: Rows) -> _Frozen:
        self.model.eval()
        weak_logits = strong_logits = strong_loss = routing = None
        # Not in inference mode, or autograd could not use the result in the steps that follow.
        with torch.inference_mode(False), torch.no_grad():
            if kind in ("strong", "gate"):
                weak_logits = expert_logits(self.model.weak, rows)
            if kind == "strong" and weak_logits is not None:
                routing = self.model.route(weak_logits, rows.x)
            else:
                strong_logits = expert_logits(self.model.strong, rows)
                strong_loss = cross_entropy(strong_logits, rows.y, reduction="none")
        return _Frozen(kind, weak_logits, strong_logits, strong_loss, routing)

    def confidence(self) -> Tensor:
        """What ``c`` is fixed at during a strong turn, ``[V]``; 1 outside the training split."""
        rows = self.rows["train"]
        frozen = self._frozen_at("strong", rows)
        assert frozen is not None
        assert frozen.routing is not None
        c = torch.ones(len(self.graph.y), device=rows.index.device)
        c[rows.index] = frozen.routing.weights[:, 0].to(c.dtype)
        return c

    # ----------------------------------------------------------------------------------- one step

    def loss(self, kind: str, rows: Rows | None = None) -> tuple[Tensor, Routing | None]:
        """Training loss of one step, and the routing if the gate learns.

        Args:
            kind: Kind of the phase.
            rows: The nodes to learn from; by default the whole training split. Without any the loss
                is 0, attached to the parameters.
        """
        rows = self.training_rows(kind) if rows is None else rows
        if len(rows.y) == 0:
            return torch.stack([p.flatten()[:0].sum() for p in self.parameters(kind)]).sum(), None
        frozen = self._frozen_at(kind, rows)
        learning = self.learning(kind)
        for part in (self.model.weak, self.model.gate, self.model.strong):
            part.train(part in learning)
        if kind == "pretrain_weak":
            return cross_entropy(expert_logits(self.model.weak, rows), rows.y), None
        if kind == "pretrain_strong":
            return cross_entropy(expert_logits(self.model.strong, rows), rows.y), None
        if kind == "strong":
            assert frozen is not None
            assert frozen.routing is not None
            loss = cross_entropy(expert_logits(self.model.strong, rows), rows.y, reduction="none")
            share = frozen.routing.weights[:, 1]
            return (loss * (share if rows.weight is None else share * rows.weight)).mean(), None
        if frozen is not None and frozen.weak_logits is not None:
            weak_logits = frozen.weak_logits
        else:
            weak_logits = expert_logits(self.model.weak, rows)
        routing = self.model.route(weak_logits, rows.x)
        if frozen is not None and not self.model.joint:
            assert frozen.strong_loss is not None
            weak_loss = cross_entropy(weak_logits, rows.y, reduction="none")
            return mix_losses(weak_loss, frozen.strong_loss, routing), routing
        strong_logits = (
            expert_logits(self.model.strong, rows) if frozen is None else frozen.strong_logits
        )
        assert strong_logits is not None
        prediction = self.model.mixture(weak_logits, strong_logits, routing)
        output = MowstOutput(prediction, weak_logits, strong_logits, routing)
        return self.model.loss(output, rows.y), routing

    def evaluate(self, kind: str, rows: Rows | None = None) -> Outputs:
        """What validation needs in a phase of this kind, in evaluation mode and without gradient.

        Args:
            kind: Kind of the phase; ``"done"`` evaluates everything.
            rows: The nodes; by default the validation split.
        """
        rows = self.rows["val"] if rows is None else rows
        frozen = self._frozen_at(kind, rows)
        self.model.eval()
        with torch.no_grad():
            if kind == "pretrain_weak":
                return Outputs(rows.y, weak_logits=expert_logits(self.model.weak, rows))
            if kind == "pretrain_strong":
                return Outputs(rows.y, strong_logits=expert_logits(self.model.strong, rows))
            weak_logits = frozen.weak_logits if frozen is not None else None
            if weak_logits is None:
                weak_logits = expert_logits(self.model.weak, rows)
            strong_logits = frozen.strong_logits if frozen is not None else None
            if strong_logits is None:
                strong_logits = expert_logits(self.model.strong, rows)
            routing = frozen.routing if frozen is not None else None
            if routing is None:
                routing = self.model.route(weak_logits, rows.x)
        return Outputs(rows.y, weak_logits, strong_logits, routing)
