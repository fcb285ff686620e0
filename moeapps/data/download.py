"""Fetches files: mirrors, retries, resume, offline switch. Never runs unless asked to."""

import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

from moeapps.data.card import DatasetCard
from moeapps.data.integrity import extract_archive, free_bytes, verify_file
from moeapps.errors import ArgumentError, DataIntegrityError, DataNotFoundError, OfflineError

_CHUNK = 1 << 18
_GIVE_UP = {400, 401, 403, 404, 405, 410, 451}  # asking again will not help


def is_offline() -> bool:
    """``MOEAPPS_OFFLINE`` (or the hub's ``HF_HUB_OFFLINE``) is set to something but 0."""
    return any(
        os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no")
        for name in ("MOEAPPS_OFFLINE", "HF_HUB_OFFLINE")
    )


def download_file(
    urls: Iterable[str],
    path: str | Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    retries: int = 4,
    timeout: float = 30.0,
    pause: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetch one file from the first address that gives it, with a progress bar.

    Bytes go to ``<path>.part``; an interrupted download goes on where it stopped. The file
    gets its name only after its length and checksum are right.

    Args:
        urls: Mirrors, best first; http(s) only.
        path: Where to put it.
        sha256: Expected checksum, or None.
        size: Expected length in bytes, or None.
        retries: Attempts per mirror.
        timeout: Seconds without an answer after which an attempt fails.
        pause: Seconds before the second attempt; doubled each time.
        sleep: Replaces ``time.sleep`` in tests.

    Raises:
        OfflineError: When ``MOEAPPS_OFFLINE`` is set.
        DataNotFoundError: When no mirror gives the file.
        DataIntegrityError: When what came is not the published file.
    """
    path, urls = Path(path), list(urls)
    if is_offline():
        raise OfflineError(
            f"Cannot fetch {path.name}: offline mode is on. Unset MOEAPPS_OFFLINE, "
            f"or place the file at {path} by hand."
        )
    for url in urls:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ArgumentError(f"{url!r} is not an http(s) address. Pass one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures: list[str] = []
    wrong: DataIntegrityError | None = None
    for url in urls:
        for attempt in range(retries):
            if attempt:
                sleep(pause * 2 ** (attempt - 1))
            try:
                _transfer(url, part, size, timeout)
                verify_file(part, sha256=sha256, size=size)
            except DataIntegrityError as error:
                part.unlink(missing_ok=True)
                wrong = error
                failures.append(f"{url}: {error}")
                break  # the mirror has another file; the next one may not
            except urllib.error.HTTPError as error:
                failures.append(f"{url}: HTTP {error.code}")
                if error.code == 416:  # the part is longer than the file
                    part.unlink(missing_ok=True)
                elif error.code in _GIVE_UP:
                    break
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{url}: {error}")
            else:
                part.replace(path)
                return path
    reasons = "; ".join(failures) or "no address is known"
    if wrong is not None:
        raise DataIntegrityError(
            f"{path.name} was fetched but is not the published file ({reasons}). "
            "Try again later, or place the file by hand."
        )
    raise DataNotFoundError(
        f"{path.name} could not be fetched ({reasons}). Check the connection, "
        f"or place the file at {path} by hand."
    )


def fetch(card: DatasetCard, home: Path) -> None:
    """Fetch the files of a set that are not below ``home`` yet.

    Raises:
        OfflineError: When ``MOEAPPS_OFFLINE`` is set.
        DataNotFoundError: When no mirror gives a file.
        DataIntegrityError: When a file or an archive is not the published one.
    """
    for archive in card.archives:
        if all((home / place).is_file() for place in archive.members.values()):
            continue
        name = Path(urllib.parse.urlsplit(archive.urls[0]).path).name
        packed = home / ".downloads" / name  # kept after an interruption, to go on from there
        download_file(archive.urls, packed, sha256=archive.sha256, size=archive.size)
        try:
            extract_archive(packed, home, members=archive.members)
        finally:
            packed.unlink()
    for file in card.files:
        if file.urls and not (home / file.path).is_file():
            try:
                download_file(file.urls, home / file.path, sha256=file.sha256, size=file.size)
            except DataNotFoundError:
                if not file.optional:
                    raise


def _transfer(url: str, part: Path, size: int | None, timeout: float) -> None:
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have > size:
        part.unlink()
        have = 0
    if size is not None and have == size:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "moeapps"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise OSError("a web page came instead of the file")
        if answer.status != 206:  # the server sends the whole file again
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else size
        if total is not None and total - have > free_bytes(part.parent):
            raise OSError(f"{part.name} needs {total - have} bytes, more than the disk has left")
        with part.open("ab" if have else "wb") as sink, _progress(part.stem, have, total) as step:
            while block := answer.read(_CHUNK):
                sink.write(block)
                have += len(block)
                step(len(block))
    if total is not None and have < total:
        raise OSError(f"connection closed after {have} of {total} bytes")


class _progress:  # noqa: N801 (used like a function)
    """A rich bar on a terminal, nothing elsewhere. Gives a function that advances it."""

    def __init__(self, name: str, have: int, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

        console = Console(stderr=True)
        self.bar = Progress(
            "{task.description}",
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=total, completed=have)

    def __enter__(self) -> Callable[[int], None]:
        self.bar.start()
        return lambda count: self.bar.advance(self.task, count)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
