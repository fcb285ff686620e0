"""VGG cells: 200 synthetic images of fluorescence microscopy with a dot in each cell."""

from pathlib import Path

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.home import data_home
from moeapps.data.locate import locate
from moeapps.errors import ArgumentError, DataNotFoundError
from moeapps.vision.datasets.point_fixtures import write_scene
from moeapps.vision.datasets.points import Points, PointSplits, points_of, require_count
from moeapps.vision.photo_files import read_photo

TEST = 100
CARDS = {
    "vgg-cells": DatasetCard(
        name="vgg-cells",
        title="VGG cells",
        domain="vision",
        task="cell counting",
        metric="mae",
        sizes={"images": 200, "cells": 35_192},
        classes=0,
        splits="random, by seed: 100 test images, up to 100 for training and validation",
        licence="none stated; research use",
        source="VGG, Microscopy Cell Counting",
        url="https://www.robots.ox.ac.uk/~vgg/research/counting/",
        citation="Lempitsky, Zisserman, Learning To Count Objects in Images, NeurIPS 2010",
        files=(DataFile("counting/cells/001cell.png"), DataFile("counting/cells/001dots.png")),
        notes="Computer-made images of cells, as published. Results are the mean over ten random "
        "splits, usually with 50 training images.",
    )
}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    train: int = 50,
    val: int | None = None,
    split: int = 0,
    whole: bool = True,
) -> PointSplits:
    """Images of 256 x 256 with 74 to 317 cells, 176 on average.

    Args:
        card: Of the set.
        root: Data home; ``NNNcell.png`` and ``NNNdots.png`` are in ``<root>/counting/cells``.
        download: There is no direct address.
        train: Training images.
        val: Validation images; by default as many as for training, if so many are left.
        split: Seed of the random split; published work averages over ten.
        whole: There must be 200 images, 100 of them for the test. False reads what is there and
            tests on half of it.

    Raises:
        ArgumentError: There are not so many images for training and validation.
        DataNotFoundError: Files are missing: with their names.
        DataIntegrityError: A file cannot be read, or there are more or fewer images.
    """
    locate(card, root=root, download=download)
    folder = (data_home(root) / card.files[0].path).parent
    images = sorted(folder.glob("*cell.png"))
    require_count(folder, len(images), card.sizes["images"] if whole else None)
    tested = TEST if whole else len(images) // 2
    rest = len(images) - tested
    val = min(train, rest - train) if val is None else val
    if train < 1 or val < 0 or train + val > rest:
        raise ArgumentError(
            f"train={train} and val={val} are more than the {rest} images beside the test, or too "
            "few. Choose fewer, at least one for training."
        )
    names = [path.name.removesuffix("cell.png") for path in images]
    dots = [_centres(folder / f"{name}dots.png") for name in names]
    every = points_of(images, dots, names=names, outside="error")
    order = np.random.default_rng(split).permutation(len(every))
    parts = (order[tested : tested + train], order[tested + train :][:val], order[:tested])
    trained, validated, test = (every.take(np.sort(rows)) for rows in parts)
    return PointSplits(trained, validated if val else None, test, f"random split {split}")


def _centres(path: Path) -> Points:
    """Middle of each pixel whose red is above 0."""
    if not path.is_file():
        raise DataNotFoundError(f"{path} with the dots of its image is missing. Put it there.")
    y, x = np.nonzero(read_photo(path)[..., 0])
    return np.stack([x, y], 1).astype(np.float64) + 0.5


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write ``images`` images."""
    from PIL import Image

    from moeapps.vision.datasets.points import image_size

    rng = np.random.default_rng(seed)
    folder = (root / card.files[0].path).parent
    for number in range(1, images + 1):
        place = folder / f"{number:03d}cell.png"
        points = write_scene(place, rng)
        width, height = image_size(place)
        dots = np.zeros((height, width, 3), np.uint8)
        x, y = points.astype(int).T
        dots[y, x, 0] = 255
        Image.fromarray(dots).save(folder / f"{number:03d}dots.png")
