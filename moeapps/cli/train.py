"""``moeapps fit``, and the flags of ``validate``, ``test`` and ``predict``."""

import argparse
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeapps.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from moeapps.cli.build import Built
    from moeapps.training.keeper import RunKeeper
    from moeapps.training.runs import RunFolder

_OVERRIDES = """
Any value of the configuration can be set on the command line:
  --model.hidden_channels 64     an argument of the model
  --data.dataset citeseer        an argument of the data module
  --trainer.max_epochs 50        an argument of Lightning's Trainer
  --set.seed_everything 3        any key, written with 'set.'
'moeapps info CLASS' lists the arguments of a class."""


def register(subparsers: Any) -> None:
    """Add the four commands."""
    fit = _command(subparsers, "fit", "train, test with the best weights, write a report")
    fit.add_argument("--config", metavar="FILE", help="configuration to train")
    fit.add_argument("--resume", metavar="RUN", help="continue an interrupted run in its folder")
    fit.add_argument("--runs", metavar="DIR", default="runs", help="where run folders go [runs]")
    fit.add_argument(
        "--checkpoint-seconds", metavar="S", type=float, default=10.0,
        help="least seconds between two checkpoints; 0 saves after every epoch [10]",
    )  # fmt: skip
    fit.add_argument("--tensorboard", action="store_true", help="also log for TensorBoard")
    fit.set_defaults(run=run_fit)
    for name, text in (
        ("validate", "score a checkpoint on the validation part"),
        ("test", "score a checkpoint on the test part"),
        ("predict", "write a checkpoint's predictions, one row per sample"),
    ):
        parser = _command(subparsers, name, text)
        parser.add_argument(
            "--ckpt", metavar="FILE_OR_RUN", required=True, help="checkpoint, or a run folder"
        )
        parser.add_argument(
            "--config", metavar="FILE", help="only for checkpoints that moeapps did not write"
        )
        if name == "predict":
            parser.add_argument(
                "--out", metavar="FILE", help="a .csv or .npz file [predictions.csv in the run]"
            )
            parser.add_argument(
                "--input", metavar="FILE_OR_DIR",
                help="predict with the checkpoint alone: the raw rows of a .parquet or .csv file "
                "(ranking models), or a photo or a folder of photos (vision)",
            )  # fmt: skip
            parser.add_argument(
                "--output", metavar="FILE_OR_DIR",
                help="with --input: a .parquet file [predictions.parquet beside the input], or a "
                "folder for what is made of photos [predictions/ in the run]",
            )  # fmt: skip
            parser.add_argument(
                "--tile", metavar="PIXELS", type=int,
                help="photos to restore or to count in: side of the parts they go through the "
                "network in [that of the run, else what fits in memory]",
            )  # fmt: skip
        parser.set_defaults(run=run_evaluation)


def _command(subparsers: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=_OVERRIDES,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def run_evaluation(options: argparse.Namespace) -> int:
    """Run ``validate``, ``test`` or ``predict``."""
    from moeapps.cli.evaluate import evaluate

    return evaluate(options)


def run_fit(options: argparse.Namespace) -> int:
    """Run ``fit``."""
    if (options.config is None) == (options.resume is None):
        raise ConfigError(
            "moeapps fit needs either --config FILE to start a run or --resume RUN to continue one."
        )
    if options.checkpoint_seconds < 0:
        raise ConfigError("--checkpoint-seconds must be 0 or more.")
    if options.tensorboard:
        _need_tensorboard()
    from moeapps.cli.build import build, quiet
    from moeapps.cli.configs import check_config, check_schema, read_config
    from moeapps.cli.overrides import apply_overrides
    from moeapps.training.runs import RunFolder

    if options.resume is not None:
        run = RunFolder.open(options.resume)
        run.check_writable()
        config, source = run.read_config(), str(run.config_file)
        check_schema(config, source=source)
        for key, _ in options.overrides:
            if not key.startswith("trainer."):
                raise ConfigError(
                    f"--{key} would change what the run computes, so it would not continue "
                    "exactly. With --resume only --trainer.* can be set; start a new run instead."
                )
    else:
        run = None
        config, source = read_config(options.config), options.config
    apply_overrides(config, options.overrides)
    with quiet():
        check_config(config, source=source)
        built = build(config)
        new = run is None
        if run is None:
            run = RunFolder.create(options.runs, domain_of(built), run_name(built))
        run.write_config(built.config)
        run.write_environment()
        try:
            return _train(run, built, options, resumed=not new)
        except Exception:
            if new and not run.metrics_file.exists():
                shutil.rmtree(run.path, ignore_errors=True)  # it never began: leave nothing behind
            raise


def _train(run: "RunFolder", built: "Built", options: argparse.Namespace, *, resumed: bool) -> int:
    from moeapps.cli.console import console, messages
    from moeapps.cli.main import Interrupted
    from moeapps.cli.report import write_report
    from moeapps.training.keeper import ResultsWriter, RunKeeper, is_trial
    from moeapps.training.metrics_log import MetricsLog
    from moeapps.training.progress import progress_bar

    checkpoint = run.last if resumed and run.last.is_file() else None
    if checkpoint is None:
        run.metrics_file.unlink(missing_ok=True)
    log = MetricsLog(run.metrics_file)
    said = "from its last checkpoint" if checkpoint else "from the start: it has no checkpoint yet"
    note = f"resuming {run.path} {said}" if resumed else f"run folder: {run.path}"
    keeper = RunKeeper(
        run, log, config=built.config, every_seconds=options.checkpoint_seconds,
        on_start=lambda: messages().print(note, markup=False),
    )  # fmt: skip
    trainer = built.make_trainer(
        callbacks=[keeper, ResultsWriter(run), progress_bar()],
        loggers=[log, *_tensorboard(run, options.tensorboard)],
        default_root_dir=str(run.path),
    )
    earlier = float(run.read_report().get("seconds", 0.0)) if checkpoint else 0.0
    began = time.monotonic()
    facts = {**about(built), "status": "partial", "seconds": earlier}
    run.write_report(facts)
    stopped = _fit(trainer, built, keeper, checkpoint)
    facts["seconds"] = earlier + time.monotonic() - began
    facts["epochs"] = trainer.current_epoch
    facts["best"] = keeper.best_facts(built.model)
    if stopped:
        facts["metrics"] = _numbers(trainer)
        run.write_report(facts)
        write_report(run)
        raise Interrupted(
            f"interrupted. What was reached is in {run.path}\n"
            f"continue with: moeapps fit --resume {run.path}"
        )
    if is_trial(trainer):
        trainer.test(built.model, datamodule=built.data, verbose=False)
    else:
        if not run.best.is_file() or getattr(built.model, "keeps_best", False):
            keeper.write_best(trainer, built.model.state_dict())
        trainer.test(built.model, datamodule=built.data, ckpt_path=run.best, verbose=False)
    facts["metrics"] = _numbers(trainer)
    facts["status"] = "trial" if is_trial(trainer) else "complete"
    run.write_report(facts)
    write_report(run)
    out = console()
    out.print(metrics_table(facts["metrics"], f"{facts['model']} on {facts['dataset']}, test"))
    out.print(f"report: {run.path / 'report.html'}", markup=False)
    return 0


def _fit(
    trainer: "pl.Trainer", built: "Built", keeper: "RunKeeper", checkpoint: Path | None
) -> bool:
    """Train; true if the user broke it off."""

    def break_off(*_: Any) -> None:
        raise KeyboardInterrupt

    # A batch system ends jobs with SIGTERM: leave the same usable folder as after Ctrl-C.
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, break_off)
    try:
        trainer.fit(built.model, datamodule=built.data, ckpt_path=checkpoint)
    except (KeyboardInterrupt, SystemExit):
        if not keeper.interrupted:
            raise
        return True
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
    return False


def about(built: "Built") -> dict[str, Any]:
    """What a report says of a run before any number."""
    return {
        "schema": 1,
        "domain": domain_of(built),
        "model": model_name(built),
        "dataset": dataset_name(built),
        "synthetic": _is_synthetic(built),
        "seed": built.config["seed_everything"],
    }


def domain_of(built: "Built") -> str:
    """``graphs`` for classes of ``moeapps.graphs``, and so on."""
    parts = type(built.model).__module__.split(".")
    return parts[1] if parts[0] == "moeapps" and len(parts) > 2 else "other"


def model_name(built: "Built") -> str:
    """A short name of the model: ``gcn``, ``mowst_gcn``, ``mowst_star_gcn``."""
    given = built.config["model"]["init_args"]
    for key in ("network", "model"):
        if isinstance(given.get(key), str):
            return str(given[key])
    words = re.findall(r"[A-Z][a-z0-9]*|[a-z0-9]+", type(built.model).__name__)
    parts = [word.lower() for word in words if word != "Classifier"]
    parts += ["star"] if given.get("joint") else []
    parts += [str(given["strong"])] if "strong" in given else []
    return "_".join(parts)


def dataset_name(built: "Built") -> str:
    """Name of the data set."""
    return str(getattr(built.data, "dataset", None) or type(built.data).__name__.lower())


def _is_synthetic(built: "Built") -> bool:
    from moeapps.cli.data import find_card

    try:
        return find_card(dataset_name(built)).synthetic
    except UnknownNameError:  # a set of the user's own
        return False


def run_name(built: "Built") -> str:
    """``<model>_<dataset>``, safe as the name of a folder."""
    text = f"{model_name(built)}_{dataset_name(built)}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "run"


def metrics_table(metrics: dict[str, float], title: str) -> Any:
    """Metrics as a table for the terminal."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    return table


def _numbers(trainer: "pl.Trainer") -> dict[str, float]:
    return {
        name: float(value)
        for name, value in sorted(trainer.callback_metrics.items())
        if name != "phase"
    }


def _need_tensorboard() -> None:
    from importlib.util import find_spec

    if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        raise ConfigError(
            "--tensorboard needs a package that is not installed. Run: pip install tensorboard"
        )


def _tensorboard(run: "RunFolder", wanted: bool) -> list[Any]:
    if not wanted:
        return []
    from lightning.pytorch.loggers import TensorBoardLogger

    return [TensorBoardLogger(os.fspath(run.path), name="tensorboard", version="")]
