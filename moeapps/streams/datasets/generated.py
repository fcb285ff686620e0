"""What LED, SEA, RBF and Agrawal have in common: their cards, and the way to a `Stream`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moeapps.data.card import DatasetCard
from moeapps.streams.datasets.cards import stream_card
from moeapps.streams.datasets.stream import Rows, Stream

if TYPE_CHECKING:
    from moeapps.streams.datasets.drift import Schedule

LENGTH = 1_000_000  # of every stream in the papers

# fill(first instance, features to fill [n, d], class indices to fill [n])
Fill = Callable[[int, np.ndarray, np.ndarray], None]


def _card(
    name: str, title: str, features: int, classes: int, citation: str, notes: str
) -> DatasetCard:
    return stream_card(
        name=name,
        title=title,
        instances=LENGTH,
        features=features,
        classes=classes,
        licence="made from a seed",
        source="MOA (the published generators)",
        url="https://moa.cms.waikato.ac.nz/",
        citation=citation,
        synthetic=True,
        notes=notes,
    )


_LED = (
    24, 10, "Breiman et al., Classification and Regression Trees, 1984",
    "No classifier can be right more often than 74.0 % with 10 % noise.",
)  # fmt: skip
_SEA = (
    3, 2, "Street and Kim, A streaming ensemble algorithm (SEA), KDD 2001",
    "No classifier can be right more often than 90.0 % with 10 % noise.",
)  # fmt: skip
_RBF = (
    10, 2, "Bifet et al., New ensemble methods for evolving data streams, KDD 2009",
    "Moving centroids move all the time: there is no instance of change.",
)  # fmt: skip
_AGRAWAL = (
    9, 2, "Agrawal, Imielinski, Swami, Database mining: a performance perspective, TKDE 1993",
    "Labels are exact, but the numbers are perturbed by 5 % afterwards.",
)  # fmt: skip

CARDS = {
    card.name: card
    for card in (
        _card("led", "LED", *_LED),
        _card("led_a", "LED, abrupt drift", *_LED),
        _card("led_g", "LED, gradual drift", *_LED),
        _card("sea", "SEA", *_SEA),
        _card("sea_a", "SEA, abrupt drift", *_SEA),
        _card("sea_g", "SEA, gradual drift", *_SEA),
        _card("rbf", "RBF, centroids at rest", *_RBF),
        _card("rbf_m", "RBF, moderate drift", *_RBF),
        _card("rbf_f", "RBF, fast drift", *_RBF),
        _card("agrawal", "Agrawal", *_AGRAWAL),
        _card("agrawal_a", "Agrawal, abrupt drift", *_AGRAWAL),
        _card("agrawal_g", "Agrawal, gradual drift", *_AGRAWAL),
    )
}


def generated(
    card: DatasetCard,
    fill: Fill,
    changes: "Schedule",
    *,
    limit: int | None,
    length: int,
    feature_names: Sequence[str],
    num_classes: int,
    values: Mapping[int, Sequence[str]] | None = None,
    seed: int,
) -> Stream:
    """The stream of a compiled generator.

    Args:
        card: Its card.
        fill: Writes instances into arrays.
        changes: Of concept.
        limit: Instances to give, None for ``length``; more than that goes on in the last concept.
        length: Instances over which the changes of concept are spread.
        feature_names: One per column.
        num_classes: Labels are 0, 1, ...
        values: Values of the nominal columns.
        seed: What it was made from.
    """
    count = length if limit is None else limit

    def rows(start: int, stop: int) -> Rows:
        X = np.empty((stop - start, len(feature_names)))  # noqa: N806
        y = np.empty(stop - start, np.int64)
        fill(start, X, y)
        return X, y

    return Stream(
        card, rows, count, feature_names=feature_names, class_names=range(num_classes),
        values=values, drifts=[int(p) for p in changes.positions if p < count],
        drift_width=changes.width, seed=seed,
    )  # fmt: skip
