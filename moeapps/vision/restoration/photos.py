"""Clean photographs that come with scikit-image, scikit-learn and matplotlib."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError, DataNotFoundError, MissingExtraError, UnknownNameError
from moeapps.vision.photo_files import read_photo

PHOTOS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "grace_hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
}
"""Package and file of each photograph."""

_INSTALL = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
_DISPARITY = "data/motorcycle_disp.npz"


@dataclass(frozen=True, eq=False)
class Photo:
    """A clean photograph.

    Args:
        name: One of :data:`PHOTOS`, or a file's.
        image: ``uint8 [H, W, 3]``.
        depth: Float32 ``[H, W]`` from 0 (near) to 1 where it was measured, else None.
    """

    name: str
    image: NDArray[np.uint8]
    depth: NDArray[np.float32] | None = None

    def columns(self, start: float, stop: float) -> "Photo":
        """The region between two shares of the width."""
        width = self.image.shape[1]
        cut = slice(round(start * width), round(stop * width))
        depth = None if self.depth is None else self.depth[:, cut]
        return Photo(self.name, self.image[:, cut], depth)


def bundled_photos(
    names: Sequence[str] | None = None, *, short_side: int | None = 224
) -> list[Photo]:
    """Read photographs that are installed with packages; no network is used.

    Args:
        names: Of :data:`PHOTOS`; all eight if None.
        short_side: Size after resizing (Lanczos); None keeps the original.

    Raises:
        UnknownNameError: With the closest names.
        MissingExtraError: Their package is not installed.
        DataNotFoundError: The installed package lacks the file.

    Example:
        >>> photo = bundled_photos(["chelsea"])[0]
        >>> photo.image.shape, photo.depth is None
        ((224, 337, 3), True)
    """
    return [_bundled(name, short_side) for name in (PHOTOS if names is None else names)]


def resize_short(image: NDArray[np.uint8], side: int | None) -> NDArray[np.uint8]:
    """Resize so that the shorter side has ``side`` pixels (Lanczos); None changes nothing.

    Raises:
        ArgumentError: The side is not positive.
    """
    from PIL import Image

    if side is None:
        return image
    if side < 1:
        raise ArgumentError(f"short_side={side} leaves no pixels. Choose 1 or more, or None.")
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def depth_of_disparity(disparity: NDArray[np.floating]) -> NDArray[np.float32]:
    """One over the disparity, rescaled to 0 to 1; where it is unknown, the nearest known depth."""
    from scipy.ndimage import distance_transform_edt

    known = np.isfinite(disparity) & (disparity > 0)
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    depth = 1 / disparity[tuple(nearest)].astype(np.float64)
    return ((depth - depth.min()) / (depth.max() - depth.min())).astype(np.float32)


def _bundled(name: str, short_side: int | None) -> Photo:
    if name not in PHOTOS:
        raise UnknownNameError("photograph", name, PHOTOS)
    package, file = PHOTOS[name]
    image = resize_short(read_photo(_installed(package, file)), short_side)
    return Photo(name, image, _motorcycle_depth(image) if name == "motorcycle" else None)


def _motorcycle_depth(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    from PIL import Image

    with np.load(_installed("skimage", _DISPARITY)) as content:
        depth = depth_of_disparity(content["arr_0"])
    height, width = image.shape[:2]
    small = Image.fromarray(depth).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(small, np.float32).clip(0, 1)


def _installed(package: str, file: str) -> Path:
    try:
        found = importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError("vision", _INSTALL.get(package, package)) from error
    path = Path(str(found.__file__)).parent / file
    if not path.is_file():
        raise DataNotFoundError(
            f"{package} is installed without {path}. Install its official wheel again, or leave "
            "this photograph out."
        )
    return path
