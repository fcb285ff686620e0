import pickle
from collections import defaultdict

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from moeapps.data.unpickle import load_arrays, load_object_array


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def dump(path, value, protocol=2):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_lists_and_csr_pass(tmp_path, protocol):
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    path = dump(tmp_path / "a", array, protocol)
    np.testing.assert_array_equal(load_arrays(path), array)
    loaded = load_arrays(dump(tmp_path / "b", csr_matrix(array), protocol))
    np.testing.assert_array_equal(loaded.toarray(), array)
    graph = defaultdict(list, {0: [1], 1: [0, 0]})
    assert load_arrays(dump(tmp_path / "c", graph, protocol)) == graph


@pytest.mark.parametrize("call", [(eval, "1"), (open, "x", "w"), (bytearray, 1 << 40)])
def test_calls_are_refused_without_running(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match="not plain array data"):
        load_arrays(dump(tmp_path / "a", Evil(*call)))
    assert not (tmp_path / "x").exists()


def test_system_calls_hidden_in_an_object_array_are_refused(tmp_path):
    import os

    array = np.empty(1, dtype=object)
    array[0] = Evil(os.system, f"touch {tmp_path}/x")
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(pickle.UnpicklingError):
        load_object_array(tmp_path / "a.npy")
    assert not (tmp_path / "x").exists()


def test_arrays_cannot_ask_for_any_amount_of_memory(tmp_path):
    reconstruct = np.arange(1).__reduce__()[0]
    with pytest.raises(pickle.UnpicklingError, match="unusual way"):
        load_arrays(dump(tmp_path / "a", Evil(reconstruct, np.ndarray, (1 << 40,), b"b")))


def test_defaultdict_with_another_factory_is_refused(tmp_path):
    with pytest.raises(pickle.UnpicklingError):
        load_arrays(dump(tmp_path / "a", defaultdict(int)))


def test_csr_indices_out_of_range_are_refused(tmp_path):
    matrix = csr_matrix(np.eye(3, dtype=np.float32))
    matrix.indices[0] = 1 << 20
    with pytest.raises(ValueError, match="indices"):
        load_arrays(dump(tmp_path / "a", matrix))


def test_splits_of_dicts_pass(tmp_path):
    splits = np.array([{"train": np.arange(3)}, {"train": np.arange(4)}], dtype=object)
    np.save(tmp_path / "a.npy", splits)
    assert [len(s["train"]) for s in load_object_array(tmp_path / "a.npy")] == [3, 4]


def test_plain_npy_is_refused_as_splits(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(ValueError, match="expected objects"):
        load_object_array(tmp_path / "a.npy")
