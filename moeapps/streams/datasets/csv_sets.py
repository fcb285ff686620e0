"""Electricity and NOAA weather, from CSV files with a header and the label last."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moeapps.data.card import DataArchive, DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.streams.datasets.cards import stream_card
from moeapps.streams.datasets.recorded import coded, read_csv, recorded
from moeapps.streams.datasets.stream import Stream

# Computed from the files of scikit-multiflow/streaming-datasets at this commit.
_MULTIFLOW = (
    "https://raw.githubusercontent.com/scikit-multiflow/streaming-datasets/"
    "f1eb9f068c3450233721c3beac6fb0e880e9e7d7/"
)
_ELEC = "cdf901433885f29eca6911f70c0eeafb50d90596c879c30c5b99f5a2e8e734ff"
_WEATHER = "3c38f05bdc5c4cb115f122414c66976e3662c875d96d7199d9e47fc46aff150e"
_HARRIES = "Harries, SPLICE-2 comparative evaluation: electricity pricing, 1999"
_AUTOCORRELATED = (
    "Strongly autocorrelated: repeating the last label is right 85 % of the time, so read "
    "kappa-temporal."
)


def _card(
    name: str,
    title: str,
    instances: int,
    features: int,
    citation: str,
    source: tuple[str, str],
    file: DataFile,
    notes: str,
    archives: tuple[DataArchive, ...] = (),
) -> DatasetCard:
    return stream_card(
        name=name,
        title=title,
        instances=instances,
        features=features,
        classes=2,
        licence="none stated",
        source=source[0],
        url=source[1],
        citation=citation,
        files=(file,),
        archives=archives,
        notes=notes,
    )


_DATASETS = (
    "streaming-datasets, scikit-multiflow on GitHub",
    "https://github.com/scikit-multiflow/streaming-datasets",
)
CARDS = {
    card.name: card
    for card in (
        _card(
            "electricity", "Electricity", 45_312, 6, _HARRIES, _DATASETS,
            DataFile("streams/elec.csv", _ELEC, 3_200_586, (f"{_MULTIFLOW}elec.csv",)),
            f"Without date and day. {_AUTOCORRELATED}",
        ),
        _card(
            "electricity_8", "Electricity with date and day", 45_312, 8,
            _HARRIES,
            ("river's documentation", "https://riverml.xyz/latest/api/datasets/Elec2/"),
            DataFile("streams/electricity.csv"),
            f"The form behind most published numbers. {_AUTOCORRELATED} [check] The file's "
            "checksum is not recorded.",
            (
                DataArchive(
                    ("https://maxhalford.github.io/files/datasets/electricity.zip",),
                    {"electricity.csv": "streams/electricity.csv"},
                ),
            ),
        ),
        _card(
            "weather", "NOAA weather", 18_159, 8,
            "Elwell and Polikar, Incremental learning of concept drift in nonstationary "
            "environments, IEEE TNN 2011",
            _DATASETS,
            DataFile("streams/weather.csv", _WEATHER, 772_138, (f"{_MULTIFLOW}weather.csv",)),
            "Did it rain at Offutt Air Force Base, day by day over fifty years?",
        ),
    )
}  # fmt: skip

_CLASSES: dict[str, Sequence[Any]] = {
    "electricity": ("DOWN", "UP"),
    "electricity_8": ("DOWN", "UP"),
    "weather": (0, 1),
}
_FILED = {"electricity": ("0", "1"), "electricity_8": ("DOWN", "UP"), "weather": ("0", "1")}
_NOMINAL = {"electricity_8": {"day": [str(day) for day in range(1, 8)]}}


def load(
    card: DatasetCard,
    *,
    limit: int | None = None,
    root: str | Path | None = None,
    download: bool = False,
) -> Stream:
    """Prices of electricity that go up or down, or days with and without rain.

    ============= ========= ======== ======= ==========================
    Set           Instances Features Classes File
    ============= ========= ======== ======= ==========================
    electricity      45,312        6       2 ``streams/elec.csv``
    electricity_8    45,312        8       2 ``streams/electricity.csv``
    weather          18,159        8       2 ``streams/weather.csv``
    ============= ========= ======== ======= ==========================

    Args:
        card: Which of them.
        limit: Instances to give.
        root: Data home.
        download: Fetch a missing file.

    Raises:
        DataNotFoundError: Naming the missing file.
        DataIntegrityError: When the file is truncated or not the published one.
    """
    (path,) = locate(card, root=root, download=download).values()
    nominal = _NOMINAL.get(card.name, {})
    with reading(path):
        frame = read_csv(path, dtype=dict.fromkeys(nominal, str))
        *features, target = frame.columns
        columns = {
            name: coded(frame[name], nominal[name])
            if name in nominal
            else frame[name].to_numpy(float)
            for name in features
        }
        labels = coded(frame[target], _FILED[card.name]).astype(int)
    return recorded(
        card, columns, labels, limit=limit, class_names=_CLASSES[card.name], values=nominal
    )
