"""Images in one folder per class."""

from pathlib import Path

import numpy as np

from moeapps.errors import ArgumentError, DataNotFoundError
from moeapps.vision.datasets.images import ImageFiles, ImageSet, Splits
from moeapps.vision.datasets.imbalance import long_tailed_splits

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def read_image_folder(
    folder: str | Path,
    *,
    imbalance: float | None = None,
    kind: str = "exponential",
    seed: int = 0,
    reverse: bool = False,
    largest: int | None = None,
    test: str = "uniform",
    test_share: float = 0.2,
    mode: str = "RGB",
) -> Splits:
    """Read ``<folder>/train/<class>/*`` and ``test``, or ``<folder>/<class>/*`` and hold some out.

    With a folder ``train``, ``val`` is read where it is there, and is the test where ``test`` is
    not. The classes are the folders of the training images, sorted.

    Args:
        folder: The folder.
        imbalance: Images of the first class over those of the last; None keeps all images.
        kind: ``"exponential"``, ``"step"``, or ``"tlc"`` with ``imbalance=None``.
        seed: Of the choice of images.
        reverse: Make the last class the head.
        largest: Images of the head class; by default the most that the folder can fill.
        test: ``"uniform"`` for the test images as they are, or ``"forward-10"``,
            ``"backward-10"`` with any ratio.
        test_share: Share of each class that is held out where there is no folder ``train``.
        mode: ``"RGB"`` or ``"L"``: images of another mode are converted.

    Raises:
        DataNotFoundError: There are no images, or none of a split.
        ArgumentError: A split has a class that the training images do not have, or an imbalance,
            a kind or a shift cannot be.
    """
    folder = Path(folder)
    if not (folder / "train").is_dir():
        whole = _read_split(folder, None, mode)
        train, held = whole.hold_out(test_share, seed)
        val, source = None, f"{test_share:.0%} of each class held out, seeded"
    else:
        train = _read_split(folder / "train", None, mode)
        names = train.class_names
        others = {
            split: _read_split(folder / split, names, mode)
            for split in ("val", "test")
            if (folder / split).is_dir()
        }
        if not others:
            raise DataNotFoundError(
                f"{folder} has images in train, but neither test nor val. Add one of them, or put "
                "the folders of the classes directly below it to hold some out."
            )
        held = others.pop("test") if "test" in others else others.pop("val")
        val, source = others.get("val"), "folders"
    return long_tailed_splits(
        train, val, held, source,
        imbalance=imbalance, kind=kind, seed=seed, reverse=reverse, largest=largest, shift=test,
    )  # fmt: skip


def _read_split(folder: Path, classes: tuple[str, ...] | None, mode: str) -> ImageSet:
    found = folder.iterdir() if folder.is_dir() else ()
    below = sorted(place.name for place in found if place.is_dir())
    classes = tuple(below) if classes is None else classes
    if unknown := sorted(set(below) - set(classes)):
        raise ArgumentError(
            f"{folder} has a class {unknown[0]!r} that the training images do not have. Remove it, "
            "or add training images."
        )
    names, labels = [], []
    numbers = {name: label for label, name in enumerate(classes)}
    for name in below:
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                names.append(path.relative_to(folder).as_posix())
                labels.append(numbers[name])
    if not names:
        raise DataNotFoundError(
            f"{folder} has no images in folders of classes. Expected <class>/<image>, with "
            f"endings like {', '.join(sorted(SUFFIXES)[:3])}."
        )
    return ImageSet(ImageFiles(folder, np.array(names), mode), np.array(labels), classes)
