"""JHU-CROWD++: crowds in any weather, with the size of each head."""

from pathlib import Path

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.home import data_home
from moeapps.data.locate import locate
from moeapps.vision.datasets.point_fixtures import write_scene
from moeapps.vision.datasets.points import (
    PointSplits,
    points_of,
    published_photos,
    read_rows,
)

SPLITS = ("train", "val", "test")
CARDS = {
    "jhu-crowd": DatasetCard(
        name="jhu-crowd",
        title="JHU-CROWD++",
        domain="vision",
        task="crowd counting",
        metric="mae",
        sizes={"images": 4_372, "train": 2_272, "val": 500, "test": 1_600},
        classes=0,
        splits="2,272 training, 500 validation and 1,600 test images, published",
        licence="research use",
        source="JHU-CROWD++",
        url="https://www.crowd-counting.com/",
        citation="Sindagi et al., JHU-CROWD++: Large-Scale Crowd Counting Dataset and a Benchmark "
        "Method, TPAMI 44, 2022",
        files=(DataFile("jhu_crowd_v2.0/train/images/0001.jpg"),),
        notes="Some images show nobody: their files of points are empty.",
    )
}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    outside: str = "clip",
    whole: bool = True,
) -> PointSplits:
    """Photographs with heads and their sizes, the square root of width times height.

    Args:
        card: Of the set.
        root: Data home; the files are in ``<root>/jhu_crowd_v2.0/{train,val,test}``.
        download: There is no direct address.
        outside: What a point outside its image is: ``"clip"``, ``"drop"`` or ``"error"``.
        whole: There must be as many images as published. False reads what is there.

    Raises:
        DataNotFoundError: Files are missing: with their names.
        DataIntegrityError: A file cannot be read, or there are more or fewer images.
    """
    locate(card, root=root, download=download)
    folder = (data_home(root) / card.files[0].path).parents[2]
    parts = {}
    for split in SPLITS:
        place = folder / split
        images = published_photos(place / "images", card.sizes[split] if whole else None)
        rows = [read_rows(place / "gt" / f"{path.stem}.txt", 4) for path in images]
        parts[split] = points_of(
            images, [found[:, :2] for found in rows], outside=outside,
            sizes=[np.sqrt(found[:, 2:].clip(min=0).prod(1)) for found in rows],
        )  # fmt: skip
    return PointSplits(parts["train"], parts["val"], parts["test"], "published")


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write ``images`` images for training and half as many for the others; some show nobody."""
    rng = np.random.default_rng(seed)
    for split in SPLITS:
        folder = root / "jhu_crowd_v2.0" / split
        (folder / "gt").mkdir(parents=True, exist_ok=True)
        for number in range(1, (images if split == "train" else images // 2) + 1):
            name = f"{number:04d}"
            points = write_scene(folder / "images" / f"{name}.jpg", rng, 0 if number == 2 else None)
            lines = [f"{x} {y} {rng.integers(4, 9)} {rng.integers(4, 9)} 1 0\n" for x, y in points]
            (folder / "gt" / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
