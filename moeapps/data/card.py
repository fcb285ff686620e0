"""What is known about a data set without opening it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Args:
        path: Place below the data home, with forward slashes.
        sha256: Checksum of the published file, or None where we have not computed it.
        size: Its length in bytes, or None.
        urls: Places to fetch it from, best first; empty when it has to be placed by hand.
        optional: The reader can do without it and says so in the data.
        stand_ins: Places below the data home of other files that the reader takes in its stead.
            Nothing is known of their checksum.
    """

    path: str
    sha256: str | None = None
    size: int | None = None
    urls: tuple[str, ...] = ()
    optional: bool = False
    stand_ins: tuple[str, ...] = ()

    def find(self, home: Path) -> Path | None:
        """The file below a data home, or what stands in for it; None when neither is there."""
        places = (home / path for path in (self.path, *self.stand_ins))
        return next((place for place in places if place.is_file()), None)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class DataArchive:
    """A published archive from which files of a data set are taken.

    Args:
        urls: Places to fetch it from, best first.
        members: Name inside the archive -> place below the data home.
        sha256: Checksum of the archive, or None where we have not computed it.
        size: Its length in bytes, or None.
    """

    urls: tuple[str, ...]
    members: Mapping[str, str]
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class DatasetCard:
    """Facts about a data set.

    Args:
        name: Name by which it is loaded.
        title: Name as written in prose.
        domain: Subpackage that reads it.
        task: What is predicted, in the field's words.
        metric: Metric its benchmark uses: ``"accuracy"``, ``"auroc"``, ``"mae"``, ...
        sizes: What is counted -> how many, as the source counts (edges once or per direction).
        classes: Number of classes; 0 where nothing is classified.
        splits: Which splits there are and where they come from.
        licence: As its source states it.
        source: Title of its official page.
        url: Address of that page.
        citation: Whom to cite.
        files: What the reader opens.
        archives: Where those files come in an archive.
        synthetic: Made from a seed, not measured.
        notes: What a user has to know before quoting a result.

    Example:
        >>> card = DatasetCard("dots", "Dots", "vision", "counting", "accuracy", {"images": 3}, 2,
        ...     "one fixed", "CC0", "Dots page", "https://example.org", "Dot 1999",
        ...     files=(DataFile("dots/a.npz"),))
        >>> card.downloadable
        False
    """

    name: str
    title: str
    domain: str
    task: str
    metric: str
    sizes: Mapping[str, int]
    classes: int
    splits: str
    licence: str
    source: str
    url: str
    citation: str
    files: tuple[DataFile, ...] = ()
    archives: tuple[DataArchive, ...] = ()
    synthetic: bool = False
    notes: str = field(default="")

    @property
    def downloadable(self) -> bool:
        """Every file that the reader needs has an address."""
        packed = {place for archive in self.archives for place in archive.members.values()}
        return all(f.urls or f.path in packed for f in self.files if not f.optional)
