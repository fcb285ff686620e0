"""The data sets of a domain by name: what is known about each, and the function that reads it."""

import fnmatch
import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from moeapps.data.card import DatasetCard
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.lazy import needs_extra


class Catalogue(Mapping[str, str]):
    """A table from name to ``module:function``, whose modules load on first use.

    The module of a reader, or the one that ``cards`` names, has the card of the set in its
    dictionary ``CARDS``. A reader takes the card first and everything else by keyword.

    Args:
        package: Package of the modules, ``"moeapps.<domain>.datasets"``; the extra ``<domain>``
            brings what they need.
        readers: Name to ``"module:function"`` below the package.
        cards: Name to the module of the card, where that is not the reader's.

    Example:
        >>> table = Catalogue("moeapps.graphs.datasets", {"karate": "karate:read"})
        >>> table.names("k*"), table.card("Karate").sizes["nodes"]
        (['karate'], 34)
    """

    def __init__(
        self, package: str, readers: Mapping[str, str], *, cards: Mapping[str, str] | None = None
    ) -> None:
        self.package = package
        self.domain = package.split(".")[1]
        self._readers = dict(readers)
        self._cards = dict(cards or {})
        self._names = {_plain(name): name for name in readers}

    def __getitem__(self, name: str) -> str:
        return self._readers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def names(self, pattern: str = "*") -> list[str]:
        """Names that match a shell pattern, sorted."""
        return sorted(name for name in self if fnmatch.fnmatch(name, pattern))

    def card(self, name: str) -> DatasetCard:
        """What is known about a set: sizes, splits, licence, files, source. Reads no file.

        Args:
            name: One of the names; neither case nor ``_`` or ``-`` matters.

        Raises:
            UnknownNameError: With the closest names.
        """
        known = self._names.get(_plain(name))
        if known is None:
            raise UnknownNameError("data set", name, self, hint="See: moeapps data list")
        module = self._import(self._cards[known]) if known in self._cards else self.module(known)
        cards: dict[str, DatasetCard] = module.CARDS
        return cards[known]

    def module(self, name: str) -> ModuleType:
        """The module with the reader of a set."""
        return self._import(self[name].partition(":")[0])

    def read(self, card: DatasetCard, given: Mapping[str, Any], args: Mapping[str, Any]) -> Any:
        """Call the reader of a set.

        Args:
            card: Of the set.
            given: What every reader of this kind takes.
            args: What the caller adds.

        Raises:
            ArgumentError: For an added argument that the reader does not take.
            MissingExtraError: The packages of the domain are not installed.
        """
        with needs_extra(self.domain):
            read = getattr(self.module(card.name), self[card.name].partition(":")[2])
            parameters = inspect.signature(read).parameters
            takes = [name for name in parameters if name not in ("card", *given)]
            open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
            if not open_ended and (unknown := sorted(set(args) - set(takes))):
                raise ArgumentError(
                    f"{card.name} does not take {', '.join(unknown)}. "
                    f"It takes {', '.join(takes) or 'no further arguments'}."
                )
            return read(card, **given, **args)

    def make_fixture(
        self, name: str, root: str | Path, size: tuple[str, int], seed: int, *, least: int
    ) -> Path:
        """Call ``make_fixture(card, root, size, seed)`` of the module of a set with files.

        Args:
            name: Of the set.
            root: Data home to write below; the folders of the files are made.
            size: What is counted, as errors call it, and how many.
            seed: Of the content.
            least: Smallest size.

        Returns:
            The folder of the first file.

        Raises:
            UnknownNameError: With the closest names.
            ArgumentError: The set has no files, or the size is too small.
        """
        known, root = self.card(name), Path(root)
        if not known.files:
            raise ArgumentError(f"{known.name} has no files of its own. Load it by name.")
        if not size[1] >= least:
            raise ArgumentError(
                f"{size[0]}={size[1]} is too small for the splits. Choose {least} or more."
            )
        for file in known.files:
            (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        self.module(known.name).make_fixture(known, root, size[1], seed)
        return (root / known.files[0].path).parent

    def _import(self, module: str) -> ModuleType:
        return importlib.import_module(f"{self.package}.{module}")


def _plain(name: str) -> str:
    return str(name).lower().replace("_", "-")
