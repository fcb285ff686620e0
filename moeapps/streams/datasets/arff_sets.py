"""Airlines and Give Me Some Credit, from the ARFF files of the adaptive random forest paper."""

from pathlib import Path

from moeapps.data.card import DataArchive, DataFile, DatasetCard
from moeapps.data.locate import locate
from moeapps.streams.datasets.arff import read_arff
from moeapps.streams.datasets.cards import stream_card
from moeapps.streams.datasets.recorded import coded, recorded
from moeapps.streams.datasets.stream import Stream

_REPOSITORY = "https://github.com/hmgomes/AdaptiveRandomForest"


def _card(
    name: str, title: str, file: str, instances: int, features: int, citation: str, notes: str
) -> DatasetCard:
    return stream_card(
        name=name,
        title=title,
        instances=instances,
        features=features,
        classes=2,
        licence="none stated",
        source="AdaptiveRandomForest on GitHub",
        url=_REPOSITORY,
        citation=citation,
        files=(DataFile(f"streams/{file}"),),
        archives=(
            DataArchive((f"{_REPOSITORY}/raw/master/{file}.zip",), {file: f"streams/{file}"}),
        ),
        notes=notes + " [check] The address and the name inside the archive are not verified.",
    )


CARDS = {
    card.name: card
    for card in (
        _card(
            "airlines", "Airlines", "airlines.arff", 539_383, 7,
            "Ikonomovska, Airline data set, Data Expo 2009; Bifet and Ikonomovska, OpenML 1169",
            "Will a flight be delayed, given its scheduled departure?",
        ),
        _card(
            "gmsc", "Give Me Some Credit", "GMSC.arff", 150_000, 10,
            "Kaggle, Give Me Some Credit, 2011; Gomes et al., Machine Learning 2017",
            "Will a borrower be seriously late within two years? Has missing values.",
        ),
    )
}  # fmt: skip


def load(
    card: DatasetCard,
    *,
    limit: int | None = None,
    root: str | Path | None = None,
    download: bool = False,
) -> Stream:
    """A stream whose ARFF header declares its nominal columns and, last, its classes.

    ======== ========= ======== ======= ==============
    Set      Instances Features Nominal Missing values
    ======== ========= ======== ======= ==============
    airlines   539,383        7       4 no
    gmsc       150,000       10       0 yes
    ======== ========= ======== ======= ==============

    Args:
        card: Which of them.
        limit: Instances to give.
        root: Data home; the file is in ``<root>/streams``.
        download: Fetch a missing file.

    Raises:
        DataNotFoundError: Naming the missing file.
        DataIntegrityError: When the file is truncated or not the published one.
    """
    (path,) = locate(card, root=root, download=download).values()
    frame, values = read_arff(path)
    *features, target = frame.columns
    classes = values.get(target, ())
    columns = {
        name: coded(frame[name], values[name]) if name in values else frame[name].to_numpy()
        for name in features
    }
    return recorded(
        card, columns, coded(frame[target], classes).astype(int), limit=limit,
        class_names=classes, values={name: values[name] for name in features if name in values},
    )  # fmt: skip
