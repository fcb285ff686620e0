"""TRANCOS: vehicles in traffic jams, counted inside a region of each image."""

from pathlib import Path, PurePosixPath

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.errors import DataIntegrityError
from moeapps.vision.datasets.point_fixtures import write_scene
from moeapps.vision.datasets.points import PointImages, PointSplits, points_of, read_rows

_LISTS = {"train": "training.txt", "val": "validation.txt", "test": "test.txt"}
CARDS = {
    "trancos": DatasetCard(
        name="trancos",
        title="TRANCOS",
        domain="vision",
        task="vehicle counting",
        metric="game",
        sizes={"images": 1_244, "train": 403, "val": 420, "test": 421},
        classes=0,
        splits="403 training, 420 validation and 421 test images, published lists",
        licence="none stated; research use",
        source="TRANCOS, the traffic and congestions data set",
        url="https://gram.web.uah.es/data/datasets/trancos/index.html",
        citation="Guerrero-Gomez-Olmedo et al., Extremely Overlapping Vehicle Counting, IbPRIA "
        "2015",
        files=tuple(DataFile(f"TRANCOS_v3/image_sets/{name}") for name in _LISTS.values()),
        notes="Only vehicles inside the mask of an image count; GAME of levels 0 to 3 is reported.",
    )
}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    one_based: bool = False,
    outside: str = "clip",
) -> PointSplits:
    """Photographs with vehicles and masks of the region that counts.

    Args:
        card: Of the set.
        root: Data home; the files are in ``<root>/TRANCOS_v3/{images,image_sets}``.
        download: There is no direct address.
        one_based: The points count from 1.
        outside: What a point outside its image is: ``"clip"``, ``"drop"`` or ``"error"``.

    Raises:
        DataNotFoundError: Files are missing: with their names.
        DataIntegrityError: A file cannot be read, or a list names nothing.
    """
    lists = locate(card, root=root, download=download)
    parts = {split: _read_list(lists[name], one_based, outside) for split, name in _LISTS.items()}
    return PointSplits(parts["train"], parts["val"], parts["test"], "published lists")


def _read_list(path: Path, one_based: bool, outside: str) -> PointImages:
    with reading(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    stems = [PurePosixPath(line.strip()).stem for line in lines if line.strip()]
    if not stems:
        raise DataIntegrityError(f"{path} names no images. Fetch it again.")
    folder = path.parents[1] / "images"
    return points_of(
        [folder / f"{stem}.jpg" for stem in stems],
        [read_rows(folder / f"{stem}.txt") for stem in stems],
        masks=[folder / f"{stem}mask.mat" for stem in stems],
        one_based=one_based, outside=outside,
    )  # fmt: skip


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write ``images`` images for training and half as many for the others.

    The left quarter of each image does not count.
    """
    from scipy.io import savemat

    from moeapps.vision.datasets.points import image_size

    rng = np.random.default_rng(seed)
    folder = root / "TRANCOS_v3" / "images"
    for number, (split, name) in enumerate(_LISTS.items(), 1):
        count = images if split == "train" else images // 2
        stems = [f"image-{number}-{index:06d}" for index in range(1, count + 1)]
        for stem in stems:
            place = folder / f"{stem}.jpg"
            points = write_scene(place, rng)
            lines = "".join(f"{x}\t{y}\n" for x, y in points)
            place.with_suffix(".txt").write_text(lines, encoding="utf-8")
            width, height = image_size(place)
            mask = np.ones((height, width), np.uint8)
            mask[:, : width // 4] = 0
            savemat(folder / f"{stem}mask.mat", {"BW": mask})
        lines = "".join(f"{stem}.jpg\n" for stem in stems)
        (root / "TRANCOS_v3" / "image_sets" / name).write_text(lines, encoding="utf-8")
