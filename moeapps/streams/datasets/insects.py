"""Insects: which of six flew past the sensor, while the temperature of the room was changed."""

from pathlib import Path

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.streams.datasets.cards import stream_card
from moeapps.streams.datasets.recorded import coded, read_csv, recorded
from moeapps.streams.datasets.stream import Stream

# Variant -> instances, key of river's copy, and the changes of Souza et al.'s table 2.
_VARIANTS: dict[str, tuple[int, str, tuple[int, ...]]] = {
    "abrupt_balanced": (
        52_848, "1WQoIuuVgiuXfzv4kvao6XuLQG37V923O", (14_352, 19_500, 33_240, 38_682, 39_510),
    ),
    "abrupt_imbalanced": (
        355_275, "1Z9W2_mwawobXeTihZDTDnFOCtfdgmgDa",
        (83_859, 128_651, 182_320, 242_883, 268_380),
    ),
    "gradual_balanced": (24_150, "1fepYkDxwMbuoRUaG_fsymSzkuapS4vJp", (14_028,)),
    "gradual_imbalanced": (143_323, "1_WJ7lxK2sx1i6kq9Nqv4KrjT0ZXB0QbC", (58_159,)),
    "incremental_abrupt_balanced": (
        79_986, "1-J5WIBN8_F_tomdcrOaiLCxk9nzxtFsf", (26_568, 53_364),
    ),
    "incremental_reoccurring_balanced": (
        79_986, "1mSKTSsxzYMjdV005AJqrcMGajuu7dUfW", (26_568, 53_364),
    ),
    "incremental_balanced": (57_018, "1tKQ2KL4m-ACHCVKUDLFPrM4cyhioiOpu", ()),
}  # fmt: skip
_DRIVE = "https://drive.google.com/uc?export=download&id={}&confirm=t"


def _card(variant: str) -> DatasetCard:
    instances, key, _ = _VARIANTS[variant]
    return stream_card(
        name=f"insects_{variant}",
        title=f"Insects, {variant.replace('_', ' ')}",
        instances=instances,
        features=33,
        classes=6,
        licence="CC BY 4.0 [check]",
        source="USP data stream repository (the address is of river's copy)",
        url="https://sites.google.com/view/uspdsrepository",
        citation="Souza et al., Challenges in benchmarking stream learning algorithms with "
        "real-world data, Data Mining and Knowledge Discovery 2020",
        files=(DataFile(f"streams/insects/{variant}.csv", urls=(_DRIVE.format(key),)),),
        notes="[check] The checksum is not recorded; the number of instances is checked.",
    )


CARDS = {f"insects_{variant}": _card(variant) for variant in _VARIANTS}


def load(
    card: DatasetCard,
    *,
    limit: int | None = None,
    root: str | Path | None = None,
    download: bool = False,
) -> Stream:
    """33 numbers from the signal of an optical sensor; six kinds of insect and sex.

    ================================ ========= =======
    Set                              Instances Changes
    ================================ ========= =======
    abrupt_balanced                     52,848       5
    abrupt_imbalanced                  355,275       5
    gradual_balanced                    24,150       1
    gradual_imbalanced                 143,323       1
    incremental_abrupt_balanced         79,986       2
    incremental_reoccurring_balanced    79,986       2
    incremental_balanced                57,018       0
    ================================ ========= =======

    Names have ``insects_`` in front. The files have no header: ``f1`` .. ``f33``, then the class.

    Args:
        card: Which of them.
        limit: Instances to give.
        root: Data home; the files are in ``<root>/streams/insects``.
        download: Fetch a missing file.

    Raises:
        DataNotFoundError: Naming the missing file.
        DataIntegrityError: When the file is truncated or not the published one.
    """
    (path,) = locate(card, root=root, download=download).values()
    with reading(path):
        frame = read_csv(path, header=None)
        *features, target = frame.columns
        text = frame[target].astype(str)
        classes = sorted(text.unique())
        columns = {f"f{i + 1}": frame[name].to_numpy(float) for i, name in enumerate(features)}
    return recorded(
        card, columns, coded(text, classes).astype(int), limit=limit, class_names=classes,
        drifts=_VARIANTS[card.name.removeprefix("insects_")][2],
    )  # fmt: skip
