"""A made-up short-video log: two groups of tasks, dense and sparse labels, known probabilities."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.data.card import DatasetCard
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.recsys.columns import take_columns
from moeapps.recsys.datasets.tables import Tables
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, Task

Array = NDArray[np.float64]

CARDS = {
    "short-video": DatasetCard(
        name="short-video",
        title="Short-video log",
        domain="recsys",
        task="9 binary tasks in 2 groups",
        metric="auroc",
        sizes={"rows": 370_000, "features": 32, "users": 4_000, "items": 4_000},
        classes=2,
        splits="independent draws",
        licence="made from a seed",
        source="moeapps",
        url="https://arxiv.org/abs/2408.05430",
        citation="Made in the image of the log that HoME describes (Wang et al., KDD 2025)",
        synthetic=True,
        notes="Sizes are those of preset='mixed' with 20,000 validation rows.",
    )
}

RATES = {
    "watch": {"effective_view": 0.45, "long_view": 0.25, "complete": 0.30, "click": 0.35},
    "interaction": {
        "like": 0.03, "collect": 0.010, "follow": 0.006, "comment": 0.005, "forward": 0.004,
    },
}  # fmt: skip
_USERS, _ITEMS, _WIDTH, _RANK = 4_000, 4_000, 8, 4
_CLUSTERS, _CATEGORIES, _AUTHORS, _TABS, _HOURS, _DURATIONS = 40, 30, 300, 4, 24, 8
_BY_DURATION = {
    "watch": np.linspace(-1, 1, _DURATIONS),
    "interaction": np.linspace(0.7, -0.7, _DURATIONS),
}
_CATEGORICAL = ("user", "item", "author", "category", "cluster", "duration", "tab", "hour")


@dataclass(frozen=True)
class Preset:
    """Sizes and weights of a short-video log.

    Args:
        rows: Training rows.
        test_rows: Test rows.
        shared: Weight of the term of all tasks, whose sign is turned for interactions.
        group: Weight of the term of each group.
        task: Weight of the term of each task.
        scale: Standard deviation of the logits.
    """

    rows: int
    test_rows: int
    shared: float
    group: float
    task: float
    scale: float


PRESETS = {
    "mixed": Preset(250_000, 100_000, shared=0.4, group=1.0, task=0.8, scale=1.6),
    "conflict": Preset(200_000, 80_000, shared=0.0, group=1.4, task=0.3, scale=2.0),
}


def short_video_log(
    preset: str = "mixed",
    *,
    rows: int | None = None,
    val_rows: int = 20_000,
    test_rows: int | None = None,
    seed: int = 0,
) -> Tables:
    r"""Draw a log of impressions with nine labels each.

    Users and items have latent vectors :math:`u, v \in R^8` around the centres of a cluster, a
    category and an author. For task :math:`t` of group :math:`g`

    .. math::
        z_t = w_{sh}\, (\pm s_0) + w_{grp}\, s_g + w_{task}\, s_t + 0.6\, b_g, \qquad
        P(y_t = 1) = \sigma(\mathrm{scale} \cdot z_t / \mathrm{std}(z_t) + c_t)

    with :math:`s_0 = u^T A_0 v`, :math:`s_g = (u \odot M_g[\mathrm{tab}])^T A_g v`,
    :math:`s_t = u^T A_t v`, each divided by its standard deviation, random :math:`A` of rank 4,
    :math:`s_0` with a minus for interactions, a base :math:`b_g` per user, item and duration, and
    :math:`c_t` such that the rate of positives is that of the task.

    ============== =========== ====  =========== =========== =====
    Task           Group       Rate  Task        Group       Rate
    ============== =========== ====  =========== =========== =====
    effective_view watch       0.45  like        interaction 0.03
    long_view      watch       0.25  collect     interaction 0.010
    complete       watch       0.30  follow      interaction 0.006
    click          watch       0.35  comment     interaction 0.005
    \                                forward     interaction 0.004
    ============== =========== ====  =========== =========== =====

    The network sees eight categorical features and 24 unscaled dense ones: noisy latent vectors,
    log counts, and columns of heavy-tailed noise. The columns ``oracle/<task>`` hold
    :math:`P(y_t = 1)`; no feature reads them.

    Args:
        preset: ``"mixed"``: logits of a group correlate by 0.7, across groups by -0.1 on average;
            ``"conflict"``: by 0.96 and 0, so a group has nothing to learn from the other.
        rows: Training rows; None takes the preset's 250,000 or 200,000.
        val_rows: Validation rows, drawn besides.
        test_rows: Test rows; None takes the preset's 100,000 or 80,000.
        seed: Of everything.

    Raises:
        UnknownNameError: For an unknown preset.
        ArgumentError: A split has no row.

    Example:
        >>> tables = short_video_log("conflict", rows=2000, val_rows=500, test_rows=500)
        >>> [task.name for task in tables.tasks if task.group == "watch"]
        ['effective_view', 'long_view', 'complete', 'click']
        >>> oracle_scores(tables)["auc"] > 0.7
        True
    """
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    recipe = PRESETS[preset]
    counts = (
        recipe.rows if rows is None else rows,
        val_rows,
        recipe.test_rows if test_rows is None else test_rows,
    )
    if min(counts) < 1:
        raise ArgumentError(f"rows are {counts}. Expected at least 1 in each split.")
    rng = np.random.default_rng(seed)
    world = _World(rng)
    columns = world.expose(rng, counts)
    columns |= world.label(rng, columns, recipe)
    ends = np.cumsum(counts)
    train, val, test = (
        take_columns(columns, slice(end - count, end))
        for end, count in zip(ends, counts, strict=True)
    )
    tasks = tuple(Task(name, group=group) for group, rates in RATES.items() for name in rates)
    return Tables(_schema(), tasks, train, val, test, "independent draws")


def oracle_scores(tables: Tables) -> dict[str, float]:
    """Mean test AUC and GAUC over the tasks of the probabilities that made the labels.

    Tasks whose value is not defined, for want of positives, are left out of the mean.
    """
    from moeapps.recsys.metrics import auc, gauc

    test = tables.test
    pairs = [(test[task.column], test[f"oracle/{task.name}"]) for task in tables.tasks]
    return {
        "auc": float(np.nanmean([auc(y, p) for y, p in pairs])),
        "gauc": float(np.nanmean([gauc(y, p, test["user"]).value for y, p in pairs])),
    }


def read(
    card: DatasetCard,
    *,
    preset: str = "mixed",
    rows: int | None = None,
    val_rows: int = 20_000,
    test_rows: int | None = None,
    seed: int = 0,
) -> Tables:
    """:func:`short_video_log` as a set with a name."""
    return short_video_log(preset, rows=rows, val_rows=val_rows, test_rows=test_rows, seed=seed)


def _schema() -> FeatureSchema:
    categorical = [Categorical(name, 1, 8) for name in _CATEGORICAL]
    dense = [
        Dense("user_vector", _WIDTH),
        Dense("item_vector", _WIDTH),
        Dense("item_count"),
        Dense("user_count"),
        Dense("item_noise", 3),
        Dense("user_noise", 3),
    ]
    return FeatureSchema([*categorical, *dense], group_key="user")


class _World:
    """Users and items, and how much they like each other."""

    def __init__(self, rng: np.random.Generator) -> None:
        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape)

        clusters, categories = normal(_CLUSTERS, _WIDTH), normal(_CATEGORIES, _WIDTH)
        authors = normal(_AUTHORS, _WIDTH)
        self.cluster = rng.integers(_CLUSTERS, size=_USERS)
        self.category = rng.integers(_CATEGORIES, size=_ITEMS)
        self.author = rng.integers(_AUTHORS, size=_ITEMS)
        self.duration = rng.integers(_DURATIONS, size=_ITEMS)
        self.user = 0.7 * clusters[self.cluster] + 0.7 * normal(_USERS, _WIDTH)
        self.item = (
            0.6 * categories[self.category]
            + 0.4 * authors[self.author]
            + 0.7 * normal(_ITEMS, _WIDTH)
        )
        self.user_weight = rng.lognormal(size=_USERS)
        self.item_weight = rng.permutation(np.arange(1, _ITEMS + 1) ** -0.8)
        self.seen = {
            "user_vector": self.user + 0.5 * normal(_USERS, _WIDTH),
            "item_vector": self.item + 0.5 * normal(_ITEMS, _WIDTH),
            "user_noise": rng.lognormal(size=(_USERS, 3)),
            "item_noise": rng.lognormal(size=(_ITEMS, 3)),
        }

    def expose(self, rng: np.random.Generator, counts: tuple[int, int, int]) -> dict[str, Any]:
        """Who is shown what, where and when, and what a network may know of it."""
        size = sum(counts)
        user = rng.choice(_USERS, size, p=self.user_weight / self.user_weight.sum())
        item = rng.choice(_ITEMS, size, p=self.item_weight / self.item_weight.sum())
        of = {"user": user, "item": item}
        dense = {
            name: values[of[name.partition("_")[0]]].astype(np.float32)
            for name, values in self.seen.items()
        }
        for name, column in of.items():  # as often as in the training rows
            often = np.bincount(column[: counts[0]], minlength=_USERS)
            dense[f"{name}_count"] = np.log1p(often[column]).astype(np.float32)
        return {
            **of,
            "author": self.author[item],
            "category": self.category[item],
            "cluster": self.cluster[user],
            "duration": self.duration[item],
            "tab": rng.integers(_TABS, size=size),
            "hour": rng.integers(_HOURS, size=size),
            **dense,
        }

    def label(
        self, rng: np.random.Generator, columns: dict[str, Any], recipe: Preset
    ) -> dict[str, Any]:
        """Labels and their probabilities."""
        user, item, tab = columns["user"], columns["item"], columns["tab"]
        u, v = self.user[user], self.item[item]
        labels: dict[str, Any] = {}
        shared = _standard(_bilinear(rng, u, v))
        for group, rates in RATES.items():
            sign = 1 if group == "watch" else -1
            by_tab = 1 + rng.uniform(-1, 1, (_TABS, _WIDTH))
            ours = _standard(_bilinear(rng, u * by_tab[tab], v))
            by_user, by_item = rng.standard_normal(_USERS), rng.standard_normal(_ITEMS)
            base = by_user[user] + by_item[item] + _BY_DURATION[group][columns["duration"]]
            for name, rate in rates.items():
                own = _standard(_bilinear(rng, u, v))
                z = recipe.shared * sign * shared + recipe.group * ours + recipe.task * own
                chance = _with_rate(recipe.scale * _standard(z + 0.6 * 0.6 * base), rate)
                labels[name] = (rng.random(len(chance)) < chance).astype(np.float32)
                labels[f"oracle/{name}"] = chance
        return labels


def _bilinear(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """``u A v`` with a random matrix of rank 4."""
    left, right = rng.standard_normal((2, _WIDTH, _RANK)) / (_RANK * _WIDTH) ** 0.25
    return np.einsum("nr,nr->n", u @ left, v @ right)


def _standard(x: Array) -> Array:
    return x / x.std()


def _with_rate(z: Array, rate: float) -> Array:
    """Probabilities of mean ``rate``: a constant is added to the logits, found by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(_sigmoid(z + middle).mean()) < rate:
            low = middle
        else:
            high = middle
    return _sigmoid(z + (low + high) / 2)


def _sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))
