"""Two regression tasks whose relation is a dial: the synthetic study of the MMoE paper."""

import numpy as np

from moeapps.data.card import DatasetCard
from moeapps.errors import ArgumentError
from moeapps.recsys.columns import take_columns
from moeapps.recsys.datasets.tables import Tables
from moeapps.recsys.schema import Dense, FeatureSchema, Task

CARDS = {
    "two-task-regression": DatasetCard(
        name="two-task-regression",
        title="Two-task regression",
        domain="recsys",
        task="2 regressions",
        metric="mse",
        sizes={"rows": 30_000, "features": 100},
        classes=0,
        splits="independent draws",
        licence="made from a seed",
        source="moeapps",
        url="https://doi.org/10.1145/3219819.3220007",
        citation="Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate "
        "Mixture-of-Experts, KDD 2018",
        synthetic=True,
        notes="The paper leaves the amplitude and the sines open; see the docstring.",
    )
}

_FREQUENCIES = np.array([1.0, 2.0, 3.0, 4.0])
_PHASES = np.array([0.0, 1.0, 2.0, 3.0])


def two_task_regression(
    correlation: float = 0.5,
    *,
    rows: int = 10_000,
    val_rows: int = 10_000,
    test_rows: int = 10_000,
    width: int = 100,
    seed: int = 0,
) -> Tables:
    r"""Draw a set whose tasks' directions have a given cosine.

    .. math::
        w_1 = u_1, \quad w_2 = p\, u_1 + \sqrt{1 - p^2}\, u_2, \quad
        y_k = w_k \cdot x + \sum_{i=1}^{4} \sin(\alpha_i\, w_k \cdot x + \beta_i) + \varepsilon

    with random orthonormal :math:`u_1, u_2`, :math:`x \sim N(0, I)`,
    :math:`\varepsilon \sim N(0, 0.01)`, :math:`\alpha = (1, 2, 3, 4)`,
    :math:`\beta = (0, 1, 2, 3)`. Each :math:`y_k` is standardised by the training rows.

    Args:
        correlation: :math:`p`, the cosine of the two directions.
        rows: Training rows.
        val_rows: Validation rows.
        test_rows: Test rows.
        width: Length of :math:`x`, the dense feature ``x``.
        seed: Of directions, inputs and noise.

    Raises:
        ArgumentError: The correlation is outside -1..1, or a number is too small.

    Notes:
        The paper leaves the scale of the directions, the number of sines and their constants open;
        here the scale is 1.

    References:
        Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate
        Mixture-of-Experts*, KDD 2018.

    Example:
        >>> tables = two_task_regression(0.5, rows=1000)
        >>> tables.train["x"].shape, round(float(tables.train["y1"].std()), 3)
        ((1000, 100), 1.0)
    """
    if not -1 <= correlation <= 1:
        raise ArgumentError(f"correlation={correlation} is no cosine. Choose -1..1.")
    if min(rows, val_rows, test_rows) < 1 or width < 2:
        raise ArgumentError(
            f"rows={rows}, val_rows={val_rows}, test_rows={test_rows}, width={width}: expected at "
            "least 1 row in each split and a width of 2."
        )
    rng = np.random.default_rng(seed)
    u1, u2 = np.linalg.qr(rng.standard_normal((width, 2)))[0].T
    directions = np.stack([u1, correlation * u1 + np.sqrt(1 - correlation**2) * u2])
    x = rng.standard_normal((rows + val_rows + test_rows, width))
    along = x @ directions.T  # [N, 2]
    y = along + np.sin(along[..., None] * _FREQUENCIES + _PHASES).sum(-1)
    y += 0.1 * rng.standard_normal(y.shape)
    y = (y - y[:rows].mean(0)) / y[:rows].std(0)
    columns = {"x": x.astype(np.float32), "y1": y[:, 0], "y2": y[:, 1]}
    ends = np.cumsum([rows, val_rows, test_rows])
    train, val, test = (
        take_columns(columns, slice(end - count, end))
        for end, count in zip(ends, (rows, val_rows, test_rows), strict=True)
    )
    return Tables(
        FeatureSchema([Dense("x", width)]),
        (Task("y1", "regression"), Task("y2", "regression")),
        train, val, test, "independent draws",
    )  # fmt: skip


def read(
    card: DatasetCard,
    *,
    correlation: float = 0.5,
    rows: int = 10_000,
    val_rows: int = 10_000,
    test_rows: int = 10_000,
    width: int = 100,
    seed: int = 0,
) -> Tables:
    """:func:`two_task_regression` as a set with a name."""
    return two_task_regression(
        correlation, rows=rows, val_rows=val_rows, test_rows=test_rows, width=width, seed=seed
    )
