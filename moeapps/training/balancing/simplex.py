"""The minimum of a quadratic function over all ways to share one unit among a few tasks."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_TOLERANCE = 1e-12


def minimise_on_simplex(
    quadratic: Floats, linear: Floats | None = None, *, start: Floats | None = None
) -> Floats:
    r"""The exact minimiser, by an active-set method.

    .. math:: \min_w \tfrac12 w^\top Q w + b^\top w \quad
        \text{subject to}\quad w \ge 0,\ \sum_t w_t = 1

    Args:
        quadratic: :math:`Q`, positive semi-definite ``[T, T]``.
        linear: :math:`b` ``[T]``, in the range of :math:`Q`; 0 if None.
        start: A point of the simplex near the minimum, if one is known.

    Returns:
        :math:`w` ``[T]``.

    References:
        Wolfe, *Finding the nearest point in a polytope*, Mathematical Programming 1976.

    Example:
        >>> minimise_on_simplex(np.array([[1.0, 0.0], [0.0, 3.0]]))
        array([0.75, 0.25])
    """
    num = len(quadratic)
    b = np.zeros(num) if linear is None else linear
    scale = np.abs(quadratic).max() + np.abs(b).max()
    if scale == 0:  # every point is a minimum; the middle one favours nobody
        return np.full(num, 1 / num)
    q, b = quadratic / scale, b / scale
    w = np.eye(num)[(q.diagonal() / 2 + b).argmin()] if start is None else start
    face = w > 0
    for _ in range(10 * num):  # each round ends at a lower minimum of one of finitely many faces
        w = _descend(q, b, w, face)
        slope = q @ w + b
        entering = slope.argmin()
        if w @ slope - slope[entering] <= _TOLERANCE:
            break
        face = w > 0
        face[entering] = True
    return w


def minimise_on_face(quadratic: Floats, linear: Floats) -> Floats:
    """The minimum if weights may be negative: stationarity and the sum, solved together."""
    num = len(quadratic)
    left = np.ones((num + 1, num + 1))
    left[:num, :num], left[num, num] = quadratic, 0.0
    # Least squares: parallel gradients make the system singular, but never contradictory.
    solution: Floats = np.linalg.lstsq(left, np.append(-linear, 1.0))[0]
    return solution[:num]


def _descend(q: Floats, b: Floats, w: Floats, face: NDArray[np.bool_]) -> Floats:
    """From ``w`` towards the minimum of ever smaller faces until it lies inside one."""
    while True:
        index = np.flatnonzero(face)
        goal = np.zeros_like(w)
        goal[index] = minimise_on_face(q[np.ix_(index, index)], b[index])
        negative = face & (goal <= 0)
        if not negative.any():
            return goal
        step = min((w[negative] / (w[negative] - goal[negative])).min(), 1.0)
        w = np.where(face, w + step * (goal - w), 0.0)
        face = face & ~(negative & (w <= _TOLERANCE))
        w = np.where(face, w, 0.0)
        w /= w.sum()
