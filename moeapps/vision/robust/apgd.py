"""APGD: ascent that chooses its step by itself."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moeapps.vision.robust.attacks import (
    Goal,
    check_budget,
    from_starts,
    objective,
    project,
    value_and_gradient,
)


@dataclass(frozen=True)
class APGD:
    r"""Ascent whose step halves when progress stalls, and which goes on from the best point.

    .. math:: z = \Pi(x_k + \eta\, \mathrm{sign} \nabla g(x_k)), \quad
        x_{k+1} = \Pi\big(x_k + \tfrac34 (z - x_k) + \tfrac14 (x_k - x_{k-1})\big)

    Args:
        epsilon: Largest change of a pixel.
        steps: Gradient steps of each start.
        restarts: Random starts.
        goal: See `objective`.
        route: See `objective`.

    Notes:
        Departures from the paper: none known; each image has a step of its own, as there.

    References:
        Croce & Hein, *Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
        Parameter-free Attacks*, ICML 2020.

    Example:
        >>> from moeapps.vision.robust.dense_cnn import DenseCNN
        >>> model = DenseCNN(10, backbone="small_cnn", in_channels=1)
        >>> images = torch.rand(2, 1, 8, 8)
        >>> found = APGD(0.1, steps=5)(model, images, torch.tensor([0, 1]), seed=0)
        >>> bool(((found - images).abs() <= 0.1 + 1e-6).all())
        True
    """

    epsilon: float = 8 / 255
    steps: int = 50
    restarts: int = 1
    goal: Goal = "ce"
    route: str = "hard"

    def __post_init__(self) -> None:
        check_budget(self.epsilon, self.steps, self.restarts, self.goal)

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0
    ) -> Tensor:
        """Attack every image that the model gets right."""

        def ascend(x: Tensor, clean: Tensor, y: Tensor, run: int) -> tuple[Tensor, Tensor]:
            return self._ascend(model, x, clean, y, run)

        return from_starts(ascend, model, images, labels, self.epsilon, self.restarts, seed)

    def checkpoints(self) -> list[int]:
        """Steps at which progress is judged: at 0.22 of all, then after ever shorter periods.

        Example:
            >>> APGD(steps=100).checkpoints()
            [22, 41, 57, 70, 80, 87, 93, 99]
        """
        shares = [0.0, 0.22]
        while shares[-1] < 1:
            shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
        points = {math.ceil(round(share * self.steps, 6)) for share in shares[1:]}
        return sorted(point for point in points if point <= self.steps)

    def _ascend(
        self, model: nn.Module, x: Tensor, clean: Tensor, y: Tensor, run: int
    ) -> tuple[Tensor, Tensor]:
        """The first wrong image of each row, else its best; and the rows that stayed right."""
        grows = objective(model, self.goal, self.route, clean, y, run)
        rows, checkpoints = torch.arange(len(x), device=x.device), self.checkpoints()
        size = x.new_full((len(x), 1, 1, 1), 2 * self.epsilon)
        best, before = x.clone(), x.clone()
        best_value, slope = value_and_gradient(grows, x, rows)
        best_slope = slope.clone()
        value = best_value.clone()
        found, right = best.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
        gains = torch.zeros_like(value)
        judged, judged_value, halved = 0, best_value.clone(), torch.zeros_like(right)
        for k in range(1, self.steps + 1):
            z = project(x + size * slope.sign(), clean, self.epsilon)
            share = 1.0 if k == 1 else 0.75
            stepped = project(x + share * (z - x) + (1 - share) * (x - before), clean, self.epsilon)
            before, x = x, stepped
            last = value
            value, slope = value_and_gradient(grows, x, rows)
            with torch.no_grad():
                fresh = (model(x).argmax(-1) != y) & right
            found[fresh], right = x[fresh], right & ~fresh
            if not bool(right.any()):
                break
            gains += value > last
            better = value > best_value
            best[better], best_slope[better] = x[better], slope[better]
            best_value = torch.where(better, value, best_value)
            if k in checkpoints:
                stalled = gains < 0.75 * (k - judged)
                stalled |= ~halved & (best_value <= judged_value)
                size = torch.where(stalled.view(-1, 1, 1, 1), size / 2, size)
                x, slope = x.clone(), slope.clone()
                x[stalled], slope[stalled] = best[stalled], best_slope[stalled]
                before = torch.where(stalled.view(-1, 1, 1, 1), x, before)
                value = torch.where(stalled, best_value, value)
                judged, judged_value, halved = k, best_value.clone(), stalled
                gains.zero_()
        found[right] = best[right]
        return found, right.nonzero().squeeze(1)
