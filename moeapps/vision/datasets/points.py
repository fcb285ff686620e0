"""Photographs with one point per head, cell or vehicle, and the splits of counting sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.data.integrity import reading
from moeapps.errors import (
    ArgumentError,
    DataIntegrityError,
    DataNotFoundError,
    UnknownNameError,
)
from moeapps.vision.datasets.images import Splits
from moeapps.vision.photo_files import list_photos, read_photo

OUTSIDE = ("error", "drop", "clip")
Points = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PointImages:
    """Images of any size with points; files are decoded when they are asked for.

    Args:
        images: Path of each image, or ``uint8 [H, W, 3]`` pixels.
        points: Float64 ``[N, 2]`` per image as (x, y), 0-based and continuous: the pixel in the
            corner covers 0 to 1. All lie inside, see :func:`fit_points`.
        names: One per image.
        masks: Per image a boolean ``[H, W]`` of the region that counts, or the path of such a
            ``.mat`` file with the key ``BW``; None where all of it counts.
        sizes: Size of each head in pixels, ``[N]`` per image; None where there are none.

    Raises:
        ArgumentError: Lengths or shapes do not fit each other.

    Example:
        >>> blank = PointImages([np.zeros((4, 6, 3), np.uint8)], [np.array([[1.5, 2.0]])], ["a"])
        >>> len(blank), blank.counts.tolist(), blank[0][0].shape
        (1, [1], (4, 6, 3))
    """

    images: Sequence[Path | NDArray[np.uint8]]
    points: Sequence[Points]
    names: Sequence[str]
    masks: Sequence[Path | NDArray[np.bool_]] | None = None
    sizes: Sequence[NDArray[np.float64]] | None = None

    def __post_init__(self) -> None:
        shaped = [np.asarray(points, np.float64).reshape(-1, 2) for points in self.points]
        object.__setattr__(self, "points", shaped)
        columns = {"points": self.points, "names": self.names, "masks": self.masks}
        for name, column in {**columns, "sizes": self.sizes}.items():
            if column is not None and len(column) != len(self.images):
                raise ArgumentError(
                    f"{len(column)} {name} for {len(self.images)} images. Pass one per image."
                )
        if self.sizes is not None:
            for name, points, sizes in zip(self.names, self.points, self.sizes, strict=True):
                if len(points) != len(sizes):
                    raise ArgumentError(f"{name} has {len(points)} points, {len(sizes)} sizes.")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], Points]:
        """The image of an index, ``uint8 [H, W, 3]``, and its points."""
        image = self.images[index]
        return (read_photo(image) if isinstance(image, Path) else image), self.points[index]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Points of each image."""
        return np.array([len(points) for points in self.points], dtype=np.int64)

    def mask(self, index: int) -> NDArray[np.bool_] | None:
        """Region of an image that counts, ``[H, W]``; None where all of it does.

        Raises:
            DataNotFoundError: Its file is missing.
            DataIntegrityError: Its file cannot be read.
        """
        if self.masks is None:
            return None
        mask = self.masks[index]
        return read_mat(mask, "BW").astype(bool) if isinstance(mask, Path) else mask

    def take(self, rows: "Sequence[int] | NDArray[Any]") -> "PointImages":
        """The set of some rows, in their order."""
        chosen = [int(row) for row in rows]
        columns = (self.images, self.points, self.names, self.masks, self.sizes)
        return PointImages(*(c and [c[row] for row in chosen] for c in columns))  # type: ignore[arg-type]

    def hold_out(self, share: float, seed: int = 0) -> "tuple[PointImages, PointImages]":
        """Split off a share of the images: what stays, and what was split off, at least one each.

        Raises:
            ArgumentError: The share is not between 0 and 1, or there are less than two images.
        """
        if not 0 < share < 1 or len(self) < 2:
            raise ArgumentError(
                f"share={share} of {len(self)} images leaves one side empty. Choose between 0 and "
                "1, of two images or more."
            )
        order = np.random.default_rng(seed).permutation(len(self))
        held = min(max(1, round(share * len(self))), len(self) - 1)
        return self.take(np.sort(order[held:])), self.take(np.sort(order[:held]))


@dataclass(frozen=True, eq=False)
class PointSplits(Splits):
    """Images with points in splits; there are no classes.

    Args:
        train: Training images.
        val: Validation images; None where the set has none, see :meth:`PointImages.hold_out`.
        test: Test images.
        split_source: How the images came into their splits.
    """

    train: PointImages  # type: ignore[assignment]
    val: PointImages | None  # type: ignore[assignment]
    test: PointImages  # type: ignore[assignment]

    @property
    def class_names(self) -> tuple[str, ...]:
        """There are none.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError("Images with points have no classes. Use them with CountingData.")

    @property
    def num_classes(self) -> int:
        """There are none.

        Raises:
            ArgumentError: Always.
        """
        return len(self.class_names)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as :func:`read_photo` turns it, from its header alone.

    Raises:
        DataNotFoundError: It is missing.
        DataIntegrityError: It is no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{path} is missing. Put it there.") from error
    except Exception as error:  # a decoder of foreign bytes may raise anything
        raise DataIntegrityError(
            f"{path} cannot be decoded ({error}). It is truncated or no image: make or fetch it "
            "again."
        ) from error
    return (height, width) if turned else (width, height)


def fit_points(
    points: Points, size: tuple[int, int], *, outside: str = "error", where: str = "the image"
) -> tuple[Points, NDArray[np.bool_]]:
    """Points inside an image, and which of the given ones these are.

    Points on the right or lower edge belong to the last pixel.

    Args:
        points: ``[N, 2]`` as (x, y).
        size: Width and height.
        outside: What a point outside is: ``"error"``, ``"drop"`` it, or ``"clip"`` it to the
            closest place inside, which keeps the count.
        where: The image, for messages.

    Raises:
        UnknownNameError: Another name for what to do.
        DataIntegrityError: A coordinate is NaN or infinite, or a point lies outside.

    Example:
        >>> fit_points(np.array([[4.0, 1.0], [-2.0, 0.5]]), (4, 3), outside="drop")[1].tolist()
        [True, False]
    """
    if outside not in OUTSIDE:
        raise UnknownNameError("treatment of points outside", outside, OUTSIDE)
    points = np.asarray(points, np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(1))[0])
        raise DataIntegrityError(
            f"{where}: point {row + 1} is {points[row]}. Correct or remove it."
        )
    width, height = size
    inside = np.asarray(((points >= 0) & (points <= (width, height))).all(1))
    if not inside.all() and outside == "error":
        row = int(np.flatnonzero(~inside)[0])
        x, y = points[row]
        raise DataIntegrityError(
            f"{where}: {int((~inside).sum())} of {len(points)} points lie outside its {width} x "
            f"{height} pixels, first point {row + 1} at x={x:g}, y={y:g}. Correct them, or pass "
            "outside='drop' or 'clip'; if x and y are exchanged or count from 1, say so."
        )
    kept: NDArray[np.bool_] = inside if outside == "drop" else np.ones(len(points), np.bool_)
    last = np.nextafter(np.array([width, height], np.float64), 0)
    return np.clip(points[kept], 0, last), kept


def points_of(
    images: Sequence[Path],
    points: Sequence[Points],
    *,
    names: Sequence[str] | None = None,
    outside: str = "clip",
    one_based: bool = False,
    masks: Sequence[Path] | None = None,
    sizes: Sequence[NDArray[np.float64]] | None = None,
) -> PointImages:
    """Images in files with their points brought inside.

    Args:
        images: Paths.
        points: ``[N, 2]`` per image as (x, y).
        names: By default those of the files, without endings.
        outside: See :func:`fit_points`.
        one_based: Coordinates count from 1, as MATLAB's: 1 is subtracted.
        masks: Paths of ``.mat`` files with ``BW``.
        sizes: Of the heads.

    Raises:
        DataNotFoundError: An image or a mask is missing.
        DataIntegrityError: An image is none, or points lie outside.
    """
    if missing := [path for path in masks or () if not path.is_file()]:
        raise DataNotFoundError(f"{missing[0]}, the mask of an image, is missing. Put it there.")
    fitted, kept = [], []
    for path, found in zip(images, points, strict=True):
        moved = np.asarray(found, np.float64).reshape(-1, 2) - float(one_based)
        inside, rows = fit_points(moved, image_size(path), outside=outside, where=str(path))
        fitted.append(inside)
        kept.append(rows)
    if sizes is not None:
        sizes = [size[rows] for size, rows in zip(sizes, kept, strict=True)]
    return PointImages(images, fitted, names or [path.stem for path in images], masks, sizes)


def read_mat(path: Path, key: str) -> NDArray[Any]:
    """One array of a MATLAB file.

    Raises:
        DataNotFoundError: The file is missing.
        DataIntegrityError: It cannot be read, or lacks the array.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise DataNotFoundError(f"{path} is missing. Put it there.")
    with reading(path):
        content = loadmat(path, variable_names=[key])
        if key not in content:
            raise ValueError(f"it has no {key!r}")
        return np.asarray(content[key])


def mat_points(path: Path, key: str = "annPoints") -> Points:
    """Points of a MATLAB file.

    Raises:
        DataNotFoundError: The file is missing.
        DataIntegrityError: It cannot be read, or holds no such points.
    """
    return as_points(read_mat(path, key), path)


def as_points(values: Any, path: Path) -> Points:
    """Numbers in a file as ``[N, 2]``; anything empty is no point.

    Raises:
        DataIntegrityError: They are no numbers, or not two per point.
    """
    with reading(path):
        array = np.asarray(values, np.float64)
        if array.size == 0:
            return np.zeros((0, 2))
        if array.ndim == 1 and array.size == 2:  # one point
            array = array[None]
        if array.ndim != 2 or array.shape[1] < 2:
            raise ValueError(f"points have shape {array.shape}, expected two numbers per point")
        return np.ascontiguousarray(array[:, :2])


def read_rows(path: Path, columns: int = 2) -> NDArray[np.float64]:
    """Rows of numbers in a text file, ``[N, columns]``; an empty file has none.

    Numbers are separated by spaces, tabs or commas; more columns than asked for are ignored.

    Raises:
        DataNotFoundError: The file is missing.
        DataIntegrityError: Naming the line that does not hold as many numbers.
    """
    if not path.is_file():
        raise DataNotFoundError(f"{path} is missing. Put it there.")
    with reading(path):
        text = path.read_text(encoding="utf-8-sig")
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.replace(",", " ").replace(";", " ").split()
        if not words:
            continue
        try:
            rows.append([float(word) for word in words[:columns]])
        except ValueError:
            rows.append([])
        if len(rows[-1]) != columns:
            raise DataIntegrityError(
                f"{path}, line {number}: {line!r} does not begin with {columns} numbers. Correct "
                "it, or fetch the file again."
            )
    return np.array(rows, np.float64).reshape(-1, columns)


def folder_of(folder: Path, what: str) -> Path:
    """A folder that must be there.

    Raises:
        DataNotFoundError: It is not.
    """
    if not folder.is_dir():
        raise DataNotFoundError(f"The folder {folder} with {what} is missing. Put it there.")
    return folder


def published_photos(folder: Path, expected: int | None) -> list[Path]:
    """The photographs of a folder, by name.

    Args:
        folder: Without subfolders.
        expected: How many there must be; None for any.

    Raises:
        DataNotFoundError: There is no such folder, or it has none.
        DataIntegrityError: There are more or fewer.
    """
    photos = list_photos(folder_of(folder, "the images"))
    require_count(folder, len(photos), expected)
    return photos


def require_count(place: Path, found: int, expected: int | None) -> None:
    """Raise unless a folder or list has as many images as published; None asks for any.

    Raises:
        DataIntegrityError: There are more or fewer.
    """
    if expected is not None and found != expected:
        raise DataIntegrityError(
            f"{place} has {found:,} images, the published set {expected:,}. Unpack it again, or "
            "pass whole=False to read what is there."
        )
