"""Crops, mirror images and sizes of photographs together with their points."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Scene:
    """A photograph with what is counted in it. Density maps are made of the points afterwards.

    Args:
        image: ``uint8 [H, W, 3]``.
        points: Float64 ``[N, 2]`` as (x, y), with 0 <= x < W and 0 <= y < H.
        sizes: Of the heads ``[N]``, in pixels, or None.
        mask: Boolean ``[H, W]`` of the region that counts, or None for all of it.

    Example:
        >>> scene = Scene(np.zeros((4, 6, 3), np.uint8), np.array([[1.5, 2.0]]))
        >>> mirror(scene).points.tolist(), crop(scene, 1, 1, 3, 2).points.tolist()
        ([[4.5, 2.0]], [[0.5, 1.0]])
    """

    image: NDArray[np.uint8]
    points: NDArray[np.float64]
    sizes: NDArray[np.float64] | None = None
    mask: NDArray[np.bool_] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.image.shape[:2]
        return height, width

    def keep(self, rows: NDArray[np.bool_]) -> "Scene":
        """The scene with some of its points."""
        sizes = None if self.sizes is None else self.sizes[rows]
        return replace(self, points=self.points[rows], sizes=sizes)


def crop(scene: Scene, top: int, left: int, height: int, width: int) -> Scene:
    """A window, with the points inside; windows that tile an image share no point.

    Raises:
        ArgumentError: The window reaches beyond the image.
    """
    rows, columns = scene.size
    if min(top, left) < 0 or top + height > rows or left + width > columns or height * width < 1:
        raise ArgumentError(
            f"A window of {height} x {width} at ({top}, {left}) does not fit an image of {rows} x "
            f"{columns}. Choose one inside."
        )
    window = np.s_[top : top + height, left : left + width]
    moved = scene.points - (left, top)
    inside = np.asarray(((moved >= 0) & (moved < (width, height))).all(1))
    mask = None if scene.mask is None else scene.mask[window]
    return replace(scene, image=scene.image[window], points=moved, mask=mask).keep(inside)


def random_crop(scene: Scene, height: int, width: int, rng: np.random.Generator) -> Scene:
    """A window at a random place; an image that is smaller is padded first."""
    scene = pad(scene, height, width)
    rows, columns = scene.size
    top = int(rng.integers(rows - height + 1))
    left = int(rng.integers(columns - width + 1))
    return crop(scene, top, left, height, width)


def pad(scene: Scene, height: int, width: int) -> Scene:
    """At least as high and wide, with black to the right and below, where nothing is counted."""
    rows, columns = scene.size
    below, right = max(0, height - rows), max(0, width - columns)
    if not below and not right:
        return scene
    image = np.pad(scene.image, ((0, below), (0, right), (0, 0)))
    mask = None if scene.mask is None else np.pad(scene.mask, ((0, below), (0, right)))
    return replace(scene, image=image, mask=mask)


def mirror(scene: Scene) -> Scene:
    """Left and right exchanged: x becomes W - x."""
    points = scene.points.copy()
    points[:, 0] = scene.size[1] - points[:, 0]
    mask = None if scene.mask is None else scene.mask[:, ::-1]
    return replace(scene, image=scene.image[:, ::-1], points=_inside(points, scene.size), mask=mask)


def resize(scene: Scene, height: int, width: int) -> Scene:
    """Another size, with the points in proportion; none is lost.

    Raises:
        ArgumentError: A side is below one pixel.
    """
    from PIL import Image

    if min(height, width) < 1:
        raise ArgumentError(f"An image cannot be {height} x {width}. Choose 1 pixel or more.")
    rows, columns = scene.size
    if (height, width) == (rows, columns):
        return scene
    picture = Image.fromarray(np.ascontiguousarray(scene.image))
    image = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    factors = np.array([width / columns, height / rows])
    sizes = None if scene.sizes is None else scene.sizes * np.sqrt(factors.prod())
    mask = scene.mask
    if mask is not None:
        grey = Image.fromarray(np.ascontiguousarray(mask).astype(np.uint8))
        mask = np.asarray(grey.resize((width, height), Image.Resampling.NEAREST)).astype(bool)
    points = _inside(scene.points * factors, (height, width))
    return Scene(image, points, sizes, mask)


def cap_long_side(scene: Scene, longest: int) -> Scene:
    """Smaller, in proportion, so that no side is longer; smaller images stay as they are."""
    rows, columns = scene.size
    factor = longest / max(rows, columns)
    if factor >= 1:
        return scene
    return resize(scene, max(1, round(rows * factor)), max(1, round(columns * factor)))


def floor_to_multiple(scene: Scene, multiple: int) -> Scene:
    """Both sides brought down to a multiple, at least one of it; all points stay."""
    rows, columns = (max(side // multiple, 1) * multiple for side in scene.size)
    return resize(scene, rows, columns)


def only_counted(scene: Scene) -> Scene:
    """Without the points outside the mask."""
    if scene.mask is None:
        return scene
    if scene.mask.shape != scene.size:
        raise ArgumentError(
            f"The mask has {scene.mask.shape} pixels, its image {scene.size}. Give it the size of "
            "the image."
        )
    x, y = scene.points.astype(int).T
    return scene.keep(scene.mask[y, x])


def dots(scene: Scene) -> NDArray[np.float32]:
    """Points in each pixel, float32 ``[H, W]``."""
    counts = np.zeros(scene.size, np.float32)
    x, y = scene.points.astype(int).T
    np.add.at(counts, (y, x), 1)
    return counts


def _inside(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Points that rounding, or the edge of a mirror image, put on the far border."""
    height, width = size
    return np.minimum(points, np.nextafter(np.array([width, height], np.float64), 0))
