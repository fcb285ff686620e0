"""Published pairs of photographs with and without weather: AllWeather, Snow100K and others."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moeapps.data.card import DataFile, DatasetCard
from moeapps.data.home import data_home
from moeapps.data.locate import locate
from moeapps.errors import DataNotFoundError, UnknownNameError
from moeapps.vision.datasets.paired_images import (
    PairedFolder,
    PairedImages,
    PairedSplits,
    join_pairs,
)


@dataclass(frozen=True)
class _Part:
    """Two folders of pairs.

    Args:
        folder: Below the set's.
        inputs: Folder of the inputs; of several names the one that is there.
        targets: Folder of the targets.
        task: Name of their weather; None: told by each input's name.
        rename: Name of the target.
        example: Names of an input and its target, ``{}`` for a number, for fixtures.
    """

    folder: str
    inputs: tuple[str, ...]
    targets: str
    task: str | None
    rename: Callable[[str], str] | None = None
    example: tuple[str, str] = ("{:04d}.png", "{:04d}.png")


@dataclass(frozen=True)
class _Layout:
    """Folders of a set.

    Args:
        root: Below the data home.
        train: Parts of the training set.
        test: Parts of the test set, by the name that ``tests=`` takes.
    """

    root: str
    train: tuple[_Part, ...]
    test: dict[str, _Part]


def _drop(name: str) -> str:
    return re.sub("_rain$", "_clean", name)


def _scene(name: str) -> str:
    """``im_0001_s80_a04`` shows the scene ``im_0001``."""
    return re.sub(r"_s\d+_a\d+$", "", name)


def _street(name: str) -> str:
    """The name below the folder of a kind of weather, without what follows ``_leftImg8bit``."""
    city, _, file = name.rpartition("/")
    return f"{city.rpartition('/')[2]}/{file.partition('_leftImg8bit')[0]}_leftImg8bit"


def _hazy(name: str) -> str:
    """``0001_0.8_0.04`` shows the scene ``0001``."""
    return name.partition("_")[0]


def _kind(name: str) -> str:
    """Task of a training image of AllWeather, by how the three sources name theirs."""
    if name.endswith("_rain"):
        return "raindrop"
    return "rain" if _scene(name) != name else "snow"


_DROP = ("{}_rain.png", "{}_clean.png")
_STREET = (
    "aachen/aachen_{:06d}_leftImg8bit_rain_alpha_0.01.png",
    "aachen/aachen_{:06d}_leftImg8bit.png",
)
_SHOWN = ("snow", "rain", "raindrop")

LAYOUTS = {
    "allweather": _Layout(
        "AllWeather",
        (_Part("train", ("input",), "gt", None),),
        {
            "rain": _Part("test_rain", ("input",), "gt", "rain"),
            "raindrop": _Part("test_raindrop", ("input",), "gt", "raindrop", _drop, _DROP),
            "snow": _Part("test_snow", ("input",), "gt", "snow"),
        },
    ),
    "snow100k": _Layout(
        "Snow100K",
        (_Part("train", ("synthetic",), "gt", "snow"),),
        {s: _Part(f"test/Snow100K-{s}", ("synthetic",), "gt", f"snow-{s}") for s in "SML"},
    ),
    "raindrop": _Layout(
        "RainDrop",
        (_Part("train", ("input", "data"), "gt", "raindrop", _drop, _DROP),),
        {
            part: _Part(f"test_{part}", ("input", "data"), "gt", f"raindrop-{part}", _drop, _DROP)
            for part in "ab"
        },
    ),
    "outdoor-rain": _Layout(
        "Outdoor-Rain",
        (_Part("train", ("input",), "gt", "rain", _scene, ("im_{:04d}_s80_a04.png",
                                                           "im_{:04d}.png")),),
        {"test1": _Part("test1", ("input",), "gt", "rain", _scene, ("im_{:04d}_s90_a05.png",
                                                                    "im_{:04d}.png"))},
    ),
    "rain13k": _Layout(
        "Rain13K",
        (_Part("train", ("input",), "target", "rain", None, ("{}.jpg", "{}.jpg")),),
        {
            name: _Part(f"test/{name}", ("input",), "target", name, None, ("{}.png", "{}.png"))
            for name in ("Rain100L", "Rain100H", "Test100", "Test1200", "Test2800")
        },
    ),
    "raincityscapes": _Layout(
        "RainCityscapes",
        (_Part("train", ("input",), "gt", "rain", _street, ("heavy/" + _STREET[0], _STREET[1])),),
        {"rain": _Part("test_rain", ("input",), "gt", "rain", _street, _STREET)},
    ),
    "reside": _Layout(
        "RESIDE",
        (_Part("OTS", ("hazy",), "clear", "haze", _hazy, ("{:04d}_0.8_0.04.jpg", "{:04d}.jpg")),),
        {"outdoor": _Part("SOTS/outdoor", ("hazy",), "gt", "haze", _hazy,
                          ("{:04d}_0.8_0.2.jpg", "{:04d}.png"))},
    ),
}  # fmt: skip


def _names(part: _Part, number: int) -> tuple[str, str]:
    """Names of an input and its target."""
    image, target = part.example
    if part.task is None:  # as the three sources name theirs
        image = target = ("photo_{:04d}.jpg", "im_{:04d}_s80_a04.png", "{}_rain.png")[number % 3]
    return image.format(number), target.format(number)


def _card(
    name: str, title: str, sizes: dict[str, int], url: str, citation: str, notes: str
) -> DatasetCard:
    layout = LAYOUTS[name]
    first = layout.train[0]
    return DatasetCard(
        name=name,
        title=title,
        domain="vision",
        task="image restoration",
        metric="psnr",
        sizes=sizes,
        classes=0,
        splits=f"published folders; test: {', '.join(layout.test)}",
        licence="none stated; research use",
        source=f"{title}, official page",
        url=url,
        citation=citation,
        files=(DataFile(f"{layout.root}/{first.folder}/{first.targets}/{_names(first, 1)[1]}"),),
        notes=notes,
    )


_RECALLED = "Numbers of images are recalled, not counted by us."
CARDS = {
    card.name: card
    for card in (
        _card(
            "allweather", "AllWeather", {"train": 18_069},
            "https://github.com/jeya-maria-jose/TransWeather",
            "Valanarasu et al., TransWeather: Transformer-based Restoration of Images Degraded by "
            "Adverse Weather Conditions, CVPR 2022",
            "Parts of Snow100K, Outdoor-Rain and RainDrop. The weather of a training image is told "
            "by its name.",
        ),
        _card(
            "snow100k", "Snow100K",
            {"train": 50_000, "test S": 16_611, "test M": 16_588, "test L": 16_801},
            "https://sites.google.com/view/yunfuliu/desnownet",
            "Liu et al., DesnowNet: Context-Aware Deep Network for Snow Removal, TIP 2018",
            _RECALLED,
        ),
        _card(
            "raindrop", "RainDrop", {"train": 861, "test a": 58, "test b": 249},
            "https://github.com/rui1996/DeRaindrop",
            "Qian et al., Attentive Generative Adversarial Network for Raindrop Removal from a "
            "Single Image, CVPR 2018",
            _RECALLED,
        ),
        _card(
            "outdoor-rain", "Outdoor-Rain", {"train": 9_000, "test1": 750},
            "https://github.com/liruoteng/HeavyRainRemoval",
            "Li et al., Heavy Rain Image Restoration, CVPR 2019",
            _RECALLED,
        ),
        _card(
            "rain13k", "Rain13K with Rain100 L and H, Test100, Test1200, Test2800",
            {"test Rain100L": 100, "test Rain100H": 100, "test Test100": 100,
             "test Test1200": 1_200, "test Test2800": 2_800},
            "https://github.com/swz30/MPRNet",
            "Zamir et al., Multi-Stage Progressive Image Restoration, CVPR 2021, and the sources "
            "it names",
            "Often reported on the Y channel.",
        ),
        _card(
            "raincityscapes", "RainCityscapes", {"train": 9_432, "test": 1_188},
            "https://www.cityscapes-dataset.com",
            "Hu et al., Depth-Attentional Features for Single-Image Rain Removal, CVPR 2019",
            _RECALLED,
        ),
        _card(
            "reside", "RESIDE, outdoor", {"test": 500},
            "https://sites.google.com/view/reside-dehaze-datasets",
            "Li et al., Benchmarking Single-Image Dehazing and Beyond, TIP 2019",
            _RECALLED,
        ),
    )
}  # fmt: skip


def read(
    card: DatasetCard,
    *,
    root: str | Path | None = None,
    download: bool = False,
    tests: Sequence[str] | None = None,
) -> PairedSplits:
    """Pairs in the folders of the published set.

    Args:
        card: Of the set.
        root: Data home.
        download: There is no direct address.
        tests: Parts of the test set; all that the card names if None.

    Raises:
        UnknownNameError: The set has no such part.
        DataNotFoundError: A folder is missing or empty, or inputs have no target.
        DataIntegrityError: Two targets have the same name.
    """
    layout = LAYOUTS[card.name]
    home = data_home(root)
    chosen = list(layout.test) if tests is None else list(tests)
    for name in chosen:
        if name not in layout.test:
            raise UnknownNameError(f"part of the test of {card.title}", name, layout.test)
    wanted = [*layout.train, *(layout.test[name] for name in chosen)]
    if not (home / layout.root).is_dir():
        locate(card, root=root, download=download)  # tells what is missing and where to get it
    parts = [_pairs(home / layout.root, part) for part in wanted]
    every = join_pairs(parts)  # so that tasks have the same numbers in both splits
    first = sum(map(len, parts[: len(layout.train)]))
    rows = np.arange(len(every))
    return PairedSplits(every.take(rows[:first]), None, every.take(rows[first:]), "published")


def _pairs(root: Path, part: _Part) -> PairedImages:
    place = root / part.folder
    inputs = next((name for name in part.inputs if (place / name).is_dir()), None)
    if inputs is None:
        raise DataNotFoundError(
            f"{place} has no folder {' or '.join(part.inputs)}. Put the published files there."
        )
    pairs = PairedFolder(place, inputs, part.targets, rename=part.rename, task=part.task or "")
    if part.task is not None:
        return pairs
    tasks = [_SHOWN.index(_kind(name)) for name in pairs.names]
    return PairedImages(pairs.inputs, pairs.targets, pairs.names, np.array(tasks), _SHOWN)


def make_fixture(card: DatasetCard, root: Path, images: int, seed: int) -> None:
    """Write ``images`` pairs for training and a quarter as many for each part of the test."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    layout = LAYOUTS[card.name]
    parts: list[tuple[Any, int]] = [(part, images) for part in layout.train]
    parts += [(part, images // 4) for part in layout.test.values()]
    for part, count in parts:
        for number in range(count):
            image, target = _names(part, number)
            clean = rng.integers(0, 200, (40, 48, 3), np.uint8)
            hazy = (0.6 * clean + 0.4 * 230).astype(np.uint8)
            pair = ((part.inputs[0], hazy, image), (part.targets, clean, target))
            for folder, pixels, name in pair:
                place = root / layout.root / part.folder / folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(place)
