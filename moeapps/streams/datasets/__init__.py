"""Classification streams by name: made from a seed, or read from their published files.

``list_datasets`` and ``card`` need neither numba nor river::

    stream = load("led_a", limit=100_000)     # stream.X, stream.y, stream.chunks(), iter(stream)
"""

import fnmatch
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeapps.data.card import DatasetCard
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.lazy import needs_extra
from moeapps.streams.datasets.own_csv import load_csv

if TYPE_CHECKING:
    from moeapps.streams.datasets.stream import Stream

__all__ = ["DATASETS", "card", "list_datasets", "load", "load_csv"]

_HERE = "moeapps.streams.datasets"

# Name -> module with ``load``. The cards of generators are in ``generated``, which needs no numba.
GENERATORS: dict[str, str] = {
    "led": f"{_HERE}.led",
    "led_a": f"{_HERE}.led",
    "led_g": f"{_HERE}.led",
    "sea": f"{_HERE}.sea",
    "sea_a": f"{_HERE}.sea",
    "sea_g": f"{_HERE}.sea",
    "rbf": f"{_HERE}.rbf",
    "rbf_m": f"{_HERE}.rbf",
    "rbf_f": f"{_HERE}.rbf",
    "agrawal": f"{_HERE}.agrawal",
    "agrawal_a": f"{_HERE}.agrawal",
    "agrawal_g": f"{_HERE}.agrawal",
}
# Name -> module with ``CARDS`` and ``load``.
READERS: dict[str, str] = {
    "electricity": f"{_HERE}.csv_sets",
    "electricity_8": f"{_HERE}.csv_sets",
    "weather": f"{_HERE}.csv_sets",
    "covertype": f"{_HERE}.covertype",
    "airlines": f"{_HERE}.arff_sets",
    "gmsc": f"{_HERE}.arff_sets",
    "insects_abrupt_balanced": f"{_HERE}.insects",
    "insects_abrupt_imbalanced": f"{_HERE}.insects",
    "insects_gradual_balanced": f"{_HERE}.insects",
    "insects_gradual_imbalanced": f"{_HERE}.insects",
    "insects_incremental_abrupt_balanced": f"{_HERE}.insects",
    "insects_incremental_reoccurring_balanced": f"{_HERE}.insects",
    "insects_incremental_balanced": f"{_HERE}.insects",
    "bananas": f"{_HERE}.bundled",
    "image_segments": f"{_HERE}.bundled",
    "phishing": f"{_HERE}.bundled",
    "shuttle": f"{_HERE}.bundled",
}
DATASETS = GENERATORS | READERS


def list_datasets(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern, sorted.

    Example:
        >>> list_datasets("sea*")
        ['sea', 'sea_a', 'sea_g']
    """
    return sorted(name for name in DATASETS if fnmatch.fnmatch(name, pattern))


def card(name: str) -> DatasetCard:
    """What is known about a stream: sizes, classes, licence, files, source.

    Raises:
        UnknownNameError: With the closest names.

    Example:
        >>> card("led_a").classes
        10
    """
    name = _canonical(name)
    module = f"{_HERE}.generated" if name in GENERATORS else DATASETS[name]
    cards: dict[str, DatasetCard] = importlib.import_module(module).CARDS
    return cards[name]


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
    with needs_extra("streams"):
        read: Callable[..., Stream] = importlib.import_module(DATASETS[known.name]).load
        parameters = inspect.signature(read).parameters
        if unknown := sorted(set(args) - set(parameters)):
            general = ("card", "root", "download", "limit", "seed")
            takes = [name for name in parameters if name not in general]
            raise ArgumentError(
                f"{known.name} does not take {', '.join(unknown)}. "
                f"It takes {', '.join(takes) or 'no further arguments'}."
            )
        places = {"seed": seed} if known.synthetic else {"root": root, "download": download}
        return read(known, limit=limit, **places, **args)


def _canonical(name: str) -> str:
    canonical = str(name).lower().replace("-", "_")
    if canonical not in DATASETS:
        raise UnknownNameError("data set", name, DATASETS, hint="See: moeapps data list")
    return canonical
