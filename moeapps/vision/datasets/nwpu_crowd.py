"""NWPU-Crowd: 5,109 photographs with points and boxes; the labels of the test are withheld."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.errors import DataIntegrityError
from moeapps.vision.datasets.point_fixtures import write_scene
from moeapps.vision.datasets.points import (
    PointImages,
    PointSplits,
    mat_points,
    points_of,
    read_mat,
    require_count,
)

_LISTS = {"train": "train.txt", "test": "val.txt"}
CARDS = {
    "nwpu-crowd": DatasetCard(
        name="nwpu-crowd",
        title="NWPU-Crowd",
        domain="vision",
        task="crowd counting",
        metric="mae",
        sizes={"images": 3_609, "train": 3_109, "test": 500},
        classes=0,
        splits="3,109 training images; the 500 of the published validation are the test",
        licence="research use",
        source="NWPU-Crowd benchmark",
        url="https://www.crowdbenchmark.com/nwpucrowd.html",
        citation="Wang et al., NWPU-Crowd: A Large-Scale Benchmark for Crowd Counting and "
        "Localization, TPAMI 43, 2021",
        files=tuple(DataFile(f"NWPU-Crowd/{name}") for name in _LISTS.values()),
        notes="The labels of the published test are withheld, so the published validation images "
        "are the test here: to select a model, hold out some of those for training. Predict the "
        "others with moeapps predict --input. Some images show nobody.",
    )
}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    one_based: bool = False,
    outside: str = "clip",
    whole: bool = True,
) -> PointSplits:
    """Photographs with heads, and their sizes if there is a box for each.

    Args:
        card: Of the set.
        root: Data home; the lists and the folders ``images`` and ``mats`` are in
            ``<root>/NWPU-Crowd``.
        download: There is no direct address.
        one_based: The points count from 1.
        outside: What a point outside its image is: ``"clip"``, ``"drop"`` or ``"error"``.
        whole: The lists must be as long as published. False reads parts of them.

    Raises:
        DataNotFoundError: Files are missing: with their names.
        DataIntegrityError: A file cannot be read, or a list is longer or shorter.
    """
    lists = locate(card, root=root, download=download)
    parts = {}
    for split, name in _LISTS.items():
        path = lists[name]
        with reading(path):
            lines = path.read_text(encoding="utf-8").splitlines()
        numbers = [line.split()[0] for line in lines if line.strip()]
        if not numbers:
            raise DataIntegrityError(f"{path} names no images. Fetch it again.")
        require_count(path, len(numbers), card.sizes[split] if whole else None)
        parts[split] = _read_images(path.parent, numbers, one_based, outside)
    return PointSplits(parts["train"], None, parts["test"], "published; validation as test")


def _read_images(folder: Path, numbers: list[str], one_based: bool, outside: str) -> PointImages:
    mats = [folder / "mats" / f"{number}.mat" for number in numbers]
    points = [mat_points(path) for path in mats]
    sizes = [_box_sizes(read_mat(path, "annBoxes"), path) for path in mats]
    complete = all(len(a) == len(b) for a, b in zip(points, sizes, strict=True))
    return points_of(
        [folder / "images" / f"{number}.jpg" for number in numbers], points,
        one_based=one_based, outside=outside, sizes=sizes if complete else None,
    )  # fmt: skip


def _box_sizes(boxes: NDArray[np.generic], path: Path) -> NDArray[np.float64]:
    """Square roots of the areas of boxes (left, top, right, bottom)."""
    with reading(path):
        corners = np.asarray(boxes, np.float64).reshape(-1, 4)
        return np.sqrt((corners[:, 2:] - corners[:, :2]).clip(min=0).prod(1))


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write ``images`` images for training and half as many for the test; some show nobody."""
    from scipy.io import savemat

    rng = np.random.default_rng(seed)
    folder = root / "NWPU-Crowd"
    (folder / "mats").mkdir(parents=True, exist_ok=True)
    first = 1
    for name, count in zip(_LISTS.values(), (images, images // 2), strict=True):
        numbers = [f"{number:04d}" for number in range(first, first + count)]
        first += count
        for number in numbers:
            nobody = 0 if number == numbers[0] else None
            points = write_scene(folder / "images" / f"{number}.jpg", rng, nobody)
            boxes = np.concatenate([points - 2, points + 2], 1)
            savemat(folder / "mats" / f"{number}.mat", {"annPoints": points, "annBoxes": boxes})
        lines = [f"{number} 1 2\n" for number in numbers]
        (folder / name).write_text("".join(lines), encoding="utf-8")
