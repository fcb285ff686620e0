"""Figures of a node classification run, from the arrays and metrics in its folder."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from moeapps.graphs.schedule import PHASES
from moeapps.plots import (
    accuracy_by_confidence,
    confidence_against,
    confidence_histogram,
    curves_by_turn,
    training_curves,
)

CAPTIONS = {
    "confidence_homophily": (
        "Confidence c of each test node against the share of its neighbours that have its own "
        "label. Where neighbours agree, the graph network is the better source and c should be "
        "low. Points are moved by up to 0.02 so that they do not hide each other; "
        "the line is exact."
    ),
    "accuracy_confidence": (
        "Accuracy of each expert on the test nodes, sorted by confidence into bins of equal size. "
        "A gate that works has the strong expert on top at the left and the weak one at the right; "
        "the mixture should follow the upper line."
    ),
    "curves_turns": (
        "Validation accuracy over the training, turn by turn. Turns marked (undone) did not beat "
        "the best before them, and their weights were thrown away."
    ),
    "confidence_histogram": (
        "How the confidence is spread over the test nodes. A single bar at 0 or 1 is a gate that "
        "has collapsed onto one expert."
    ),
    "curves_accuracy": "Validation accuracy over the epochs.",
    "curves_auroc": "Validation ROC-AUC over the epochs, of what is being trained.",
    "curves_loss": "Loss over the epochs.",
}

_ACCURACIES = {
    "val/acc_strong": "strong expert",
    "val/acc_weak": "weak expert",
    "val/acc": "mixture",
    "val/acc_expected": "mixture, expected",
}


def figures(
    results: Mapping[str, np.ndarray], metrics: Mapping[str, np.ndarray]
) -> dict[str, Figure]:
    """Every figure for which the run has data, by name; :data:`CAPTIONS` says what each shows.

    Args:
        results: Arrays of ``results.npz``; may be empty, as in a run that was never tested.
        metrics: Columns of ``metrics.csv``.

    Example:
        >>> drawn = figures({}, {"epoch": np.arange(2.0), "train/loss": np.array([2.0, 1.0])})
        >>> list(drawn)
        ['curves_loss']
    """
    drawn: dict[str, Figure] = {}
    if "confidence" in results:
        drawn |= _gate_figures(results)
    drawn |= _curves(results, metrics)
    return drawn


def _gate_figures(results: Mapping[str, np.ndarray]) -> dict[str, Figure]:
    test = results["test_mask"].astype(bool) & (results["label"] >= 0)
    confidence = results["confidence"][test]
    kinds = results["kind"][test] if "kind" in results else None
    return {
        "confidence_homophily": confidence_against(
            confidence,
            results["local_homophily"][test],
            xlabel="local homophily (share of neighbours with the node's label)",
            groups=kinds,
            group_names=("test nodes",) if kinds is None else ("structure nodes", "feature nodes"),
        ),
        "accuracy_confidence": accuracy_by_confidence(
            confidence,
            {
                "strong expert": results["strong_correct"][test],
                "weak expert": results["weak_correct"][test],
                "mixture": results["mixture_correct"][test],
            },
        ),
        "confidence_histogram": confidence_histogram(confidence),
    }


def _curves(
    results: Mapping[str, np.ndarray], metrics: Mapping[str, np.ndarray]
) -> dict[str, Figure]:
    epochs = metrics.get("epoch")
    if epochs is None:
        return {}
    drawn: dict[str, Figure] = {}
    is_mixture = "phase" in metrics and ({"val/acc_weak", "val/acc_strong"} & set(metrics))
    if is_mixture:
        series = {name: metrics[key] for key, name in _ACCURACIES.items() if key in metrics}
        if "mixture" in series:
            # In a pretraining the plain accuracy is that of the one expert: it has its own line.
            series["mixture"] = np.where(_both_play(metrics), series["mixture"], np.nan)
        turns = _turns(results) or _turns_of(metrics)
        drawn["curves_turns"] = curves_by_turn(
            epochs, series, turns, ylabel="validation accuracy", percent=True
        )
    elif "val/acc" in metrics:
        drawn["curves_accuracy"] = training_curves(
            epochs, {"validation": metrics["val/acc"]}, ylabel="validation accuracy", percent=True
        )
    if "val/auroc" in metrics:
        drawn["curves_auroc"] = training_curves(
            epochs, {"validation": metrics["val/auroc"]}, ylabel="validation ROC-AUC"
        )
    losses = {
        name: metrics[key]
        for key, name in (("train/loss", "training"), ("val/loss", "validation"))
        if key in metrics
    }
    if losses:
        drawn["curves_loss"] = training_curves(epochs, losses, ylabel="loss (nats)")
    return drawn


def _both_play(metrics: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows in which both experts were judged, that is, in which there is a mixture."""
    nothing = np.full(len(metrics["epoch"]), np.nan)
    weak, strong = (metrics.get(f"val/acc_{name}", nothing) for name in ("weak", "strong"))
    return np.isfinite(weak) & np.isfinite(strong)


def _turns(results: Mapping[str, np.ndarray]) -> list[tuple[str, int, int, bool]]:
    if "turn_phase" not in results:
        return []
    columns = ("turn_phase", "turn_start", "turn_epochs", "turn_accepted")
    return [
        (str(phase), int(start), int(length), bool(kept))
        for phase, start, length, kept in zip(*(results[c] for c in columns), strict=True)
    ]


def _turns_of(metrics: Mapping[str, np.ndarray]) -> list[tuple[str, int, int, bool]]:
    """Turns of a run that was never tested, from the logged phase; which were undone is unknown."""
    known = np.isfinite(metrics["phase"])
    codes, epochs = metrics["phase"][known].astype(int), metrics["epoch"][known].astype(int)
    turns: list[tuple[str, int, int, bool]] = []
    rounds: dict[str, int] = {}
    for part in np.split(np.arange(len(codes)), np.flatnonzero(np.diff(codes)) + 1):
        if not len(part):
            continue
        name = PHASES[codes[part[0]]]
        if name in ("weak", "strong"):
            rounds[name] = rounds.get(name, 0) + 1
            name = f"{name}:{rounds[name]}"
        start = int(epochs[part[0]])
        turns.append((name, start, int(epochs[part[-1]]) - start + 1, True))
    return turns
