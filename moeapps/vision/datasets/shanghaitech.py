"""ShanghaiTech, parts A and B: crowds of the web and of streets, one point per head."""

from pathlib import Path

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.home import data_home
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.vision.datasets.point_fixtures import write_scene
from moeapps.vision.datasets.points import (
    Points,
    PointSplits,
    as_points,
    points_of,
    published_photos,
    read_mat,
)


def _card(part: str, train: int, test: int, heads: int) -> DatasetCard:
    return DatasetCard(
        name=f"shanghaitech-{part.lower()}",
        title=f"ShanghaiTech {part}",
        domain="vision",
        task="crowd counting",
        metric="mae",
        sizes={"images": train + test, "train": train, "test": test, "heads": heads},
        classes=0,
        splits=f"{train} training and {test} test images, published",
        licence="none stated; research use",
        source="Single-Image Crowd Counting via Multi-Column Convolutional Neural Network",
        url="https://github.com/desenzhou/ShanghaiTechDataset",
        citation="Zhang et al., Single-Image Crowd Counting via Multi-Column Convolutional Neural "
        "Network, CVPR 2016",
        files=(DataFile(f"ShanghaiTech/part_{part}_final/train_data/ground_truth/GT_IMG_1.mat"),),
        notes="There are no validation images: hold out some of those for training.",
    )


CARDS = {card.name: card for card in (_card("A", 300, 182, 241_677), _card("B", 400, 316, 88_488))}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    one_based: bool = True,
    outside: str = "clip",
    whole: bool = True,
) -> PointSplits:
    """Photographs with heads.

    ==== ======== ==== ======= ============
    Part Training Test Heads   Heads/image
    ==== ======== ==== ======= ============
    A         300  182 241,677          501
    B         400  316  88,488          123
    ==== ======== ==== ======= ============

    Args:
        card: Which of the two.
        root: Data home; the files are in ``<root>/ShanghaiTech/part_{A,B}_final``.
        download: There is no direct address.
        one_based: The published points count from 1, as MATLAB does.
        outside: What a point outside its image is: ``"clip"``, ``"drop"`` or ``"error"``.
        whole: There must be as many images as published. False reads what is there.

    Raises:
        DataNotFoundError: Files are missing: with their names.
        DataIntegrityError: A file cannot be read, or there are more or fewer images.
    """
    locate(card, root=root, download=download)
    folder = (data_home(root) / card.files[0].path).parents[2]
    parts = {}
    for split in ("train", "test"):
        place = folder / f"{split}_data"
        images = published_photos(place / "images", card.sizes[split] if whole else None)
        points = [_heads(place / "ground_truth" / f"GT_{path.stem}.mat") for path in images]
        parts[split] = points_of(images, points, one_based=one_based, outside=outside)
    return PointSplits(parts["train"], None, parts["test"], "published")


def _heads(path: Path) -> Points:
    info = read_mat(path, "image_info")
    with reading(path):
        return as_points(info[0, 0][0, 0][0], path)


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write ``images`` images for training and half as many for the test."""
    from scipy.io import savemat

    rng = np.random.default_rng(seed)
    folder = (root / card.files[0].path).parents[2]
    for split, count in (("train_data", images), ("test_data", images // 2)):
        truth = folder / split / "ground_truth"
        truth.mkdir(parents=True, exist_ok=True)
        for number in range(1, count + 1):
            points = write_scene(folder / split / "images" / f"IMG_{number}.jpg", rng) + 1
            record = np.empty((1, 1), dtype=[("location", object), ("number", object)])
            record[0, 0] = (points, np.array([[len(points)]], float))
            info = np.empty((1, 1), dtype=object)
            info[0, 0] = record
            savemat(truth / f"GT_IMG_{number}.mat", {"image_info": info})
