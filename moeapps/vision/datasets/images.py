"""Labelled images, in memory or in files, and the splits that every reader gives."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeapps.data.integrity import reading
from moeapps.errors import ArgumentError, DataIntegrityError, DataNotFoundError
from moeapps.vision.photo_files import opened_photo, scaled_grey

if TYPE_CHECKING:
    import torch

CHANNELS = {"L": 1, "RGB": 3}
MOST_CLASSES = 1_000_000
"""A larger label without a name for its class is taken for a mistake."""


@dataclass(frozen=True)
class ImageFiles:
    """Images that are decoded when they are asked for.

    Args:
        root: Folder that the names are relative to.
        names: Relative path of each image.
        mode: ``"RGB"`` or ``"L"``: files of another mode are converted.
        listed_in: The text list that the names come from; errors name its line.
        lines: Line of each name in that list, counted from 1.
    """

    root: Path
    names: NDArray[Any]
    mode: str = "RGB"
    listed_in: Path | None = None
    lines: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.mode not in CHANNELS:
            raise ArgumentError(f"mode={self.mode!r} is unknown. Choose {' or '.join(CHANNELS)}.")
        # Half a million paths in fields as wide as the longest would take hundreds of megabytes.
        compact = np.asarray(self.names, dtype=np.dtypes.StringDType())
        object.__setattr__(self, "names", compact)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """The image of an index, ``uint8 [H, W, C]``, as other readers of labelled sets give it.

        It is not turned by its EXIF orientation and a transparency is dropped: the accuracies of
        the literature are on such images. Sixteen bits are scaled to eight.

        Raises:
            DataNotFoundError: The file is missing, or may not be read.
            DataIntegrityError: It is truncated or no image, too large, or its values have no known
                scale.
        """
        from PIL import Image

        place = self.place(index)
        with opened_photo(self.root / str(self.names[index]), place) as image:
            if image.mode.startswith(("I", "F")):  # more than eight bits, which Pillow would clip
                image = Image.fromarray(scaled_grey(image, place))
            pixels = np.array(image.convert(self.mode))
        return pixels if self.mode == "RGB" else pixels[..., None]

    def take(self, rows: NDArray[Any]) -> "ImageFiles":
        """The images of some indices."""
        lines = None if self.lines is None else self.lines[rows]
        return replace(self, names=self.names[rows], lines=lines)

    def require(self) -> None:
        """Raise unless every file is there; each folder is listed once.

        Raises:
            DataNotFoundError: Naming the first missing file, and its list and line.
        """
        folders: dict[Path, set[str]] = {}
        for index, name in enumerate(self.names):
            path = self.root / str(name)
            if path.parent not in folders:
                there = path.parent.iterdir() if path.parent.is_dir() else ()
                folders[path.parent] = {entry.name for entry in there}
            if path.name not in folders[path.parent]:
                raise DataNotFoundError(
                    f"{self.place(index)} is missing. Put the images there, or pass the folder "
                    "that holds them."
                )

    def place(self, index: int) -> str:
        """An image for an error message: its path, and the list and line that name it."""
        where = str(self.root / str(self.names[index]))
        if self.listed_in is not None and self.lines is not None:
            where += f" ({self.listed_in}, line {self.lines[index]})"
        return where


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with one label each.

    Args:
        images: ``uint8`` or ``float32`` (0 to 1) ``[N, H, W, C]`` or ``[N, H, W]``, or
            :class:`ImageFiles`.
        labels: ``[N]`` whole numbers from 0; kept as int64.
        class_names: One per class.
        class_counts: Images of each class ``[C]``. Counted when left out, compared when given.

    Raises:
        ArgumentError: Shapes, types, labels or counts do not fit each other.

    Example:
        >>> blank = ImageSet(np.zeros((3, 8, 8), np.uint8), np.array([0, 0, 1]), ("cat", "dog"))
        >>> len(blank), blank.shape, blank.class_counts.tolist()
        (3, (8, 8, 1), [2, 1])
        >>> tuple(blank.tensor([0, 2]).shape)
        (2, 1, 8, 8)
    """

    images: NDArray[Any] | ImageFiles
    labels: NDArray[Any]
    class_names: tuple[str, ...]
    class_counts: NDArray[np.int64] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        images, labels = self.images, np.asarray(self.labels)
        names = tuple(str(name) for name in self.class_names)
        if not isinstance(images, ImageFiles):
            images = _checked_images(images)
        if labels.ndim != 1 or len(labels) != len(images):
            raise ArgumentError(
                f"labels of shape {labels.shape} for {len(images)} images. Pass one per image."
            )
        if labels.size and not np.issubdtype(labels.dtype, np.integer):
            raise ArgumentError(f"labels are {labels.dtype}. Pass whole numbers from 0.")
        labels = labels.astype(np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(wrong):
            raise ArgumentError(
                f"Label {labels[wrong[0]]} of image {wrong[0]} is out of range: expected "
                f"0 to {len(names) - 1} for {len(names)} classes. Correct it, or name more classes."
            )
        counts = np.bincount(labels, minlength=len(names))
        if self.class_counts is not None:
            _require_equal_counts(np.asarray(self.class_counts), counts, names)
        for name, value in (
            ("images", images), ("labels", labels), ("class_names", names), ("class_counts", counts)
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> "tuple[torch.Tensor, int]":
        """An image ``[C, H, W]`` as it is stored, and its label."""
        import torch

        # Always a copy: what a transform does in place must not reach the set.
        pixels = self.images[index].transpose(2, 0, 1).copy()
        return torch.from_numpy(pixels), int(self.labels[index])

    @property
    def num_classes(self) -> int:
        """Number of classes, those without an image too."""
        return len(self.class_names)

    @property
    def in_memory(self) -> bool:
        """The pixels are in memory, all of one size."""
        return isinstance(self.images, np.ndarray)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images.

        Raises:
            ArgumentError: The images are files, which may differ in size.
        """
        height, width, channels = self._pixels().shape[1:]
        return height, width, channels

    def tensor(self, rows: "Sequence[int] | NDArray[Any] | None" = None) -> "torch.Tensor":
        """Images in memory as float32 ``[N, C, H, W]`` from 0 to 1.

        Args:
            rows: Which ones; all by default.

        Raises:
            ArgumentError: The images are files, which may differ in size.
        """
        import torch

        pixels = self._pixels()
        if rows is not None:
            pixels = pixels[_as_rows(rows)]
        # One pass from pixels to floats: a set of photographs has no room for copies in between.
        images = np.array(pixels.transpose(0, 3, 1, 2), np.float32, order="C")
        if pixels.dtype == np.uint8:
            images /= 255
        return torch.from_numpy(images)

    def take(self, rows: "Sequence[int] | NDArray[Any]") -> "ImageSet":
        """The set of some rows, in their order."""
        rows = _as_rows(rows)
        images = self.images
        chosen = images.take(rows) if isinstance(images, ImageFiles) else images[rows]
        return ImageSet(chosen, self.labels[rows], self.class_names)

    def hold_out(self, share: float, seed: int = 0) -> "tuple[ImageSet, ImageSet]":
        """Split off a share of every class, rounded down: what stays, and what was split off.

        A class keeps at least one image. One with few images gives none, and then its validation
        accuracy is undefined.

        Args:
            share: Between 0 and 1.
            seed: Of the choice.

        Raises:
            ArgumentError: The share is not between 0 and 1.
        """
        if not 0 < share < 1:
            raise ArgumentError(f"share={share} leaves one side empty. Choose between 0 and 1.")
        rng = np.random.default_rng(seed)
        held = np.zeros(len(self), dtype=bool)
        for members in rows_of_classes(self.labels, self.num_classes):
            rows = rng.permutation(members)
            held[rows[: int(share * len(rows))]] = True
        return self.take(np.flatnonzero(~held)), self.take(np.flatnonzero(held))

    def _pixels(self) -> NDArray[Any]:
        if not isinstance(self.images, np.ndarray):
            raise ArgumentError(
                "The images are files of any size, so there is no array of them. Use single "
                "images with a transform that gives them one size."
            )
        return self.images


@dataclass(frozen=True, eq=False)
class Splits:
    """Images in splits with the same classes.

    Args:
        train: Training images.
        val: Validation images; None where the set has none, see :meth:`ImageSet.hold_out`.
        test: Test images.
        split_source: How the images came into their splits.
    """

    train: ImageSet
    val: ImageSet | None
    test: ImageSet
    split_source: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per class."""
        return self.train.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.train.num_classes

    @property
    def num_rows(self) -> dict[str, int]:
        """Images of each split."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: len(part) for name, part in parts.items() if part is not None}


@contextmanager
def images_of(path: Path) -> Iterator[None]:
    """Turn any error while images are made of a file's content into one that names the file.

    Raises:
        DataIntegrityError: When the content cannot be parsed or does not fit together.
    """
    try:
        with reading(path):
            yield
    except ArgumentError as error:
        raise DataIntegrityError(
            f"{path} holds no such images: {error} It is not the published file, or made wrongly."
        ) from error


def rows_of_classes(labels: NDArray[Any], classes: int) -> list[NDArray[np.int64]]:
    """The rows of each class, ascending.

    Example:
        >>> [rows.tolist() for rows in rows_of_classes(np.array([2, 0, 2]), 3)]
        [[1], [], [0, 2]]
    """
    ends = np.bincount(labels, minlength=classes).cumsum()
    return np.split(np.argsort(labels, kind="stable"), ends[:-1])


def numbered_classes(labels: NDArray[Any]) -> tuple[str, ...]:
    """Names of classes that have none: the numbers up to the largest label.

    Raises:
        ArgumentError: There is no label, or one that numbers no class.

    Example:
        >>> numbered_classes(np.array([0, 2, 0]))
        ('0', '1', '2')
    """
    if labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ArgumentError(
            f"{labels.size} labels of type {labels.dtype} number no classes. Expected one whole "
            "number from 0 per image."
        )
    if (largest := int(labels.max())) >= MOST_CLASSES:
        raise ArgumentError(
            f"Label {largest} of image {labels.argmax()} is beyond {MOST_CLASSES:,} classes. "
            "Number the classes without gaps, or name them."
        )
    return tuple(map(str, range(largest + 1)))


def _as_rows(rows: "Sequence[int] | NDArray[Any]") -> NDArray[Any]:
    rows = np.asarray(rows)
    return rows if rows.size else rows.astype(np.int64)  # of an empty list NumPy makes floats


def _checked_images(images: Any) -> NDArray[Any]:
    if not isinstance(images, np.ndarray):
        raise ArgumentError(
            f"images are a {type(images).__name__}. Pass a NumPy array [N, H, W, C] or ImageFiles."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in CHANNELS.values():
        raise ArgumentError(
            f"images have shape {images.shape}. Pass [N, H, W, C] with 1 or 3 channels, or "
            "[N, H, W]: convert other modes first."
        )
    if images.dtype not in (np.uint8, np.float32):
        raise ArgumentError(
            f"images are {images.dtype}. Pass uint8 from 0 to 255 or float32 from 0 to 1."
        )
    return images


def _require_equal_counts(
    given: NDArray[Any], found: NDArray[np.int64], names: Sequence[str]
) -> None:
    if given.shape != found.shape:
        raise ArgumentError(
            f"class_counts has shape {given.shape} for {len(names)} classes. Pass one per class."
        )
    wrong = np.flatnonzero(given != found)
    if len(wrong):
        raise ArgumentError(
            f"class_counts says {given[wrong[0]]} images of class {names[wrong[0]]!r}, but the "
            f"labels have {found[wrong[0]]} ({len(wrong)} classes differ). Leave class_counts out "
            "to have them counted."
        )
