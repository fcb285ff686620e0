"""Clean photographs under made weather: those that packages bring, BSDS500, or a folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.home import data_home
from moeapps.data.locate import locate
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision.datasets.paired_images import PairedImages, PairedSplits, photos_below
from moeapps.vision.photo_files import read_photo
from moeapps.vision.restoration.photos import PHOTOS, Photo, bundled_photos, resize_short
from moeapps.vision.restoration.weather import WEATHER, add_weather

CARDS = {
    "bundled-photos": DatasetCard(
        name="bundled-photos",
        title="Bundled photographs under made weather",
        domain="vision",
        task="image restoration",
        metric="psnr",
        sizes={"photographs": len(PHOTOS)},
        classes=0,
        splits="regions of each photograph: left 55 % training, then 15 % validation, 30 % test",
        licence="of scikit-image, scikit-learn and matplotlib, which bring the photographs",
        source="moeapps.vision.restoration.photos",
        url="https://pypi.org/project/moeapps/",
        citation="none: made by moeapps",
        synthetic=True,
        notes="Training and test show the same eight scenes: good for a first look, no benchmark.",
    ),
    "bsds500": DatasetCard(
        name="bsds500",
        title="BSDS500 under made weather",
        domain="vision",
        task="image restoration",
        metric="psnr",
        sizes={"train": 200, "val": 100, "test": 200},
        classes=0,
        splits="200 training, 100 validation and 200 test photographs, published",
        licence="none stated; research use",
        source="Berkeley Segmentation Data Set and Benchmarks 500",
        url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html",
        citation="Arbelaez et al., Contour Detection and Hierarchical Image Segmentation, "
        "TPAMI 2011",
        files=tuple(DataFile(f"bsds500/{s}/{n}.jpg") for s, n in
                    (("train", "100075"), ("val", "101085"), ("test", "100007"))),
        notes="The photographs are real, the weather is made from a seed.",
    ),
}  # fmt: skip


def read_bundled(
    card: DatasetCard,
    *,
    weather: Sequence[str] | None = None,
    variants: int = 2,
    short_side: int | None = 224,
    seed: int = 0,
) -> PairedSplits:
    """Regions of the eight photographs that are installed with packages.

    Args:
        card: Of the set.
        weather: Of :data:`~moeapps.vision.restoration.weather.WEATHER`; all if None.
        variants: Times that each region is degraded by each weather.
        short_side: Of the whole photographs.
        seed: Of the weather.
    """
    photos = bundled_photos(short_side=short_side)
    regions = ((0.0, 0.55), (0.55, 0.7), (0.7, 1.0))
    parts = [[photo.columns(*region) for photo in photos] for region in regions]
    train, val, test = (
        under_weather(part, weather, variants=variants, seed=seed, split=number)
        for number, part in enumerate(parts)
    )
    return PairedSplits(train, val, test, f"regions, weather of seed {seed}")


def read_bsds500(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    weather: Sequence[str] | None = None,
    variants: int = 1,
    short_side: int | None = 224,
    seed: int = 0,
) -> PairedSplits:
    """Photographs of ``<root>/bsds500/{train,val,test}``.

    Args:
        card: Of the set.
        root: Data home.
        download: There is no direct address.
        weather: As in :func:`read_bundled`.
        variants: As there.
        short_side: As there.
        seed: As there.

    Raises:
        DataNotFoundError: Files are missing: with their names.
    """
    locate(card, root=root, download=download)
    folder = data_home(root) / "bsds500"
    return read_photo_folder(
        folder, weather=weather, variants=variants, short_side=short_side, seed=seed
    )


def read_photo_folder(
    folder: str | Path,
    *,
    weather: Sequence[str] | None = None,
    variants: int = 1,
    short_side: int | None = 224,
    test_share: float = 0.2,
    seed: int = 0,
) -> PairedSplits:
    """Clean photographs of ``<folder>/{train,val,test}`` or ``<folder>``, under made weather.

    All images are kept in memory.

    Args:
        folder: The folder. With a folder ``train``, ``test`` must be there and ``val`` may; without
            it a share of the photographs is held out for the test.
        weather: As in :func:`read_bundled`.
        variants: As there.
        short_side: As there.
        test_share: Share held out where there is no folder ``train``.
        seed: Of that choice and the weather.

    Raises:
        DataNotFoundError: There are no photographs.
        ArgumentError: There are less than two of them.
    """
    place = Path(folder)
    if (place / "train").is_dir():
        there = [s for s in ("train", "val", "test") if s != "val" or (place / s).is_dir()]
        files = {split: [*photos_below(place / split).values()] for split in there}
        source = "folders"
    else:
        every = [*photos_below(place).values()]
        held = min(max(1, round(test_share * len(every))), len(every) - 1)
        if held < 1:
            raise ArgumentError(f"{place} holds one photo. Put two or more there.")
        order = np.random.default_rng(seed).permutation(len(every))
        files = {
            "train": [every[i] for i in sorted(order[held:])],
            "test": [every[i] for i in sorted(order[:held])],
        }
        source = f"{test_share:.0%} held out, seeded"
    parts = {
        split: under_weather(
            [Photo(path.stem, resize_short(read_photo(path), short_side)) for path in paths],
            weather, variants=variants, seed=seed, split=("train", "val", "test").index(split),
        )
        for split, paths in files.items()
    }  # fmt: skip
    return PairedSplits(parts["train"], parts.get("val"), parts["test"], source)


def under_weather(
    photos: Sequence[Photo],
    weather: Sequence[str] | None = None,
    *,
    variants: int = 1,
    seed: int = 0,
    split: int = 0,
) -> PairedImages:
    """Each photograph degraded by each weather, some times.

    An image depends on the seed, the split, its photograph's number, its weather and its variant
    alone.

    Args:
        photos: Clean photographs.
        weather: Names; all if None.
        variants: Times.
        seed: Of the weather.
        split: Another number gives other weather.

    Raises:
        UnknownNameError: With the closest names.
        ArgumentError: There is no weather or no variant.

    Example:
        >>> grey = Photo("grey", np.full((32, 32, 3), 128, np.uint8))
        >>> pairs = under_weather([grey], ["haze", "snow"], variants=3)
        >>> len(pairs), pairs.task_names, pairs.names[1]
        (6, ('haze', 'snow'), 'grey-haze-1')
    """
    names = tuple(WEATHER) if weather is None else tuple(weather)
    if not names or variants < 1 or len(set(names)) < len(names):
        raise ArgumentError(
            f"weather={names} and variants={variants} make no set. Name each weather once, and "
            "one variant or more."
        )
    if unknown := [name for name in names if name not in WEATHER]:
        raise UnknownNameError("weather", unknown[0], WEATHER)
    inputs, targets, tasks, titles = [], [], [], []
    for number, photo in enumerate(photos):
        for task, name in enumerate(names):
            for variant in range(variants):
                draws = [seed, split, number, [*WEATHER].index(name), variant]
                made = add_weather(photo.image, name, np.random.default_rng(draws), photo.depth)
                inputs.append(np.round(255 * made.image).astype(np.uint8))
                targets.append(photo.image)
                tasks.append(task)
                titles.append(f"{photo.name}-{name}-{variant}")
    return PairedImages(inputs, targets, titles, np.array(tasks, np.int64), names)


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write ``images`` photographs for training, as many for the test and half for validation."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for file in card.files:
        place = root / file.path
        split = place.parent.name
        names = [file.name, *(f"{number}.jpg" for number in range(1, images))]
        for name in names[: images // 2 if split == "val" else images]:
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(place.with_name(name))
