"""Attribute sets for zero-shot learning: AWA2, CUB, SUN and FLO in the format of xlsa17.

Each set is two MATLAB files: ``res101.mat`` with one feature vector and label per image, and
``att_splits.mat`` with one attribute vector per class and the rows of the splits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.data.card import DataArchive, DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.errors import UnknownNameError

PARTS = ("train", "val", "trainval", "test_seen", "test_unseen")
_FEATURES, _SPLITS = "res101.mat", "att_splits.mat"
# name -> title, images, classes, attributes, and images of trainval, test_seen and test_unseen
_SETS = {
    "awa2": ("AWA2", 37_322, 50, 85, (23_527, 5_882, 7_913)),
    "cub": ("CUB", 11_788, 200, 312, (7_057, 1_764, 2_967)),
    "sun": ("SUN", 14_340, 717, 102, (10_320, 2_580, 1_440)),
    "flo": ("FLO", 8_189, 102, 1_024, (5_394, 1_640, 1_155)),
}
_CITATIONS = {
    "awa2": "Lampert et al., Attribute-Based Classification, TPAMI 36, 2014",
    "cub": "Welinder et al., Caltech-UCSD Birds 200, 2010",
    "sun": "Patterson, Hays, SUN Attribute Database, CVPR 2012",
    "flo": "Nilsback, Zisserman, Automated Flower Classification, ICVGIP 2008",
}
_XIAN = "Xian et al., Zero-Shot Learning: A Comprehensive Evaluation, TPAMI 41, 2019"


@dataclass(frozen=True, eq=False)
class AttributeSet:
    """Features of images, and attributes of their classes.

    Args:
        features: ``[N, D]`` float32.
        labels: ``[N]`` int64, from 0.
        attributes: ``[C, A]`` float32.
        class_names: One per class.
        rows: Rows of ``train``, ``val``, ``trainval``, ``test_seen`` and ``test_unseen``. The
            classes of ``val`` are not in ``train``, those of ``test_unseen`` not in ``trainval``.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    attributes: NDArray[np.float32]
    class_names: tuple[str, ...]
    rows: dict[str, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, seen and unseen."""
        return len(self.class_names)

    @property
    def seen(self) -> NDArray[np.int64]:
        """Classes with training or validation images, ascending."""
        return self.classes("trainval")

    @property
    def unseen(self) -> NDArray[np.int64]:
        """Classes that only the test has, ascending."""
        return self.classes("test_unseen")

    @property
    def num_rows(self) -> dict[str, int]:
        """Images of each split."""
        return {name: len(rows) for name, rows in self.rows.items()}

    @property
    def split_source(self) -> str:
        """How the images came into their splits."""
        return "proposed splits of the published file"

    def part(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features and labels of a split.

        Raises:
            UnknownNameError: With the closest names.
        """
        rows = self._rows(name)
        return self.features[rows], self.labels[rows]

    def classes(self, name: str) -> NDArray[np.int64]:
        """Classes of a split, ascending."""
        return np.unique(self.labels[self._rows(name)])

    def _rows(self, name: str) -> NDArray[np.int64]:
        if name not in self.rows:
            raise UnknownNameError("split", name, self.rows)
        return self.rows[name]


def _places(title: str) -> list[str]:
    return [f"xlsa17/data/{title}/{file}" for file in (_FEATURES, _SPLITS)]


# One large archive has three of the sets, so all three are taken from it at once.
_ARCHIVE = DataArchive(
    ("http://datasets.d2.mpi-inf.mpg.de/xian/xlsa17.zip",),
    {place: place for title in ("AWA2", "CUB", "SUN") for place in _places(title)},
)


def _card(name: str) -> DatasetCard:
    title, images, classes, attributes, (trainval, seen, unseen) = _SETS[name]
    # FLO came with a later paper, without a stable address.
    archives = () if name == "flo" else (_ARCHIVE,)
    return DatasetCard(
        name=name,
        title=title,
        domain="vision",
        task="generalised zero-shot classification",
        metric="accuracy",
        sizes={"images": images, "attributes": attributes},
        classes=classes,
        splits=f"{trainval:,} training and validation, {seen:,} test images of seen and "
        f"{unseen:,} of unseen classes",
        licence="none stated for the features; that of the images at their source",
        source="Zero-Shot Learning - A Comprehensive Evaluation of the Good, the Bad and the Ugly",
        url="https://www.mpi-inf.mpg.de/departments/computer-vision-and-machine-learning/"
        "research/zero-shot-learning",
        citation=f"{_CITATIONS[name]}; {_XIAN}",
        files=tuple(map(DataFile, _places(title))),
        archives=archives,
        notes="Features of a ResNet-101 trained on ImageNet, 2,048 per image.",
    )


CARDS = {name: _card(name) for name in _SETS}


def read(
    card: DatasetCard, *, root: str | Path | None = None, download: bool = False
) -> AttributeSet:
    """Features and attributes with the splits of seen and unseen classes.

    ==== ====== ======= ========== ======== ========= ===========
    Set  Images Classes Attributes Trainval Test seen Test unseen
    ==== ====== ======= ========== ======== ========= ===========
    AWA2 37,322      50         85   23,527     5,882       7,913
    CUB  11,788     200        312    7,057     1,764       2,967
    SUN  14,340     717        102   10,320     2,580       1,440
    FLO   8,189     102      1,024    5,394     1,640       1,155
    ==== ====== ======= ========== ======== ========= ===========

    Args:
        card: Which of the four.
        root: Data home; the files are in ``<root>/xlsa17/data/<title>``.
        download: Fetch missing files.

    Raises:
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is truncated, or labels, rows and sizes do not fit each other.
    """
    files = locate(card, root=root, download=download)
    images = _load(files[_FEATURES], "features", "labels")
    splits = _load(
        files[_SPLITS], "att", "allclasses_names", "trainval_loc", "train_loc", "val_loc",
        "test_seen_loc", "test_unseen_loc",
    )  # fmt: skip
    with reading(files[_FEATURES]):
        features = np.ascontiguousarray(images["features"].T, np.float32)
        labels = _from_one(images["labels"], "label")
        if features.ndim != 2 or len(features) != len(labels):
            raise ValueError(f"features of {len(features)} images but {len(labels)} labels")
        if not np.isfinite(features).all():
            raise ValueError("a feature is NaN or infinite")
    with reading(files[_SPLITS]):
        attributes = np.ascontiguousarray(splits["att"].T, np.float32)
        names = tuple(_text(name) for name in splits["allclasses_names"].ravel())
        rows = {part: _from_one(splits[f"{part}_loc"], f"row of {part}_loc") for part in PARTS}
        _check(labels, attributes, names, rows)
    return AttributeSet(features, labels, attributes, names, rows)


def _load(path: Path, *keys: str) -> dict[str, Any]:
    from scipy.io import loadmat

    with reading(path):
        content: dict[str, Any] = loadmat(path, variable_names=keys)
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"it has no {', '.join(missing)}")
    return content


def _from_one(values: NDArray[Any], what: str) -> NDArray[np.int64]:
    """Numbers from 1, of any shape and type, as a vector of numbers from 0."""
    flat = np.asarray(values).ravel()
    whole = flat.astype(np.int64)
    if (whole != flat).any() or (whole < 1).any():
        raise ValueError(f"a {what} is not a whole number from 1")
    return whole - 1


def _text(cell: Any) -> str:
    return str(np.asarray(cell).ravel()[0])


def _check(
    labels: NDArray[np.int64],
    attributes: NDArray[np.float32],
    names: tuple[str, ...],
    rows: dict[str, NDArray[np.int64]],
) -> None:
    if len(attributes) != len(names):
        raise ValueError(f"attributes of {len(attributes)} classes but {len(names)} class names")
    if labels.max() >= len(names):
        raise ValueError(f"label {labels.max() + 1} is out of range for {len(names)} classes")
    for part, chosen in rows.items():
        if len(chosen) and chosen.max() >= len(labels):
            raise ValueError(f"{part}_loc names row {chosen.max() + 1} of {len(labels)}")
    tested = np.concatenate([rows["test_seen"], rows["test_unseen"]])
    if np.intersect1d(rows["trainval"], tested).size:
        raise ValueError("a row is both in trainval_loc and in a test")
    if np.intersect1d(labels[rows["trainval"]], labels[rows["test_unseen"]]).size:
        raise ValueError("a class of test_unseen_loc has training images")


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write ``images`` images of ten classes whose features follow from twelve attributes.

    Four classes are in ``train``, three in ``val``, three in ``test_unseen``.
    """
    from scipy.io import savemat

    rng = np.random.default_rng(seed)
    attributes = rng.random((10, 12))
    labels = np.arange(images) % 10
    features = attributes[labels] @ rng.standard_normal((12, 16))
    features += 0.1 * rng.standard_normal(features.shape)
    seen = np.flatnonzero(labels < 7)
    held = np.arange(len(seen)) % 5 == 4
    trainval = seen[~held]
    rows = {
        "trainval": trainval,
        "train": trainval[labels[trainval] < 4],
        "val": trainval[labels[trainval] >= 4],
        "test_seen": seen[held],
        "test_unseen": np.flatnonzero(labels >= 7),
    }
    names = np.array([[f"class.{label}"] for label in range(10)], dtype=object)
    savemat(root / card.files[0].path, {"features": features.T, "labels": labels[:, None] + 1.0})
    locations = {f"{part}_loc": (chosen + 1.0)[:, None] for part, chosen in rows.items()}
    savemat(
        root / card.files[1].path, {"att": attributes.T, "allclasses_names": names, **locations}
    )
