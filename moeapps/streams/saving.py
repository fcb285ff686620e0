"""Files of stream models: one ``.npz`` of plain arrays with a JSON header; no code is stored."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moeapps.data.integrity import atomic_write
from moeapps.errors import ArgumentError, CheckpointError

FORMAT = 1
_HEADER, _DIGEST = "header", "digest"
_ADVICE = "Use another copy of the file, or train the model again."


def write(path: str | Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """Write arrays and a header in one step: the file is either the whole old or the whole new.

    Args:
        path: File to write; by habit ``*.npz``.
        arrays: Plain arrays (no objects).
        header: JSON values; ``header["kind"]`` says what the file is.
    """
    from moeapps import __version__

    text = json.dumps({"format": FORMAT, "version": __version__, **header}).encode()
    members = {**arrays, _HEADER: np.frombuffer(text, np.uint8)}
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **members, **{_DIGEST: _digest(members)})


def read(path: str | Path, *, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and header of a file that `write` made.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is cut short or damaged, of another kind, or of a newer format.
    """
    content = io.BytesIO(Path(path).read_bytes())
    try:
        with np.load(content, allow_pickle=False) as file:
            members = {name: file[name] for name in file.files}
        digest = members.pop(_DIGEST)
        header = json.loads(members[_HEADER].tobytes())
        newer = header["format"] > FORMAT
    except MemoryError:
        raise
    except Exception as error:  # a parser of damaged bytes may raise anything
        raise CheckpointError(
            f"{path} is not a whole file of a stream model ({type(error).__name__}: {error}). "
            f"{_ADVICE}"
        ) from error
    if newer:
        raise CheckpointError(
            f"{path} has format {header['format']}, written by moeapps {header['version']}; this "
            f"version reads formats up to {FORMAT}. Upgrade moeapps to load it."
        )
    if not np.array_equal(digest, _digest(members)):
        raise CheckpointError(f"{path} is damaged: its checksum does not fit. {_ADVICE}")
    if header["kind"] != kind:
        raise CheckpointError(
            f"{path} holds a {header['kind']}, not a {kind}. Load it with "
            f"{header['kind']}.load(path)."
        )
    del members[_HEADER]
    return members, header


def _digest(members: Mapping[str, np.ndarray]) -> np.ndarray:
    """SHA-256 of everything in a file, header included."""
    total = hashlib.sha256()
    for name in sorted(members):
        array = np.ascontiguousarray(members[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return np.frombuffer(total.digest(), np.uint8)


def joined(**parts: Mapping[str, Any]) -> dict[str, Any]:
    """The states of the parts of a model in one, each entry under the name of its part.

    Example:
        >>> joined(router={"steps": 3}, experts={"trees": 2})
        {'router_steps': 3, 'experts_trees': 2}
    """
    return {f"{name}_{key}": v for name, state in parts.items() for key, v in state.items()}


def part(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The state of one part out of what `joined` joined; empty if there is none.

    Example:
        >>> part({"router_steps": 3, "experts_trees": 2}, "router")
        {'steps': 3}
    """
    prefix = f"{name}_"
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def pack(value: Any) -> Any:
    """A label, key or parameter as a JSON value that keeps its type."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return ["float", value.hex()]  # JSON knows no infinities
    if type(value) is tuple:
        return ["tuple", [pack(item) for item in value]]
    if type(value) is list:
        return ["list", [pack(item) for item in value]]
    if isinstance(value, np.generic) and value.dtype.kind in "biufU":
        return [value.dtype.str, pack(value.item())]
    raise ArgumentError(
        f"{value!r} of type {type(value).__name__} cannot be saved. Expected None, a bool, number, "
        "string or tuple of these; use pickle to store such a model."
    )


def unpack(value: Any) -> Any:
    """What `pack` packed."""
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "float":
        return float.fromhex(content)
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(unpack(item) for item in content)
    return np.dtype(kind).type(unpack(content))
