"""Scores of a restoration network by weather, as a table and in words."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moeapps.training.report import Section, Table
from moeapps.vision.restoration.restored import scores_of


def sections(results: Mapping[str, NDArray[np.generic]]) -> list[Section]:
    """A section if the run restored.

    Args:
        results: Arrays of ``results.npz``.

    Example:
        >>> values = {"task": [0, 1], "psnr": [24, 20], "ssim": [0.8, 0.7], "input_psnr": [12, 18],
        ...           "input_ssim": [0.6, 0.6]}
        >>> arrays = {f"restoration/{name}": np.array(v, float) for name, v in values.items()}
        >>> arrays["restoration/tasks"] = np.array(["haze", "snow"])
        >>> for row in sections(arrays)[0].table.rows:
        ...     print(row)
        ('haze', '1', '12.00', '24.00', '+12.00', '0.600', '0.800')
        ('snow', '1', '18.00', '20.00', '+2.00', '0.600', '0.700')
        ('all', '2', '15.00', '22.00', '+7.00', '0.600', '0.750')
    """
    found = scores_of(results)
    if found is None or not len(found[1]):
        return []
    names, tasks, scores = found
    parts = {name: scores[tasks == task] for task, name in enumerate(names)} | {"all": scores}
    table = Table(
        (
            "weather", "images", "PSNR of the input", "PSNR", "gain, dB", "SSIM of the input",
            "SSIM",
        ),
        tuple(_row(name, part) for name, part in parts.items() if len(part)),
    )  # fmt: skip
    return [Section("Restoration by weather", text=_reading(names, tasks, scores), table=table)]


def _row(name: str, scores: NDArray[np.float64]) -> tuple[str, ...]:
    decibels, similar, before, similar_before = scores.mean(0)
    return (
        name, f"{len(scores):,}", f"{before:.2f}", f"{decibels:.2f}", f"{decibels - before:+.2f}",
        f"{similar_before:.3f}", f"{similar:.3f}",
    )  # fmt: skip


def _reading(names: list[str], tasks: NDArray[np.int64], scores: NDArray[np.float64]) -> str:
    gains = scores[:, 0] - scores[:, 2]
    worse = int((gains < 0).sum())
    text = (
        "Means over images of each image's own score, on whole images, from 0 to 1, clamped. SSIM "
        "in Gaussian windows of 11 pixels. "
    )
    text += f"{worse} of {len(gains)} images are farther from their target than before."
    if worse:
        counts = [int(((tasks == task) & (gains < 0)).sum()) for task in range(len(names))]
        text += f" Most of them are {names[int(np.argmax(counts))]}."
    return text
