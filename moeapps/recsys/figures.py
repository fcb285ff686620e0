"""Figures of a ranking run: curves, calibration, and what experts and gates do."""

import json
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moeapps.plots import training_curves
from moeapps.plots.style import COLOURS, MUTED, PERCENT, SEQUENTIAL, new_figure, say_empty
from moeapps.recsys.diagnostics import Diagnosis, LevelDiagnosis

Arrays = Mapping[str, NDArray[np.generic]]

_BOX = ("whislo", "q1", "med", "q3", "whishi")  # matplotlib's names of the five quantiles

CAPTIONS = {
    "gates": (
        "Mean weight that each task's gate gives each expert, level by level; white experts are "
        "hidden from the task. One bright cell per row is a polarised gate; a shared expert with "
        "one bright cell in its column belongs to one task only."
    ),
    "activations": (
        "What each expert gives: median, quartiles (box) and the middle 90 % (line) of its "
        "outputs, with the share of zeros above. Experts of one level should look alike; many "
        "zeros or very different boxes are collapsed experts."
    ),
    "gradients": (
        "Share of each task in the gradient at each expert's parameters. A shared expert should "
        "learn from several tasks."
    ),
    "calibration": (
        "Observed share of positives against the mean prediction, in bins of equally many test "
        "rows. On the diagonal a prediction can be read as a probability."
    ),
    "curves_auc": "Validation AUC of each task over the epochs.",
    "curves_loss": "Losses over the epochs.",
}


def figures(results: Arrays, metrics: Arrays) -> dict[str, Figure]:
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
    if "diagnosis" in results:
        drawn |= diagnosis_figures(Diagnosis.from_dict(json.loads(str(results["diagnosis"]))))
    if "calibration" in results:
        names = [str(name) for name in results["tasks"]]
        drawn["calibration"] = calibration_figure(np.asarray(results["calibration"], float), names)
    epochs = np.asarray(metrics.get("epoch", np.zeros(0)), dtype=float)
    aucs = {name[8:]: values for name, values in metrics.items() if name.startswith("val/auc/")}
    losses = {name: metrics[name] for name in ("train/loss", "val/loss") if name in metrics}
    if aucs:
        drawn["curves_auc"] = training_curves(epochs, aucs, ylabel="validation AUC")
    if losses:
        drawn["curves_loss"] = training_curves(epochs, losses, ylabel="loss (nats)")
    return drawn


def diagnosis_figures(diagnosis: Diagnosis) -> dict[str, Figure]:
    """Gate heat map, activations and gradient shares of every level; none without levels."""
    levels = diagnosis.levels
    if not levels:
        return {}
    drawn = {
        "gates": heat_maps(
            [level.name for level in levels],
            [np.where(np.array(level.mean_gate) > 0, level.mean_gate, np.nan) for level in levels],
            [level.gates for level in levels],
            [expert_names(level) for level in levels],
            label="mean gate weight",
        ),
        "activations": activation_figure(levels),
    }
    learned = [level for level in levels if len(level.grad_share) == len(diagnosis.tasks)]
    if learned:
        drawn["gradients"] = heat_maps(
            [level.name for level in learned],
            [np.array(level.grad_share) for level in learned],
            [diagnosis.tasks] * len(learned),
            [expert_names(level) for level in learned],
            label="share of the gradient",
        )
    return drawn


def expert_names(level: LevelDiagnosis) -> list[str]:
    """Owner and number among the owner's experts.

    Example:
        >>> from types import SimpleNamespace
        >>> expert_names(SimpleNamespace(owners=["shared", "shared", "like"]))
        ['shared 0', 'shared 1', 'like']
    """
    names = []
    for expert, owner in enumerate(level.owners):
        several = level.owners.count(owner) > 1
        names.append(f"{owner} {level.owners[:expert].count(owner)}" if several else owner)
    return names


def heat_maps(
    titles: list[str],
    tables: list[NDArray[np.float64]],
    rows: list[list[str]],
    columns: list[list[str]],
    *,
    label: str,
) -> Figure:
    """Tables of shares from 0 to 1, one below the other on one scale; NaN stays white.

    Args:
        titles: One per table.
        tables: ``[rows, columns]`` each.
        rows: Names of the rows of each table.
        columns: Names of the columns of each table.
        label: What the shares are.

    Example:
        >>> figure = heat_maps(["level"], [np.eye(2)], [["a", "b"]], [["0", "1"]], label="weight")
        >>> figure.axes[0].get_title(loc="left")
        'level'
    """
    heights = [0.26 * len(table) + 1.3 for table in tables]
    widest = max(len(table[0]) for table in tables)
    figure, axes = new_figure(
        width=max(6.4, 0.42 * widest + 2.4), height=sum(heights), nrows=len(tables), squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    for axis, title, table, left, below in zip(
        axes[:, 0], titles, tables, rows, columns, strict=True
    ):
        axis.grid(visible=False)
        image = axis.imshow(table, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
        axis.set_yticks(range(len(left)), left)
        axis.set_xticks(range(len(below)), below, rotation=90 if len(below) > 4 else 0)
        axis.set_title(title, fontsize=10, loc="left")
    axes[-1, 0].set_xlabel("expert")
    figure.colorbar(image, ax=axes[:, 0], label=label).ax.yaxis.set_major_formatter(PERCENT)
    return figure


def activation_figure(levels: list[LevelDiagnosis]) -> Figure:
    """Box of the outputs of every expert, level by level, with its share of zeros.

    Args:
        levels: With quantiles at 5, 25, 50, 75 and 95 %.
    """
    widest = max(len(level.owners) for level in levels)
    figure, axes = new_figure(
        width=max(6.4, 0.42 * widest + 2.0), height=2.9 * len(levels), nrows=len(levels),
        squeeze=False,
    )  # fmt: skip
    for axis, level in zip(axes[:, 0], levels, strict=True):
        boxes = [dict(zip(_BOX, row, strict=True)) for row in level.quantiles]
        axis.bxp(
            boxes, showfliers=False, patch_artist=True, widths=0.6,
            boxprops={"facecolor": COLOURS[5], "edgecolor": COLOURS[0]},
            medianprops={"color": COLOURS[1]},
        )  # fmt: skip
        for place, share in enumerate(level.zero_frac, start=1):
            axis.text(
                place, 1.01, f"{share:.0%}", transform=axis.get_xaxis_transform(), fontsize=7,
                color=MUTED, ha="center",
            )  # fmt: skip
        below = expert_names(level)
        axis.set_xticks(range(1, len(below) + 1), below, rotation=90 if len(below) > 4 else 0)
        axis.set_title(f"{level.name} (share of zeros above)", fontsize=10, loc="left", pad=14)
        axis.set_ylabel("output")
    axes[-1, 0].set_xlabel("expert")
    return figure


def calibration_figure(bins: NDArray[np.float64], tasks: list[str]) -> Figure:
    """Observed against predicted share of positives, on logarithmic axes.

    Args:
        bins: Mean prediction and share of positives per bin, ``[T, bins, 2]``; NaN is left out.
        tasks: Names.

    Example:
        >>> figure = calibration_figure(np.full((1, 3, 2), 0.5), ["click"])
        >>> figure.axes[0].get_xlabel()
        'mean prediction'
    """
    figure, axis = new_figure()
    axis.set(xlabel="mean prediction", ylabel="observed share of positives")
    seen = [bins[t][(bins[t] > 0).all(1)] for t in range(len(tasks))]
    for t, (name, points) in enumerate(zip(tasks, seen, strict=True)):
        if len(points):
            axis.plot(
                points[:, 0], points[:, 1], marker="os^Dv"[t % 5], markersize=4, linewidth=1.2,
                color=COLOURS[t % len(COLOURS)], label=name,
            )  # fmt: skip
    every = np.concatenate(seen)
    if not every.size:
        say_empty(axis)
        return figure
    ends = [every.min() / 1.3, min(1.1, every.max() * 1.3)]
    axis.plot(ends, ends, color=MUTED, linewidth=1, linestyle="--")
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    figure.legend(loc="outside upper center", ncols=min(len(tasks), 4), frameon=False)
    return figure
