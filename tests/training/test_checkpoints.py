import random
import time
import zipfile

import numpy as np
import pytest
import torch

from moeapps.errors import CheckpointError
from moeapps.training.checkpoints import (
    AtomicCheckpointIO,
    check_state_dict,
    load_checkpoint,
    rng_state,
    set_rng_state,
)


def make_checkpoint():
    generator = torch.Generator().manual_seed(0)
    return {
        "state_dict": {"weight": torch.randn(4, 3, generator=generator), "bias": torch.zeros(2)},
        "epoch": 3,
        "hyper_parameters": {"strong": "gcn", "sizes": [1, 2]},
    }


def same(one, other):
    state, other_state = one.pop("state_dict"), other.pop("state_dict")
    equal = state.keys() == other_state.keys() and all(
        torch.equal(state[name], other_state[name]) for name in state
    )
    return equal and one == other


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(make_checkpoint(), path)
    assert same(load_checkpoint(path), make_checkpoint())
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_torch_and_zip_tools_read_the_file(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(make_checkpoint(), path)
    assert same(torch.load(path, weights_only=True), make_checkpoint())
    assert same(torch.load(path, weights_only=True, mmap=True), make_checkpoint())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_removing_twice_is_no_error(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(make_checkpoint(), path)
    AtomicCheckpointIO().remove_checkpoint(path)
    AtomicCheckpointIO().remove_checkpoint(path)
    assert not path.exists()


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(make_checkpoint(), path)
    whole = path.read_bytes()
    for length in [0, 1, 2, 3, 4, *range(5, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"last\.ckpt"):
            load_checkpoint(path)


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(make_checkpoint(), path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_a_flipped_bit_of_a_weight_is_refused(tmp_path):
    """Torch's own reader returns the wrong number here."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(make_checkpoint(), path)
    stored = make_checkpoint()["state_dict"]["weight"].numpy().tobytes()
    whole = path.read_bytes()
    place = whole.index(stored) + 17
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    assert not torch.equal(
        torch.load(path, weights_only=True)["state_dict"]["weight"],
        make_checkpoint()["state_dict"]["weight"],
    )
    with pytest.raises(CheckpointError, match="digest"):
        load_checkpoint(path)


def test_foreign_files_are_refused(tmp_path):
    text = tmp_path / "text.ckpt"
    text.write_text("not a checkpoint")
    archive = tmp_path / "archive.ckpt"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme", "hello")
    weights = tmp_path / "weights.ckpt"
    torch.save({"weight": torch.zeros(2)}, weights)
    number = tmp_path / "number.ckpt"
    torch.save(3, number)
    sealed = tmp_path / "sealed.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(2)}, sealed)
    for path in (text, archive, weights, number, sealed):
        with pytest.raises(CheckpointError, match=path.name):
            load_checkpoint(path)


class Surprise:
    ran = False

    def __reduce__(self):
        return (setattr, (Surprise, "ran", True))


def test_code_in_a_checkpoint_never_runs(tmp_path):
    path = tmp_path / "evil.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "payload": Surprise()}, path)
    with pytest.raises(CheckpointError, match="plain values"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="weights_only"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not Surprise.ran


def test_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_checkpoint(tmp_path / "nothing.ckpt")


def write_for_ever(path, started):
    number = 0
    while True:
        number += 1
        weight = torch.full((100_000,), float(number))
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": weight}, "n": number}, path)
        started.set()


def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    context = torch.multiprocessing.get_context("fork")
    for attempt in range(8):
        started = context.Event()
        writer = context.Process(target=write_for_ever, args=(path, started))
        writer.start()
        assert started.wait(60)
        time.sleep(0.0017 * attempt)  # somewhere inside a later write
        writer.kill()
        writer.join()
        checkpoint = load_checkpoint(path)
        assert (checkpoint["state_dict"]["w"] == checkpoint["n"]).all()


def test_failed_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(make_checkpoint(), path)
    with pytest.raises((TypeError, AttributeError, RuntimeError)):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "bad": lambda: 0}, path)
    assert same(load_checkpoint(path), make_checkpoint())


def test_check_state_dict_names_what_differs():
    model = torch.nn.Linear(3, 2)
    good = model.state_dict()
    check_state_dict(model, good)
    with pytest.raises(CheckpointError, match="missing: bias"):
        check_state_dict(model, {"weight": good["weight"]})
    with pytest.raises(CheckpointError, match="unknown: more"):
        check_state_dict(model, {**good, "more": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"weight \[2, 4\] instead of \[2, 3\]"):
        check_state_dict(model, {**good, "weight": torch.zeros(2, 4)})


def test_random_generators_continue(tmp_path):
    def draw():
        return (
            torch.rand(3).tolist(),
            np.random.rand(3).tolist(),
            random.random(),
            np.random.randn(),
        )

    np.random.randn()  # leaves half a pair of normal numbers in numpy's state
    random.gauss(0, 1)  # and one in Python's
    path = tmp_path / "rng.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "rng": rng_state()}, path)
    expected = draw(), random.gauss(0, 1)
    draw()
    set_rng_state(load_checkpoint(path)["rng"])
    assert (draw(), random.gauss(0, 1)) == expected
