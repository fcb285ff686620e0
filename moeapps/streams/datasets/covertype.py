"""CoverType: the kind of forest on 30 x 30 m cells, from the UCI file."""

from pathlib import Path

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.streams.datasets.cards import stream_card
from moeapps.streams.datasets.recorded import recorded
from moeapps.streams.datasets.stream import Stream

_NUMERIC = (
    "elevation", "aspect", "slope", "horizontal_distance_to_hydrology",
    "vertical_distance_to_hydrology", "horizontal_distance_to_roadways", "hillshade_9am",
    "hillshade_noon", "hillshade_3pm", "horizontal_distance_to_fire_points",
)  # fmt: skip
_BINARY = (
    *(f"wilderness_area_{i}" for i in range(1, 5)),
    *(f"soil_type_{i}" for i in range(1, 41)),
)

CARDS = {
    "covertype": stream_card(
        name="covertype",
        title="CoverType",
        instances=581_012,
        features=54,
        classes=7,
        licence="CC BY 4.0",
        source="UCI Machine Learning Repository",
        url="https://archive.ics.uci.edu/dataset/31/covertype",
        citation="Blackard and Dean, Computers and Electronics in Agriculture 24, 1999",
        files=(
            DataFile(
                "streams/covtype.data.gz",
                # As scikit-learn records it for the first of the addresses.
                sha256="614360d0257557dd1792834a85a1cdebfadc3c4f30b011d56afee7ffb5b15771",
                urls=(
                    "https://ndownloader.figshare.com/files/5976039",
                    "https://archive.ics.uci.edu/ml/machine-learning-databases/covtype/"
                    "covtype.data.gz",
                ),
            ),
        ),
        notes="Published numbers use MOA's copy, whose numbers are scaled to 0..1; trees do not "
        "see the difference.",
    )
}


def load(
    card: DatasetCard,
    *,
    limit: int | None = None,
    root: str | Path | None = None,
    download: bool = False,
) -> Stream:
    """Ten measurements and 44 binary facts (wilderness area, soil type) per cell; classes 1..7.

    ========= ======== ======= =======
    Instances Features Nominal Classes
    ========= ======== ======= =======
      581,012       54      44       7
    ========= ======== ======= =======

    Args:
        card: The card of the set.
        limit: Instances to give.
        root: Data home; the file is ``<root>/streams/covtype.data.gz``.
        download: Fetch a missing file.

    Raises:
        DataNotFoundError: Naming the missing file.
        DataIntegrityError: When the file is truncated or not the published one.
    """
    import pandas as pd

    (path,) = locate(card, root=root, download=download).values()
    with reading(path):
        table = pd.read_csv(path, header=None).to_numpy(float)
        columns = dict(zip([*_NUMERIC, *_BINARY], table[:, :-1].T, strict=True))
        labels = table[:, -1].astype(np.int64) - 1
    labels[labels >= card.classes] = -1
    return recorded(
        card, columns, labels, limit=limit, class_names=range(1, 8),
        values=dict.fromkeys(_BINARY, ("0", "1")),
    )  # fmt: skip
