"""The classification sets that come with river: no download, no files to place."""

from pathlib import Path

import numpy as np

from moeapps.data.card import DatasetCard
from moeapps.streams.datasets.cards import stream_card
from moeapps.streams.datasets.recorded import recorded
from moeapps.streams.datasets.stream import Stream


def _card(
    name: str, title: str, instances: int, features: int, classes: int, citation: str, notes: str
) -> DatasetCard:
    return stream_card(
        name=name,
        title=title,
        instances=instances,
        features=features,
        classes=classes,
        licence="comes with river (BSD-3)",
        source="river, datasets",
        url="https://riverml.xyz/latest/api/overview/#datasets",
        citation=citation,
        notes=notes,
    )


CARDS = {
    card.name: card
    for card in (
        _card("bananas", "Bananas", 5_300, 2, 2, "OpenML 1460", "Two clouds; no drift."),
        _card("image_segments", "Image segments", 2_310, 18, 7, "UCI, Statlog image segmentation",
              "Patches of outdoor photographs; no drift."),
        _card("phishing", "Phishing", 1_250, 9, 2, "UCI, Website phishing", "No drift."),
        _card("shuttle", "Shuttle", 49_097, 9, 2, "UCI, Statlog shuttle; ODDS",
              "7 % of the rows are anomalies: read kappa-M, not accuracy."),
    )
}  # fmt: skip

_CLASSES = {
    "bananas": "Bananas",
    "image_segments": "ImageSegments",
    "phishing": "Phishing",
    "shuttle": "Shuttle",
}


def load(
    card: DatasetCard,
    *,
    limit: int | None = None,
    root: str | Path | None = None,
    download: bool = False,
) -> Stream:
    """A set from river's wheel, all columns numeric.

    ============== ========= ======== =======
    Set            Instances Features Classes
    ============== ========= ======== =======
    bananas            5,300        2       2
    image_segments     2,310       18       7
    phishing           1,250        9       2
    shuttle           49,097        9       2
    ============== ========= ======== =======

    Args:
        card: Which of them.
        limit: Instances to give.
        root: Has no effect; the files are in river.
        download: Has no effect.
    """
    from river import datasets

    pairs = list(getattr(datasets, _CLASSES[card.name])())
    names = list(pairs[0][0])
    classes = sorted({label for _, label in pairs})
    codes = {label: code for code, label in enumerate(classes)}
    rows = np.array([[x[name] for name in names] for x, _ in pairs], float)
    return recorded(
        card, {str(name): rows[:, j] for j, name in enumerate(names)},
        np.array([codes[label] for _, label in pairs]), limit=limit, class_names=classes,
    )  # fmt: skip
