"""MNIST-LT from the four official IDX files."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.integrity import reading
from moeapps.data.locate import locate
from moeapps.vision.datasets.images import ImageSet, Splits, images_of
from moeapps.vision.datasets.imbalance import long_tailed_splits

_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_FILES = {
    "train-images-idx3-ubyte.gz": (
        9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    "train-labels-idx1-ubyte.gz": (
        28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
    ),
    "t10k-images-idx3-ubyte.gz": (
        1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    ),
}  # fmt: skip
CARDS = {
    "mnist-lt": DatasetCard(
        name="mnist-lt",
        title="MNIST-LT",
        domain="vision",
        task="image classification",
        metric="accuracy",
        sizes={"images": 70_000, "pixels": 784},
        classes=10,
        splits="60,000 training images made long-tailed by the recipe of LDAM; 10,000 test images",
        licence="CC BY-SA 3.0, as usually stated",
        source="The MNIST database of handwritten digits",
        url="https://yann.lecun.com/exdb/mnist/",
        citation="LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document "
        "recognition, Proceedings of the IEEE 86, 1998",
        files=tuple(
            DataFile(
                f"MNIST/raw/{name}", sha256, size, tuple(mirror + name for mirror in _MIRRORS),
                stand_ins=(f"MNIST/raw/{name.removesuffix('.gz')}",),
            )
            for name, (size, sha256) in _FILES.items()
        ),
        notes="The folder is that of torchvision's MNIST.",
    )
}  # fmt: skip


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    imbalance: float | None = 100,
    kind: str = "exponential",
    seed: int = 0,
    reverse: bool = False,
    largest: int | None = None,
    test: str = "uniform",
) -> Splits:
    """Handwritten digits of 28 x 28 pixels, one channel.

    The test set is as published: 892 to 1,135 images per class.

    Args:
        card: The card of the set.
        root: Data home; the files are in ``<root>/MNIST/raw``, packed or not.
        download: Fetch missing files.
        imbalance: Images of the digit 0 over those of the digit 9; None keeps all images.
        kind: ``"exponential"``, ``"step"``, or ``"tlc"`` with ``imbalance=None``.
        seed: Of the choice of images.
        reverse: Make 9 the head.
        largest: Images of the head; by default the most that the set can fill.
        test: ``"uniform"`` for the published test set, or ``"forward-50"``, ``"backward-50"`` with
            any ratio.

    Raises:
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: A file is truncated or not the published one.
        ArgumentError: For an imbalance, a kind or a shift that cannot be.
    """
    paths = list(locate(card, root=root, download=download).values())
    names = tuple(str(digit) for digit in range(10))
    sets = []
    for images, labels in (paths[:2], paths[2:]):
        with images_of(labels):
            sets.append(ImageSet(read_idx(images), read_idx(labels), names))
    return long_tailed_splits(
        sets[0], None, sets[1], "official files",
        imbalance=imbalance, kind=kind, seed=seed, reverse=reverse, largest=largest, shift=test,
    )  # fmt: skip


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of bytes in an IDX file, packed by gzip or not.

    Raises:
        DataIntegrityError: It is truncated, too long or no such file.
    """
    with reading(path):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        if content[:3] != b"\0\0\x08":
            raise ValueError("it does not start as an IDX file of bytes does")
        dimensions = content[3]
        shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
        start = 4 + 4 * dimensions
        expected = start + int(np.prod(shape, dtype=np.int64))
        if len(content) != expected:
            raise ValueError(f"it has {len(content)} bytes, its header says {expected}")
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write noise: ``images`` for training, half as many for the test, in plain IDX files."""
    rng = np.random.default_rng(seed)
    for file in card.files:
        count = images if file.name.startswith("train") else images // 2
        if "labels" in file.name:
            array: NDArray[Any] = (np.arange(count) % 10).astype(np.uint8)
        else:
            array = rng.integers(0, 256, (count, 28, 28), np.uint8)
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        # The packed file has a recorded checksum; the plain one stands in for it.
        (root / file.stand_ins[0]).write_bytes(header + array.tobytes())
