"""Reads old pickles that hold nothing but arrays, without running what they contain."""

import codecs
import io
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that admits NumPy arrays, SciPy CSR matrices, lists and ``defaultdict(list)``.

    A pickle can name any function and have it called. Here every name is looked up in a short
    list and anything else is refused, so a tampered file cannot run code.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The object behind a name, or an error."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module in ("scipy.sparse.csr", "scipy.sparse._csr") and name == "csr_matrix":
            from scipy.sparse import csr_matrix

            return csr_matrix
        if module in ("builtins", "__builtin__") and name == "list":
            return list
        if module == "collections" and name == "defaultdict":
            return _list_dict
        if module == "_codecs" and name == "encode":
            return _latin1_bytes
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not plain array data")


def load_arrays(path: str | Path) -> Any:
    """The content of a pickle of arrays; CSR matrices are checked entry by entry.

    Raises:
        pickle.UnpicklingError: When it holds anything else.
    """
    return _checked(ArrayUnpickler(io.BytesIO(Path(path).read_bytes()), encoding="latin1").load())


def load_object_array(path: str | Path) -> np.ndarray:
    """The content of an ``.npy`` file that holds pickled objects (lists of dicts of arrays).

    Raises:
        pickle.UnpicklingError: When it holds anything but arrays, dicts and lists.
        ValueError: When it is not an ``.npy`` file of objects.
    """
    with Path(path).open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the npy format")
        header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        _, _, dtype = header(stream)
        if not dtype.hasobject:
            raise ValueError(f"dtype {dtype}, expected objects")
        array = ArrayUnpickler(stream, encoding="latin1").load()
    if not isinstance(array, np.ndarray):
        raise ValueError(f"it holds a {type(array).__name__}, expected an array")
    return array


def _empty_array(subtype: type, shape: tuple[int, ...], typecode: Any) -> np.ndarray:
    # Pickles always start from an empty array and fill it later; other shapes could ask for any
    # amount of memory.
    if subtype is not np.ndarray or tuple(shape) != (0,):
        raise pickle.UnpicklingError("an array is built in an unusual way")
    return np.ndarray((0,), dtype="b")


def _list_dict(factory: Any = list) -> defaultdict:
    if factory is not list:
        raise pickle.UnpicklingError("a defaultdict has a factory other than list")
    return defaultdict(list)


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes are written as {encoding}")
    return codecs.encode(text, "latin1")


def _checked(value: Any) -> Any:
    if hasattr(value, "check_format"):
        # Indices out of range would make SciPy's compiled code read foreign memory.
        value.check_format(full_check=True)
    return value
