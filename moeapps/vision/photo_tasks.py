"""What a trained vision module makes of one photo: a restored one, a count, or probabilities."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeapps.errors import ConfigError
from moeapps.vision.tile_memory import LARGEST, choose_tile, device_of
from moeapps.vision.tiling import Tile

Photo = NDArray[np.uint8]
SHOWN = 1600  # longest side of a picture that is only looked at
_GAP = 8  # white pixels between two pictures


@dataclass(frozen=True)
class Answer:
    """What is told about a photo.

    Args:
        values: A row of the table, without the name of the file.
        pictures: ``uint8 [h, w, 3]`` by the subfolder that they go to, ``""`` for none.
    """

    values: tuple[str, ...]
    pictures: dict[str, Photo]


@dataclass(frozen=True)
class PhotoTask:
    """What a run does with photos.

    Args:
        name: In words.
        table: Name of the file with a row per photo.
        columns: Of the table, after the name of the file.
        folders: Subfolders of the pictures, ``""`` for none.
        answer: From ``uint8 [H, W, 3]``.
    """

    name: str
    table: str
    columns: tuple[str, ...]
    folders: tuple[str, ...]
    answer: Callable[[Photo], Answer]


def photo_task(module: Any, data: Any = None, *, tile: Tile = None) -> PhotoTask:
    """The task of a trained module, which is put into ``eval`` mode.

    Args:
        module: Has ``restore`` or ``count_map``, or is a classifier of images.
        data: Its data module, which knows how the pixels of a classifier are normalised; it need
            not be set up.
        tile: For the first two: side of the tiles; None for the module's own, or if it has none
            what fits in memory.

    Raises:
        ConfigError: The module is none of these, or does not say how large its images are.
    """
    module.eval()
    if hasattr(module, "restore"):
        return _restoration(module, tile)
    if hasattr(module, "count_map"):
        return _counting(module, tile)
    if module.hparams.get("num_classes") is not None:
        return _classification(module, data)
    raise ConfigError(
        f"{type(module).__name__} makes nothing of photos. Expected a run that restores images, "
        "counts in them or classifies them."
    )


# --------------------------------------------------------------------------------- the three tasks


def _restoration(module: Any, tile: Tile) -> PhotoTask:
    sized = _Tile(module, tile, "patch_size")

    def answer(photo: Photo) -> Answer:
        restored = module.restore(_tensor(photo), tile=sized()).clamp(0, 1)
        made = (restored * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        strip = side_by_side(photo, made)
        return Answer((str(photo.shape[1]), str(photo.shape[0])), {"": made, "side_by_side": strip})

    return PhotoTask("restored", "restored.csv", ("width", "height"), ("", "side_by_side"), answer)


def _counting(module: Any, tile: Tile) -> PhotoTask:
    sized = _Tile(module, tile, "gate_stride")

    def answer(photo: Photo) -> Answer:
        density = module.count_map(_tensor(photo), tile=sized())[0].double().cpu().numpy()
        count = float(density.sum())
        row = (f"{count:.2f}", str(photo.shape[1]), str(photo.shape[0]))
        return Answer(row, {"overlays": overlay(photo, density, f"{count:.1f}")})

    return PhotoTask("counted", "counts.csv", ("count", "width", "height"), ("overlays",), answer)


def _classification(module: Any, data: Any) -> PhotoTask:
    from moeapps.vision.export import export_network

    network, view = export_network(module), _view(module, data)

    def answer(photo: Photo) -> Answer:
        with torch.inference_mode():
            images = view(photo).to(device_of(network, torch.empty(0)))
            (found,) = network(images)["probability"].double().cpu()
        return Answer((str(int(found.argmax())), *(f"{p:.6g}" for p in found.tolist())), {})

    outputs = module.hparams["num_classes"]
    if module.hparams.get("vertical") is not None:  # a specialist tells its own classes apart
        outputs = len(answer(np.zeros((8, 8, 3), np.uint8)).values) - 1
    columns = ("label", *(f"probability_{k}" for k in range(outputs)))
    return PhotoTask("classified", "probabilities.csv", columns, (), answer)


class _Tile:
    """Side of the tiles, chosen once for all photos of a folder when the first one comes."""

    def __init__(self, module: Any, given: Tile, multiple: str) -> None:
        self.module, self.multiple = module, int(getattr(module.model, multiple, 1))
        self.side = module.hparams.get("tile") if given is None else given

    def __call__(self) -> int:
        if self.side is None or self.side == "auto":
            device = device_of(self.module, torch.empty(0))
            large = torch.zeros(1, 3, 1, 1).expand(-1, -1, LARGEST, LARGEST)
            chosen = choose_tile(self.module.model, large, device=device, multiple=self.multiple)
            # At least half of a tile is its core; should that not fit, tiles shrink by themselves.
            margin = self.module.hparams.get("halo") or 0
            self.side = max(chosen, -(-4 * margin // self.multiple) * self.multiple)
        return int(self.side)


def _view(module: Any, data: Any) -> Callable[[Photo], Tensor]:
    """From a photo to what the classifier was trained on, ``[1, C, h, w]``."""
    from moeapps.vision.datasets import file_lists
    from moeapps.vision.longtail.datamodules import LongTailData, usual_views
    from moeapps.vision.transforms import NORMALISATION, per_image

    size, channels = module.hparams.get("image_size"), module.hparams.get("in_channels")
    if size is None or channels is None:
        raise ConfigError(
            f"{type(module).__name__} does not know the size of its images. Set in_channels= and "
            "image_size=[height, width] of the model."
        )
    name = "none"  # other data modules give plain pixels from 0 to 1
    files = False
    if isinstance(data, LongTailData):
        files = data.dataset in file_lists.CARDS
        name = data.normalisation or usual_views(data.dataset, in_memory=not files)[2]
    if files:
        transform = per_image("imagenet-test", normalisation=NORMALISATION[name])
        return lambda photo: transform(photo)[None]
    grey = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # as Pillow's mode L

    def view(photo: Photo) -> Tensor:
        image = _tensor(photo)
        if channels == 1:
            image = (image * grey).sum(0, keepdim=True)
        return NORMALISATION[name](_resized(image[None], tuple(size)))

    return view


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    if images.shape[-2:] == size:
        return images
    made = torch.nn.functional.interpolate(
        images, size=size, mode="bilinear", antialias=True, align_corners=False
    )
    return made.clamp(0, 1)


def _tensor(photo: Photo) -> Tensor:
    return torch.from_numpy(photo).permute(2, 0, 1).contiguous().float().div_(255)


# ---------------------------------------------------------------------------------------- pictures


def side_by_side(before: Photo, after: Photo) -> Photo:
    """Two photos of one size beside each other, small enough to look at.

    Example:
        >>> side_by_side(np.zeros((10, 20, 3), np.uint8), np.zeros((10, 20, 3), np.uint8)).shape
        (10, 48, 3)
    """
    before, after = shown(before), shown(after)
    gap = np.full((before.shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([before, gap, after], axis=1)


def overlay(photo: Photo, density: NDArray[np.float64], text: str) -> Photo:
    """A density as yellow to red over a grey photo, with a text in the corner.

    Args:
        photo: ``uint8 [H, W, 3]``.
        density: ``[H, W]``, 0 or more.
        text: Such as the count.

    Example:
        >>> overlay(np.full((90, 99, 3), 90, np.uint8), np.zeros((90, 99)), "0.0").shape
        (90, 99, 3)
    """
    from PIL import Image, ImageDraw, ImageFont

    small = shown(photo)
    height, width = small.shape[:2]
    peak = max(float(density.max()), 1e-12)
    strength = Image.fromarray((density / peak).clip(0, 1).astype(np.float32))
    heat = np.sqrt(np.asarray(strength.resize((width, height), Image.Resampling.BOX)))[..., None]
    grey = small.astype(np.float32).mean(2, keepdims=True)
    colour = np.concatenate([np.full_like(heat, 255), 220 * (1 - heat), np.zeros_like(heat)], 2)
    image = Image.fromarray((grey + (colour - grey) * 0.8 * heat).round().astype(np.uint8))
    if min(height, width) >= 48:  # else the text would hide the picture
        font = ImageFont.load_default(max(min(height, width) // 16, 11))
        draw = ImageDraw.Draw(image)
        draw.text((4, 2), text, fill="white", font=font, stroke_width=2, stroke_fill="black")
    return np.array(image)


def shown(photo: Photo) -> Photo:
    """A photo with no side above :data:`SHOWN`."""
    longest = max(photo.shape[:2])
    if longest <= SHOWN:
        return photo
    from PIL import Image

    height, width = (max(round(side * SHOWN / longest), 1) for side in photo.shape[:2])
    return np.array(Image.fromarray(photo).resize((width, height), Image.Resampling.BOX))
