"""How far counts are off: MAE, RMSE, NAE and, region by region, GAME; all in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from moeapps.errors import ArgumentError


def mae(predicted: Tensor, true: Tensor) -> float:
    r"""Mean absolute error of counts, :math:`\mathrm{mean}\,|\hat c - c|`.

    Example:
        >>> mae(torch.tensor([3.0, 10.0]), torch.tensor([1, 10]))
        1.0
    """
    return float(_errors(predicted, true).abs().mean())


def rmse(predicted: Tensor, true: Tensor) -> float:
    r"""Root of the mean squared error of counts; much of the literature calls it "MSE".

    Example:
        >>> rmse(torch.tensor([4.0, 10.0]), torch.tensor([1, 6]))  # (9 + 16) / 2
        3.5355339059327378
    """
    return float(_errors(predicted, true).square().mean().sqrt())


def nae(predicted: Tensor, true: Tensor) -> float:
    r"""Mean of :math:`|\hat c - c| / c` over the images that hold anything; NaN if none does.

    Example:
        >>> nae(torch.tensor([3.0, 5.0]), torch.tensor([2, 0]))
        0.5
    """
    errors, some = _errors(predicted, true).abs(), true > 0
    return float((errors[some] / true[some].double()).mean())


def region_counts(density: Tensor, level: int) -> Tensor:
    """Counts of the ``2^level x 2^level`` regions of each map, ``[B, 1, H, W] -> [B, 4^level]``.

    Region borders fall on ``round(i H / 2^level)``.

    Example:
        >>> region_counts(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), 1).tolist()
        [[1.0, 2.0, 3.0, 4.0]]
    """
    sides = 2**level
    sums = density.double().sum(1).cumsum(-1).cumsum(-2)
    sums = torch.nn.functional.pad(sums, (1, 0, 1, 0))
    rows, columns = (_borders(size, sides, sums.device) for size in density.shape[-2:])
    corners = sums[:, rows][:, :, columns]
    return corners.diff(dim=1).diff(dim=2).flatten(1)


def game(predicted: Tensor, true: Tensor, level: int, mask: Tensor | None = None) -> float:
    r"""Grid average mean error, :math:`\mathrm{mean} \sum_{l=1}^{4^L} |\hat c_l - c_l|`.

    Args:
        predicted: Density maps ``[B, 1, H, W]``.
        true: Maps of the true points or densities, of the same shape.
        level: ``L``; level 0 is the mean absolute error, and no level is below the one before.
        mask: Region of interest, with which both are multiplied.

    References:
        Guerrero-Gomez-Olmedo et al., *Extremely Overlapping Vehicle Counting*, IbPRIA 2015.

    Example:
        >>> predicted, true = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
        >>> game(predicted, true, 0), game(predicted, true, 1)
        (0.0, 2.0)
    """
    return float(_game_errors(predicted, true, level, mask).mean())


class CountingMetrics(Metric):
    """MAE, RMSE, NAE and, where densities are given, GAME, gathered over batches and processes.

    Args:
        levels: Of GAME.

    Example:
        >>> metrics = CountingMetrics(levels=())
        >>> metrics.update(torch.tensor([3.0]), torch.tensor([1]))
        >>> metrics.update(torch.tensor([10.0]), torch.tensor([0]))
        >>> {name: round(float(value), 3) for name, value in metrics.compute().items()}
        {'mae': 6.0, 'rmse': 7.211, 'nae': 2.0}
    """

    full_state_update = False
    absolute: Tensor
    squared: Tensor
    relative: Tensor
    images: Tensor
    occupied: Tensor
    regions: Tensor
    mapped: Tensor

    def __init__(self, levels: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.levels = tuple(levels)
        for name in ("absolute", "squared", "relative", "images", "occupied", "mapped"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), "sum")
        self.add_state("regions", torch.zeros(len(self.levels), dtype=torch.float64), "sum")
        self.set_dtype(torch.float64)

    def update(
        self,
        predicted: Tensor,
        true: Tensor,
        densities: Tensor | None = None,
        true_densities: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Add images.

        Args:
            predicted: Counts ``[B]``.
            true: Numbers of points ``[B]``, never sums of a density.
            densities: Predicted maps ``[B, 1, H, W]``, for GAME.
            true_densities: Maps of the true points.
            mask: Region of interest of both maps.
        """
        errors = _errors(predicted, true)
        some = true > 0
        self.absolute += errors.abs().sum()
        self.squared += errors.square().sum()
        self.relative += (errors[some].abs() / true[some].double()).sum()
        self.images += len(errors)
        self.occupied += some.sum()
        if densities is not None and true_densities is not None:
            per_level = [_game_errors(densities, true_densities, x, mask) for x in self.levels]
            if per_level:
                self.regions += torch.stack(per_level).sum(1)
            self.mapped += len(densities)

    def compute(self) -> dict[str, Tensor]:
        """``mae``, ``rmse``, ``nae`` (NaN where no image held anything), ``game/<level>``."""
        found = {
            "mae": self.absolute / self.images,
            "rmse": (self.squared / self.images).sqrt(),
            "nae": self.relative / self.occupied,
        }
        if self.mapped > 0:
            game_means = self.regions / self.mapped
            found |= {f"game/{x}": game_means[i] for i, x in enumerate(self.levels)}
        return found


def _game_errors(predicted: Tensor, true: Tensor, level: int, mask: Tensor | None) -> Tensor:
    if predicted.shape != true.shape or predicted.dim() != 4 or level < 0:
        raise ArgumentError(
            f"GAME({level}) of maps {list(predicted.shape)} and {list(true.shape)} is not defined; "
            "expected two of the same [B, 1, H, W] and a level from 0. Build both at the size of "
            "the image."
        )
    if mask is not None:
        predicted, true = predicted * (mask > 0), true * (mask > 0)
    gap = region_counts(predicted, level) - region_counts(true, level)
    return gap.abs().sum(1)


def _errors(predicted: Tensor, true: Tensor) -> Tensor:
    if predicted.shape != true.shape or predicted.dim() != 1 or not len(predicted):
        raise ArgumentError(
            f"counts of shapes {list(predicted.shape)} and {list(true.shape)} cannot be compared; "
            "expected two [B] of at least one image. Sum the density over each image first."
        )
    return predicted.double() - true.double()


def _borders(size: int, sides: int, device: torch.device) -> Tensor:
    return torch.tensor([round(i * size / sides) for i in range(sides + 1)], device=device)
