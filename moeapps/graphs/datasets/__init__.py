"""Node classification sets by name: real ones from their published files, made ones from a seed.

``list_datasets`` and ``card`` need no torch. Every set comes back as one PyG ``Data``::

    data = load("cora")            # x, y, edge_index, train_mask, val_mask, test_mask

A card's ``sizes["edges"]`` is the number its source states; ``data.edge_source`` says how it became
the number in ``data``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeapps.data.catalogue import Catalogue

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["DATASETS", "card", "list_datasets", "load"]

DATASETS = Catalogue(
    "moeapps.graphs.datasets",
    {
        "cora": "planetoid:read",
        "citeseer": "planetoid:read",
        "pubmed": "planetoid:read",
        "roman-empire": "heterophilous:read",
        "amazon-ratings": "heterophilous:read",
        "minesweeper": "heterophilous:read",
        "tolokers": "heterophilous:read",
        "questions": "heterophilous:read",
        "actor": "heterophilous:read",
        "texas": "heterophilous:read",
        "wisconsin": "heterophilous:read",
        "cornell": "heterophilous:read",
        "chameleon-filtered": "heterophilous:read",
        "squirrel-filtered": "heterophilous:read",
        "flickr": "flickr:read",
        "ogbn-arxiv": "ogbn:read",
        "ogbn-products": "ogbn:read",
        "penn94": "linkx:read_facebook",
        "reed98": "linkx:read_facebook",
        "amherst41": "linkx:read_facebook",
        "cornell5": "linkx:read_facebook",
        "johnshopkins55": "linkx:read_facebook",
        "pokec": "linkx:read_pokec",
        "twitch-gamer": "twitch_gamer:read",
        "twitch-de": "twitch_countries:read",
        "twitch-engb": "twitch_countries:read",
        "twitch-es": "twitch_countries:read",
        "twitch-fr": "twitch_countries:read",
        "twitch-ptbr": "twitch_countries:read",
        "twitch-ru": "twitch_countries:read",
        "twitch-tw": "twitch_countries:read",
        "webkb-texas": "webkb:read",
        "webkb-wisconsin": "webkb:read",
        "webkb-cornell": "webkb:read",
        "karate": "karate:read",
        "mixed-csbm": "mixed_csbm:read",
    },
)
list_datasets = DATASETS.names
card = DATASETS.card


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
    return DATASETS.read(card(name), {"root": root, "split": split, "download": download}, args)
