"""What a test of a restoration network leaves for its report, as arrays and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

LARGEST = 320
"""Rows and columns of an image that is kept to be shown."""


@dataclass
class Restored:
    """Scores of each test image, some images, and what the gates did.

    Args:
        tasks: Names of the tasks.
    """

    tasks: tuple[str, ...]
    rows: list[tuple[float, ...]] = field(default_factory=list)
    examples: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict)
    gates: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, task: int, scores: tuple[float, float, float, float]) -> None:
        """An image's PSNR and SSIM, then those of its input."""
        self.rows.append((float(task), *scores))

    def show(self, task: int, **images: torch.Tensor) -> None:
        """Keep an image of a task: input, restored and target ``[3, H, W]``, gates ``[N, h, w]``.

        Large images are cut to their middle, and the gates with them.
        """
        kept: dict[str, NDArray[Any]] = {}
        for name, values in images.items():
            height, width = images["input"].shape[1:]
            tops = [max(0, side - LARGEST) / 2 / side for side in (height, width)]
            rows, columns = (
                slice(int(top * side), max(int(top * side) + 1, round((1 - top) * side)))
                for top, side in zip(tops, values.shape[1:], strict=True)
            )
            part = values[:, rows, columns].detach().cpu()
            if name == "gates":
                kept[name] = part.float().numpy()
            else:
                pixels = (255 * part.clamp(0, 1)).round().byte()
                kept[name] = pixels.permute(1, 2, 0).numpy()
        self.examples[task] = kept

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays for ``results.npz``."""
        rows = np.array(self.rows, np.float64).reshape(-1, 5)
        columns = ("task", "psnr", "ssim", "input_psnr", "input_ssim")
        found: dict[str, NDArray[Any]] = {
            f"restoration/{name}": rows[:, i] for i, name in enumerate(columns)
        }
        found["restoration/tasks"] = np.array(self.tasks)
        if len({gate.shape for gate in self.gates}) == 1:  # mean weights per image, [blocks, N]
            found["restoration/gates"] = np.stack(self.gates)
        for task, kept in self.examples.items():
            for name, values in kept.items():
                found[f"restoration/example/{task}/{name}"] = values
        return found


def scores_of(
    results: Mapping[str, NDArray[Any]],
) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]] | None:
    """Names of tasks, the task of each test image and its four scores; None for other runs."""
    if "restoration/psnr" not in results:
        return None
    columns = ("psnr", "ssim", "input_psnr", "input_ssim")
    scores = np.stack([np.asarray(results[f"restoration/{c}"], float) for c in columns], axis=1)
    names = [str(name) for name in results["restoration/tasks"]]
    return names, np.asarray(results["restoration/task"], np.int64), scores


def examples_of(results: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    """The images that were kept, by the name of their task."""
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for task, name in enumerate(results.get("restoration/tasks", np.array([]))):
        prefix = f"restoration/example/{task}/"
        kept = {key.removeprefix(prefix): results[key] for key in results if key.startswith(prefix)}
        if kept:
            found[str(name)] = kept
    return found
