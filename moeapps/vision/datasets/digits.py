"""Sets from scikit-learn's digits: long-tailed digits, and a hundred classes of pairs of digits."""

import functools
import math

import numpy as np
from numpy.typing import NDArray

from moeapps.data.card import DatasetCard
from moeapps.errors import ArgumentError
from moeapps.vision.datasets.counts import exponential_counts
from moeapps.vision.datasets.images import ImageSet, Splits, rows_of_classes
from moeapps.vision.datasets.imbalance import long_tailed_splits, shifted_test

_UCI = {
    "domain": "vision",
    "task": "image classification",
    "metric": "accuracy",
    "licence": "CC BY 4.0 (UCI); comes with scikit-learn",
    "source": "Optical Recognition of Handwritten Digits, UCI Machine Learning Repository",
    "url": "https://archive.ics.uci.edu/dataset/80",
    "citation": "Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
    "Repository, 1998, doi:10.24432/C50P49",
}
CARDS = {
    "digits-lt": DatasetCard(
        name="digits-lt",
        title="Digits-LT",
        sizes={"images": 1_797, "pixels": 64},
        classes=10,
        splits="per class 50 test and 20 validation images, the training set long-tailed; seeded",
        notes="Images of 8 x 8 pixels. Ten classes and tail classes of five images: for tests and "
        "examples, not for comparing methods.",
        **_UCI,  # type: ignore[arg-type]
    ),
    "pair-digits-lt": DatasetCard(
        name="pair-digits-lt",
        title="PairDigits-LT",
        sizes={"images": 1_410, "pixels": 112},
        classes=100,
        splits="made from separate digits: 1,410 training, 1,000 validation, 2,000 test; seeded",
        synthetic=True,
        notes="Two real digits side by side with noise: real strokes, a made-up task.",
        **_UCI,  # type: ignore[arg-type]
    ),
}


def pair_digits(
    seed: int = 0,
    *,
    imbalance: float = 60,
    largest: int = 60,
    per_digit: int = 20,
    val_per_class: int = 10,
    test_per_class: int = 20,
    noise: float = 0.25,
) -> Splits:
    r"""PairDigits-LT: a hundred long-tailed classes, one for each ordered pair of digits.

    Two 8 x 8 digits stand side by side and share two columns, where they add up: 8 x 14 pixels,
    clipped to 0..1, plus noise of the given deviation. The pairs are shuffled; label 0 is the
    head, label 99 the tail.

    ======== ========== ===== ======= ==================================
    Training Validation Test  Classes Many / medium / few (> 20, 5 to 20)
    ======== ========== ===== ======= ==================================
       1,410      1,000 2,000     100 26 / 35 / 39
    ======== ========== ===== ======= ==================================

    Args:
        seed: Of the pools of digits, the order of the classes, the pairs and the noise.
        imbalance: Images of the head class over those of the tail class.
        largest: Images of the head class.
        per_digit: Images of each digit that training pairs are made of, at most 60.
        val_per_class: Validation images per class, of digits in neither other split.
        test_per_class: Test images per class.
        noise: Standard deviation of the pixel noise.

    Raises:
        ArgumentError: A number is too small or too large.

    Example:
        >>> splits = pair_digits(seed=1)
        >>> splits.num_rows, splits.train.shape
        ({'train': 1410, 'val': 1000, 'test': 2000}, (8, 14, 1))
    """
    if not 1 <= per_digit <= 60:
        raise ArgumentError(f"per_digit={per_digit}: choose 1 to 60, other digits are held out.")
    if min(val_per_class, test_per_class) < 1 or not 0 <= noise < math.inf:
        raise ArgumentError(
            f"val_per_class={val_per_class}, test_per_class={test_per_class}, noise={noise}: "
            "expected at least one image per class and noise that is finite and not negative."
        )
    counts = exponential_counts(largest, imbalance, 100)
    if counts.min() < 1:
        raise ArgumentError(
            f"imbalance={imbalance} leaves the last class without an image of the {largest} that "
            "the first one has. Choose a smaller imbalance."
        )
    images, labels = all_digits()
    # Separate generators: another number of test images leaves the training images as they are.
    pools, *draws = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    shuffled = [pools.permutation(members) for members in rows_of_classes(labels, 10)]
    pairs = pools.permutation(100)
    names = tuple(f"{pair // 10}{pair % 10}" for pair in pairs)
    shares = (slice(per_digit), slice(per_digit, 80), slice(80, None))
    sizes = (counts, np.full(100, val_per_class), np.full(100, test_per_class))
    train, val, test = (
        ImageSet(
            _draw_pairs(images, [rows[share] for rows in shuffled], pairs, size, noise, rng),
            np.repeat(np.arange(100), size),
            names,
        )
        for share, size, rng in zip(shares, sizes, draws, strict=True)
    )
    return Splits(train, val, test, "pairs of separate digits, seeded")


def _draw_pairs(
    images: NDArray[np.float32],
    pools: list[NDArray[np.int64]],
    pairs: NDArray[np.int64],
    counts: NDArray[np.int64],
    noise: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    pair = np.repeat(pairs, counts)
    sizes = np.array([len(rows) for rows in pools])
    starts = sizes.cumsum() - sizes
    rows = np.concatenate(pools)
    left, right = (
        images[rows[starts[digit] + rng.integers(0, sizes[digit])]]
        for digit in (pair // 10, pair % 10)
    )
    canvas = np.zeros((len(pair), 8, 14), np.float32)
    canvas[:, :, :8] += left
    canvas[:, :, 6:] += right
    canvas = canvas.clip(0, 1)
    return canvas + np.float32(noise) * rng.standard_normal(canvas.shape, np.float32)


def read_pair_digits(
    card: DatasetCard,
    *,
    seed: int = 0,
    imbalance: float = 60,
    largest: int = 60,
    per_digit: int = 20,
    val_per_class: int = 10,
    test_per_class: int = 20,
    noise: float = 0.25,
    test: str = "uniform",
) -> Splits:
    """:func:`pair_digits` as a set with a name; ``test`` as in ``shifted_test``."""
    made = pair_digits(
        seed, imbalance=imbalance, largest=largest, per_digit=per_digit,
        val_per_class=val_per_class, test_per_class=test_per_class, noise=noise,
    )  # fmt: skip
    return Splits(made.train, made.val, shifted_test(made.test, test), made.split_source)


def read_digits(
    card: DatasetCard,
    *,
    seed: int = 0,
    imbalance: float = 20,
    largest: int = 100,
    kind: str = "exponential",
    reverse: bool = False,
    test: str = "uniform",
) -> Splits:
    """Long-tailed handwritten digits of 8 x 8 pixels, 0 to 1.

    ======== ========== ==== ======= ========================================
    Training Validation Test Classes Training images per class
    ======== ========== ==== ======= ========================================
         335        200  500      10 100, 71, 51, 36, 26, 18, 13, 9, 6, 5
    ======== ========== ==== ======= ========================================

    Args:
        card: The card of the set.
        seed: Of the splits.
        imbalance: Images of the digit 0 over those of the digit 9.
        largest: Images of the digit 0, at most 104.
        kind: ``"exponential"`` or ``"step"``.
        reverse: Make 9 the head and 0 the tail.
        test: ``"uniform"``, or ``"forward-10"``, ``"backward-10"`` with any ratio.

    Raises:
        ArgumentError: A class has too few images, or would get none.
    """
    images, labels = all_digits()
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(members) for members in rows_of_classes(labels, 10)]
    names = tuple(str(digit) for digit in range(10))
    whole = ImageSet(images, labels, names)
    held, val, pool = (
        whole.take(np.concatenate([r[share] for r in rows]))
        for share in (slice(50), slice(50, 70), slice(70, None))
    )
    return long_tailed_splits(
        pool, val, held, "50 test and 20 validation images per class, seeded",
        imbalance=imbalance, kind=kind, seed=seed, reverse=reverse, largest=largest, shift=test,
    )  # fmt: skip


@functools.cache
def all_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All 1,797 images ``[N, 8, 8]`` from 0 to 1, and their digits."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)
