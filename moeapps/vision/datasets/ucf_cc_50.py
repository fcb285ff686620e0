"""UCF_CC_50: fifty grey photographs of very large crowds, judged in five folds."""

from pathlib import Path

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.home import data_home
from moeapps.data.locate import locate
from moeapps.errors import ArgumentError
from moeapps.vision.datasets.point_fixtures import write_scene
from moeapps.vision.datasets.points import (
    PointSplits,
    mat_points,
    points_of,
    published_photos,
)

FOLDS = 5
CARDS = {
    "ucf-cc-50": DatasetCard(
        name="ucf-cc-50",
        title="UCF_CC_50",
        domain="vision",
        task="crowd counting",
        metric="mae",
        sizes={"images": 50},
        classes=0,
        splits="five folds of ten images; the mean over the folds is reported",
        licence="none stated; research use",
        source="CRCV, Counting in extremely dense crowd images",
        url="https://www.crcv.ucf.edu/data/ucf-cc-50/",
        citation="Idrees et al., Multi-Source Multi-Scale Counting in Extremely Dense Crowd "
        "Images, CVPR 2013",
        files=(DataFile("UCF_CC_50/1_ann.mat"),),
        notes="The folds are not published: here each is ten images in the order of their "
        "numbers. Grey images.",
    )
}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    fold: int = 0,
    one_based: bool = False,
    outside: str = "clip",
    whole: bool = True,
) -> PointSplits:
    """Forty images for training and ten for the test.

    Args:
        card: Of the set.
        root: Data home; the files are in ``<root>/UCF_CC_50``.
        download: There is no direct address.
        fold: 0 to 4: which fifth of the images is the test.
        one_based: The points count from 1.
        outside: What a point outside its image is: ``"clip"``, ``"drop"`` or ``"error"``.
        whole: There must be 50 images. False reads what is there.

    Raises:
        ArgumentError: There is no such fold.
        DataNotFoundError: Files are missing: with their names.
        DataIntegrityError: A file cannot be read, or there are more or fewer images.
    """
    if not 0 <= fold < FOLDS:
        raise ArgumentError(f"fold={fold} is none of the {FOLDS}. Choose 0 to {FOLDS - 1}.")
    locate(card, root=root, download=download)
    folder = (data_home(root) / card.files[0].path).parent
    images = published_photos(folder, card.sizes["images"] if whole else None)
    images.sort(key=lambda path: (len(path.stem), path.stem))
    points = [mat_points(folder / f"{path.stem}_ann.mat") for path in images]
    every = points_of(images, points, one_based=one_based, outside=outside)
    tested = np.array_split(np.arange(len(every)), FOLDS)[fold]
    trained = np.setdiff1d(np.arange(len(every)), tested)
    return PointSplits(every.take(trained), None, every.take(tested), f"fold {fold + 1} of {FOLDS}")


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write ``images`` images."""
    from scipy.io import savemat

    rng = np.random.default_rng(seed)
    for number in range(1, images + 1):
        points = write_scene(root / "UCF_CC_50" / f"{number}.jpg", rng)
        savemat(root / "UCF_CC_50" / f"{number}_ann.mat", {"annPoints": points})
