"""Images in one ``.npz`` file with arrays ``train_images``, ``train_labels`` and so on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.errors import DataNotFoundError
from moeapps.vision.datasets.images import ImageSet, Splits, images_of, numbered_classes
from moeapps.vision.datasets.imbalance import long_tailed_splits

# name -> title, classes, images in train, val and test
_SETS: dict[str, tuple[str, tuple[str, ...], tuple[int, int, int], int]] = {
    "pathmnist": (
        "PathMNIST",
        (
            "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle",
            "normal colon mucosa", "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        (89_996, 10_004, 7_180), 3,
    ),
    "dermamnist": (
        "DermaMNIST",
        (
            "actinic keratoses", "basal cell carcinoma", "benign keratosis-like lesions",
            "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
        ),
        (7_007, 1_003, 2_005), 3,
    ),
    "bloodmnist": (
        "BloodMNIST",
        (
            "basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte",
            "monocyte", "neutrophil", "platelet",
        ),
        (11_959, 1_712, 3_421), 3,
    ),
    "organamnist": (
        "OrganAMNIST",
        (
            "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right",
            "liver", "lung-left", "lung-right", "pancreas", "spleen",
        ),
        (34_561, 6_491, 17_778), 1,
    ),
}  # fmt: skip
_URL = "https://zenodo.org/records/10519652/files"


def _card(name: str) -> DatasetCard:
    title, classes, sizes, _ = _SETS[name]
    return DatasetCard(
        name=name,
        title=title,
        domain="vision",
        task="image classification",
        metric="accuracy",
        sizes={"images": sum(sizes), "pixels": 784},
        classes=len(classes),
        splits="{:,} training, {:,} validation and {:,} test images as published".format(*sizes),
        licence="CC BY-NC 4.0" if name == "dermamnist" else "CC BY 4.0",
        source="MedMNIST v2",
        url="https://medmnist.com",
        citation="Yang et al., MedMNIST v2: A large-scale lightweight benchmark for 2D and 3D "
        "biomedical image classification, Scientific Data 10, 2023",
        files=(DataFile(f"medmnist/{name}.npz", urls=(f"{_URL}/{name}.npz?download=1",)),),
        notes="28 x 28 pixels. Its classes are as unequal as in the source; imbalance= makes them "
        "long-tailed by recipe.",
    )


CARDS = {name: _card(name) for name in _SETS}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    imbalance: float | None = None,
    kind: str = "exponential",
    seed: int = 0,
    reverse: bool = False,
    largest: int | None = None,
    test: str = "uniform",
) -> Splits:
    """Biomedical images of 28 x 28 pixels.

    =========== ========== ========== ====== =======
    Set         Training   Validation Test   Classes
    =========== ========== ========== ====== =======
    PathMNIST       89,996     10,004  7,180       9
    DermaMNIST       7,007      1,003  2,005       7
    BloodMNIST      11,959      1,712  3,421       8
    OrganAMNIST     34,561      6,491 17,778      11
    =========== ========== ========== ====== =======

    Args:
        card: Which of them.
        root: Data home; the file is ``<root>/medmnist/<name>.npz``.
        download: Fetch a missing file.
        imbalance: Images of the first class over those of the last; None keeps all images.
        kind: ``"exponential"`` or ``"step"``.
        seed: Of the choice of images.
        reverse: Make the last class the head.
        largest: Images of the head class; by default the most that the set can fill.
        test: ``"uniform"`` for the published test set, or ``"forward-10"``, ``"backward-10"`` with
            any ratio.

    Raises:
        DataNotFoundError: Naming the missing file and its official page.
        DataIntegrityError: The file is truncated or not the published one.
        ArgumentError: For an imbalance, a kind or a shift that cannot be.
    """
    (path,) = locate(card, root=root, download=download).values()
    return read_npz(
        path, _SETS[card.name][1],
        imbalance=imbalance, kind=kind, seed=seed, reverse=reverse, largest=largest, test=test,
    )  # fmt: skip


def read_npz(
    path: str | Path,
    class_names: Sequence[str] | None = None,
    *,
    imbalance: float | None = None,
    kind: str = "exponential",
    seed: int = 0,
    reverse: bool = False,
    largest: int | None = None,
    test: str = "uniform",
) -> Splits:
    """Read any file of arrays ``train_images``, ``train_labels``, ``test_images``, ``test_labels``.

    Arrays ``val_images`` and ``val_labels`` are read where they are there. Nothing is unpickled.

    Args:
        path: The ``.npz`` file.
        class_names: One per class; by default the numbers up to the largest training label.
        imbalance: Images of the first class over those of the last; None keeps all images.
        kind: ``"exponential"``, ``"step"`` or ``"tlc"``.
        seed: Of the choice of images.
        reverse: Make the last class the head.
        largest: Images of the head class.
        test: Shift of the test set.

    Raises:
        DataNotFoundError: There is no such file.
        DataIntegrityError: Arrays are missing, or do not fit each other.
    """
    path = Path(path)
    arrays = read_arrays(path, ("train", "test"), optional=("val",))
    with images_of(path):
        if class_names is None:
            class_names = numbered_classes(arrays["train"][1])
        sets = {split: ImageSet(*pair, tuple(class_names)) for split, pair in arrays.items()}
        shapes = {images.shape for images in sets.values()}
        if len(shapes) > 1:
            raise ValueError(f"the splits have images of different shapes: {sorted(shapes)}")
    return long_tailed_splits(
        sets["train"], sets.get("val"), sets["test"], f"splits of {path.name}",
        imbalance=imbalance, kind=kind, seed=seed, reverse=reverse, largest=largest, shift=test,
    )  # fmt: skip


def read_arrays(
    path: Path, splits: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Images and labels of the splits of an ``.npz`` file; labels ``[N, 1]`` become ``[N]``."""
    if not path.is_file():
        raise DataNotFoundError(f"{path} is not there. Pass the path of an .npz file.")
    pairs = {}
    with reading(path), np.load(path, allow_pickle=False) as stored:
        for split in (*splits, *optional):
            names = (f"{split}_images", f"{split}_labels")
            missing = [name for name in names if name not in stored]
            if split in optional and len(missing) == 2:
                continue
            if missing:
                raise ValueError(f"it has no array {missing[0]!r}, only {', '.join(stored)}")
            images, labels = (stored[name] for name in names)
            if labels.ndim == 2 and labels.shape[1] > 1:
                raise ValueError(f"{names[1]} has {labels.shape[1]} labels per image, expected one")
            if len(images) != len(labels):
                raise ValueError(f"{len(images)} {names[0]} but {len(labels)} {names[1]}")
            pairs[split] = images, labels.reshape(len(labels))
    return pairs


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write a file of noise with ``images`` training images and half as many in other splits."""
    rng = np.random.default_rng(seed)
    _, classes, _, channels = _SETS[card.name]
    arrays = {}
    for split, count in (("train", images), ("val", images // 2), ("test", images // 2)):
        shape = (count, 28, 28, channels) if channels == 3 else (count, 28, 28)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % len(classes)).astype(np.uint8)[:, None]
    np.savez(root / card.files[0].path, allow_pickle=False, **arrays)
