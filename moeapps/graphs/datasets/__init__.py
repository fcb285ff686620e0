"""Node classification sets by name: real ones from their published files, made ones from a seed.

``list_datasets`` and ``card`` need no torch. Every set comes back as one PyG ``Data``::

    data = load("cora")            # x, y, edge_index, train_mask, val_mask, test_mask

A card's ``sizes["edges"]`` is the number its source states; ``data.edge_source`` says how it became
the number in ``data``.
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

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["DATASETS", "card", "list_datasets", "load"]

_HERE = "moeapps.graphs.datasets"

DATASETS: dict[str, str] = {
    "cora": f"{_HERE}.planetoid:read",
    "citeseer": f"{_HERE}.planetoid:read",
    "pubmed": f"{_HERE}.planetoid:read",
    "roman-empire": f"{_HERE}.heterophilous:read",
    "amazon-ratings": f"{_HERE}.heterophilous:read",
    "minesweeper": f"{_HERE}.heterophilous:read",
    "tolokers": f"{_HERE}.heterophilous:read",
    "questions": f"{_HERE}.heterophilous:read",
    "actor": f"{_HERE}.heterophilous:read",
    "texas": f"{_HERE}.heterophilous:read",
    "wisconsin": f"{_HERE}.heterophilous:read",
    "cornell": f"{_HERE}.heterophilous:read",
    "chameleon-filtered": f"{_HERE}.heterophilous:read",
    "squirrel-filtered": f"{_HERE}.heterophilous:read",
    "flickr": f"{_HERE}.flickr:read",
    "ogbn-arxiv": f"{_HERE}.ogbn:read",
    "ogbn-products": f"{_HERE}.ogbn:read",
    "penn94": f"{_HERE}.linkx:read_facebook",
    "reed98": f"{_HERE}.linkx:read_facebook",
    "amherst41": f"{_HERE}.linkx:read_facebook",
    "cornell5": f"{_HERE}.linkx:read_facebook",
    "johnshopkins55": f"{_HERE}.linkx:read_facebook",
    "pokec": f"{_HERE}.linkx:read_pokec",
    "twitch-gamer": f"{_HERE}.twitch_gamer:read",
    "twitch-de": f"{_HERE}.twitch_countries:read",
    "twitch-engb": f"{_HERE}.twitch_countries:read",
    "twitch-es": f"{_HERE}.twitch_countries:read",
    "twitch-fr": f"{_HERE}.twitch_countries:read",
    "twitch-ptbr": f"{_HERE}.twitch_countries:read",
    "twitch-ru": f"{_HERE}.twitch_countries:read",
    "twitch-tw": f"{_HERE}.twitch_countries:read",
    "webkb-texas": f"{_HERE}.webkb:read",
    "webkb-wisconsin": f"{_HERE}.webkb:read",
    "webkb-cornell": f"{_HERE}.webkb:read",
    "karate": f"{_HERE}.karate:read",
    "mixed-csbm": f"{_HERE}.mixed_csbm:read",
}


def list_datasets(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern, sorted.

    Example:
        >>> list_datasets("c*")
        ['chameleon-filtered', 'citeseer', 'cora', 'cornell', 'cornell5']
    """
    return sorted(name for name in DATASETS if fnmatch.fnmatch(name, pattern))


def card(name: str) -> DatasetCard:
    """What is known about a set: sizes, splits, licence, files, source. Needs no torch.

    Raises:
        UnknownNameError: With the closest names.

    Example:
        >>> card("cora").sizes["nodes"]
        2708
    """
    name = _canonical(name)
    module = DATASETS[name].partition(":")[0]
    cards: dict[str, DatasetCard] = importlib.import_module(module).CARDS
    return cards[name]


def load(
    name: str,
    *,
    root: str | Path | None = None,
    split: int | str | None = None,
    download: bool = False,
    **args: Any,
) -> "Data":
    """Read or make a set.

    Args:
        name: One of :func:`list_datasets`; case and ``_`` for ``-`` do not matter.
        root: Data home; see :func:`moeapps.data.data_home`.
        split: Which split: a number, or a name where the set has named ones. None takes the
            set's usual one (``"public"`` for Planetoid, 0 elsewhere).
        download: Fetch missing files where the set has an address for them.
        **args: What the set's own reader takes besides, for example ``undirected=``.

    Returns:
        ``Data`` with ``x [V, d]`` float32, ``y [V]`` int64 (-1 = unlabelled, in no mask),
        ``edge_index [2, M]`` without duplicates, and ``train_mask``, ``val_mask``,
        ``test_mask [V]``; ``num_classes`` as an int. The strings ``split_source`` and
        ``edge_source`` say where the splits and the edges come from.

    Raises:
        UnknownNameError: With the closest names.
        ArgumentError: For a split or an argument that the set does not have.
        DataNotFoundError: Naming missing files and their official page.
        DataIntegrityError: When a file is truncated or not the published one.
        MissingExtraError: When torch-geometric is not installed.

    Example:
        >>> data = load("mixed-csbm", size="tiny", seed=1)
        >>> tuple(data.x.shape), int(data.train_mask.sum())
        ((400, 32), 200)
    """
    known = card(name)
    module, _, attribute = DATASETS[known.name].partition(":")
    read: Callable[..., Data] = getattr(importlib.import_module(module), attribute)
    parameters = inspect.signature(read).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not open_ended and (unknown := sorted(set(args) - set(parameters))):
        takes = [name for name in parameters if name not in ("card", "root", "split", "download")]
        raise ArgumentError(
            f"{known.name} does not take {', '.join(unknown)}. "
            f"It takes {', '.join(takes) or 'no further arguments'}."
        )
    with needs_extra("graphs"):
        return read(known, root=root, split=split, download=download, **args)


def _canonical(name: str) -> str:
    canonical = str(name).lower().replace("_", "-")
    if canonical not in DATASETS:
        raise UnknownNameError("data set", name, DATASETS, hint="See: moeapps data list")
    return canonical
