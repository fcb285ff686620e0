import itertools
import time

import numpy as np
import pytest
import torch

from moeapps.errors import ArgumentError, CheckpointError
from moeapps.recsys.batch import lengths, num_rows
from moeapps.recsys.columns import take_columns
from moeapps.recsys.encoders import Encoder
from moeapps.recsys.loaders import PackedLoader, StreamingLoader, concat
from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, MultiHot, Task

SCHEMA = FeatureSchema([Categorical("id", 1, 4), MultiHot("tags", 1, 4), Dense("x")])


class Parts:
    """Blocks in memory; remembers which were read."""

    def __init__(self, columns, cuts):
        self.columns = columns
        self.cuts = list(zip([0, *cuts], [*cuts, len(columns["id"])], strict=True))
        self.rows = [high - low for low, high in self.cuts]
        self.num_rows = sum(self.rows)
        self.read_blocks = []

    def __len__(self):
        return len(self.rows)

    def read(self, block):
        self.read_blocks.append(block)
        low, high = self.cuts[block]
        return take_columns(self.columns, slice(low, high))


def streaming(rows=103, cuts=(20, 21, 50, 90), **arguments):
    counts = np.arange(rows) % 4
    tags = (np.repeat(np.arange(rows), counts), np.cumsum(counts) - counts)
    columns = {"id": np.arange(rows), "tags": tags, "x": np.arange(rows) / 7}
    columns["y"] = np.arange(rows) % 2
    encoder = Encoder.fit(columns, SCHEMA)
    return StreamingLoader(
        Parts(columns, cuts), encoder, [Task("y")], **{"buffer_blocks": 2, **arguments}
    )


def packed(rows=103, **arguments):
    return PackedLoader({"cat": torch.arange(rows).unsqueeze(1) + 1}, **arguments)


def ids(batches):
    return [(batch["cat"][:, 0] - 1).tolist() for batch in batches]


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


LOADERS = pytest.mark.parametrize("make", [packed, streaming])


@LOADERS
def test_every_row_comes_once_in_order(make):
    loader = make(batch_size=10)
    batches = ids(loader)
    assert [len(b) for b in batches] == [10] * 10 + [3]
    assert len(loader) == len(batches)
    assert joined(batches) == list(range(103))


@LOADERS
def test_shuffling_gives_every_row_once_and_another_order_each_epoch(make):
    loader = make(batch_size=10, shuffle=True)
    first, second = joined(ids(loader)), joined(ids(loader))
    assert sorted(first) == sorted(second) == list(range(103))
    assert first != second
    assert first != list(range(103))


@LOADERS
def test_same_seed_gives_the_same_batches(make):
    one, two, other = (make(batch_size=8, shuffle=True, seed=s) for s in (3, 3, 4))
    for _ in range(2):
        batches = ids(one)
        assert batches == ids(two)
        assert batches != ids(other)


@LOADERS
def test_drop_last_leaves_whole_batches(make):
    loader = make(batch_size=10, shuffle=True, drop_last=True)
    assert [len(b) for b in ids(loader)] == [10] * 10
    assert len(loader) == 10


@LOADERS
@pytest.mark.parametrize("stop", [0, 1, 4, 10])
def test_resume_goes_on_at_the_exact_batch(make, stop):
    arguments = {"batch_size": 10, "shuffle": True, "seed": 1, "drop_last": True}
    loader = make(**arguments)
    list(loader)  # an epoch before
    iterator = iter(loader)
    for _ in range(stop):
        next(iterator)
    state = loader.state_dict()
    expected = ids(iterator) + ids(loader)
    again = make(**arguments)
    again.load_state_dict(state)
    epochs = 1 if stop == 10 else 2  # the second epoch had already given all it has
    assert joined(ids(again) for _ in range(epochs)) == expected


@LOADERS
def test_iteration_that_is_broken_off_is_followed_by_the_next_epoch(make):
    loader, whole = (make(batch_size=10, shuffle=True) for _ in range(2))
    for _ in range(3):
        next(iter(loader))  # three epochs begun
    for _ in range(3):
        list(whole)
    assert ids(loader) == ids(whole)


@LOADERS
def test_iterator_that_is_made_twice_begins_once(make):
    loader = make(batch_size=10, shuffle=True)
    iter(loader)
    assert ids(loader) == ids(make(batch_size=10, shuffle=True))


@LOADERS
def test_state_of_another_loader_is_refused(make):
    with pytest.raises(CheckpointError, match="11 batches an epoch, the loader has 21"):
        make(batch_size=5).load_state_dict(make(batch_size=10).state_dict())


@LOADERS
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_processes_share_the_rows(make, ranks, shuffle, drop_last):
    loaders = [
        make(batch_size=7, shuffle=shuffle, drop_last=drop_last, rank=r, world_size=ranks)
        for r in range(ranks)
    ]
    shares = [ids(loader) for loader in loaders]
    assert len({len(share) for share in shares}) == 1  # nobody waits for a missing batch
    assert all(len(share) == len(loader) for share, loader in zip(shares, loaders, strict=True))
    assert all(batch for share in shares for batch in share)
    rows = joined(map(joined, shares))
    assert len(set(rows)) == len(rows)
    if drop_last:
        assert len(rows) == 103 // (7 * ranks) * 7 * ranks
    else:
        assert len(rows) == 103


def test_batches_of_all_processes_are_the_batch_of_one():
    one = ids(packed(batch_size=12, shuffle=True, drop_last=True))
    three = [
        ids(packed(batch_size=4, shuffle=True, drop_last=True, rank=r, world_size=3))
        for r in range(3)
    ]
    assert one == [joined(parts) for parts in zip(*three, strict=True)]


def test_streaming_process_reads_only_its_blocks():
    cuts = tuple(range(10, 100, 10))
    loader = streaming(100, cuts, batch_size=5, buffer_blocks=1, rank=1, world_size=2)
    list(loader)
    assert loader.blocks.read_blocks == [5, 6, 7, 8, 9]


def test_streaming_resume_reads_no_block_that_is_done():
    cuts = tuple(range(10, 100, 10))
    loader = streaming(100, cuts, batch_size=10, buffer_blocks=1)
    loader.load_state_dict({"epoch": 0, "batch": 8, "batches": 10})
    assert ids(loader) == [list(range(80, 90)), list(range(90, 100))]
    assert loader.blocks.read_blocks == [8, 9]


def test_streaming_batch_carries_bags_numbers_and_labels():
    batch = next(iter(streaming(batch_size=64)))
    assert batch["dense"][:3, 0].tolist() == pytest.approx([0, 1 / 7, 2 / 7])
    assert lengths(batch["bag/tags"]).tolist() == [i % 4 for i in range(64)]
    assert batch["labels"][:4, 0].tolist() == [0, 1, 0, 1]


def test_one_buffer_over_all_blocks_mixes_all_rows():
    first = ids(streaming(batch_size=50, buffer_blocks=99, shuffle=True))[0]
    assert min(first) < 10
    assert max(first) > 92


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is too small"),
        ({"batch_size": 200, "drop_last": True}, "103 rows do not make a batch"),
        ({"batch_size": 20, "drop_last": True, "rank": 0, "world_size": 6}, "do not make a batch"),
        ({"rank": 2, "world_size": 2}, "rank=2 is none of the 2 processes"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        packed(**arguments)
    with pytest.raises(ArgumentError, match="buffer_blocks=0"):
        streaming(buffer_blocks=0)


def test_concat_of_one_is_itself():
    batch = {"cat": torch.zeros(2, 1)}
    assert concat([batch]) is batch
    assert num_rows(concat([batch, batch])) == 4


def test_packed_loader_is_faster_than_a_million_rows_a_cpu_second_and_twenty_times_a_dict():
    rows = {
        "cat": torch.randint(0, 1000, (200_000, 26)),
        "dense": torch.rand(200_000, 13),
        "labels": torch.rand(200_000, 2),
    }
    loader = PackedLoader(rows, batch_size=4096, shuffle=True)
    ours = max(_per_cpu_second(loader, 200_000) for _ in range(3))
    columns = {f"c{i}": rows["cat"][:, i] for i in range(26)}
    columns |= {f"d{i}": rows["dense"][:, i] for i in range(13)}

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 4096

        def __getitem__(self, row):
            return {name: column[row] for name, column in columns.items()}, rows["labels"][row]

    theirs = _per_cpu_second(torch.utils.data.DataLoader(Rows(), batch_size=4096), 4096)
    assert ours > 1_000_000
    assert ours > 20 * theirs


def _per_cpu_second(loader, rows):
    began = time.process_time()
    for _ in loader:
        pass
    return rows / (time.process_time() - began)
