"""Photographs in files: any mode, depth and orientation in, eight-bit colour out."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moeapps.data.integrity import atomic_write
from moeapps.errors import (
    ArgumentError,
    ConfigError,
    DataIntegrityError,
    DataNotFoundError,
    MoeappsError,
)

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Endings of the files that :func:`list_photos` lists, in small letters."""

MOST_PIXELS = 1 << 28
"""Of one photo: a file that claims more is taken for a mistake, not unpacked into memory."""


def list_photos(folder: str | Path) -> list[Path]:
    """The photos in a folder, sorted by name; hidden files and subfolders are left out.

    Raises:
        DataNotFoundError: There is no such folder, it cannot be read, or it holds no photo.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_photo(folder / "b.png", np.zeros((2, 3, 3), np.uint8))
        >>> write_photo(folder / "a.jpg", np.zeros((2, 3, 3), np.uint8))
        >>> _ = (folder / "notes.txt").write_text("none")
        >>> [path.name for path in list_photos(folder)]
        ['a.jpg', 'b.png']
    """
    folder = Path(folder)
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - iterdir defers its errors
    except OSError as error:
        raise DataNotFoundError(
            f"The folder {folder} cannot be read ({error.strerror}). Expected a folder of photos "
            "that you may read."
        ) from error
    found = [folder / name for name in names if name.lower().endswith(ENDINGS) and name[0] != "."]
    found = [path for path in found if not path.is_dir()]
    if not found:
        raise DataNotFoundError(
            f"The folder {folder} holds no photos: none of its {len(names)} entries ends in "
            f"{', '.join(ENDINGS)}. Subfolders are not searched."
        )
    return found


def read_photo(path: str | Path) -> NDArray[np.uint8]:
    r"""A photo as colours of eight bits, turned as its camera was held.

    Grey is repeated over the channels, palettes are looked up, transparency is laid over white,
    and sixteen bits are scaled, :math:`\lfloor v / 257 + 1/2 \rfloor`. Of several frames the first
    is read.

    Args:
        path: Any file that Pillow can decode.

    Shape:
        - Output: ``uint8 [H, W, 3]``

    Raises:
        DataNotFoundError: There is no such file, or it may not be read.
        DataIntegrityError: It is truncated or no image, has more than :data:`MOST_PIXELS`, or
            values without a known scale.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> write_photo(path, np.full((2, 3), 7, np.uint8))
        >>> read_photo(path).shape, int(read_photo(path)[0, 0, 2])
        ((2, 3, 3), 7)
    """
    from PIL import ImageOps

    path = Path(path)
    with opened_photo(path) as image:
        return _eight_bit_colour(ImageOps.exif_transpose(image), path)


@contextmanager
def opened_photo(path: Path, place: str | None = None) -> "Iterator[Image.Image]":
    """An image of Pillow; any error while it is opened or used names the file.

    Args:
        path: Any file that Pillow can decode.
        place: What errors call the file; by default its path.

    Raises:
        DataNotFoundError: There is no such file, or it may not be read.
        DataIntegrityError: It is truncated or no image, or has more than :data:`MOST_PIXELS`.
    """
    from PIL import Image

    place = place or str(path)
    try:
        with warnings.catch_warnings():
            # Large photos are wanted here; the bound is MOST_PIXELS.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Of Pillow about odd metadata, which says nothing about the pixels.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise DataIntegrityError(
                        f"{place} claims {image.width} x {image.height} pixels, more than "
                        f"{MOST_PIXELS:,}. Make it smaller, or cut it into parts."
                    )
                yield image
    except MoeappsError:
        raise
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{place} is missing. Put it there.") from error
    except (PermissionError, IsADirectoryError) as error:
        raise DataNotFoundError(
            f"{place} cannot be read ({error.strerror}). Expected a file that you may read."
        ) from error
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise DataIntegrityError(
            f"{place} claims more pixels than Pillow unpacks ({error}). Make it smaller, or cut "
            "it into parts."
        ) from error
    except Exception as error:  # a decoder of foreign bytes may raise anything
        raise DataIntegrityError(
            f"{place} cannot be decoded ({error}). It is truncated or no image: make or fetch it "
            "again."
        ) from error


def write_photo(path: str | Path, pixels: NDArray[np.uint8]) -> None:
    """Write a photo in the format of its ending; the file appears when it is complete.

    Args:
        path: Its ending picks the format; ``.png`` keeps every pixel.
        pixels: ``uint8 [H, W, 3]`` or ``[H, W]``.

    Raises:
        ArgumentError: Other pixels, or an ending that no format has.
        ConfigError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> write_photo(path, np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
        >>> bool((read_photo(path).ravel() == np.arange(24)).all())
        True
    """
    from PIL import Image

    path, pixels = Path(path), np.asarray(pixels)
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not shaped or not pixels.size:
        raise ArgumentError(
            f"pixels are {pixels.dtype} of shape {pixels.shape}. Pass uint8 [H, W, 3] or [H, W]."
        )
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or path.suffix.lower() not in ENDINGS:
        raise ArgumentError(f"{path}: the name must end in one of {', '.join(ENDINGS)}.")
    buffer = io.BytesIO()
    options = {"quality": 95} if kind == "JPEG" else {}
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    try:
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise ConfigError(
            f"Cannot write {path} ({error.strerror}). Choose a folder that you may write, on a "
            "disk with space left."
        ) from error


def _eight_bit_colour(image: "Image.Image", path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        grey = scaled_grey(image, str(path))
        return np.repeat(grey[..., None], 3, axis=2)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def scaled_grey(image: "Image.Image", place: str) -> NDArray[np.uint8]:
    """Grey values of sixteen bits, or of floats from 0 to 1, as eight bits ``[H, W]``.

    Args:
        image: Of a mode that starts with ``I`` or ``F``.
        place: What the error calls the file.

    Raises:
        DataIntegrityError: It has other values, whose scale is not known.
    """
    values = np.asarray(image)
    if np.issubdtype(values.dtype, np.floating):
        low, high, top = 0.0, 1.0, 1.0
    else:
        low, high = 0, 65_535  # Pillow holds sixteen bits in thirty-two for some formats
        top = float(high)
    if not (values.min() >= low and values.max() <= high):  # NaN is neither
        raise DataIntegrityError(
            f"{place} holds values from {values.min():g} to {values.max():g}, whose scale is not "
            f"known. Expected 0 to {high:g}: save it with eight or sixteen bits."
        )
    return np.floor(values.astype(np.float32) * (255 / top) + 0.5).astype(np.uint8)
