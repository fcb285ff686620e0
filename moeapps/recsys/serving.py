"""A trained ranking model on raw rows: from a checkpoint alone, batch by batch, file to file."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from moeapps.errors import CheckpointError, ConfigError, MoeappsError
from moeapps.recsys.batch import Batch, num_rows, pack, take
from moeapps.recsys.encoders import Encoder
from moeapps.recsys.modules import MultiTaskRanker
from moeapps.recsys.ranker import Ranker
from moeapps.training.checkpoints import load_checkpoint

ROWS = 4096  # of one pass


class Predictor:
    """Predicts from raw columns what a run learned.

    Args:
        encoder: From raw columns to ids, as fitted in training.
        model: The trained network; a copy made for inference is kept.

    Raises:
        CheckpointError: :meth:`from_checkpoint` got a file without network or encoder.
    """

    def __init__(self, encoder: Encoder, model: Ranker) -> None:
        self.encoder = encoder
        self.model = model.fuse_for_inference()

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Self:
        """Rebuild both from the checkpoint of a run."""
        checkpoint = load_checkpoint(path)
        given = checkpoint.get("hyper_parameters", {})
        states = [
            value["encoder"]
            for value in checkpoint.values()
            if isinstance(value, dict) and "encoder" in value
        ]
        if not states or not given.get("schema"):
            raise CheckpointError(
                f"{path} does not hold a ranking model with its encoder. Use best.ckpt or "
                "last.ckpt of a run trained with RankingData or RankingFiles."
            )
        module = MultiTaskRanker(**given)
        module.load_state_dict(checkpoint["state_dict"])
        assert module.model is not None
        return cls(Encoder.from_dict(states[0]), module.model)

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        """Probability, value or expected level of every task, by name, for each row.

        Args:
            columns: Raw columns of the features, as in the training files; others are ignored.

        Raises:
            UnknownNameError: A feature's column is missing.
            ArgumentError: A column has another type.
        """
        batch = pack(self.encoder.transform(columns), self.encoder.schema)
        names = self.model.task_names
        parts = [torch.zeros(0, len(names))]
        with torch.inference_mode():
            for start in range(0, num_rows(batch), ROWS):
                parts.append(self.model.predict_proba(take(batch, slice(start, start + ROWS))))
        found = torch.cat(parts).numpy()
        return {name: found[:, t] for t, name in enumerate(names)}

    @property
    def columns(self) -> list[str]:
        """Raw columns that it reads."""
        return [f.name for f in self.encoder.schema.embedded] + list(self.encoder.statistics)


def predict_file(predictor: Predictor, source: str | Path, target: str | Path) -> int:
    """Predict every row of a file, block by block, so that it may be larger than memory.

    Args:
        predictor: Of a trained run.
        source: Parquet or CSV file with the raw columns of the features.
        target: Parquet file with one column per task, rows in the order of ``source``. It appears
            when it is complete.

    Returns:
        The number of rows.

    Raises:
        ConfigError: ``target`` is no Parquet file, or cannot be written.
        DataNotFoundError: There is no ``source``.
        DataIntegrityError: ``source`` is empty or truncated.
        UnknownNameError: ``source`` lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from moeapps.recsys.files import Blocks

    target = Path(target)
    if target.suffix != ".parquet":
        raise ConfigError(f"--output {target}: the name must end in .parquet.")
    blocks = Blocks(source, predictor.columns)
    schema = pa.schema([(name, pa.float32()) for name in predictor.model.task_names])
    temporary = target.with_name(f".{target.name}.part")
    rows = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(temporary, schema) as writer:
            for block in blocks:
                found = predictor(block)
                writer.write_table(pa.table(found, schema=schema))
                rows += len(next(iter(found.values())))
        temporary.replace(target)
    except MoeappsError:
        raise
    except OSError as error:
        raise ConfigError(f"Cannot write {target} ({error}). Choose another --output.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def latency(
    model: Ranker, batch: Batch, sizes: Sequence[int] = (1, 16), *, repeats: int = 100
) -> dict[int, float]:
    """Median time of a prediction in milliseconds, by number of rows.

    Args:
        model: In evaluation mode, mostly from ``fuse_for_inference()``.
        batch: Packed rows to take from.
        sizes: Numbers of rows.
        repeats: Predictions timed for each.
    """
    found = {}
    with torch.inference_mode():
        for size in sizes:
            rows = take(batch, torch.arange(size) % num_rows(batch))
            times = []
            for _ in range(repeats + 10):
                start = time.perf_counter()
                model.predict_proba(rows)
                times.append(time.perf_counter() - start)
            found[size] = 1e3 * statistics.median(times[10:])  # the first ones warm up
    return found
