"""Checkpoints that are whole or refused, and runs that continue exactly after a kill."""

import hashlib
import os
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from moeapps.errors import CheckpointError

_ADVICE = "Use another checkpoint of the run, or start the run again."
# The digest is the comment of the zip archive that torch.save writes: the file stays an ordinary
# torch file. Torch's reader checks no checksum, and Python's zipfile misses single bits too.
_MARK = b"moeapps sha256 "
_COMMENT_LENGTH = len(_MARK) + 64


class AtomicCheckpointIO(CheckpointIO):
    """Lightning plugin: a checkpoint file is either the whole old one or the whole new one.

    Writing goes to a temporary file beside the target, is flushed to the disk, and only then takes
    the target's name. A writer killed at any moment leaves the previous checkpoint as it was. A
    digest of the whole file stands at its end; ``torch.load`` reads the file all the same. Reading
    is :func:`load_checkpoint`: damaged files are refused and no code stored in a file runs.

    Notes:
        Two processes must not write the same path at once; Lightning writes from rank 0 only.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "last.ckpt"
        >>> AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "epoch": 3}, path)
        >>> AtomicCheckpointIO().load_checkpoint(path)["epoch"]
        3
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path`` in one step."""
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes local files and takes no storage_options.")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # A fixed name: what a killed writer left behind is overwritten by the next save.
        temporary = target.with_name(f".{target.name}.tmp")
        with temporary.open("w+b") as file:
            torch.save(checkpoint, file)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself must survive a power cut
        finally:
            os.close(folder)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read ``path`` with :func:`load_checkpoint`; ``weights_only=False`` is refused."""
        if weights_only is False:
            raise CheckpointError(
                "weights_only=False would run code stored in the checkpoint. moeapps checkpoints "
                "hold plain values and tensors only. Drop the argument."
            )
        return load_checkpoint(path, map_location=map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete ``path`` if it is there."""
        Path(path).unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str], *, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a training checkpoint, or refuse it as a whole.

    The whole file is checked against its digest first, then unpickled with ``weights_only=True``.

    Args:
        path: File written by :class:`AtomicCheckpointIO`.
        map_location: Where tensors go, as in :func:`torch.load`.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is truncated, damaged or not a training checkpoint.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "cut.ckpt"
        >>> _ = path.write_bytes(b"PK")
        >>> load_checkpoint(path)
        Traceback (most recent call last):
        moeapps.errors.CheckpointError: ...
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint not found: {path}")
    with path.open("rb") as file:
        _check_seal(file, path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than plain values and tensors, which could run code ({error}). "
            "Save numbers, strings, lists, dicts and tensors only."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{path} is a torch file but not a training checkpoint: it has no 'state_dict'. "
            "Pass a file from the run's checkpoints/ folder."
        )
    return checkpoint


def _seal(file: BinaryIO) -> None:
    """Append the digest to a finished zip archive as its comment."""
    file.seek(-2, os.SEEK_END)  # a zip archive ends with the length of its comment
    file.write(_COMMENT_LENGTH.to_bytes(2, "little"))
    digest = _digest(file, file.tell())
    file.write(_MARK + digest)


def _check_seal(file: BinaryIO, path: Path) -> None:
    length = file.seek(0, os.SEEK_END)
    file.seek(max(length - _COMMENT_LENGTH, 0))
    comment = file.read()
    if not comment.startswith(_MARK):
        raise CheckpointError(
            f"{path} is cut short, damaged, or was not written by moeapps training. {_ADVICE} "
            "A trainer of your own writes such files with plugins=[AtomicCheckpointIO()]."
        )
    if comment[len(_MARK) :] != _digest(file, length - _COMMENT_LENGTH):
        raise CheckpointError(f"{path} is damaged: its digest does not match. {_ADVICE}")


def _digest(file: BinaryIO, length: int) -> bytes:
    """SHA-256 of the first ``length`` bytes in hexadecimal; leaves the position behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0:
        chunk = file.read(min(length, 1 << 20))
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest().encode()


def check_state_dict(model: torch.nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Refuse a state dict that does not fit ``model``, before anything is copied.

    Raises:
        CheckpointError: Names are missing or left over, or shapes differ.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - state_dict.keys())
    unknown = sorted(state_dict.keys() - own.keys())
    shapes = [
        f"{name} {list(state_dict[name].shape)} instead of {list(value.shape)}"
        for name, value in own.items()
        if name in state_dict
        and isinstance(value, torch.Tensor)
        and not torch.nn.parameter.is_lazy(value)
        and value.shape != state_dict[name].shape
    ]
    problems = [
        f"{label}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for label, names in (("missing", missing), ("unknown", unknown), ("shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"The checkpoint belongs to another model than {type(model).__name__} "
            f"({'; '.join(problems)}). Build the model with the arguments the checkpoint was "
            "trained with."
        )


def rng_state() -> dict[str, Any]:
    """State of the random generators of torch (CPU and CUDA), numpy and Python, as plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(name),
            torch.tensor(np.asarray(keys, dtype=np.int64)),
            position,
            has_gauss,
            gauss,
        ],
        "python": [version, list(internal), gauss_next],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


class RNGState(pl.Callback):
    """Callback: store the random generators in each checkpoint and put them back on resume.

    With it a run killed after an end-of-epoch checkpoint and resumed ends with the same weights,
    bit for bit on a CPU, as one that was never stopped. :class:`~moeapps.training.MoEModule`
    brings it along.

    Notes:
        Batches are drawn anew when an epoch starts, so a checkpoint from the middle of an epoch
        continues with another order of batches than the stopped run had.
    """

    _KEY = "moeapps_rng_state"

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the generators' state to the checkpoint."""
        checkpoint[self._KEY] = rng_state()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the state for the moment at which training goes on."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._pending = checkpoint.get(self._KEY)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the state back before Lightning makes the first iterator over the batches."""
        if self._pending is not None:
            set_rng_state(self._pending)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put it back again if the first iterator was for the rest of a finished epoch.

        A checkpoint written after validation resumes at the end of its epoch; Lightning then makes
        an iterator that is never read, and a second one for the epoch that starts here.
        """
        loop = trainer.fit_loop
        if self._pending is not None and not (loop.is_resuming or loop.epoch_loop.restarting):
            set_rng_state(self._pending)
        self._pending = None
