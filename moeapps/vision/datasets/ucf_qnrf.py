"""UCF-QNRF: large photographs of crowds from 49 to 12,865 heads."""

from pathlib import Path

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.home import data_home
from moeapps.data.locate import locate
from moeapps.vision.datasets.point_fixtures import write_scene
from moeapps.vision.datasets.points import (
    PointSplits,
    mat_points,
    points_of,
    published_photos,
)

CARDS = {
    "ucf-qnrf": DatasetCard(
        name="ucf-qnrf",
        title="UCF-QNRF",
        domain="vision",
        task="crowd counting",
        metric="mae",
        sizes={"images": 1_535, "train": 1_201, "test": 334},
        classes=0,
        splits="1,201 training and 334 test images, published",
        licence="none stated; research use",
        source="CRCV, UCF-QNRF",
        url="https://www.crcv.ucf.edu/data/ucf-qnrf/",
        citation="Idrees et al., Composition Loss for Counting, Density Map Estimation and "
        "Localization in Dense Crowds, ECCV 2018",
        files=(DataFile("UCF-QNRF_ECCV18/Train/img_0001_ann.mat"),),
        notes="Very large images: cap their long side with max_side of CountingData. There are no "
        "validation images: hold out some of those for training.",
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
    """Photographs with heads, 815 on average.

    Args:
        card: Of the set.
        root: Data home; the files are in ``<root>/UCF-QNRF_ECCV18/{Train,Test}``.
        download: There is no direct address.
        one_based: The points count from 1.
        outside: What a point outside its image is: ``"clip"``, ``"drop"`` or ``"error"``.
        whole: There must be as many images as published. False reads what is there.

    Raises:
        DataNotFoundError: Files are missing: with their names.
        DataIntegrityError: A file cannot be read, or there are more or fewer images.
    """
    locate(card, root=root, download=download)
    folder = (data_home(root) / card.files[0].path).parents[1]
    parts = {}
    for split in ("train", "test"):
        place = folder / split.title()
        images = published_photos(place, card.sizes[split] if whole else None)
        points = [mat_points(place / f"{path.stem}_ann.mat") for path in images]
        parts[split] = points_of(images, points, one_based=one_based, outside=outside)
    return PointSplits(parts["train"], None, parts["test"], "published")


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write ``images`` images for training and half as many for the test."""
    from scipy.io import savemat

    rng = np.random.default_rng(seed)
    for split, count in (("Train", images), ("Test", images // 2)):
        for number in range(1, count + 1):
            place = root / "UCF-QNRF_ECCV18" / split / f"img_{number:04d}.jpg"
            points = write_scene(place, rng)
            savemat(place.with_name(f"{place.stem}_ann.mat"), {"annPoints": points})
