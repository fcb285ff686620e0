"""Which numbers of a diagnosis are unhealthy: the three problems that HoME names, and gates."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moeapps.recsys.diagnostics import Diagnosis, LevelDiagnosis

COLLAPSE, DEGRADATION, UNDERFITTING = "collapse", "degradation", "underfitting"
POLARISED = "polarised gates"


@dataclass(frozen=True)
class Threshold:
    """When a number of :meth:`LevelDiagnosis.summary` is unhealthy.

    Args:
        kind: The problem it shows.
        alarm: Above it, or below it if ``low``.
        healthy: What is expected.
        meaning: What the number is.
        low: Whether small numbers are unhealthy.
    """

    kind: str
    alarm: float
    healthy: str
    meaning: str
    low: bool = False


THRESHOLDS = {
    "zero_frac_max": Threshold(
        COLLAPSE, 0.7, "below 0.6", "of an expert's outputs are zero, at worst"
    ),
    "dead": Threshold(COLLAPSE, 0.1, "0", "of the expert units are zero for every row"),
    "std_ratio": Threshold(
        COLLAPSE, 2.5, "below 1.5", "times the spread of the quietest expert has the loudest one"
    ),
    "grad_share": Threshold(
        DEGRADATION, 0.8, "spread", "of the gradient at a shared expert is one task's, at worst"
    ),
    "max_weight": Threshold(
        POLARISED, 0.85, "below 0.6", "is the mean weight of a gate's favourite expert"
    ),
    "saturation": Threshold(POLARISED, 0.5, "below 0.25", "of the gates give one expert over 0.95"),
    "gate_entropy": Threshold(
        POLARISED, 0.25, "0.45 to 0.95", "is the relative entropy of a gate", low=True
    ),
    "mean_gate_entropy": Threshold(
        POLARISED, 0.3, "above 0.6", "is the relative entropy of the mean gate", low=True
    ),
}

ADVICE = {
    COLLAPSE: "Normalise the experts and let no unit die: norm='batch', act='silu'.",
    DEGRADATION: "Let only related tasks share experts: task groups, as in HoME, or PLE.",
    UNDERFITTING: "Give sparse tasks inputs and paths of their own: HoME's feature and self gates.",
    POLARISED: "Drop experts in training (gate={'dropout': 0.1}), raise the gate's temperature, or "
    "normalise the experts.",
}


@dataclass(frozen=True)
class Finding:
    """Something unhealthy.

    Args:
        level: Where.
        kind: The problem, a key of :data:`ADVICE`.
        what: What was seen, and what would be healthy.
    """

    level: str
    kind: str
    what: str


def findings(diagnosis: Diagnosis) -> list[Finding]:
    """What is unhealthy, level by level.

    Degradation is also found where a shared expert serves few of the gates that see it:
    fewer than three, or than half of them and a half if they are few; underfitting where sparse
    tasks (less than a fifth of the largest rate of positives) give less than half as much weight to
    their own experts as dense ones do.

    Notes:
        Thresholds are rules of thumb of ours, except for the zeros, of which the HoME paper reports
        over 90 % in collapsed experts.
    """
    rates = dict(zip(diagnosis.tasks, diagnosis.rates, strict=True))
    return [finding for level in diagnosis.levels for finding in _of_level(level, rates)]


def _of_level(level: LevelDiagnosis, rates: Mapping[str, float]) -> list[Finding]:
    found = []
    for name, value in level.summary().items():
        limit = THRESHOLDS.get(name)
        if limit is not None and (value < limit.alarm if limit.low else value > limit.alarm):
            text = f"{value:.2f} {limit.meaning} (healthy: {limit.healthy})"
            found.append(Finding(level.name, limit.kind, text))
    for expert, owners, gates in _few_owners(level):
        text = f"expert {expert} serves about {owners:.1f} of the {gates} gates that see it"
        found.append(Finding(level.name, DEGRADATION, f"{text} (healthy: most)"))
    sparse, dense = own_weights(level, rates)
    if sparse < 0.5 * dense:
        text = (
            f"sparse tasks give {sparse:.2f} of their gate to their own experts, dense {dense:.2f}"
        )
        found.append(Finding(level.name, UNDERFITTING, f"{text} (healthy: similar)"))
    return found


def _few_owners(level: LevelDiagnosis) -> list[tuple[int, float, int]]:
    """Shared experts that few gates use: number, gates in effective use, gates that see it."""
    tasks = [gate != "shared" for gate in level.gates]
    seen = (np.array(level.mean_gate)[tasks] > 0).sum(0)
    found = []
    for expert, hhi in enumerate(level.hhi):
        owners = seen[expert] / hhi
        if owners < min(3.0, (seen[expert] + 1) / 2):  # false for NaN
            found.append((expert, float(owners), int(seen[expert])))
    return found


def own_weights(level: LevelDiagnosis, rates: Mapping[str, float]) -> tuple[float, float]:
    """Mean gate mass on a task's own experts, of sparse and of dense tasks; NaN without such."""
    nan = float("nan")
    pairs = [(rates.get(g, nan), m) for g, m in zip(level.gates, level.specific, strict=True)]
    known = [(rate, mass) for rate, mass in pairs if np.isfinite(rate + mass)]
    limit = max((rate for rate, _ in known), default=0.0) / 5
    sparse = [mass for rate, mass in known if rate < limit]
    dense = [mass for rate, mass in known if rate >= limit]
    if not sparse or not dense:
        return nan, nan
    return float(np.mean(sparse)), float(np.mean(dense))
