"""Finds the files of a data set and makes sure that they are the published ones."""

from pathlib import Path

from moeapps.data.card import DatasetCard
from moeapps.data.download import fetch, is_offline
from moeapps.data.home import data_home
from moeapps.data.integrity import verify_file
from moeapps.errors import DataNotFoundError


def locate(
    card: DatasetCard, *, root: str | Path | None = None, download: bool = False
) -> dict[str, Path]:
    """Paths of a set's files by file name, each checked against its recorded checksum.

    Where a file is absent and another that stands in for it is there, that one's path is given.
    Optional files that are absent are left out. Nothing is ever written beside files that
    are already there.

    Args:
        card: The set.
        root: Data home; see :func:`moeapps.data.data_home`.
        download: Fetch what is missing.

    Raises:
        DataNotFoundError: Naming the files, the folder and the official page.
        DataIntegrityError: When a file is not the published one.
        OfflineError: When a download is wanted while ``MOEAPPS_OFFLINE`` is set.
    """
    home = data_home(root)
    missing = [f for f in card.files if not f.optional and f.find(home) is None]
    if missing and download and card.downloadable:
        fetch(card, home)
        missing = [f for f in missing if f.find(home) is None]
    if missing:
        raise DataNotFoundError(_advice(card, home, [f.path for f in missing], download))
    found = {}
    for file in card.files:
        path = file.find(home)
        if path is not None:
            if path == home / file.path:
                verify_file(path, sha256=file.sha256, size=file.size)
            found[file.name] = path
    return found


def _advice(card: DatasetCard, home: Path, paths: list[str], download: bool) -> str:
    listed = ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
    text = f"{card.title} not found in {home}: {listed} missing. "
    page = f"{card.source} ({card.url})"
    if not card.downloadable:
        tried = "There is no direct download for it. " if download else ""
        return text + f"{tried}Get the files from {page} and place them there by hand."
    if is_offline():
        return text + (
            f"Offline mode is on. Put the files from {page} there, "
            "or unset MOEAPPS_OFFLINE and pass download=True."
        )
    return text + f"Put the files from {page} there, or pass download=True."
