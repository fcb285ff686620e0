"""Whole batches, without a Python step per row: from memory, or from files larger than memory.

Both loaders give the same batches for the same seed, know their number, and remember where they
are: after `load_state_dict` they go on with the batch that came next when `state_dict` was called.
"""

import abc
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moeapps.errors import ArgumentError, CheckpointError
from moeapps.recsys.batch import Batch, num_rows, pack, take
from moeapps.recsys.columns import concat_columns
from moeapps.recsys.encoders import Encoder
from moeapps.recsys.schema import Task

if TYPE_CHECKING:
    from moeapps.recsys.files import Blocks


class BatchLoader(abc.ABC):
    """Where a loader is: the epoch, and the number of the next batch in it.

    An iteration that begins after another one, finished or not, is the next epoch.

    Args:
        batch_size: Rows per batch and process.
        shuffle: Another order each epoch.
        seed: Of the order.
        drop_last: Leave out the rows that do not fill a batch of all processes.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ArgumentError: A value is out of range.
    """

    def __init__(
        self,
        *,
        batch_size: int = 4096,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ArgumentError(f"batch_size={batch_size} is too small. Choose 1 or more.")
        if not 0 <= rank < world_size:
            raise ArgumentError(f"rank={rank} is none of the {world_size} processes from 0 on.")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.position = 0
        self._continues = False
        rows, together = self.num_rows, batch_size * world_size
        if rows < (together if drop_last else world_size):
            raise ArgumentError(
                f"{rows} rows do not make a batch of batch_size={batch_size} for each of "
                f"{world_size} process(es). Choose a smaller batch_size or drop_last=False."
            )

    @property
    @abc.abstractmethod
    def num_rows(self) -> int:
        """Rows of all processes together."""

    @abc.abstractmethod
    def _batches(self, first: int) -> Iterator[Batch]:
        """The batches of this epoch, from number ``first`` on."""

    def __len__(self) -> int:
        if self.drop_last:
            return self.num_rows // (self.batch_size * self.world_size)
        return -(-(self.num_rows // self.world_size) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.position and not self._continues:
            self.epoch, self.position = self.epoch + 1, 0
        for batch in self._batches(self.position):
            self._continues = False
            self.position += 1
            yield batch

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for a ``sampler`` with :meth:`set_epoch`."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Begin this epoch. A run resumed between two epochs says so and loads no state."""
        if epoch != self.epoch and not self._continues:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of the next batch."""
        return {"epoch": self.epoch, "batch": self.position, "batches": len(self)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there.

        Raises:
            CheckpointError: The state is of a loader with another number of batches.
        """
        if state["batches"] != len(self):
            raise CheckpointError(
                f"The checkpoint was made with {state['batches']} batches an epoch, the loader has "
                f"{len(self)}. Continue with the same data, batch size and number of processes."
            )
        self.epoch, self.position, self._continues = state["epoch"], state["batch"], True
        if self.position == len(self):
            self.epoch, self.position, self._continues = self.epoch + 1, 0, False


class PackedLoader(BatchLoader):
    """Batches of rows that are in memory, packed once.

    With several processes, a batch of all of them together is the batch that one process with
    ``world_size`` times the ``batch_size`` would get.

    Args:
        rows: A whole split, packed.
        **arguments: As of :class:`BatchLoader`.

    Raises:
        ArgumentError: A value is out of range, or there is no whole batch.

    Example:
        >>> rows = {"cat": torch.arange(10).unsqueeze(1)}
        >>> [len(batch["cat"]) for batch in PackedLoader(rows, batch_size=4)]
        [4, 4, 2]
    """

    def __init__(self, rows: Batch, **arguments: Any) -> None:
        self.rows = rows
        super().__init__(**arguments)

    @property
    def num_rows(self) -> int:
        """Rows of all processes together."""
        return num_rows(self.rows)

    def _batches(self, first: int) -> Iterator[Batch]:
        order = np.arange(self.num_rows)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_rows)
        together = self.batch_size * self.world_size
        for number in range(first, len(self)):
            is_last = number + 1 == len(self) and not self.drop_last
            stop = self.num_rows if is_last else (number + 1) * together
            part = np.array_split(order[number * together : stop], self.world_size)[self.rank]
            yield take(self.rows, torch.from_numpy(part))


class StreamingLoader(BatchLoader):
    r"""Batches from files larger than memory, shuffled within and between groups of blocks.

    Each epoch orders the blocks at random, reads ``buffer_blocks`` of them at a time, encodes them
    and gives their rows in random order. The order of all rows thus follows from seed and epoch
    alone. Each process has a contiguous part of it and reads only the blocks of that part.

    Args:
        blocks: The files.
        encoder: Fitted on the training split.
        tasks: Whose labels are read; none for prediction.
        weight: Column of sample weights.
        buffer_blocks: Blocks that are in memory, and shuffled, together.
        **arguments: As of :class:`BatchLoader`.

    Raises:
        ArgumentError: A value is out of range, or there is no whole batch.

    Notes:
        Rows far apart in the files meet in one batch only if ``buffer_blocks`` is not small against
        the number of blocks: a file sorted by label needs a larger one than a mixed one.
    """

    def __init__(
        self,
        blocks: "Blocks",
        encoder: Encoder,
        tasks: Many[Task] = (),
        *,
        weight: str | None = None,
        buffer_blocks: int = 8,
        **arguments: Any,
    ) -> None:
        if buffer_blocks < 1:
            raise ArgumentError(f"buffer_blocks={buffer_blocks} is too small. Choose 1 or more.")
        self.blocks = blocks
        self.encoder = encoder
        self.tasks = tuple(tasks)
        self.weight = weight
        self.buffer_blocks = buffer_blocks
        super().__init__(**arguments)

    @property
    def num_rows(self) -> int:
        """Rows of all processes together."""
        return self.blocks.num_rows

    def _batches(self, first: int) -> Iterator[Batch]:
        begin, end = self._part()
        bounds = [begin + i * self.batch_size for i in range(len(self))] + [end]
        pieces: list[Batch] = []  # of the batch that is not full yet
        number = first
        for start, rows in self._groups(bounds[first], end):
            while number < len(self):
                low = max(bounds[number], start) - start
                high = bounds[number + 1] - start
                pieces.append(take(rows, torch.arange(low, min(high, num_rows(rows)))))
                if high > num_rows(rows):
                    break
                yield concat(pieces)
                pieces, number = [], number + 1

    def _part(self) -> tuple[int, int]:
        """Bounds of this process's rows in the order of all rows."""
        if self.drop_last:
            length = len(self) * self.batch_size
            return self.rank * length, (self.rank + 1) * length
        rows, ranks = self.num_rows, self.world_size
        return self.rank * rows // ranks, (self.rank + 1) * rows // ranks

    def _groups(self, begin: int, end: int) -> Iterator[tuple[int, Batch]]:
        """Groups of blocks that overlap the rows ``begin .. end - 1``, with their first row."""
        order = np.arange(len(self.blocks))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(len(order))
        start = 0
        for i in range(0, len(order), self.buffer_blocks):
            group = order[i : i + self.buffer_blocks].tolist()
            count = sum(self.blocks.rows[block] for block in group)
            if start < end and start + count > begin:
                rows = self._packed(group)
                if self.shuffle:
                    rng = np.random.default_rng([self.seed, self.epoch, i])
                    rows = take(rows, torch.from_numpy(rng.permutation(count)))
                yield start, rows
            start += count

    def _packed(self, group: Many[int]) -> Batch:
        columns = concat_columns([self.blocks.read(block) for block in group])
        encoded = self.encoder.transform(columns)
        return pack(encoded, self.encoder.schema, self.tasks, weight=self.weight)


def concat(batches: Many[Batch]) -> Batch:
    """Packed batches of the same keys as one.

    Example:
        >>> bag = {"values": torch.tensor([5, 6]), "offsets": torch.tensor([0, 1])}
        >>> concat([{"bag/t": bag}, {"bag/t": bag}])["bag/t"]["offsets"].tolist()
        [0, 1, 2, 3]
    """
    if len(batches) == 1:
        return batches[0]
    joined: Batch = {}
    for key, value in batches[0].items():
        parts = [batch[key] for batch in batches]
        if isinstance(value, torch.Tensor):
            joined[key] = torch.cat(parts)
            continue
        shifts = np.cumsum([0, *(len(bag["values"]) for bag in parts[:-1])]).tolist()
        offsets = [bag["offsets"] + shift for bag, shift in zip(parts, shifts, strict=True)]
        joined[key] = {
            "values": torch.cat([bag["values"] for bag in parts]),
            "offsets": torch.cat(offsets),
        }
    return joined
