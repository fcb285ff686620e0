"""Classification streams by name: made from a seed, or read from their published files.

``list_datasets`` and ``card`` need neither numba nor river::

    stream = load("led_a", limit=100_000)     # stream.X, stream.y, stream.chunks(), iter(stream)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeapps.data.catalogue import Catalogue
from moeapps.errors import ArgumentError
from moeapps.streams.datasets.own_csv import load_csv

if TYPE_CHECKING:
    from moeapps.streams.datasets.stream import Stream

__all__ = ["DATASETS", "card", "list_datasets", "load", "load_csv"]

GENERATORS = {
    "led": "led:load",
    "led_a": "led:load",
    "led_g": "led:load",
    "sea": "sea:load",
    "sea_a": "sea:load",
    "sea_g": "sea:load",
    "rbf": "rbf:load",
    "rbf_m": "rbf:load",
    "rbf_f": "rbf:load",
    "agrawal": "agrawal:load",
    "agrawal_a": "agrawal:load",
    "agrawal_g": "agrawal:load",
}
READERS = {
    "electricity": "csv_sets:load",
    "electricity_8": "csv_sets:load",
    "weather": "csv_sets:load",
    "covertype": "covertype:load",
    "airlines": "arff_sets:load",
    "gmsc": "arff_sets:load",
    "insects_abrupt_balanced": "insects:load",
    "insects_abrupt_imbalanced": "insects:load",
    "insects_gradual_balanced": "insects:load",
    "insects_gradual_imbalanced": "insects:load",
    "insects_incremental_abrupt_balanced": "insects:load",
    "insects_incremental_reoccurring_balanced": "insects:load",
    "insects_incremental_balanced": "insects:load",
    "bananas": "bundled:load",
    "image_segments": "bundled:load",
    "phishing": "bundled:load",
    "shuttle": "bundled:load",
}
DATASETS = Catalogue(
    "moeapps.streams.datasets",
    GENERATORS | READERS,
    cards=dict.fromkeys(GENERATORS, "generated"),  # which needs no numba
)
list_datasets = DATASETS.names
card = DATASETS.card


def load(
    name: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    download: bool = False,
    root: str | Path | None = None,
    **args: Any,
) -> "Stream":
    """Read or make a stream.

    Args:
        name: One of :func:`list_datasets`; case and ``-`` for ``_`` do not matter.
        limit: Give the first instances only. Generators have no end: they give as many as asked
            for, and a million by default.
        seed: What a generated stream is drawn from; recorded streams have none.
        download: Fetch missing files where there is an address for them.
        root: Data home; see :func:`moeapps.data.data_home`.
        **args: What the stream's own ``load`` takes besides, for example ``length=`` of generators.

    Raises:
        UnknownNameError: With the closest names.
        ArgumentError: For an argument that the stream does not take.
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: When a file is truncated or not the published one.
        MissingExtraError: When numba, river or pandas are not installed.

    Example:
        >>> load("agrawal_g", limit=1000, seed=3)
        Stream(agrawal_g: 1000 x 9, 2 classes)
    """
    known = card(name)
    if limit is not None and limit < 0:
        raise ArgumentError(f"limit={limit} is negative. Choose the number of instances wanted.")
    places = {"seed": seed} if known.synthetic else {"root": root, "download": download}
    return DATASETS.read(known, {"limit": limit, **places}, args)
