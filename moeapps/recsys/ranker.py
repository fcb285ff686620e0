"""What every ranking model shares: inputs, towers, chunks, probabilities, groups of parameters."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.errors import UnknownNameError
from moeapps.kernels.select import is_traced
from moeapps.recsys.batch import Batch, is_packed, pack
from moeapps.recsys.blocks import Backend, ExpertBank, Norm, Towers
from moeapps.recsys.embeddings import Checked, FusedTables, Inputs
from moeapps.recsys.gates import GateBank, Level, LevelOutput
from moeapps.recsys.replay import Replay
from moeapps.recsys.schema import FeatureSchema, Task, as_schema, as_tasks

CHUNK = 256  # rows of one pass in inference on CPU: activations stay in the cache


@dataclass
class Aux:
    """What happened inside a model, for diagnostics.

    Args:
        inputs: What the model computed from the embeddings; ``[B, d]`` for most.
        representation: What the towers read, ``[B, T, D]``, or ``[B, D]`` if all read the same.
        levels: What every level of experts and gates did.
        extra: More tensors, named by the model.
    """

    inputs: Tensor
    representation: Tensor
    levels: list[LevelOutput] = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)


class Ranker(nn.Module, ABC):
    r"""Base of the ranking models: from a packed batch to one logit per task.

    A model turns its inputs into a representation :math:`z_t` per task; its towers turn that into
    logits. Probabilities appear only in :meth:`predict_proba`.

    Args:
        schema: The features, as `FeatureSchema` or its plain form.
        tasks: The tasks, as `Task`, plain form or names of binary tasks.
        norm: Of the experts: ``"batch"``, ``"layer"`` or None.
        act: Of the experts.
        dropout: After each activation of experts and towers.
        sync_norm: Batch normalisation over the rows of all processes.
        backend: As in `ExpertBank`.
        gate: Options of `GateBank`: ``temperature``, ``dropout``, ``hidden``, ``bias``, ``norm``.
        tower_dims: Widths of each tower's hidden layers.
        tower_norm: Of the towers.
        init_output_bias: As in `Towers`.
        embedding_init: As ``init`` of `FusedTables`.
        sparse_grad: Embedding gradients are sparse tensors over the rows of the batch.
        check_ids: Whether ids are compared with the vocabularies: None on CPU only.
        copies: Tables per feature.

    Shape:
        - a batch of ``B`` rows -> logits ``[B, T]`` in the declared order of the tasks

    Notes:
        The logit of an ordinal task is a score :math:`s` with
        :math:`P(y > k) = \sigma(s - c_k)`; :meth:`cut_points` gives the learned :math:`c`. In
        inference on CPU, batches of more than 256 rows run in chunks.
    """

    towers: nn.Module

    def __init__(
        self,
        schema: FeatureSchema | Mapping[str, Any],
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        norm: Norm = None,
        act: str = "relu",
        dropout: float = 0.0,
        sync_norm: bool = False,
        backend: Backend = "auto",
        gate: Mapping[str, Any] | None = None,
        tower_dims: Sequence[int] = (64,),
        tower_norm: Norm = None,
        init_output_bias: bool | None = None,
        embedding_init: str | float = "normal",
        sparse_grad: bool = False,
        check_ids: bool | None = None,
        copies: int = 1,
    ) -> None:
        super().__init__()
        self.tasks = as_tasks(tasks)
        plain = as_schema(schema)
        store = FusedTables(plain, copies, init=embedding_init, sparse_grad=sparse_grad)
        self.inputs = Inputs(plain, store, check=check_ids)
        both = {"dropout": dropout, "sync_norm": sync_norm, "backend": backend}
        self._bank: dict[str, Any] = {"norm": norm, "act": act, **both}
        self._gate = dict(gate or {})
        self._tower: dict[str, Any] = {
            "widths": tower_dims,
            "norm": tower_norm,
            **both,
            "init_output_bias": init_output_bias,
        }
        self.replay: Replay | None = None  # of a copy for serving
        self.cuts = nn.ParameterDict(
            {task.name: _first_cuts(task.levels) for task in self.tasks if task.levels}
        )

    def make_bank(
        self, experts: int | Sequence[int], width: int, dims: Sequence[int]
    ) -> ExpertBank:
        """Experts with this model's normalisation, activation and dropout."""
        return ExpertBank(experts, width, dims, **self._bank)

    def make_gate(self, width: int, visible: Tensor, *, shared_input: bool = True) -> GateBank:
        """Gates with this model's options."""
        return GateBank(width, visible, shared_input=shared_input, **self._gate)

    def make_towers(self, width: int) -> Towers:
        """One tower per task with this model's options."""
        return Towers(self.tasks, width, **self._tower)

    @property
    def schema(self) -> FeatureSchema:
        """The features."""
        return self.inputs.schema

    @property
    def task_names(self) -> list[str]:
        """Names in the order of the logits."""
        return [task.name for task in self.tasks]

    @abstractmethod
    def represent(self, x: Tensor) -> tuple[Tensor, list[LevelOutput]]:
        """What the towers read, and what the levels did.

        The representation is ``[B, T, D]``, or ``[B, D]`` where all tasks have the same.
        """

    def read(self, batch: Batch) -> Tensor:
        """What the model computes from the embeddings: the flat input ``[B, d]``."""
        flat: Tensor = self.inputs(batch)
        return flat

    def score(self, x: Tensor) -> tuple[Tensor, Aux]:
        """Logits of what :meth:`read` gave."""
        z, levels = self.represent(x)
        return self.towers(z), Aux(x, z, levels)

    def forward(self, batch: Batch, return_aux: bool = False) -> Any:
        """Logits ``[B, T]``; with ``return_aux`` also an `Aux`.

        Args:
            batch: Packed, or a dict of single columns, which is packed first.
            return_aux: Also say what happened inside.
        """
        if not is_packed(batch, self.schema):
            batch = pack(batch, self.schema)
        if return_aux:
            return self.score(self.read(batch))
        replay = self.replay
        return self.logits(batch) if replay is None else self._replayed(batch, replay)

    def logits(self, batch: Batch) -> Tensor:
        """Logits of a packed batch, in chunks where that is faster."""
        x = self.read(batch)
        if not self._in_chunks(x):
            return self.score(x)[0]
        return torch.cat([self.score(part)[0] for part in x.split(CHUNK)])

    def _replayed(self, batch: Batch, replay: Replay) -> Tensor:
        """Logits by recorded code; ids are compared with the vocabularies outside of it."""
        if self.schema.bags or not self.inputs.store.whole:
            # Bags have any length, tables in parts talk: what comes behind them can be recorded.
            return replay.forward(lambda x: self.score(x)[0], self.read(batch))
        self.inputs.check_ids(batch)
        names = [name for name in ("cat", "dense") if name in batch]
        return replay.forward(
            lambda *parts: self.logits(Checked(zip(names, parts, strict=True))),
            *[batch[name] for name in names],
        )

    def _in_chunks(self, x: Tensor) -> bool:
        if is_traced() or self.training or torch.is_grad_enabled() or not x.is_cpu:
            return False
        return x.shape[0] > CHUNK

    def predict_proba(self, batch: Batch) -> Tensor:
        """Predictions ``[B, T]``.

        The probability of a binary task, the value of a regression, the expected level of an
        ordinal task.
        """
        return self.to_predictions(self(batch))

    def to_predictions(self, logits: Tensor) -> Tensor:
        """Logits ``[B, T]`` in the units of :meth:`predict_proba`."""
        if all(task.type == "binary" for task in self.tasks):
            return logits.sigmoid()
        columns = []
        for task, logit in zip(self.tasks, logits.unbind(1), strict=True):
            if task.type == "binary":
                logit = logit.sigmoid()
            elif task.type == "ordinal":
                logit = (logit.unsqueeze(1) - self.cut_points(task.name)).sigmoid().sum(1)
            columns.append(logit)
        return torch.stack(columns, 1)

    def cut_points(self, task: str) -> Tensor:
        """Increasing cut points of an ordinal task, ``[levels - 1]``."""
        if task not in self.cuts:
            raise UnknownNameError("ordinal task", task, list(self.cuts))
        free: Tensor = self.cuts[task]  # the first one, and the logarithms of the steps
        return torch.cat([free[:1], free[1:].exp()]).cumsum(0)

    def expert_banks(self) -> list[tuple[str, nn.Module]]:
        """Name and experts of each level, in the order of what :meth:`represent` reports."""
        return [(name, m.experts) for name, m in self.named_modules() if isinstance(m, Level)]

    def penalty(self, logits: Tensor) -> Tensor | None:
        """A loss that belongs to the method, to be added to the tasks' losses; None for none.

        Args:
            logits: What the model gave for the batch, ``[B, T]``.
        """
        return None

    def embedding_parameters(self) -> Iterator[nn.Parameter]:
        """The embedding tables."""
        return self.inputs.store.tables.parameters()

    def tower_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that serve one task alone at its end: towers and cut points."""
        yield from self.towers.parameters()
        yield from self.cuts.parameters()

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Everything else: experts, gates and what lies before them."""
        known = {id(p) for p in (*self.embedding_parameters(), *self.tower_parameters())}
        return (p for p in self.parameters() if id(p) not in known)

    def resize_vocab(self, name: str, vocab_size: int) -> None:
        """Grow or shrink the vocabulary of a feature; rows that stay keep their values.

        The table is a new parameter, so build the optimiser afterwards.

        Args:
            name: The feature; all features that share its table change too.
            vocab_size: Rows, the unknown id 0 included.
        """
        self.inputs.resize(name, vocab_size)
        self.forget_recordings()

    def forget_recordings(self) -> None:
        """Of a copy for serving: record anew, after tables were exchanged."""
        if self.replay is not None:
            self.replay = Replay()

    def fuse_for_inference(self) -> "Ranker":
        """A copy for serving, in evaluation mode; its logits agree to 1e-5.

        Batch normalisation goes into the weights before it, and products that read one input become
        one product. On CPU and without gradients the copy records what it does for the first batch
        of each number of rows up to 64, in about a tenth of a second, and plays that for the next.
        """
        from moeapps.recsys.folding import fused

        served = fused(self)
        served.replay = Replay()
        return served


def _first_cuts(levels: int) -> nn.Parameter:
    """Cut points one apart, around 0."""
    return nn.Parameter(torch.tensor([1 - levels / 2] + [0.0] * (levels - 2)))
