"""The step near the mean gradient that helps the worst task most."""

import math

import numpy as np
import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.training.balancing.base import GradientBalancing
from moeapps.training.balancing.simplex import Floats, minimise_on_face, minimise_on_simplex


class CAGrad(GradientBalancing):
    r"""Conflict-averse gradient descent.

    .. math:: d = \Big( g_0 + \frac{c \|g_0\|}{\|g_w\|} g_w \Big) / (1 + c^2), \qquad
        w = \arg\min_{w \in \Delta} g_w^\top g_0 + c \|g_0\| \|g_w\|

    with :math:`g_0` the mean gradient and :math:`g_w = \sum_t w_t g_t`. It maximises
    :math:`\min_t g_t^\top d` over the ball :math:`\|d - g_0\| \le c \|g_0\|`.

    Args:
        num_tasks: ``T``.
        c: Radius of the ball; 0 is the mean gradient.
        rescale: Whether to divide by :math:`1 + c^2`.

    Raises:
        ArgumentError: ``c`` is negative.

    Notes:
        The step has the length of a mean gradient, as in the paper; task towers get the plain sum.

    References:
        Liu et al., *Conflict-Averse Gradient Descent for Multi-task Learning*, NeurIPS 2021.
        https://arxiv.org/abs/2110.14048

    Example:
        >>> gradients = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> CAGrad(2, rescale=False).weigh(gradients @ gradients.T, torch.ones(2))
        tensor([0.7500, 0.7500])
    """

    def __init__(self, num_tasks: int, *, c: float = 0.5, rescale: bool = True) -> None:
        super().__init__(num_tasks)
        if c < 0:
            raise ArgumentError(f"c={c} is negative. Expected 0 or more, mostly below 1.")
        self.c = c
        self.rescale = rescale

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        """The mean gradient's even weights plus those of the correction."""
        inner = gram.detach().double().cpu().numpy()
        even = np.full(len(inner), 1 / len(inner))
        radius = self.c * _length(even, inner)
        w = _least(inner, inner @ even, radius)
        length = _length(w, inner)
        # A combination of length 0 is a Pareto point: there is nothing to add.
        weights = even + (radius / length * w if length > 1e-12 else 0.0)
        if self.rescale:
            weights = weights / (1 + self.c**2)
        return torch.from_numpy(weights).to(gram)


def _least(inner: Floats, linear: Floats, radius: float) -> Floats:
    r"""Minimise :math:`b^\top w + r \sqrt{w^\top G w}` on the simplex.

    With :math:`\sqrt q = \min_s (q / s + s) / 2` it is a quadratic problem for each length
    :math:`s`, and the best :math:`s` is the length of its own solution. On one face of the simplex
    solutions move along a line :math:`\alpha + s \beta` with :math:`\alpha^\top G \beta = 0`, so
    that :math:`s^2 = \alpha^\top G \alpha / (1 - \beta^\top G \beta)`.
    """
    low, high = 0.0, math.sqrt(float(inner.diagonal().max()))
    w = np.full(len(inner), 1 / len(inner))
    if radius * high == 0:
        return w
    tolerance = 1e-9 * high
    s = high
    while high - low > tolerance:
        w = minimise_on_simplex(inner, linear * s / radius, start=w)
        length = _length(w, inner)
        if abs(length - s) <= tolerance:
            break
        low, high = (s, high) if length > s else (low, s)  # the excess over s falls in s
        face = np.flatnonzero(w)
        square = inner[np.ix_(face, face)]
        alpha = minimise_on_face(square, np.zeros(len(face)))
        beta = minimise_on_face(square, linear[face] / radius) - alpha
        rest = 1 - _length(beta, square) ** 2
        s = _length(alpha, square) / math.sqrt(rest) if rest > 0 else math.inf
        if not low < s < high:  # the solution lies on another face
            s = (low + high) / 2
    return w


def _length(w: Floats, inner: Floats) -> float:
    return math.sqrt(max(float(w @ inner @ w), 0.0))
