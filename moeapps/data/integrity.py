"""Files that are whole: checksums, atomic writes, archives that cannot write elsewhere."""

import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from moeapps.errors import DataIntegrityError, MoeappsError

_CHUNK = 1 << 20


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Hexadecimal checksum of a file, read in pieces."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def verify_file(path: str | Path, *, sha256: str | None = None, size: int | None = None) -> None:
    """Raise unless the file has the recorded length and checksum; None is not checked.

    Raises:
        DataIntegrityError: Naming the file, what was found and what to do.
    """
    path = Path(path)
    advice = "It is truncated or not the published file: delete it and fetch it again."
    found = path.stat().st_size
    if size is not None and found != size:
        raise DataIntegrityError(f"{path} has {found} bytes, expected {size}. {advice}")
    if sha256 is not None and (digest := file_digest(path)) != sha256:
        raise DataIntegrityError(f"{path} has SHA-256 {digest}, expected {sha256}. {advice}")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name only when it is complete.

    The folder is made if needed. After an error nothing is left behind and an older file
    of the same name is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private; data is shared like any other file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn any error of a parser into one that names the file.

    Raises:
        DataIntegrityError: When the body meets content it cannot parse.
    """
    try:
        yield
    except (MoeappsError, FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # a parser of foreign bytes may raise anything
        raise DataIntegrityError(
            f"{path} cannot be read ({type(error).__name__}: {error}). It is truncated or not the "
            "published file: delete it and fetch it again."
        ) from error


def extract_archive(
    archive: str | Path,
    destination: str | Path,
    *,
    members: Mapping[str, str] | None = None,
    max_bytes: int = 64 << 30,
    max_ratio: float = 200.0,
) -> list[Path]:
    """Unpack a zip or tar file below a folder, each file atomically.

    Only plain files are written. The whole archive is refused when it holds a link, a device,
    an absolute name or one with ``..``, or when it would unpack to more than ``max_bytes`` or to
    more than ``max_ratio`` times its own length. Lengths are counted while unpacking: those in
    the headers may lie.

    Args:
        archive: The ``.zip``, ``.tar``, ``.tar.gz``, ``.tar.bz2`` or ``.tar.xz`` file.
        destination: Folder to write below.
        members: Name inside -> place below ``destination``; None takes everything.
        max_bytes: Upper bound of the unpacked length.
        max_ratio: Upper bound of unpacked over packed length (above the first 16 MiB).

    Returns:
        The files written.

    Raises:
        DataIntegrityError: With the reason.
    """
    archive, destination = Path(archive), Path(destination)
    limit = min(max_bytes, max(16 << 20, int(max_ratio * archive.stat().st_size)))
    written: list[Path] = []
    with reading(archive):
        is_zip = zipfile.is_zipfile(archive)
        with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive) as opened:
            names = _plain_files(archive, opened)
            wanted = members if members is not None else {name: name for name in names}
            for name, place in wanted.items():
                if name not in names:
                    raise DataIntegrityError(
                        f"{archive} has no member {name!r}: not the published archive. "
                        "Delete it and fetch it again."
                    )
                target = destination / _safe_name(archive, place)
                with _member(opened, name) as source, atomic_write(target) as sink:
                    while block := source.read(_CHUNK):
                        limit -= len(block)
                        if limit < 0:
                            raise DataIntegrityError(
                                f"{archive} unpacks to more than is believable. "
                                "It may be an archive bomb: do not use it."
                            )
                        sink.write(block)
                written.append(target)
    return written


def _member(opened: zipfile.ZipFile | tarfile.TarFile, name: str) -> IO[bytes]:
    if isinstance(opened, zipfile.ZipFile):
        return opened.open(name)
    stream = opened.extractfile(name)
    assert stream is not None  # only plain files get here
    return stream


def _plain_files(archive: Path, opened: zipfile.ZipFile | tarfile.TarFile) -> set[str]:
    names: set[str] = set()
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            _safe_name(archive, info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, info.filename, "is a link or a device")
            if not info.is_dir():
                names.add(info.filename)
    else:
        for member in opened.getmembers():
            _safe_name(archive, member.name)
            if not (member.isfile() or member.isdir()):
                raise _refused(archive, member.name, "is a link or a device")
            if member.isfile():
                names.add(member.name)
    return names


def _safe_name(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    bad = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name
    if bad:
        raise _refused(archive, name, "points outside the folder")
    return path


def _refused(archive: Path, name: str, reason: str) -> DataIntegrityError:
    return DataIntegrityError(
        f"{archive} holds {name!r}, which {reason}. Archives of data hold plain files only: "
        "do not use this one."
    )


def free_bytes(folder: str | Path) -> int:
    """Space left on the disk that holds ``folder`` or its closest existing parent."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
