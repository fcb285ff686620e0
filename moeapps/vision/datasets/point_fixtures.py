"""Made-up photographs with points, from which sets of counting write their fixtures."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_scene(
    path: Path, rng: np.random.Generator, count: int | None = None
) -> NDArray[np.float64]:
    """Write a small photograph with bright dots, and tell where these are.

    Args:
        path: The image file.
        rng: Of pixels, points and their number.
        count: Points; 0 to 8 by default.

    Returns:
        Float64 ``[N, 2]`` as (x, y), 0-based, with two decimals.
    """
    from PIL import Image

    height, width = (int(side) for side in rng.integers(32, 49, 2))
    image = rng.integers(0, 90, (height, width, 3), np.uint8)
    count = int(rng.integers(0, 9)) if count is None else count
    points = np.round(rng.uniform(1, (width - 1, height - 1), (count, 2)), 2)
    for x, y in points.astype(int):
        image[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 230
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return points
