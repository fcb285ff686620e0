"""What a test of a counter leaves for its report: counts of all images, maps of a few."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

BUCKETS = ("0", "1-100", "101-500", "501+")
"""True counts that the literature reports apart."""
_ENDS = (0, 100, 500)
LONGEST = 256
"""Side of the maps that are kept; larger ones are made smaller, densities by sums."""
_PREFIX = "counting/"


def bucket_of(count: float) -> int:
    """Position of a true count in :data:`BUCKETS`.

    Example:
        >>> [BUCKETS[bucket_of(count)] for count in (0, 1, 100, 101, 500, 501)]
        ['0', '1-100', '1-100', '101-500', '101-500', '501+']
    """
    return int(np.searchsorted(_ENDS, count, side="left"))


@dataclass
class Counted:
    """Counts of a test as they come in, and the maps of the images to show.

    Args:
        shown: Indices of those images.
    """

    shown: set[int] = field(default_factory=set)
    true_counts: list[float] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    examples: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict)

    @property
    def true(self) -> NDArray[np.float64]:
        """True counts."""
        return np.array(self.true_counts, np.float64)

    @property
    def gaps(self) -> NDArray[np.float64]:
        """Predicted less true counts."""
        return np.array(self.predicted, np.float64) - self.true

    def add(self, batch: Mapping[str, Tensor], density: Tensor, model: Any | None) -> None:
        """Images of a batch with their predicted density ``[B, 1, H, W]``.

        Args:
            batch: Of the data module.
            density: Where something counts.
            model: Asked for the maps of its experts and gates; None where images are too large
                for it as a whole.
        """
        self.true_counts += batch["count"].double().tolist()
        self.predicted += density.double().sum((1, 2, 3)).tolist()
        self.indices += batch["index"].tolist()
        for row, index in enumerate(batch["index"].tolist()):
            if index in self.shown:
                one = slice(row, row + 1)
                self.examples[index] = _maps(
                    batch["image"][one], batch["density"][one], density[one], model
                )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As arrays of ``results.npz``."""
        found: dict[str, NDArray[Any]] = {
            f"{_PREFIX}true": self.true,
            f"{_PREFIX}predicted": np.array(self.predicted, np.float64),
            f"{_PREFIX}index": np.array(self.indices, np.int64),
        }
        order = sorted(self.examples, key=lambda index: self.true_counts[self.indices.index(index)])
        for place, index in enumerate(order):
            maps = self.examples[index]
            found |= {f"{_PREFIX}example/{place}/{name}": value for name, value in maps.items()}
            found[f"{_PREFIX}example/{place}/index"] = np.array(index)
        return found


def counts_of(results: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """True and predicted counts in ``results.npz``; None if the run counted nothing."""
    if f"{_PREFIX}true" not in results:
        return None
    return results[f"{_PREFIX}true"], results[f"{_PREFIX}predicted"]


def examples_of(results: Mapping[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    """The images to show with their maps, from few to many people."""
    found: dict[int, dict[str, NDArray[Any]]] = {}
    start = f"{_PREFIX}example/"
    for name, value in results.items():
        if name.startswith(start):
            place, _, key = name.removeprefix(start).partition("/")
            found.setdefault(int(place), {})[key] = value
    return [found[place] for place in sorted(found)]


def _maps(
    image: Tensor, target: Tensor, density: Tensor, model: Any | None
) -> dict[str, NDArray[Any]]:
    """Pixels and maps of one image, small enough to keep."""
    factor = -(-max(image.shape[-2:]) // LONGEST)
    pixels = F.avg_pool2d(image, factor, ceil_mode=True)[0].movedim(0, -1)
    found = {
        "image": (255 * pixels).round().byte(),
        "target": _summed(target, factor),
        "density": _summed(density, factor),
    }
    if model is not None:
        with torch.no_grad():
            _, aux = model(image, return_aux=True)
        experts = aux["experts"] / model.label_scale * model.stride**2
        found |= {"experts": _summed(experts, factor), "weights": aux["weights"][0]}
        if aux["attention"] is not None:
            found["attention"] = aux["attention"][0, 0]
    return {name: np.asarray(value.detach().cpu()) for name, value in found.items()}


def _summed(maps: Tensor, factor: int) -> Tensor:
    """Sums over cells, ``[1, C, H, W] -> [C, h, w]``; a last cell that is cut counts as it is."""
    height, width = maps.shape[-2:]
    maps = F.pad(maps.float(), (0, -width % factor, 0, -height % factor))
    return (F.avg_pool2d(maps, factor) * factor**2)[0]
