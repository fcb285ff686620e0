import json
import math

import numpy as np
import pytest

from moeapps.errors import ArgumentError, CheckpointError
from moeapps.streams import saving

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([[1, 2]])}


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        10**30,
        0.1,
        math.inf,
        "text",
        "",
        (1, ("a", None), 2.5),
        [1, "a"],
        np.float32(0.1),
        np.int64(4),
        np.bool_(True),
        np.str_("x"),
    ],
)
def test_labels_keep_value_and_type(value):
    again = saving.unpack(json.loads(json.dumps(saving.pack(value))))
    assert again == value
    assert type(again) is type(value)


def test_nan_survives():
    assert math.isnan(saving.unpack(json.loads(json.dumps(saving.pack(math.nan)))))


@pytest.mark.parametrize(
    "value",
    [object(), b"x", {1: 2}, 1 + 2j, (1, object())],
    ids=lambda label: type(label).__name__,
)
def test_other_labels_are_refused_with_the_way_out(value):
    with pytest.raises(ArgumentError, match="use pickle"):
        saving.pack(value)


def test_arrays_and_header_come_back(tmp_path):
    path = tmp_path / "new folder" / "model.npz"
    saving.write(path, ARRAYS, {"kind": "Thing", "state": {"t": 1}})
    arrays, header = saving.read(path, kind="Thing")
    assert header["state"] == {"t": 1}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert np.array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    saving.write(path, ARRAYS, {"kind": "Thing"})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.npz .*Use another copy"):
            saving.read(path, kind="Thing")


def test_changed_byte_never_goes_unnoticed(tmp_path):
    path = tmp_path / "model.npz"
    saving.write(path, ARRAYS, {"kind": "Thing"})
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        try:
            arrays, _ = saving.read(path, kind="Thing")
        except CheckpointError:
            continue
        assert all(np.array_equal(arrays[name], array) for name, array in ARRAYS.items())


def test_other_kind_is_named(tmp_path):
    saving.write(tmp_path / "m.npz", ARRAYS, {"kind": "HoeffdingTree"})
    with pytest.raises(CheckpointError, match=r"HoeffdingTree\.load"):
        saving.read(tmp_path / "m.npz", kind="DriftMoE")


def test_newer_format_asks_for_an_upgrade(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "FORMAT", 99)
    saving.write(tmp_path / "m.npz", ARRAYS, {"kind": "Thing"})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"format 99.*Upgrade"):
        saving.read(tmp_path / "m.npz", kind="Thing")


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, a=np.zeros(3))
    with pytest.raises(CheckpointError):
        saving.read(path, kind="Thing")
    np.savez(path, header=np.array([object()], object))  # would run code if unpickled
    with pytest.raises(CheckpointError):
        saving.read(path, kind="Thing")


def test_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        saving.read(tmp_path / "none.npz", kind="Thing")


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.npz"
    saving.write(path, ARRAYS, {"kind": "Thing"})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        saving.write(path, ARRAYS, {"kind": "Thing", "bad": object()})
    with pytest.raises(ValueError, match="Object arrays"):
        saving.write(path, {"a": np.array([object()], object)}, {"kind": "Thing"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
