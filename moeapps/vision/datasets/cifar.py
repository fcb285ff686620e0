"""CIFAR-10-LT and CIFAR-100-LT from the official Python batches."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.data.card import DataArchive, DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.data.unpickle import load_arrays
from moeapps.errors import DataNotFoundError
from moeapps.vision.datasets.images import ImageSet, Splits, images_of
from moeapps.vision.datasets.imbalance import long_tailed_splits
from moeapps.vision.datasets.npz import read_arrays

_URL = "https://www.cs.toronto.edu/~kriz/"
CLASSES_10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_BATCHES_10 = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


def _card(classes: int, folder: str, members: tuple[str, ...], size: int, sha256: str) -> Any:
    name = f"cifar{classes}"
    places = [f"{folder}/{member}" for member in members]
    return DatasetCard(
        name=f"{name}-lt",
        title=f"CIFAR-{classes}-LT",
        domain="vision",
        task="image classification",
        metric="accuracy",
        sizes={"images": 60_000, "pixels": 1_024},
        classes=classes,
        splits="50,000 training images made long-tailed by the recipe of LDAM; 10,000 test images",
        licence="none stated; cite the report",
        source="The CIFAR-10 and CIFAR-100 datasets",
        url=_URL + "cifar.html",
        citation="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; long "
        "tail: Cao et al., NeurIPS 2019",
        files=tuple(DataFile(place, stand_ins=(f"{name}.npz",)) for place in places),
        archives=(
            DataArchive(
                (f"{_URL}cifar-{classes}-python.tar.gz",),
                {place: place for place in places},
                sha256,
                size,
            ),
        ),
        notes=f"{name}.npz (train_images, train_labels, test_images, test_labels) stands in for "
        "the official files. If its order is another, the same seed picks other images.",
    )


CARDS = {
    "cifar10-lt": _card(
        10, "cifar-10-batches-py", _BATCHES_10, 170_498_071,
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    "cifar100-lt": _card(
        100, "cifar-100-python", ("train", "test", "meta"), 169_001_437,
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
}  # fmt: skip


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    imbalance: float | None = 100,
    kind: str = "exponential",
    seed: int = 0,
    reverse: bool = False,
    largest: int | None = None,
    test: str = "uniform",
) -> Splits:
    """Photographs of 32 x 32 pixels.

    ========= ============= ============= ============= ============= ====== =======
    Set       Imbalance 10  50            100           200           Test   Classes
    ========= ============= ============= ============= ============= ====== =======
    CIFAR-10  20,431        13,996        12,406        11,203        10,000      10
    CIFAR-100 19,573        12,608        10,847        9,502         10,000     100
    ========= ============= ============= ============= ============= ====== =======

    The batches are Python pickles. They are read by :mod:`moeapps.data.unpickle`, which admits
    arrays only; torchvision's own reader would run whatever they contain.

    Args:
        card: Which of the two.
        root: Data home; the files are in ``<root>/cifar-10-batches-py`` or
            ``<root>/cifar-100-python``, or in ``<root>/cifar10.npz`` or ``cifar100.npz``.
        download: Fetch missing files.
        imbalance: Images of the first class over those of the last; None keeps all images.
        kind: ``"exponential"``, ``"step"``, or ``"tlc"`` with ``imbalance=None``.
        seed: Of the choice of images; the literature uses 0.
        reverse: Make the last class the head.
        largest: Images of the head class; by default all.
        test: ``"uniform"``, or ``"forward-50"``, ``"backward-50"`` with any ratio.

    Raises:
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is truncated or not the published one.
        ArgumentError: For an imbalance, a kind or a shift that cannot be.

    References:
        Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*,
        NeurIPS 2019.
    """
    files = locate(card, root=root, download=download)
    stand_in = next((path for path in files.values() if path.suffix == ".npz"), None)
    if stand_in is not None:
        sets, source = _read_npz(stand_in, card), f"{stand_in.name}, in its order"
    elif card.classes == 10:
        names = _batch(files["batches.meta"], "label_names")["label_names"]
        train = [files[name] for name in _BATCHES_10[:5]]
        sets = [_join(paths, "labels", names) for paths in (train, [files["test_batch"]])]
        source = "official files"
    else:
        names = _batch(files["meta"], "fine_label_names")["fine_label_names"]
        sets = [_join([files[split]], "fine_labels", names) for split in ("train", "test")]
        source = "official files"
    return long_tailed_splits(
        sets[0], None, sets[1], source,
        imbalance=imbalance, kind=kind, seed=seed, reverse=reverse, largest=largest, shift=test,
    )  # fmt: skip


def cifar100_superclasses(
    root: str | Path | None = None, *, download: bool = False
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The superclass of each of the hundred classes of CIFAR-100, and the superclasses' names.

    Args:
        root: Data home; the files are in ``<root>/cifar-100-python``.
        download: Fetch missing files.

    Returns:
        ``[100]`` int64, and twenty names.

    Raises:
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is truncated, or a class has two superclasses.
    """
    files = locate(CARDS["cifar100-lt"], root=root, download=download)
    for place in ("train", "meta"):
        if files[place].suffix == ".npz":
            raise DataNotFoundError(
                f"{files[place]} has no superclasses and stands in for {place!r}. Put that "
                "official file beside it."
            )
    names = _batch(files["meta"], "coarse_label_names")["coarse_label_names"]
    batch = _batch(files["train"], "fine_labels", "coarse_labels")
    with reading(files["train"]):
        pairs = np.unique(np.stack([batch["fine_labels"], batch["coarse_labels"]], 1), axis=0)
        if pairs[:, 0].tolist() != list(range(100)) or pairs[:, 1].max() >= len(names):
            raise ValueError("its classes do not have one superclass each")
    return pairs[:, 1].astype(np.int64), tuple(names)


def _read_npz(path: Path, card: DatasetCard) -> list[ImageSet]:
    arrays = read_arrays(path, ("train", "test"))
    names = CLASSES_10 if card.classes == 10 else tuple(map(str, range(card.classes)))
    with images_of(path):
        sets = [ImageSet(*arrays[split], names) for split in ("train", "test")]
        _require_photographs(sets)
    return sets


def _join(paths: list[Path], key: str, names: list[str]) -> ImageSet:
    pixels, labels = [], []
    for path in paths:
        batch = _batch(path, "data", key)
        with reading(path):
            images, found = np.asarray(batch["data"]), np.asarray(batch[key])
            if images.dtype != np.uint8 or images.shape != (len(found), 3 * 32 * 32):
                raise ValueError(
                    f"data is {images.dtype} {images.shape} for {len(found)} labels, expected "
                    f"uint8 ({len(found)}, 3072)"
                )
            pixels.append(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(found)
    with images_of(paths[0].parent):
        return ImageSet(np.concatenate(pixels), np.concatenate(labels), tuple(names))


def _batch(path: Path, *keys: str) -> dict[str, Any]:
    with reading(path):
        batch = load_arrays(path)
        if missing := [key for key in keys if key not in batch]:
            raise ValueError(f"it has no {', '.join(missing)}")
    return batch


def _require_photographs(sets: list[ImageSet]) -> None:
    for images in sets:
        if images.shape != (32, 32, 3):
            raise ValueError(f"images are {images.shape}, expected (32, 32, 3)")


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write balanced batches of noise: ``images`` for training, at least two per class."""
    rng = np.random.default_rng(seed)
    parts = [file for file in card.files if not file.path.endswith("meta")]
    share = -(-max(images, 2 * card.classes) // (len(parts) - 1))
    for number, file in enumerate(parts):
        labels = (np.arange(share) + number * share) % card.classes
        batch: dict[str, Any] = {"batch_label": file.name}
        batch["data"] = rng.integers(0, 256, (share, 3072), np.uint8)
        if card.classes == 10:
            batch["labels"] = labels.tolist()
        else:
            batch |= {"fine_labels": labels.tolist(), "coarse_labels": (labels // 5).tolist()}
        _dump(root / file.path, batch)
    if card.classes == 10:
        meta = {"label_names": list(CLASSES_10)}
    else:
        meta = {
            "fine_label_names": [f"class {i:02d}" for i in range(100)],
            "coarse_label_names": [f"superclass {i:02d}" for i in range(20)],
        }
    _dump(root / card.files[-1].path, meta)


def _dump(path: Path, content: dict[str, Any]) -> None:
    with path.open("wb") as stream:
        pickle.dump(content, stream, protocol=2)  # as the published files
