"""Rows of a stream's columns as inputs of a network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGEST = 1e6  # larger numbers would leave float32 after one layer


class RowEncoder:
    r"""Numbers as they are, nominal values as one-hot vectors, missing and unknown ones as zeros.

    New columns and values get new places at the end, so what a network has learned stays in place.
    Numbers beyond :math:`\pm 10^6` count as :math:`\pm 10^6`.

    Example:
        >>> encoder = RowEncoder()
        >>> encoder.grow(1, [2])
        >>> encoder.grow(2, [2])
        >>> encoder(np.array([[0.5, np.nan, 1.0]]))
        tensor([[0.5000, 0.0000, 1.0000, 0.0000]])
    """

    def __init__(self) -> None:
        self.width = 0
        self.numeric: list[int] = []  # place of each numeric column
        self.nominal: list[list[int]] = []  # place of each value of each nominal column

    @property
    def num_inputs(self) -> int:
        """Width of the network; before the first feature is known, one input that is zero."""
        return max(self.width, 1)

    def grow(self, num_numeric: int, num_values: Sequence[int]) -> None:
        """Give places to columns and values that are new."""
        self.numeric += self._places(num_numeric - len(self.numeric))
        self.nominal += [[] for _ in range(len(num_values) - len(self.nominal))]
        for places, count in zip(self.nominal, num_values, strict=True):
            places += self._places(count - len(places))

    def _places(self, count: int) -> list[int]:
        self.width += count
        return list(range(self.width - count, self.width))

    def __call__(self, rows: NDArray[np.float64]) -> Tensor:
        """Inputs ``[N, num_inputs]`` of rows ``[N, d]``."""
        x = np.zeros((len(rows), self.num_inputs), np.float32)
        width = len(self.numeric)
        numbers = rows[:, :width]
        x[:, self.numeric] = np.where(np.isnan(numbers), 0, numbers.clip(-LARGEST, LARGEST))
        for places, codes in zip(self.nominal, rows[:, width:].T, strict=True):
            known = np.flatnonzero(codes >= 0)
            x[known, np.array(places)[codes[known].astype(int)]] = 1
        return torch.from_numpy(x)

    def laid_out(
        self, rows: NDArray[np.float64], num_numeric: int, num_nominal: int
    ) -> NDArray[np.float64]:
        """Old rows in the layout of more columns, which they miss; call it before ``grow``."""
        old = len(self.numeric)
        rows = np.insert(rows, [old] * (num_numeric - old), np.nan, axis=1)
        missing = num_numeric + num_nominal - rows.shape[1]
        return np.pad(rows, ((0, 0), (0, missing)), constant_values=np.nan)

    def state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {"width": self.width, "numeric": self.numeric, "nominal": self.nominal}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self.width = state["width"]
        self.numeric = list(state["numeric"])
        self.nominal = [list(places) for places in state["nominal"]]
