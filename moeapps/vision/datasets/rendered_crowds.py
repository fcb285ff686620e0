"""Rendered crowds in perspective, made from a seed."""

import numpy as np

from moeapps.data.card import DatasetCard
from moeapps.errors import ArgumentError
from moeapps.vision.datasets.points import PointImages, PointSplits

CARDS = {
    "rendered-crowds": DatasetCard(
        name="rendered-crowds",
        title="Rendered crowds",
        domain="vision",
        task="crowd counting",
        metric="mae",
        sizes={"images": 600, "train": 300, "val": 100, "test": 200},
        classes=0,
        splits="300 training, 100 validation and 200 test images, made from the seed",
        licence="part of moeapps",
        source="moeapps.vision.counting.crowds",
        url="https://pypi.org/project/moeapps/",
        citation="none: made by moeapps",
        synthetic=True,
        notes="Ellipses on a plane, with the exact centre of every head.",
    )
}


def read(
    card: DatasetCard,
    *,
    train: int = 300,
    val: int = 100,
    test: int = 200,
    size: int = 96,
    radii: str = "narrow",
    people: float = 40.0,
    seed: int = 0,
) -> PointSplits:
    """Crowds of :func:`moeapps.vision.counting.crowds.render_crowd`.

    Args:
        card: Of the set.
        train: Training images.
        val: Validation images; 0 for none.
        test: Test images.
        size: Side of an image.
        radii: ``"narrow"`` or ``"wide"``.
        people: Governs how many are drawn.
        seed: Of everything. An image depends on the seed, its split and its number alone.

    Raises:
        ArgumentError: There is a split without images, or no such size or number of people.
        UnknownNameError: Another name for the radii.
    """
    if train < 1 or test < 1 or val < 0:
        raise ArgumentError(
            f"train={train}, val={val}, test={test} images leave a split empty. Choose 1 or more; "
            "val=0 has no validation images."
        )
    parts = [
        _render(number, count, size, radii, people, seed)
        for number, count in enumerate((train, val, test))
    ]
    return PointSplits(parts[0], parts[1] if val else None, parts[2], f"made from seed {seed}")


def _render(split: int, count: int, size: int, radii: str, people: float, seed: int) -> PointImages:
    from moeapps.vision.counting.crowds import render_crowd

    crowds = [
        render_crowd(np.random.default_rng([seed, split, i]), size=size, radii=radii, people=people)
        for i in range(count)
    ]
    images = [np.round(255 * crowd.image).astype(np.uint8) for crowd in crowds]
    return PointImages(
        images, [crowd.points for crowd in crowds], [f"{i:04d}" for i in range(count)],
        sizes=[2 * crowd.radii for crowd in crowds],
    )  # fmt: skip
