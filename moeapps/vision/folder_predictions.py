"""A folder of photos through a trained run: pictures and a table; broken photos are left out."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeapps.data.integrity import atomic_write
from moeapps.errors import ConfigError, MoeappsError
from moeapps.vision.photo_files import list_photos, read_photo, write_photo
from moeapps.vision.photo_tasks import PhotoTask

JOURNAL, SKIPPED = ".moeapps_predictions.jsonl", "skipped.csv"


@dataclass
class Outcome:
    """What came of a folder.

    Args:
        table: File with a row per photo.
        done: Photos of this call.
        kept: Photos whose results were there already.
        skipped: Why a photo was left out, by the name of its file.
    """

    table: Path
    done: int = 0
    kept: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


def predict_folder(
    task: PhotoTask,
    source: str | Path,
    target: str | Path,
    *,
    run: str,
    say: Callable[[int, int, str | None], None] = lambda done, total, problem: None,
) -> Outcome:
    """Answer for every photo of a folder, one by one, into another folder.

    A journal in the target says what is done. Called again with the same run, the call goes on
    where it was broken off and does only photos that are new, changed, or were left out; with
    another run all is done anew. Every file appears when it is complete.

    Args:
        task: From :func:`moeapps.vision.photo_tasks.photo_task`.
        source: Folder of photos, or one photo.
        target: Folder, made if needed: the table, pictures, and ``skipped.csv`` if a photo was left
            out.
        run: What the answers depend on besides the photo: a digest of the checkpoint and options.
        say: Called with the number of photos done and in all, and with what is wrong with the
            photo just met, if anything is.

    Raises:
        DataNotFoundError: There is no photo in ``source``, or it cannot be read.
        ConfigError: ``target`` is ``source``, or cannot be written.
    """
    source, target = Path(source), Path(target)
    photos = [source] if source.is_file() else list_photos(source)
    if target.resolve() in (source.resolve(), photos[0].parent.resolve()):
        raise ConfigError(
            f"{target} holds the photos themselves. Choose another folder for what is made of them."
        )
    names = output_names([path.name for path in photos])
    outcome = Outcome(target / task.table)
    journal = _Journal(target, {"format": 1, "run": run, "task": task.name})
    rows: dict[str, tuple[str, ...]] = {}
    try:
        for number, path in enumerate(photos, 1):
            places = {folder: target / folder / names[path.name] for folder in task.folders}
            problem = None
            if (known := journal.find(path, places.values())) is not None:
                rows[path.name] = known
                outcome.kept += 1
            else:
                try:
                    answer = task.answer(read_photo(path))
                except (MoeappsError, MemoryError) as error:
                    problem = str(error) or f"{path} does not fit in memory."
                    outcome.skipped[path.name] = problem
                else:
                    for folder, picture in answer.pictures.items():
                        write_photo(places[folder], picture)
                    journal.add(path, answer.values)
                    rows[path.name] = answer.values
                    outcome.done += 1
            say(number, len(photos), problem)
    finally:  # after an interruption too, so that what is there is a whole table
        journal.close()
        _write_table(outcome.table, ("file", *task.columns), [(k, *v) for k, v in rows.items()])
        if outcome.skipped:
            _write_table(target / SKIPPED, ("file", "reason"), [*outcome.skipped.items()])
        else:
            (target / SKIPPED).unlink(missing_ok=True)
    return outcome


def output_names(names: list[str]) -> dict[str, str]:
    """Name of the picture made of each photo: its own with ``.png``, unambiguous.

    Example:
        >>> output_names(["a.jpg", "b.jpg", "b.tif"])
        {'a.jpg': 'a.png', 'b.jpg': 'b.jpg.png', 'b.tif': 'b.tif.png'}
    """
    stems = Counter(Path(name).stem.lower() for name in names)
    return {
        name: f"{Path(name).stem if stems[Path(name).stem.lower()] == 1 else name}.png"
        for name in names
    }


class _Journal:
    """One line per finished photo; a line cut off by a kill does not count."""

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self._path, self._header = folder / JOURNAL, header
        lines = self._read()
        goes_on = bool(lines) and lines[0] == header
        self._known = {line["file"]: line for line in lines[1:]} if goes_on else {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Whole lines only, so that the next one does not join a cut one.
            with atomic_write(self._path) as file:
                for line in (header, *self._known.values()):
                    file.write(json.dumps(line).encode() + b"\n")
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"Cannot write in {folder} ({error.strerror}). Choose another folder with --output."
            ) from error

    def _read(self) -> list[dict[str, Any]]:
        found = []
        try:
            for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
                found.append(json.loads(line))
        except (OSError, ValueError):
            pass
        return [line for line in found if isinstance(line, dict)]

    def find(self, path: Path, pictures: Any) -> tuple[str, ...] | None:
        """The row of a photo that has not changed since, if its pictures are there."""
        known = self._known.get(path.name)
        if known is None or known["photo"] != _state(path):
            return None
        return tuple(known["values"]) if all(p.is_file() for p in pictures) else None

    def add(self, path: Path, values: tuple[str, ...]) -> None:
        line = {"file": path.name, "photo": _state(path), "values": values}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise ConfigError(f"Cannot write {self._path} ({error.strerror}).") from error

    def close(self) -> None:
        self._file.close()


def _state(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _write_table(path: Path, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    try:
        with atomic_write(path) as file:
            # A name of bytes that are no UTF-8 is written as those bytes.
            file.write(text.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise ConfigError(
            f"Cannot write {path} ({error.strerror}). Choose another folder with --output."
        ) from error
