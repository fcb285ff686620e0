"""ImageNet-LT, Places-LT and iNaturalist 2018 from their text lists of paths and labels."""

from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.home import data_home
from moeapps.data.locate import locate
from moeapps.errors import DataIntegrityError, DataNotFoundError
from moeapps.vision.datasets.images import (
    MOST_CLASSES,
    ImageFiles,
    ImageSet,
    Splits,
    numbered_classes,
)
from moeapps.vision.datasets.imbalance import long_tailed_splits

SPLITS = ("train", "val", "test")
_LT = "Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019"


def _card(
    name: str,
    title: str,
    lists: dict[str, str],
    counts: dict[str, int],
    classes: int,
    **facts: str,
) -> DatasetCard:
    return DatasetCard(
        name=name,
        title=title,
        domain="vision",
        task="image classification",
        metric="accuracy",
        sizes={"images": sum(counts.values()), **counts},
        classes=classes,
        splits=", ".join(f"{count:,} {split}" for split, count in counts.items()) + " images",
        files=tuple(DataFile(f"{name}/{file}") for file in lists.values()),
        **facts,  # type: ignore[arg-type]
    )


CARDS = {
    card.name: card
    for card in (
        _card(
            "imagenet-lt",
            "ImageNet-LT",
            {split: f"ImageNet_LT_{split}.txt" for split in SPLITS},
            {"train": 115_846, "val": 20_000, "test": 50_000},
            1000,
            licence="research use (ImageNet)",
            source="Open Long-Tailed Recognition",
            url="https://liuziwei7.github.io/projects/LongTail.html",
            citation=f"{_LT}; Deng et al., ImageNet, CVPR 2009",
            notes="The images are those of ILSVRC 2012, in folders train and val below images=. "
            "385 classes are many, 479 medium, 136 few.",
        ),
        _card(
            "places-lt",
            "Places-LT",
            {split: f"Places_LT_{split}.txt" for split in SPLITS},
            {"train": 62_500, "val": 7_300, "test": 36_500},
            365,
            licence="CC BY (Places)",
            source="Open Long-Tailed Recognition",
            url="https://liuziwei7.github.io/projects/LongTail.html",
            citation=f"{_LT}; Zhou et al., Places, TPAMI 40, 2018",
            notes="The images are those of Places365-Standard, 256 x 256. 131 classes are many, "
            "163 medium, 71 few.",
        ),
        _card(
            "inaturalist-2018",
            "iNaturalist 2018",
            {split: f"iNaturalist18_{split}.txt" for split in ("train", "val")},
            {"train": 437_513, "test": 24_426},
            8142,
            licence="per image, non-commercial research",
            source="iNaturalist Competition 2018",
            url="https://github.com/visipedia/inat_comp/tree/master/2018",
            citation="Van Horn et al., The iNaturalist Species Classification and Detection "
            "Dataset, CVPR 2018",
            notes="The published validation images are the test, as in the literature: there are "
            "none to select a model by, unless some of the training images are held out.",
        ),
    )
}


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    images: str | Path | None = None,
    test: str = "uniform",
    seed: int = 0,
    whole: bool = True,
) -> Splits:
    """Photographs of any size, decoded when they are asked for.

    ================ ======== ========== ====== ======= ==============
    Set              Training Validation Test   Classes Images / class
    ================ ======== ========== ====== ======= ==============
    ImageNet-LT       115,846     20,000 50,000   1,000 1,280 to 5
    Places-LT          62,500      7,300 36,500     365 4,980 to 5
    iNaturalist 2018  437,513            24,426   8,142 1,000 to 2
    ================ ======== ========== ====== ======= ==============

    Args:
        card: Which of the three.
        root: Data home; the lists are in ``<root>/<name>``.
        download: There is no address for the lists.
        images: Folder that the paths in the lists are relative to; by default that of the lists.
        test: ``"uniform"``, or ``"forward-50"``, ``"backward-50"`` with any ratio (iNaturalist has
            three test images per class, so at most 3).
        seed: Of the choice of a shifted test set.
        whole: The lists must have the published numbers of lines. False reads parts of them, with
            the classes up to the largest training label.

    Raises:
        DataNotFoundError: A list is missing, or an image: with its list and line.
        DataIntegrityError: A line is malformed, a label out of range, or the numbers of lines are
            not the published ones.
    """
    found = list(locate(card, root=root, download=download).values())
    folder = Path(images) if images is not None else data_home(root) / card.name
    splits = SPLITS if len(found) == 3 else ("train", "test")
    sets: dict[str, ImageSet] = {}
    for split, path in zip(splits, found, strict=True):
        classes = card.classes if whole else sets["train"].num_classes if sets else None
        sets[split] = read_file_list(path, folder, classes)
        if whole and len(sets[split]) != card.sizes[split]:
            raise DataIntegrityError(
                f"{path} has {len(sets[split]):,} lines, the published list {card.sizes[split]:,}. "
                "Fetch it again, or pass whole=False to read a part."
            )
    return long_tailed_splits(
        sets["train"], sets.get("val"), sets["test"], "published lists",
        imbalance=None, seed=seed, shift=test,
    )  # fmt: skip


def read_file_list(
    path: str | Path, folder: str | Path, classes: int | None = None, *, mode: str = "RGB"
) -> ImageSet:
    """Read a text list in UTF-8 with one ``relative/path label`` per line.

    Paths may be written as on Windows, with backslashes.

    Args:
        path: The list.
        folder: What the paths are relative to.
        classes: Number of classes; by default the largest label plus 1.
        mode: ``"RGB"`` or ``"L"``: images of another mode are converted.

    Raises:
        DataNotFoundError: The list is missing, or an image: with its list and line.
        DataIntegrityError: A line is malformed or not UTF-8, a label out of range, or the list
            empty.
    """
    path, folder = Path(path), Path(folder)
    if not path.is_file():
        raise DataNotFoundError(f"{path} is not there. Pass the path of a list of images.")
    most = MOST_CLASSES if classes is None else classes
    names, labels, lines = [], [], []
    try:
        content = path.read_text(encoding="utf-8-sig")  # Windows marks its texts
    except UnicodeDecodeError as error:
        number = path.read_bytes()[: error.start].count(b"\n") + 1
        raise _wrong(path, number, "not UTF-8, which every list is read as") from error
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        name, *rest = line.rsplit(maxsplit=1)
        # int() refuses more digits than there are in any label.
        if not rest or not (label := rest[0]).isdecimal() or len(label) > 18:
            raise _wrong(path, number, f"{line!r} is not a path and a label from 0 up")
        place = (PureWindowsPath if "\\" in name else PurePosixPath)(name.strip())
        if place.anchor or ".." in place.parts:
            raise _wrong(path, number, f"{name!r} points outside the folder of the images")
        if int(label) >= most:
            raise _wrong(path, number, f"label {label} is out of range for {most:,} classes")
        names.append(place.as_posix())
        labels.append(int(label))
        lines.append(number)
    if not names:
        raise DataIntegrityError(f"{path} names no images. Fetch it again.")
    files = ImageFiles(folder, np.array(names), mode, path, np.array(lines))
    files.require()
    numbers = np.array(labels)
    class_names = numbered_classes(numbers) if classes is None else tuple(map(str, range(classes)))
    return ImageSet(files, numbers, class_names)


def _wrong(path: Path, line: int, what: str) -> DataIntegrityError:
    return DataIntegrityError(f"{path}, line {line}: {what}. Correct it, or fetch the list again.")


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write lists of ``images`` training and half as many other small photographs of noise.

    They have 5 classes with labels from 0, so read them with ``whole=False``.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    for number, file in enumerate(card.files):
        count = images // 2 if number else images
        labels = np.sort(rng.permutation(np.arange(count) % 5))
        lines = []
        for index, label in enumerate(labels):
            name = f"{Path(file.name).stem}/class {label}/{index:05d}.jpg"
            place = (root / file.path).parent / name
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(place)
            lines.append(f"{name} {label}\n")
        (root / file.path).write_text("".join(lines), encoding="utf-8")
