"""Labelled images by name, long-tailed where the literature has them so.

``list_datasets`` and ``card`` read no file and need neither torch nor torchvision::

    splits = load("digits-lt")              # splits.train, .val, .test
    splits.train.class_counts               # images per class
    long_tail(any_torchvision_set, imbalance=50)
"""

from pathlib import Path
from typing import Any

from moeapps.data.catalogue import Catalogue
from moeapps.errors import DataIntegrityError
from moeapps.lazy import lazy_names

DATASETS = Catalogue(
    "moeapps.vision.datasets",
    {
        "cifar10-lt": "cifar:read",
        "cifar100-lt": "cifar:read",
        "mnist-lt": "mnist:read",
        "imagenet-lt": "file_lists:read",
        "places-lt": "file_lists:read",
        "inaturalist-2018": "file_lists:read",
        "awa2": "attributes:read",
        "cub": "attributes:read",
        "sun": "attributes:read",
        "flo": "attributes:read",
        "pathmnist": "npz:read",
        "dermamnist": "npz:read",
        "bloodmnist": "npz:read",
        "organamnist": "npz:read",
        "digits-lt": "digits:read_digits",
        "pair-digits-lt": "digits:read_pair_digits",
        "shanghaitech-a": "shanghaitech:read",
        "shanghaitech-b": "shanghaitech:read",
        "ucf-cc-50": "ucf_cc_50:read",
        "ucf-qnrf": "ucf_qnrf:read",
        "jhu-crowd": "jhu_crowd:read",
        "nwpu-crowd": "nwpu_crowd:read",
        "trancos": "trancos:read",
        "vgg-cells": "vgg_cells:read",
        "rendered-crowds": "rendered_crowds:read",
        "allweather": "weather_pairs:read",
        "snow100k": "weather_pairs:read",
        "raindrop": "weather_pairs:read",
        "outdoor-rain": "weather_pairs:read",
        "rain13k": "weather_pairs:read",
        "raincityscapes": "weather_pairs:read",
        "reside": "weather_pairs:read",
        "bundled-photos": "weather_photos:read_bundled",
        "bsds500": "weather_photos:read_bsds500",
    },
)
list_datasets = DATASETS.names
card = DATASETS.card

_HERE = "moeapps.vision.datasets"
_NAMES = {
    "AttributeSet": f"{_HERE}.attributes",
    "ImageFiles": f"{_HERE}.images",
    "ImageSet": f"{_HERE}.images",
    "LongTailSubset": f"{_HERE}.imbalance",
    "PairedFolder": f"{_HERE}.paired_images",
    "PairedImages": f"{_HERE}.paired_images",
    "PairedSplits": f"{_HERE}.paired_images",
    "PointFolder": f"{_HERE}.point_folder",
    "PointImages": f"{_HERE}.points",
    "PointSplits": f"{_HERE}.points",
    "Splits": f"{_HERE}.images",
    "cifar100_superclasses": f"{_HERE}.cifar",
    "exponential_counts": f"{_HERE}.counts",
    "long_tail": f"{_HERE}.imbalance",
    "read_file_list": f"{_HERE}.file_lists",
    "read_image_folder": f"{_HERE}.image_folder",
    "read_pair_list": f"{_HERE}.paired_images",
    "read_paired_folder": f"{_HERE}.paired_images",
    "read_photo_folder": f"{_HERE}.weather_photos",
    "under_weather": f"{_HERE}.weather_photos",
    "read_npz": f"{_HERE}.npz",
    "read_point_folder": f"{_HERE}.point_folder",
    "pair_digits": f"{_HERE}.digits",
    "shifted_test": f"{_HERE}.imbalance",
    "step_counts": f"{_HERE}.counts",
    "tlc_counts": f"{_HERE}.counts",
}
__all__ = ["DATASETS", "card", "list_datasets", "load", "make_fixture", *_NAMES]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)


def load(name: str, *, root: str | Path | None = None, download: bool = False, **args: Any) -> Any:
    """Read or make a set.

    Args:
        name: One of :func:`list_datasets`; case and ``_`` for ``-`` do not matter.
        root: Data home; see :func:`moeapps.data.data_home`.
        download: Fetch missing files where the set has an address for them.
        **args: What the set's own reader takes besides, for example ``imbalance=``, ``seed=`` or
            ``test="forward-50"``.

    Returns:
        :class:`~moeapps.vision.datasets.images.Splits` with ``train``, ``val`` (or None) and
        ``test``; for attribute sets an ``AttributeSet``, for sets of counting a ``PointSplits``,
        for sets of restoration a ``PairedSplits``.

    Raises:
        UnknownNameError: With the closest names.
        ArgumentError: For an argument that the set does not have.
        DataNotFoundError: Naming missing files and their official page, or a missing image with
            its list and line.
        DataIntegrityError: When a file is empty, truncated or not the published one.
        MissingExtraError: When scikit-learn or Pillow are not installed.

    Example:
        >>> splits = load("digits-lt", seed=1)
        >>> splits.num_rows, splits.train.class_counts.tolist()
        ({'train': 335, 'val': 200, 'test': 500}, [100, 71, 51, 36, 26, 18, 13, 9, 6, 5])
    """
    known = card(name)
    given: dict[str, Any] = {"root": root, "download": download} if known.files else {}
    try:
        return DATASETS.read(known, given, args)
    except DataIntegrityError as error:
        raise DataIntegrityError(f"{error} Official page: {known.source}, {known.url}") from error


def make_fixture(name: str, root: str | Path, images: int = 60, seed: int = 0) -> Path:
    """Write a small made-up copy of a set in the exact format of the published files.

    Args:
        name: One of :func:`list_datasets` that has files.
        root: Data home to write below; ``load(name, root=root)`` then reads it.
        images: Training images; other splits are smaller in proportion.
        seed: Of the pixels and labels.

    Returns:
        The folder of the files.

    Raises:
        UnknownNameError: With the closest names.
        ArgumentError: The set has no files, or there are less than 20 images.
    """
    return DATASETS.make_fixture(name, root, ("images", images), seed, least=20)
