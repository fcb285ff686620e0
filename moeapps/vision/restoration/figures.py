"""Figures of restoration: before and after, what the gates did, scores by weather, training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moeapps.plots import training_curves
from moeapps.plots.style import COLOURS, MUTED, SEQUENTIAL, new_figure
from moeapps.vision.restoration.restored import examples_of, scores_of

CAPTIONS = {
    "before_after": (
        "The first test image of each weather: as the network got it, as it gave it back, and as "
        "it should be. Above each its PSNR against the target."
    ),
    "gains": (
        "What the network adds to the PSNR of each test image, by weather. The middle line is the "
        "median, the box half of the images. Below 0 it did harm."
    ),
    "weather_gates": (
        "Mean weight of each expert by weather, one panel per block. Rows that differ: the gate "
        "tells the weathers apart; equal rows: it does not."
    ),
    "weather_gate_maps": (
        "Weight of each expert in the last block, place by place; the weights of a place sum to "
        "one. The last column shows which expert weighs most."
    ),
    "curves_restoration": "PSNR of the validation images over the epochs.",
}

Example = Mapping[str, NDArray[Any]]


def figures(
    results: Mapping[str, np.ndarray], metrics: Mapping[str, np.ndarray]
) -> dict[str, Figure]:
    """Every figure of restoration for which the run has data; :data:`CAPTIONS` says what each is.

    Args:
        results: Arrays of ``results.npz``; may be empty, as in a run that was never tested.
        metrics: Columns of ``metrics.csv``.
    """
    drawn: dict[str, Figure] = {}
    examples = examples_of(results)
    if examples:
        drawn["before_after"] = before_after(examples)
    scores = scores_of(results)
    if scores is not None:
        names, tasks, values = scores
        drawn["gains"] = gains_by_task(names, tasks, values[:, 0] - values[:, 2])
        if "restoration/gates" in results:
            drawn["weather_gates"] = gates_by_task(names, tasks, results["restoration/gates"])
    if gated := {name: kept for name, kept in examples.items() if "gates" in kept}:
        drawn["weather_gate_maps"] = gate_maps(gated)
    if "val/psnr" in metrics:
        drawn["curves_restoration"] = training_curves(
            np.asarray(metrics["epoch"], float), {"PSNR": metrics["val/psnr"]}, ylabel="PSNR, dB"
        )
    return drawn


def before_after(examples: Mapping[str, Example]) -> Figure:
    """Input, restored image and target, a row per weather.

    Args:
        examples: By weather the images ``input``, ``restored`` and ``target``, uint8.

    Example:
        >>> grey = np.full((8, 8, 3), 128, np.uint8)
        >>> figure = before_after({"haze": {"input": grey, "restored": grey, "target": grey}})
        >>> figure.axes[1].get_title()
        'restored, inf dB'
    """
    columns = ("input", "restored", "target")
    figure, axes = _grid(len(examples), len(columns), examples)
    for row, (name, kept) in zip(axes, examples.items(), strict=True):
        for axis, column in zip(row, columns, strict=True):
            axis.imshow(kept[column])
            title = column
            if column != "target":
                gap = kept[column].astype(float) - kept["target"]
                with np.errstate(divide="ignore"):
                    title += f", {20 * np.log10(255) - 10 * np.log10((gap**2).mean()):.1f} dB"
            axis.set_title(title, fontsize=9)
        row[0].set_ylabel(name)
    return figure


def gains_by_task(names: list[str], tasks: NDArray[np.int64], gains: NDArray[np.float64]) -> Figure:
    """Spread of the gain in PSNR over the images of each task.

    Args:
        names: Of the tasks.
        tasks: Task per image.
        gains: In dB per image; infinite ones are left out.

    Example:
        >>> figure = gains_by_task(["haze"], np.zeros(3, int), np.array([1.0, 2.0, 3.0]))
        >>> figure.axes[0].get_ylabel()
        'gain in PSNR, dB'
    """
    figure, axis = new_figure()
    there = [task for task in range(len(names)) if (tasks == task).any()]
    parts = [gains[(tasks == task) & np.isfinite(gains)] for task in there]
    drawn = axis.boxplot(parts, widths=0.5, patch_artist=True, showfliers=False)
    for number, box in enumerate(drawn["boxes"]):
        box.set(facecolor=COLOURS[number % len(COLOURS)], alpha=0.6)
    axis.set_xticks(range(1, len(there) + 1), [names[task] for task in there])
    axis.axhline(0, color=MUTED, linewidth=1)
    axis.set_ylabel("gain in PSNR, dB")
    return figure


def gates_by_task(
    names: list[str], tasks: NDArray[np.int64], gates: NDArray[np.floating]
) -> Figure:
    """Mean weight of each expert by task, a panel per block.

    Args:
        names: Of the tasks.
        tasks: Task per image.
        gates: Mean weights ``[images, blocks, N]``.

    Example:
        >>> figure = gates_by_task(["haze"], np.zeros(2, int), np.full((2, 1, 4), 0.25))
        >>> figure.axes[0].get_title()
        'block 1'
    """
    there = [task for task in range(len(names)) if (tasks == task).any()]
    means = np.stack([gates[tasks == task].mean(0) for task in there])  # [tasks, blocks, N]
    blocks = means.shape[1]
    figure, axes = new_figure(
        2.0 + 2.6 * blocks, 1.4 + 0.35 * len(there), ncols=blocks, squeeze=False, sharey=True
    )
    shown: Any = None
    for block, axis in enumerate(axes[0]):
        shown = axis.imshow(
            means[:, block], cmap=SEQUENTIAL, vmin=0, vmax=float(means.max()), aspect="auto"
        )
        axis.grid(visible=False)
        axis.set_title(f"block {block + 1}", fontsize=10)
        axis.set_xlabel("expert")
        axis.set_xticks(range(means.shape[2]), range(1, means.shape[2] + 1))
    axes[0, 0].set_yticks(range(len(there)), [names[task] for task in there])
    figure.colorbar(shown, ax=axes[0, -1], label="mean weight")
    return figure


def gate_maps(examples: Mapping[str, Example], most: int = 4) -> Figure:
    """Weights of experts over the image, and the one that weighs most.

    Args:
        examples: By weather the image ``input`` and the weights ``gates``, ``[N, h, w]``.
        most: Experts that are shown, those of the largest mean weight over all images.

    Example:
        >>> kept = {"input": np.zeros((8, 8, 3), np.uint8), "gates": np.full((2, 1, 1), 0.5)}
        >>> [axis.get_title() for axis in gate_maps({"haze": kept}).axes[:4]]
        ['input', 'expert 1', 'expert 2', 'heaviest']
    """
    means = np.mean([kept["gates"].mean((1, 2)) for kept in examples.values()], axis=0)
    shown = np.sort(np.argsort(-means, kind="stable")[:most])
    figure, axes = _grid(len(examples), len(shown) + 2, examples)
    top = max(float(kept["gates"].max()) for kept in examples.values())
    image: Any = None
    for row, (name, kept) in zip(axes, examples.items(), strict=True):
        row[0].imshow(kept["input"])
        row[0].set_ylabel(name)
        for axis, expert in zip(row[1:-1], shown, strict=True):
            image = axis.imshow(kept["gates"][expert], cmap=SEQUENTIAL, vmin=0, vmax=top)
        row[-1].imshow(kept["gates"].argmax(0), cmap="tab20", vmin=0, vmax=19)
    titles = ["input", *(f"expert {expert + 1}" for expert in shown), "heaviest"]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.colorbar(image, ax=list(axes[:, -1]), label="weight", fraction=0.08)
    return figure


def _grid(rows: int, columns: int, examples: Mapping[str, Example]) -> tuple[Figure, Any]:
    """Axes without ticks, as high as the images need."""
    shape = next(iter(examples.values()))["input"].shape
    wide = min(8.0 / columns, 2.2 * shape[1] / shape[0], 11.0 / rows * shape[1] / shape[0])
    high = wide * shape[0] / shape[1]
    figure, axes = new_figure(
        columns * (wide + 0.1) + 0.9, rows * (high + 0.25) + 0.2, nrows=rows, ncols=columns,
        squeeze=False,
    )  # fmt: skip
    for axis in axes.flat:
        axis.grid(visible=False)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure, axes
