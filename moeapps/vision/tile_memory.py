"""How large a part of an image a network can take: from its memory, and after running out of it."""

import math
import os
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from moeapps.errors import ConfigError

SMALLEST, LARGEST = 32, 512
"""Sides of tiles between which is chosen."""
SHARE = 0.5  # of the free memory; kernels have workspaces that no tensor shows
_UNKNOWN = 2 << 30  # bytes taken for free where the system does not say
_PROBES = (64, 128)
# By allocators and libraries whose errors have no class of their own.
_SAID = ("allocate memory", "not enough memory", "out of memory", "alloc_failed")

Result = TypeVar("Result")
Network = Callable[[Tensor], Tensor]


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that may still be taken on a device, within the limit of the container if there is one.

    Example:
        >>> free_memory() > 0
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    found = [_UNKNOWN]
    if (meminfo := Path("/proc/meminfo")).is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found = [int(lines["MemAvailable"].split()[0]) << 10]
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2]
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text()))
    except OSError:
        pass
    return max(min(found), 1 << 20)


def peak_bytes(model: Network, x: Tensor) -> int:
    """Most bytes of tensors alive at once while the model runs, without weights and input.

    Notes:
        On a GPU as its allocator counts. On a CPU, whose allocator does not count, what the
        functions that the model calls return; what they need inside for a while is not seen.

    Example:
        >>> peak_bytes(lambda x: (x + 1).sum() + x, torch.zeros(1, 3, 8, 8))  # x + 1, then the sum
        772
    """
    with torch.no_grad():
        if x.is_cuda:
            torch.cuda.reset_peak_memory_stats(x.device)
            before = torch.cuda.memory_allocated(x.device)
            model(x)
            return torch.cuda.max_memory_allocated(x.device) - before
        with _Peak() as tracked:
            model(x)
    return tracked.peak


class _Peak(TorchFunctionMode):
    """Follows the storages that functions return, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_key(one) for one in [*args, *(kwargs or {}).values()] if isinstance(one, Tensor)}
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor) and _key(one) not in given:
                self._add(one)
        return made

    def _add(self, made: Tensor) -> None:
        storage, key = made.untyped_storage(), _key(made)
        if key in self._known:
            return  # a view, or a change in place
        size = storage.nbytes()

        def free(_: Any) -> None:
            self._known.pop(key, None)
            self.live -= size

        self._known[key] = weakref.ref(storage, free)
        self.live += size
        self.peak = max(self.peak, self.live)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def choose_tile(
    model: Network, x: Tensor, *, device: torch.device | str | None = None, multiple: int = 1,
    free: int | None = None, largest: int = LARGEST,
) -> int:  # fmt: skip
    r"""Side of the largest tile whose pass fits in half of the free memory.

    Two small passes give the :math:`a` and :math:`b` of :math:`a p + b p^2` bytes for :math:`p`
    pixels; attention without a fused kernel needs the square.

    Args:
        model: ``[B, C, h, w] -> [B, C', h, w]``.
        x: The image ``[B, C, H, W]``; its values do not matter.
        device: Where the model is, by default where the image is.
        multiple: Of the side.
        free: Bytes, by default :func:`free_memory`.
        largest: The most that is chosen.

    Returns:
        The side, or that of the image where it is smaller.

    Example:
        >>> model = torch.nn.Conv2d(3, 250, 3, padding=1)  # 1,000 bytes for each pixel
        >>> choose_tile(model, torch.zeros(1, 3, 900, 900), free=20_000_000, multiple=8)
        96
    """
    device = x.device if device is None else torch.device(device)
    whole = -(-max(x.shape[-2:]) // multiple) * multiple
    sides = [-(-side // multiple) * multiple for side in _PROBES]
    if whole <= sides[0]:
        return whole
    probe = torch.zeros(x.shape[0], x.shape[1], 1, 1, dtype=x.dtype, device=device)
    smallest = -(-SMALLEST // multiple) * multiple
    try:
        (p1, m1), (p2, m2) = (
            (side**2, peak_bytes(model, probe.expand(-1, -1, side, side))) for side in sides
        )
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return smallest
    square = max(m2 / p2 - m1 / p1, 0.0) / (p2 - p1)
    linear = max(m1 / p1 - square * p1, 1.0)
    budget = SHARE * (free_memory(device) if free is None else free)
    # The root of square p² + linear p = budget in a form that holds for square = 0 too.
    pixels = 2 * budget / (linear + math.sqrt(linear**2 + 4 * square * budget))
    side = min(int(math.sqrt(pixels)), largest) // multiple * multiple
    return min(max(side, smallest), whole)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU.

    Example:
        >>> [out_of_memory(error) for error in (torch.OutOfMemoryError(), ValueError())]
        [True, False]
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _SAID)


def shrinking(
    run: Callable[[int, int], Result], tile: int, tile_batch: int, *, multiple: int = 1
) -> Result:
    """Run with these tiles; as long as memory runs out, with fewer at a time, then with smaller.

    Args:
        run: What to do with a side of tiles and a number of tiles in one pass.
        tile: Side to begin with.
        tile_batch: Number to begin with.
        multiple: Of the side.

    Raises:
        ConfigError: Memory runs out even with the smallest tile.
    """
    smallest = -(-SMALLEST // multiple) * multiple
    began = tile
    while True:
        try:
            result = run(tile, tile_batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0]
        else:
            if tile < began:
                warnings.warn(
                    f"Memory ran out with tiles of {began} pixels: {tile} were used. A network "
                    "that looks at a whole tile gives slightly other results with smaller ones.",
                    stacklevel=3,
                )
            return result
        # Out of the handler, whose traceback holds the tensors of the failed pass.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if tile_batch > 1:
            tile_batch = 1
        elif tile <= smallest:
            raise ConfigError(
                f"Memory runs out even with tiles of {tile} pixels ({reason}). Close other "
                "programs, or use a smaller network."
            )
        else:
            tile = max(tile // 2 // multiple * multiple, smallest)


def device_of(model: Network, x: Tensor) -> torch.device:
    """Where a network is, or else its input.

    Example:
        >>> device_of(torch.nn.Linear(2, 2), torch.zeros(1)).type
        'cpu'
    """
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return x.device if first is None else first.device
