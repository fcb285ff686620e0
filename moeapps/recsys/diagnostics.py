r"""What the experts and gates of a ranking model do on a log.

Letters: ``E`` experts, ``D`` units of an expert, ``N`` gates, ``T`` tasks.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeapps.recsys.batch import Batch, num_rows
from moeapps.recsys.batch import to as batch_to
from moeapps.recsys.gates import LevelOutput
from moeapps.recsys.losses import MultiTaskLoss
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import Task

Array = NDArray[np.float64]
ZERO = 1e-6  # an output closer to 0 counts as 0
SATURATED = 0.95
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SAMPLE_ROWS = 2048  # for quantiles


@dataclass(frozen=True)
class LevelDiagnosis:
    r"""Numbers of one level; NaN where a quantity is not defined.

    ===================== ==========================================================================
    ``zero_frac`` [E]     share of outputs with :math:`|h| < 10^{-6}`
    ``dead`` [E]          share of units that are 0 for every row
    ``unit_std`` [E]      mean over units of the standard deviation over rows
    ``quantiles`` [E, 5]  5, 25, 50, 75 and 95 % quantiles of the outputs
    ``mean_gate`` [N, E]  mean gate weight, as a share of the gate's weights
    ``gate_entropy`` [N]  mean entropy of a row's gate over :math:`\ln` of the experts it sees
    ``mean_entropy`` [N]  the same of the mean gate
    ``saturation`` [N]    share of rows with a gate weight above 0.95
    ``specific`` [N]      mean gate mass on the gate's own experts
    ``hhi`` [E]           for experts of several tasks: ``n`` times the sum of squared shares of the
                          ``n`` gates that see it in its mean weight; 1 even, ``n`` one gate only
    ``grad_share`` [T, E] norm of a task's gradient at the expert's parameters, over the sum of the
                          tasks' norms
    ===================== ==========================================================================

    Args:
        name: Of the level in the model.
        gates: Whose each gate is.
        owners: Whose each expert is.
    """

    name: str
    gates: list[str]
    owners: list[str]
    zero_frac: list[float]
    dead: list[float]
    unit_std: list[float]
    quantiles: list[list[float]]
    mean_gate: list[list[float]]
    gate_entropy: list[float]
    mean_entropy: list[float]
    saturation: list[float]
    specific: list[float]
    hhi: list[float]
    grad_share: list[list[float]]

    def summary(self) -> dict[str, float]:
        """One number per quantity, as the thresholds read it."""
        gates = np.array(self.mean_gate)
        chooses = (gates > 0).sum(1) > 1
        std = np.array(self.unit_std)
        return {
            "zero_frac_mean": float(np.mean(self.zero_frac)),
            "zero_frac_max": float(np.max(self.zero_frac)),
            "dead": float(np.mean(self.dead)),
            "std_ratio": float(std.max() / std.min()) if std.min() > 0 else float("inf"),
            "gate_entropy": _mean(self.gate_entropy),
            "mean_gate_entropy": _mean(self.mean_entropy),
            "max_weight": _mean(np.where(chooses, gates.max(1), np.nan)),
            "saturation": _mean(self.saturation),
            "hhi": _largest(self.hhi),
            "grad_share": _largest(np.array(self.grad_share)[:, self.shared()]),
        }

    def shared(self) -> NDArray[np.bool_]:
        """Which experts belong to no single task, ``[E]``."""
        seen = (np.array(self.mean_gate) > 0)[[gate != "shared" for gate in self.gates]]
        owned = np.array([owner in self.gates and owner != "shared" for owner in self.owners])
        return (seen.sum(0) > 1) & ~owned


@dataclass(frozen=True)
class Diagnosis:
    """Numbers of every level; :mod:`moeapps.recsys.problems` says what is unhealthy.

    Args:
        tasks: Names, in the order of ``grad_share``.
        rates: Share of positives of each task in the rows seen; NaN if it is not binary.
        rows: Rows seen.
        levels: From input to output.
    """

    tasks: list[str]
    rates: list[float]
    rows: int
    levels: list[LevelDiagnosis] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; undefined numbers are None."""
        plain: dict[str, Any] = _replace(asdict(self), _is_nan, None)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Diagnosis":
        """The inverse of :meth:`to_dict`."""
        given = _replace(dict(values), lambda value: value is None, float("nan"))
        return cls(**{**given, "levels": [LevelDiagnosis(**level) for level in given["levels"]]})


def diagnose(
    model: Ranker,
    batches: Iterable[Batch],
    *,
    criterion: MultiTaskLoss | None = None,
    gradient_batches: int = 4,
) -> Diagnosis:
    """Look inside a model on one pass over labelled rows.

    Args:
        model: Trained; evaluated as for prediction and left in its mode.
        batches: Packed, mostly the validation split.
        criterion: Losses whose gradients are compared; by default those of the tasks.
        gradient_batches: Batches over which they are summed.

    Returns:
        No levels for a model without gates.

    Example:
        >>> from moeapps.recsys.models.mmoe import MMoE
        >>> from moeapps.recsys.schema import Categorical, FeatureSchema
        >>> schema = FeatureSchema([Categorical("user", 9, 4)])
        >>> model = MMoE(schema, ["click", "like"], num_experts=2, expert_dims=[8])
        >>> batch = {"cat": torch.tensor([[1], [2]]), "labels": torch.tensor([[0.0, 1], [1, 0]])}
        >>> found = diagnose(model, [batch])
        >>> found.levels[0].name, found.levels[0].gates
        ('level', ['click', 'like'])
    """
    banks = model.expert_banks()
    device = next(model.parameters()).device
    rates = _Rates()
    levels: list[_LevelSums] = []
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(False):
            criterion = criterion or MultiTaskLoss(model.tasks).to(device)
            for number, batch in enumerate(batches):
                batch = batch_to(batch, device)
                rates.add(batch)
                with torch.no_grad():
                    outputs = model(batch, return_aux=True)[1].levels
                levels = levels or [_LevelSums(output) for output in outputs]
                for sums, output in zip(levels, outputs, strict=True):
                    sums.add(output)
                if number < gradient_batches and levels:
                    experts = [bank for _, bank in banks]
                    gradients = _task_gradients(model, criterion, batch, experts)
                    for sums, found in zip(levels, gradients, strict=True):
                        sums.add_gradients(found)
    finally:
        model.train(training)
    return Diagnosis(
        model.task_names,
        rates.finish(model.tasks),
        rates.rows,
        [sums.finish(name) for sums, (name, _) in zip(levels, banks, strict=True)],
    )


class _Rates:
    """Shares of positives."""

    def __init__(self) -> None:
        self.rows = 0
        self.positives = self.labelled = torch.zeros(())

    def add(self, batch: Batch) -> None:
        labels = batch["labels"].double()
        counts = ~labels.isnan() & batch.get("mask", torch.ones_like(labels, dtype=torch.bool))
        self.positives = self.positives + torch.where(counts, labels, 0.0).sum(0).cpu()
        self.labelled = self.labelled + counts.sum(0).cpu()
        self.rows += num_rows(batch)

    def finish(self, tasks: Sequence[Task]) -> list[float]:
        """One per task; NaN for tasks that are not binary, or without labels."""
        each = (self.positives / self.labelled).expand(len(tasks)).tolist()
        pairs = zip(tasks, each, strict=True)
        return [rate if task.type == "binary" else float("nan") for task, rate in pairs]


class _LevelSums:
    """Sums over batches from which the numbers of a level follow."""

    def __init__(self, output: LevelOutput) -> None:
        self.gates, self.owners = list(output.gates), list(output.owners)
        self.rows = 0
        self.sums: dict[str, Tensor] = {}
        self.sample: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def add(self, output: LevelOutput) -> None:
        """Take in what the level did in one batch."""
        h = output.experts.double()  # [B, E, D]
        routing = output.routing
        weights = routing.probs if routing.layout == "dense" else routing.dense()
        gate = (routing.dense() if weights is None else weights)[..., : len(self.owners)].double()
        gate = gate / gate.sum(-1, keepdim=True).clamp_min(1e-12)  # switches do not sum to one
        entropy = torch.special.entr(gate).sum(-1)
        for name, value in {
            "h": h.sum(0), "h2": h.square().sum(0), "zero": (h.abs() < ZERO).sum((0, 2)),
            "alive": (h.abs() >= ZERO).sum(0), "gate": gate.sum(0), "entropy": entropy.sum(0),
            "saturated": (gate.amax(-1) > SATURATED).sum(0), "seen": (gate > 0).sum(0),
        }.items():  # fmt: skip
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.rows += len(h)
        if sum(map(len, self.sample)) < _SAMPLE_ROWS:
            self.sample.append(h[:_SAMPLE_ROWS].float().cpu())

    def add_gradients(self, found: list[Tensor]) -> None:
        """Add the gradients ``[T, E, P]`` at the parameters of the experts."""
        old = self.gradients or [torch.zeros_like(g) for g in found]
        self.gradients = [one + other for one, other in zip(old, found, strict=True)]

    def finish(self, name: str) -> LevelDiagnosis:
        """The numbers."""
        n = self.rows
        total = {key: value.cpu().numpy().astype(float) for key, value in self.sums.items()}
        units = total["h"].shape[1]
        std = np.sqrt(np.maximum(total["h2"] / n - (total["h"] / n) ** 2, 0)).mean(1)
        gate, visible = total["gate"] / n, total["seen"] > 0  # [N, E]
        count = visible.sum(1)
        even = np.where(count > 1, np.log(np.maximum(count, 2)), np.nan)  # one expert: no choice
        own = np.array([[g == o for o in self.owners] for g in self.gates])
        specific = np.where(own.any(1), (gate * own).sum(1), np.nan)
        sample = torch.cat(self.sample)[:_SAMPLE_ROWS].transpose(0, 1).flatten(1)
        quantiles = np.quantile(sample.numpy(), QUANTILES, axis=1).T
        mean_entropy = -(gate * np.log(np.where(gate > 0, gate, 1))).sum(1) / even
        return LevelDiagnosis(
            name,
            self.gates,
            self.owners,
            (total["zero"] / (n * units)).tolist(),
            (total["alive"] == 0).mean(1).tolist(),
            std.tolist(),
            quantiles.tolist(),
            gate.tolist(),
            (total["entropy"] / n / even).tolist(),
            mean_entropy.tolist(),
            np.where(count > 1, total["saturated"] / n, np.nan).tolist(),
            specific.tolist(),
            _hhi(gate, self.gates, self.owners).tolist(),
            self._grad_share().tolist(),
        )

    def _grad_share(self) -> Array:
        if not self.gradients:
            return np.full((1, len(self.owners)), np.nan)
        squares = torch.stack([g.square().sum(2) for g in self.gradients]).sum(0)
        norms = squares.sqrt().cpu().numpy()
        total = norms.sum(0)
        share: Array = np.where(total > 0, norms / np.where(total > 0, total, 1), np.nan)
        return share


def _hhi(gate: Array, gates: list[str], owners: list[str]) -> Array:
    """Concentration of each shared expert on few gates; NaN for others."""
    tasks = [i for i, g in enumerate(gates) if g != "shared"]
    found = np.full(len(owners), np.nan)
    for expert, owner in enumerate(owners):
        weight = gate[tasks, expert]
        seen = int((weight > 0).sum())
        if seen > 1 and (owner == "shared" or owner not in gates):
            found[expert] = seen * ((weight / weight.sum()) ** 2).sum()
    return found


def _task_gradients(
    model: Ranker, criterion: MultiTaskLoss, batch: Batch, experts: Sequence[nn.Module]
) -> list[list[Tensor]]:
    """Gradient of each task at the experts of each level, ``[T, E, P]`` per parameter."""
    parts = [[p for p in bank.parameters() if p.requires_grad] for bank in experts]
    with torch.enable_grad():
        logits = model(batch, return_aux=True)[0]
        losses = criterion(
            logits, batch["labels"], mask=batch.get("mask"), weight=batch.get("weight"),
            cut_points={name: model.cut_points(name) for name in model.cuts},
        )  # fmt: skip
        flat = [p for part in parts for p in part]
        rows = [
            torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True) for loss in losses
        ]
    filled = [
        torch.stack([torch.zeros_like(p) if g is None else g for g in column]).flatten(2)
        for column, p in zip(zip(*rows, strict=True), flat, strict=True)
    ]
    bounds = itertools.accumulate([len(part) for part in parts], initial=0)
    return [filled[start:stop] for start, stop in itertools.pairwise(bounds)]


def _mean(values: Any) -> float:
    known = _known(values)
    return float(known.mean()) if known.size else float("nan")


def _largest(values: Any) -> float:
    known = _known(values)
    return float(known.max()) if known.size else float("nan")


def _known(values: Any) -> Array:
    array = np.asarray(values, dtype=float)
    return array[np.isfinite(array)]


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _replace(value: Any, wrong: Callable[[Any], bool], by: Any) -> Any:
    """Plain nested values with those that are wrong replaced."""
    if isinstance(value, dict):
        return {key: _replace(inner, wrong, by) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replace(inner, wrong, by) for inner in value]
    return by if wrong(value) else value
