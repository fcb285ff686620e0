"""``moeapps validate|test|predict``: rebuild from a checkpoint alone, run one part of the data."""

import argparse
import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moeapps.cli.build import Built, build, quiet
from moeapps.cli.configs import CLASSES, check_config, check_schema, read_config
from moeapps.cli.console import console
from moeapps.cli.overrides import apply_overrides
from moeapps.cli.train import about, metrics_table
from moeapps.errors import CheckpointError, ConfigError
from moeapps.training.checkpoints import load_checkpoint
from moeapps.training.keeper import CONFIG_KEY, ResultsWriter
from moeapps.training.progress import progress_bar
from moeapps.training.runs import RunFolder

if TYPE_CHECKING:
    import lightning.pytorch as pl


def evaluate(options: argparse.Namespace) -> int:
    """Run ``options.command`` on the checkpoint."""
    run, checkpoint = find_checkpoint(options.ckpt)
    if options.command == "predict" and (options.input or options.output):
        return _predict_files(run, checkpoint, options)
    with quiet():
        built = rebuild(checkpoint, config=options.config, overrides=options.overrides)
        refresh = run is not None and options.command == "test" and not options.overrides
        callbacks: list[pl.Callback] = [progress_bar()]
        if run is not None and refresh:
            run.check_writable()
            callbacks.append(ResultsWriter(run))
        trainer = built.make_trainer(callbacks=callbacks, loggers=[])
        if options.command == "predict":
            batches = trainer.predict(built.model, datamodule=built.data, ckpt_path=checkpoint)
            out = Path(options.out or (run.path if run else Path()) / "predictions.csv")
            rows = write_predictions(batches or [], out)
            console().print(f"{rows:,} predictions: {out}", markup=False)
            return 0
        runner = trainer.test if options.command == "test" else trainer.validate
        runner(built.model, datamodule=built.data, ckpt_path=checkpoint, verbose=False)
    metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    facts = about(built)
    title = f"{facts['model']} on {facts['dataset']}, {options.command}"
    console().print(metrics_table(metrics, title))
    if run is not None and refresh:
        _refresh(run, facts, metrics)
    return 0


def _predict_files(run: RunFolder | None, checkpoint: Path, options: argparse.Namespace) -> int:
    """Predict a file or a folder with what the checkpoint alone says, by what the run is."""
    if not options.input or options.out or options.overrides:
        raise ConfigError(
            "--input FILE --output FILE predicts the rows of a file, or the photos of a folder, "
            "with the checkpoint alone: leave out --out and overrides, or leave out both to "
            "predict the data of the run."
        )
    given = load_checkpoint(checkpoint).get(CONFIG_KEY) or {}
    if options.config:
        given = read_config(options.config)
    model = given.get("model")
    kind = str(model.get("class_path") if isinstance(model, dict) else model)
    if CLASSES.get(kind, kind).startswith("moeapps.vision."):
        from moeapps.cli.predict_photos import predict_photos

        folder = run.path if run is not None else checkpoint.parent
        return predict_photos(checkpoint, options, folder / "predictions")
    if options.tile is not None:
        raise ConfigError("--tile is for photos, which this run does not take. Leave it out.")
    from moeapps.recsys.serving import Predictor, predict_file

    source = Path(options.input)
    target = Path(options.output or source.with_name("predictions.parquet"))
    rows = predict_file(Predictor.from_checkpoint(checkpoint), source, target)
    console().print(f"{rows:,} predictions: {target}", markup=False)
    return 0


def trained_module(checkpoint: Path, *, config: str | None = None) -> tuple[Any, Any]:
    """The Lightning module with its trained weights, and its data module, not set up."""
    stored = load_checkpoint(checkpoint)
    with quiet():
        built = rebuild(checkpoint, config=config)
    module: Any = built.model
    # Sizes that the data gave during training stand in the checkpoint only.
    module.hparams.update(stored.get("hyper_parameters", {}))
    if hasattr(module, "assemble"):
        module.assemble()  # more than the network alone has weights
    elif module.model is None:
        module.model = module.build()
    module.load_state_dict(stored["state_dict"])
    return module.eval(), built.data


def find_checkpoint(path: str) -> tuple[RunFolder | None, Path]:
    """The checkpoint file that ``path`` means, and the run if it is a run's folder.

    Raises:
        CheckpointError: There is no such file, or the run has no checkpoint.
    """
    place = Path(path)
    if not place.is_dir():
        if not place.is_file():
            raise CheckpointError(
                f"There is no checkpoint {place}. Expected a file, or a run folder that "
                "'moeapps fit' printed."
            )
        return None, place
    run = RunFolder.open(place)
    for file in (run.best, run.last):
        if file.is_file():
            return run, file
    raise CheckpointError(
        f"The run {run.path} has no checkpoint yet. "
        f"Continue it with: moeapps fit --resume {run.path}"
    )


def rebuild(
    checkpoint: Path, *, config: str | None = None, overrides: list[tuple[str, str]] | None = None
) -> Built:
    """Model, data and trainer from the configuration stored in a checkpoint.

    Raises:
        CheckpointError: The file is damaged.
        ConfigError: It holds no configuration and none is given.
    """
    if config is not None:
        given, source = read_config(config), config
    else:
        stored = load_checkpoint(checkpoint).get(CONFIG_KEY)
        if stored is None:
            raise ConfigError(
                f"{checkpoint} holds no configuration: moeapps did not write it. "
                "Add --config FILE with the configuration it was trained with."
            )
        given, source = dict(stored), str(checkpoint)
        check_schema(given, source=source)
    for key in ("callbacks", "logger", "profiler", "fast_dev_run"):
        (given.get("trainer") or {}).pop(key, None)  # these belong to the training
    apply_overrides(given, overrides or [])
    check_config(given, source=source)
    return build(given)


def write_predictions(batches: Any, path: Path) -> int:
    """Write what ``predict_step`` returned to a ``.csv`` or ``.npz`` file.

    Args:
        batches: One mapping of name to tensor per batch, first dimension the rows.
        path: The file; its ending picks the format.

    Returns:
        The number of rows.

    Raises:
        ConfigError: Another ending, or a folder that cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "p.csv"
        >>> write_predictions([{"label": torch.tensor([1, 0]), "prob": torch.eye(2)}], path)
        2
        >>> print(path.read_text().strip())
        label,prob_0,prob_1
        1,1.0,0.0
        0,0.0,1.0
    """
    if path.suffix not in (".csv", ".npz"):
        raise ConfigError(f"--out {path}: the name must end in .csv or .npz.")
    columns = _columns(batches)
    rows = len(next(iter(columns.values()))) if columns else 0
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        np.savez_compressed(buffer, **columns)  # type: ignore[arg-type]
    else:
        text = io.TextIOWrapper(buffer, encoding="utf-8", newline="", write_through=True)
        flat: dict[str, np.ndarray] = {}
        for name, values in columns.items():
            if values.ndim == 1:
                flat[name] = values
            else:
                wide = values.reshape(len(values), -1)
                flat.update({f"{name}_{i}": wide[:, i] for i in range(wide.shape[1])})
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(flat)
        writer.writerows(zip(*(values.tolist() for values in flat.values()), strict=True))
        text.detach()
    from moeapps.data.integrity import atomic_write

    try:
        with atomic_write(path) as file:
            file.write(buffer.getvalue())
    except OSError as error:
        raise ConfigError(f"Cannot write {path} ({error.strerror}). Choose --out FILE.") from error
    return rows


def _columns(batches: Any) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        named = batch if isinstance(batch, dict) else {"prediction": batch}
        for name, values in named.items():
            tensor = torch.as_tensor(values).detach().cpu()
            if tensor.is_floating_point():
                tensor = tensor.float()  # numpy has no bfloat16
            parts.setdefault(name, []).append(tensor.numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _refresh(run: RunFolder, facts: dict[str, Any], metrics: dict[str, float]) -> None:
    from moeapps.cli.report import write_report

    run.write_report({**facts, **run.read_report(), "metrics": metrics})
    write_report(run)
    console().print(f"report: {run.path / 'report.html'}", markup=False)
