"""Photographs before and after: what a camera saw in bad weather, and what was there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.errors import ArgumentError, DataIntegrityError, DataNotFoundError
from moeapps.vision.datasets.images import Splits
from moeapps.vision.photo_files import ENDINGS, read_photo

Rename = Callable[[str], str] | tuple[str, str] | list[str] | None
Source = Path | NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PairedImages:
    """Inputs and targets of equal size; files are decoded when they are asked for.

    Args:
        inputs: Path of each input, or ``uint8 [H, W, 3]`` pixels.
        targets: The same of what is to be restored.
        names: One per pair.
        tasks: Index into ``task_names`` per pair.
        task_names: Kinds of weather, or parts of the set, that results tell apart.

    Raises:
        ArgumentError: Lengths do not fit each other, or a task has no name.

    Example:
        >>> grey = np.full((4, 6, 3), 128, np.uint8)
        >>> pairs = PairedImages([grey], [grey], ["a"], [0], ("haze",))
        >>> len(pairs), pairs[0][1].shape, pairs.task_names
        (1, (4, 6, 3), ('haze',))
    """

    inputs: Sequence[Source]
    targets: Sequence[Source]
    names: Sequence[str]
    tasks: NDArray[np.int64]
    task_names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", np.asarray(self.tasks, np.int64))
        object.__setattr__(self, "task_names", tuple(self.task_names))
        for name, column in {"targets": self.targets, "names": self.names}.items():
            if len(column) != len(self.inputs):
                raise ArgumentError(
                    f"{len(column)} {name} for {len(self.inputs)} inputs. Pass one per input."
                )
        known = len(self.task_names)
        if self.tasks.shape != (len(self.inputs),) or not set(self.tasks) <= set(range(known)):
            raise ArgumentError(
                f"tasks must hold one index below {known} for each of {len(self.inputs)} inputs."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Input and target of an index, ``uint8 [H, W, 3]`` each.

        Raises:
            DataNotFoundError: A file is gone.
            DataIntegrityError: A file cannot be decoded, or their sizes differ.
        """
        image, target = (_pixels(part[index]) for part in (self.inputs, self.targets))
        if image.shape != target.shape:
            raise DataIntegrityError(
                f"{self.names[index]}: the input is {image.shape[1]} x {image.shape[0]} pixels, "
                f"its target {target.shape[1]} x {target.shape[0]}. Expected equal sizes: they are "
                "no pair, or one of them was resized."
            )
        return image, target

    def take(self, rows: "Sequence[int] | NDArray[Any]") -> "PairedImages":
        """The set of some rows, in their order."""
        chosen = [int(row) for row in rows]
        inputs, targets, names = (
            [column[row] for row in chosen] for column in (self.inputs, self.targets, self.names)
        )
        return PairedImages(inputs, targets, names, self.tasks[chosen], self.task_names)  # type: ignore[arg-type]

    def hold_out(self, share: float, seed: int = 0) -> "tuple[PairedImages, PairedImages]":
        """Split off a share: what stays, and what was split off, at least one target each.

        Pairs with the same target stay together, so that no scene is on both sides.

        Raises:
            ArgumentError: The share is not between 0 and 1, or there are less than two targets.
        """
        keys = [str(t) if isinstance(t, Path) else str(id(t)) for t in self.targets]
        scenes = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        if not 0 < share < 1 or len(scenes) < 2:
            raise ArgumentError(
                f"share={share} of {len(scenes)} targets leaves one side empty. Choose between 0 "
                "and 1, of two targets or more."
            )
        order = np.random.default_rng(seed).permutation(len(scenes))
        held = set(order[: min(max(1, round(share * len(scenes))), len(scenes) - 1)].tolist())
        inside = np.array([scenes[key] in held for key in keys])
        return self.take(np.flatnonzero(~inside)), self.take(np.flatnonzero(inside))


def join_pairs(parts: Sequence[PairedImages]) -> PairedImages:
    """Sets one after the other; their tasks are told apart by name.

    Raises:
        ArgumentError: There is no set.
    """
    if not parts:
        raise ArgumentError("There are no sets to join. Pass one or more.")
    names = tuple(dict.fromkeys(name for part in parts for name in part.task_names))
    tasks = [
        np.array([names.index(name) for name in part.task_names], np.int64)[part.tasks]
        for part in parts
    ]
    return PairedImages(
        [image for part in parts for image in part.inputs],
        [image for part in parts for image in part.targets],
        [name for part in parts for name in part.names],
        np.concatenate(tasks),
        names,
    )


@dataclass(frozen=True, eq=False)
class PairedSplits(Splits):
    """Pairs in splits with the same tasks; there are no classes.

    Args:
        train: Training pairs.
        val: Validation pairs; None where the set has none, see :meth:`PairedImages.hold_out`.
        test: Test pairs.
        split_source: How the pairs came into their splits.
    """

    train: PairedImages  # type: ignore[assignment]
    val: PairedImages | None  # type: ignore[assignment]
    test: PairedImages  # type: ignore[assignment]

    @property
    def task_names(self) -> tuple[str, ...]:
        """Kinds of weather, or parts of the set."""
        return self.train.task_names

    @property
    def class_names(self) -> tuple[str, ...]:
        """There are none.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError("Pairs of photographs have no classes. Use them with RestorationData.")

    @property
    def num_classes(self) -> int:
        """There are none.

        Raises:
            ArgumentError: Always.
        """
        return len(self.class_names)


class PairedFolder(PairedImages):
    """Photographs of two folders, paired by their names.

    A target has the name of its input, or that name changed by ``rename``; endings may differ.
    Several inputs may share one target. Folders are searched with their subfolders.

    Args:
        root: Folder of both.
        input_dir: Folder of the inputs below it.
        target_dir: Folder of the targets below it.
        rename: Turns the name of an input (its path below ``input_dir`` with ``/``, without the
            ending) into that of its target: a function, or two texts of which the first is
            replaced by the second.
        task: Name of their weather.

    Raises:
        ArgumentError: ``rename`` is neither.
        DataNotFoundError: A folder is missing or empty, or inputs have no target: with the first
            of their names.
        DataIntegrityError: Two targets have the same name.

    Example:
        >>> import tempfile
        >>> from moeapps.vision.photo_files import write_photo
        >>> folder = Path(tempfile.mkdtemp())
        >>> for place in ("input/1_rain.png", "gt/1_clean.png"):
        ...     (folder / place).parent.mkdir()
        ...     write_photo(folder / place, np.zeros((4, 4, 3), np.uint8))
        >>> PairedFolder(folder, "input", "gt", rename=("_rain", "_clean")).names
        ['1_rain']
    """

    def __init__(
        self,
        root: str | Path,
        input_dir: str = "input",
        target_dir: str = "gt",
        *,
        rename: Rename = None,
        task: str = "weather",
    ) -> None:
        wanted, there = Path(root) / input_dir, Path(root) / target_dir
        turned, inputs = _renaming(rename), photos_below(wanted)
        by_stem: dict[str, Path] = {}
        for name, path in photos_below(there).items():
            stem = name.rpartition(".")[0]
            if stem in by_stem:
                raise DataIntegrityError(
                    f"{by_stem[stem]} and {path.name} could both be the target of one input. "
                    "Remove one of them."
                )
            by_stem[stem] = path
        stems = [name.rpartition(".")[0] for name in inputs]
        targets = [turned(stem) for stem in stems]
        lone = [n for n, t in zip(inputs, targets, strict=True) if t not in by_stem]
        if lone:
            more = f" and {len(lone) - 3} more" if len(lone) > 3 else ""
            raise DataNotFoundError(
                f"{len(lone)} of {len(inputs)} photos in {wanted} have no target in {there}: "
                f"{', '.join(lone[:3])}{more}. Expected {turned(lone[0].rpartition('.')[0])}.* for "
                "the first: add the targets, remove the inputs, or pass rename=."
            )
        super().__init__(
            list(inputs.values()),
            [by_stem[name] for name in targets],
            stems,
            np.zeros(len(stems), np.int64),
            (task,),
        )


def photos_below(folder: Path) -> dict[str, Path]:
    """Photos in a folder and its subfolders, sorted; hidden ones are left out.

    Returns:
        Path below the folder, with ``/``, to the file.

    Raises:
        DataNotFoundError: There is no such folder, or no photo in it.
    """
    found = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        below = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in below.parts)
        if path.suffix.lower() in ENDINGS and not hidden and path.is_file():
            found[below.as_posix()] = path
    if not found:
        state = "holds no photos" if folder.is_dir() else "is missing"
        raise DataNotFoundError(
            f"The folder {folder} {state}. Expected files that end in {', '.join(ENDINGS)}."
        )
    return found


def read_paired_folder(
    folder: str | Path,
    *,
    input_dir: str = "input",
    target_dir: str = "gt",
    test_share: float = 0.2,
    seed: int = 0,
    rename: Rename = None,
    task: str = "weather",
) -> PairedSplits:
    """Read ``<folder>/{train,val,test}/{input,gt}``, or ``<folder>/{input,gt}``.

    With a folder ``train``, ``test`` must be there and ``val`` may; without it a share of all
    targets is held out for the test.

    Args:
        folder: The folder.
        input_dir: Name of the folders of inputs.
        target_dir: Name of the folders of targets.
        test_share: Share held out where there is no folder ``train``.
        seed: Of that choice.
        rename: See :class:`PairedFolder`.
        task: Name of their weather.

    Raises:
        DataNotFoundError: A folder is missing, or inputs have no target.
    """
    place = Path(folder)

    def pairs(part: Path) -> PairedFolder:
        return PairedFolder(part, input_dir, target_dir, rename=rename, task=task)

    if not (place / "train").is_dir():
        train, test = pairs(place).hold_out(test_share, seed)
        return PairedSplits(train, None, test, f"{test_share:.0%} held out, seeded")
    val = pairs(place / "val") if (place / "val").is_dir() else None
    return PairedSplits(pairs(place / "train"), val, pairs(place / "test"), "folders")


def read_pair_list(path: str | Path, task: str = "weather") -> PairedImages:
    """Pairs of a text file with an input's path per line, below the file's folder.

    The target's path has ``gt`` where the input's has ``input``, and ``_clean`` where its name has
    ``_rain`` if there is no file of the same name.

    Args:
        path: The list.
        task: Name of their weather.

    Raises:
        DataNotFoundError: The list, or a file in it, is missing: with its line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataNotFoundError(f"{path} cannot be read ({error.strerror}).") from error
    inputs, targets = [], []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        image = path.parent / line
        target = path.parent / "/".join("gt" if p == "input" else p for p in line.split("/"))
        if not target.is_file():
            target = target.with_name(target.name.replace("_rain", "_clean"))
        for file in (image, target):
            if not file.is_file():
                raise DataNotFoundError(
                    f"{path}, line {number}: {file} is missing. Put it there, or remove the line."
                )
        inputs.append(image)
        targets.append(target)
    names = [image.stem for image in inputs]
    return PairedImages(inputs, targets, names, np.zeros(len(names), np.int64), (task,))


def _pixels(source: Source) -> NDArray[np.uint8]:
    return read_photo(source) if isinstance(source, Path) else source


def _renaming(rename: Rename) -> Callable[[str], str]:
    if rename is None:
        return str
    if callable(rename):
        return rename
    if len(rename) != 2 or not all(isinstance(part, str) for part in rename) or not rename[0]:
        raise ArgumentError(
            f"rename={rename!r} is neither a function nor two texts. Pass (old, new)."
        )
    old, new = rename
    return lambda name: name.replace(old, new)
