"""Figures of counting: counts against counts, densities over photographs, experts and gates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moeapps.plots import training_curves
from moeapps.plots.style import COLOURS, MUTED, SEQUENTIAL, new_figure, say_empty
from moeapps.vision.counting.counted import counts_of, examples_of

CAPTIONS = {
    "counts": (
        "Predicted against true count of each test image. Points below the line were counted too "
        "low."
    ),
    "densities": (
        "Some test images from few to many, and the density over them: as annotated, and as "
        "predicted. The sum of a map is the count above it. Both maps of a row share their colours."
    ),
    "experts": (
        "What each density expert alone sees in these images, finest stride first, with its own "
        "count. A mixture pays off where they differ."
    ),
    "gates": (
        "Share of each expert in the result, place by place; the shares of a place sum to one. "
        "Above each map its mean. Attention is where the second gate looks."
    ),
    "curves_counting": "Errors of the counts of the validation images over the epochs.",
}

Example = Mapping[str, np.ndarray]


def figures(
    results: Mapping[str, np.ndarray], metrics: Mapping[str, np.ndarray]
) -> dict[str, Figure]:
    """Every figure of counting for which the run has data; :data:`CAPTIONS` says what each shows.

    Args:
        results: Arrays of ``results.npz``; may be empty, as in a run that was never tested.
        metrics: Columns of ``metrics.csv``.
    """
    drawn: dict[str, Figure] = {}
    if (counts := counts_of(results)) is not None:
        drawn["counts"] = predicted_counts(*counts)
    if examples := examples_of(results):
        drawn["densities"] = density_overlays(examples)
        mixed = [one for one in examples if len(one.get("experts", ())) > 1]
        if mixed:
            drawn["experts"] = expert_maps(mixed)
            drawn["gates"] = gate_maps(mixed)
    if "val/mae" in metrics and "val/rmse" in metrics:
        drawn["curves_counting"] = training_curves(
            np.asarray(metrics["epoch"], float),
            {"MAE": metrics["val/mae"], "RMSE": metrics["val/rmse"]},
            ylabel="error of the count",
        )
    return drawn


def predicted_counts(true: np.ndarray, predicted: np.ndarray) -> Figure:
    """Predicted against true counts, with the line on which they agree.

    Example:
        >>> figure = predicted_counts(np.array([1.0, 9.0]), np.array([2.0, 7.5]))
        >>> figure.axes[0].get_xlabel()
        'true count'
    """
    figure, axis = new_figure(4.8, 4.6)
    axis.set(xlabel="true count", ylabel="predicted count")
    if not len(true):
        say_empty(axis)
        return figure
    top = 1.05 * max(float(true.max()), float(predicted.max()), 1.0)
    axis.plot([0, top], [0, top], color=MUTED, linewidth=1, label="exact")
    axis.scatter(true, predicted, s=16, alpha=0.6, linewidths=0, color=COLOURS[0])
    axis.set(xlim=(0, top), ylim=(min(0.0, float(predicted.min())), top))
    axis.set_title(f"MAE {np.abs(predicted - true).mean():.2f}", fontsize=10, color=MUTED)
    return figure


def density_overlays(examples: Sequence[Example]) -> Figure:
    """Photographs, true and predicted density, one row per image.

    Args:
        examples: With ``image`` ``uint8 [h, w, 3]``, ``target`` and ``density`` ``[1, h, w]``.
    """
    figure, axes = _grid(len(examples), 3)
    for row, example in zip(axes, examples, strict=True):
        true, predicted = example["target"][0], example["density"][0]
        top = float(np.quantile(true[true > 0], 0.98)) if (true > 0).any() else None
        row[0].imshow(example["image"])
        row[0].set_title(f"image {int(example['index'])}", fontsize=9)
        for axis, name, density in ((row[1], "true", true), (row[2], "predicted", predicted)):
            _overlay(axis, example["image"], density, top)
            axis.set_title(f"{name}: {density.sum(dtype=np.float64):,.1f}", fontsize=9)
    return figure


def expert_maps(examples: Sequence[Example]) -> Figure:
    """Photographs and the density of each expert, one row per image.

    Args:
        examples: With ``image`` and ``experts`` ``[K, h', w']``.
    """
    count = len(examples[0]["experts"])
    figure, axes = _grid(len(examples), 1 + count)
    for row, example in zip(axes, examples, strict=True):
        row[0].imshow(example["image"])
        row[0].set_title(f"image {int(example['index'])}", fontsize=9)
        top = float(np.quantile(example["experts"], 0.995)) or None
        for number, (axis, density) in enumerate(zip(row[1:], example["experts"], strict=True)):
            axis.imshow(density, cmap=SEQUENTIAL, vmin=0, vmax=top)
            title = f"expert {number + 1}: {density.sum(dtype=np.float64):,.1f}"
            axis.set_title(title, fontsize=9)
    return figure


def gate_maps(examples: Sequence[Example]) -> Figure:
    """Share of each expert in the result, and the attention if there is one, one row per image.

    Args:
        examples: With ``image``, ``weights`` ``[K, h', w']`` and perhaps ``attention``
            ``[h', w']``.
    """
    count, attends = len(examples[0]["weights"]), "attention" in examples[0]
    figure, axes = _grid(len(examples), 1 + count + attends)
    shown: Any = None
    for row, example in zip(axes, examples, strict=True):
        row[0].imshow(example["image"])
        row[0].set_title(f"image {int(example['index'])}", fontsize=9)
        named = [(f"expert {i + 1}", share) for i, share in enumerate(example["weights"])]
        named += [("attention", example["attention"])] if attends else []
        for axis, (name, share) in zip(row[1:], named, strict=True):
            shown = axis.imshow(share, cmap=SEQUENTIAL, vmin=0, vmax=1)
            axis.set_title(f"{name}: {share.mean():.2f}", fontsize=9)
    figure.colorbar(shown, ax=axes, shrink=0.6, label="share")
    return figure


def _grid(rows: int, columns: int) -> tuple[Figure, Any]:
    figure, axes = new_figure(2.1 * columns, 2.1 * rows, nrows=rows, ncols=columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes


def _overlay(axis: Any, image: np.ndarray, density: np.ndarray, top: float | None) -> None:
    """The density over a grey copy of its image."""
    axis.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=255)
    top = top or float(density.max()) or 1.0
    strength = np.clip(density / top, 0, 1)
    axis.imshow(density, cmap="inferno", vmin=0, vmax=top, alpha=0.85 * np.sqrt(strength))
