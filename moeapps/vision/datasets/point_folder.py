"""A user's own photographs with points, in folders or in one file of points for all."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moeapps.data.integrity import reading
from moeapps.errors import ArgumentError, DataIntegrityError, DataNotFoundError
from moeapps.vision.datasets.points import (
    PointImages,
    Points,
    PointSplits,
    as_points,
    folder_of,
    points_of,
    read_rows,
)
from moeapps.vision.photo_files import list_photos

ENDINGS = (".csv", ".json", ".mat", ".txt")
_KEYS = ("points", "annPoints", "image_info")
_X, _Y = ("x", "X"), ("y", "Y")
_NAMES = ("image", "name", "file", "filename", "file_name", "path")


class PointFolder(PointImages):
    r"""Photographs of a folder with points in files of any common kind.

    One file per image, whose name follows from the image's: ``.csv`` and ``.txt`` with a row
    ``x, y`` per point (a header may name other columns ``x`` and ``y``), ``.json`` with a list of
    ``[x, y]`` or ``{"points": ...}``, ``.mat`` with ``points``, ``annPoints`` or ``image_info``. An
    empty file means that there is nothing to count. Or one file for all images: ``.csv`` with the
    columns ``image, x, y`` (a row without x and y for an image with no points), or ``.json`` with
    a list per name.

    Args:
        images: Folder of the photographs.
        points: Folder of the files of points, possibly the same, or one file for all.
        annotation: Name of a file of points for the name of an image, without endings:
            ``"GT_{}"`` for ``IMG_1.jpg`` and ``GT_IMG_1.mat``.
        key: Array of the ``.mat`` files; by default the first known one.
        one_based: Whether coordinates count from 1, as in MATLAB: then 1 is subtracted. Must be
            said for ``.mat`` files; others count from 0 by default.
        outside: What a point outside its image is: ``"error"``, ``"drop"`` or ``"clip"``.

    Raises:
        ArgumentError: ``.mat`` files without ``one_based``.
        DataNotFoundError: A folder or file is missing, or images and points are not paired.
        DataIntegrityError: A file cannot be read, or a point lies outside its image.

    Example:
        >>> import tempfile
        >>> from moeapps.vision.photo_files import write_photo
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_photo(folder / "a.png", np.zeros((8, 8, 3), np.uint8))
        >>> _ = (folder / "a.csv").write_text("x,y\n1.5,2\n3,7.5\n")
        >>> PointFolder(folder, folder).counts.tolist()
        [2]
    """

    def __init__(
        self,
        images: str | Path,
        points: str | Path,
        *,
        annotation: str = "{}",
        key: str | None = None,
        one_based: bool | None = None,
        outside: str = "error",
    ) -> None:
        if "{}" not in annotation:
            raise ArgumentError(f"annotation={annotation!r} has no {{}} for the image's name.")
        photos, place = list_photos(images), Path(points)
        if place.is_file():
            found = _of_one_file(place, photos)
            endings = {place.suffix.lower()}
        else:
            files = _paired(photos, folder_of(place, "the points"), annotation)
            found = [_read(path, key) for path in files]
            endings = {path.suffix.lower() for path in files}
        if ".mat" in endings and one_based is None:
            raise ArgumentError(
                f"{place} has .mat files, and MATLAB counts pixels from 1. Pass one_based=True to "
                "subtract 1, or one_based=False if the points count from 0 already."
            )
        made = points_of(photos, found, outside=outside, one_based=bool(one_based))
        super().__init__(made.images, made.points, made.names)


def read_point_folder(
    folder: str | Path,
    *,
    images: str = "images",
    points: str = "points",
    test_share: float = 0.2,
    seed: int = 0,
    **options: Any,
) -> PointSplits:
    """Read ``<folder>/{train,val,test}/{images,points}``, or ``<folder>/{images,points}``.

    With a folder ``train``, ``test`` must be there and ``val`` may; without it a share of all
    images is held out for the test.

    Args:
        folder: The folder.
        images: Name of the folders of photographs; ``"."`` for none of their own.
        points: Name of the folders of points, or of the files of points for all images.
        test_share: Share held out where there is no folder ``train``.
        seed: Of that choice.
        **options: Of :class:`PointFolder`.

    Raises:
        DataNotFoundError: A folder or file is missing, or images and points are not paired.
        DataIntegrityError: A file cannot be read, or a point lies outside its image.
    """
    place = folder_of(Path(folder), "the images and points")
    if not (place / "train").is_dir():
        every = PointFolder(place / images, place / points, **options)
        train, test = every.hold_out(test_share, seed)
        return PointSplits(train, None, test, f"{test_share:.0%} held out, seeded")
    parts = {
        split: PointFolder(place / split / images, place / split / points, **options)
        for split in ("train", "val", "test")
        if split != "val" or (place / split).is_dir()
    }
    return PointSplits(parts["train"], parts.get("val"), parts["test"], "folders")


def _paired(photos: list[Path], folder: Path, annotation: str) -> list[Path]:
    """The file of points of each photo; every photo has one, and every file its photo."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS and path.is_file() and path.name[0] != ".":
            if path.stem in files:
                raise DataIntegrityError(
                    f"{files[path.stem]} and {path.name} are both the points of one image. Remove "
                    "one of them."
                )
            files[path.stem] = path
    names = [annotation.replace("{}", path.stem) for path in photos]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataIntegrityError(
            f"Two photos of {photos[0].parent} have the points {twice!r}: they differ in their "
            "ending only. Rename one of them."
        )
    lone = [path.name for path, name in zip(photos, names, strict=True) if name not in files]
    left = [path.name for stem, path in files.items() if stem not in set(names)]
    _require_pairs(lone, left, folder, "an empty file")
    return [files[name] for name in names]


def _require_pairs(lone: list[str], left: list[str], place: Path, empty: str) -> None:
    """Raise for photos without points and points without a photo, with the first of their names."""
    if lone:
        raise DataNotFoundError(
            f"Photos without points in {place}: {_first(lone)}. Add points, with {empty} "
            "for a photo that shows nothing to count; annotation='GT_{}' tells how names differ."
        )
    if left:
        raise DataNotFoundError(
            f"Points without a photo in {place}: {_first(left)}. Add the photos, or "
            "remove the points; annotation='GT_{}' tells how names differ."
        )


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _of_one_file(path: Path, photos: list[Path]) -> list[Points]:
    """Points of each photo from the file for all."""
    if path.suffix.lower() == ".csv":
        found = _table(path)
    elif path.suffix.lower() == ".json":
        content = _json(path)
        if not isinstance(content, Mapping):
            raise DataIntegrityError(f"{path} holds no names of images. Expected a list per name.")
        found = {str(name): _from_json(value, path) for name, value in content.items()}
    else:
        raise ArgumentError(f"{path}: one file for all images must be .csv or .json.")
    keys = [path.name if path.name in found else path.stem for path in photos]
    lone = [path.name for path, key in zip(photos, keys, strict=True) if key not in found]
    _require_pairs(lone, sorted(set(found) - set(keys)), path, "no x and y")
    return [as_points(found[key], path) for key in keys]


def _table(path: Path) -> dict[str, Any]:
    """Points per image of a CSV file with the columns image, x and y."""
    with reading(path):
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
        header = [str(name).strip() for name in rows.fieldnames or ()]
        rows.fieldnames = header
        columns = [next((n for n in known if n in header), None) for known in (_NAMES, _X, _Y)]
        if None in columns:
            raise ValueError(f"its columns are {', '.join(header)}; expected image, x, y")
        image, x, y = (str(column) for column in columns)
        found: dict[str, list[list[float]]] = {}
        for row in rows:
            name = Path(str(row[image]).strip()).name
            points = found.setdefault(name, [])
            given = [(row[column] or "").strip() for column in (x, y)]
            if any(given):
                try:
                    points.append([float(number) for number in given])
                except ValueError:
                    raise ValueError(
                        f"line {rows.line_num}: x={given[0]!r} and y={given[1]!r} are no numbers"
                    ) from None
    return found


def _read(path: Path, key: str | None) -> Points:
    ending = path.suffix.lower()
    if ending == ".mat":
        return _mat(path, key)
    if ending == ".json":
        text = path.read_bytes().strip()
        return _from_json(_json(path), path) if text else np.zeros((0, 2))
    with reading(path):
        lines = path.read_text(encoding="utf-8-sig").strip().splitlines()
    rows = [re.split(r"[,;\t]", line.lower()) for line in lines]
    header = [word.strip() for word in rows[0]] if rows else []
    if "x" in header and "y" in header:
        return _columns(path, rows, [header.index("x"), header.index("y")])
    return read_rows(path)


def _columns(path: Path, rows: list[list[str]], chosen: list[int]) -> Points:
    """Two columns of a table, without its header."""
    points = []
    for number, row in enumerate(rows[1:], 2):
        if any(word.strip() for word in row):
            try:
                points.append([float(row[column]) for column in chosen])
            except (ValueError, IndexError):
                raise DataIntegrityError(
                    f"{path}, line {number} has no numbers x and y. Correct it."
                ) from None
    return as_points(points, path)


def _json(path: Path) -> Any:
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8-sig"))


def _from_json(value: Any, path: Path) -> Points:
    with reading(path):
        if isinstance(value, Mapping):
            if "points" not in value:
                raise ValueError(f"it has {', '.join(map(str, value))}, but no 'points'")
            value = value["points"]
        if value and isinstance(value[0], Mapping):
            value = [[point["x"], point["y"]] for point in value]
        return as_points(value, path)


def _mat(path: Path, key: str | None) -> Points:
    from scipy.io import loadmat

    with reading(path):
        content = loadmat(path)
        found = key or next((name for name in _KEYS if name in content), None)
        if found is None or found not in content:
            have = ", ".join(name for name in content if not name.startswith("__"))
            raise ValueError(f"it has {have or 'nothing'}, but no {key or ' or '.join(_KEYS)}")
        value = content[found]
        if found == "image_info":  # as in ShanghaiTech
            value = value[0, 0][0, 0][0]
        return as_points(value, path)
