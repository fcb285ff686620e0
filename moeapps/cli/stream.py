"""``moeapps stream MODEL --data NAME``: test, then train, on a stream; models side by side."""

import argparse
import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeapps.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from moeapps.cli.stream_results import Results
    from moeapps.streams.datasets.stream import Stream
    from moeapps.streams.evaluation import Evaluation
    from moeapps.training.runs import RunFolder

SCHEMA = 1


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "stream", help="test-then-train classifiers on a stream, side by side", allow_abbrev=False
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="such as driftmoe, routed_bagging, river:AMF...")
    add("--data", metavar="NAME", help="a name from 'moeapps data list', or a CSV file")
    add("--target", metavar="COLUMN", help="label column of a CSV file")
    add("--baselines", metavar="MODEL", nargs="+", default=[], help="models to compare with")
    add("--limit", metavar="N", type=int, help="first N instances only")
    add("--seeds", metavar="S", type=int, nargs="+", default=[0], help="one run per seed [0]")
    add("--delay", metavar="D", type=int, default=0, help="labels come D instances late [0]")
    add("--window", metavar="W", type=int, default=1000, help="instances per point [1000]")
    add(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="settings",
        help="argument of MODEL; of another model: arf.n_models=30; of the data: data.length=50000",
    )  # fmt: skip
    add("--predictions", action="store_true", help="keep every prediction in results.npz")
    add("--out", metavar="DIR", help="run folder [runs/streams/<model>_<data>/<time>]")
    add("--resume", metavar="RUN", help="go on with an interrupted run, in its folder")
    add(
        "--checkpoint-seconds", metavar="S", type=float, default=10.0,
        help="least time between two saved states [10]",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Start a run or go on with one."""
    from moeapps.cli.console import console
    from moeapps.cli.stream_report import summary_table, write_run_report
    from moeapps.streams.compiling import announce
    from moeapps.training.runs import RunFolder

    if options.resume is not None:
        if options.model is not None or options.data is not None:
            raise ConfigError(
                "--resume goes on with the settings in the run folder: give it without MODEL and "
                "--data, or start a new run without --resume."
            )
        folder = RunFolder.open(options.resume)
        config = _stream_config(folder)
    else:
        config = _config(options)
        _prepare(config, config["seeds"][0])  # mistakes show before a folder is made
        folder = _new_folder(options.out, config)
        folder.write_config(config)
        folder.write_environment()
    folder.check_writable()
    announce()
    results = _execute(folder, config, options.checkpoint_seconds)
    write_run_report(folder, config, results)
    console().print(summary_table(results, config))
    console().print(f"report: {folder.path / 'report.html'}", markup=False)
    return 0


def _config(options: argparse.Namespace) -> dict[str, Any]:
    """The options as what ``config.yaml`` holds."""
    if options.model is None or options.data is None:
        raise ConfigError(
            "A run needs MODEL and --data NAME. Try: moeapps stream driftmoe --data led_a "
            "--limit 100000"
        )
    models = list(dict.fromkeys([options.model, *options.baselines]))
    return {
        "schema": SCHEMA,
        "command": "stream",
        "models": models,
        "data": options.data,
        "target": options.target,
        "limit": options.limit,
        "seeds": list(dict.fromkeys(options.seeds)),
        "delay": options.delay,
        "window": options.window,
        "predictions": options.predictions,
        "settings": _settings(options.settings, models),
    }


def _settings(pairs: list[str], models: list[str]) -> dict[str, dict[str, Any]]:
    """``KEY=VALUE`` texts sorted by what they belong to: a model, or ``data``."""
    from moeapps.cli.configs import parse_yaml

    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair} has no value. Write --set {pair}=VALUE.")
        owner, dot, name = key.rpartition(".")
        if not dot:
            owner = models[0]
        elif owner not in (*models, "data"):
            raise ConfigError(
                f"--set {pair}: {owner!r} does not take part. Expected one of "
                f"{', '.join(models)} or data in front of the dot."
            )
        found.setdefault(owner, {})[name] = parse_yaml(text, source=f"--set {key}")
    return found


def _stream_config(folder: "RunFolder") -> dict[str, Any]:
    """The configuration of a run that this command made."""
    config = folder.read_config()
    if config.get("command") != "stream" or config.get("schema") != SCHEMA:
        raise RunFolderError(
            f"{folder.path} is no run of 'moeapps stream' (schema {SCHEMA}). Go on with a run of "
            "'moeapps fit' by: moeapps fit --resume RUN"
        )
    return config


def _new_folder(out: str | None, config: dict[str, Any]) -> "RunFolder":
    from moeapps.training.runs import RunFolder

    if out is None:
        name = f"{config['models'][0]}_{Path(config['data']).name.partition('.')[0]}"
        return RunFolder.create("runs", "streams", name.replace(":", "_"))
    folder = RunFolder(out)
    if folder.config_file.exists():
        raise RunFolderError(
            f"{folder.path} holds a run already. Choose another folder, or go on with it by: "
            f"moeapps stream --resume {folder.path}"
        )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"Cannot make the folder {folder.path} ({error.strerror}). Choose another with --out."
        ) from error
    folder.check_writable()
    return folder


def _load_stream(config: dict[str, Any], seed: int) -> "Stream":
    from moeapps.streams.datasets import DATASETS, load, load_csv

    data, limit = config["data"], config["limit"]
    known = data.lower().replace("-", "_") in DATASETS
    if not known and (config["target"] is not None or Path(data).suffix in (".csv", ".gz")):
        if config["target"] is None:
            raise ConfigError(f"Which column of {data} is the label? Say it with --target COLUMN.")
        return load_csv(data, config["target"], limit=limit)
    return load(data, limit=limit, seed=seed, **config["settings"].get("data", {}))


def _prepare(config: dict[str, Any], seed: int) -> "Evaluation":
    """Stream and models of one seed."""
    from moeapps.cli.stream_models import build
    from moeapps.streams.evaluation import Evaluation

    stream = _load_stream(config, seed)
    models = {
        name: build(
            name, seed=seed, nominal=stream.nominal, settings=config["settings"].get(name, {})
        )
        for name in config["models"]
    }
    return Evaluation(
        models, stream, delay=config["delay"], window=config["window"],
        keep_predictions=config["predictions"],
    )  # fmt: skip


def _execute(folder: "RunFolder", config: dict[str, Any], every: float) -> "Results":
    """All seeds that are not complete yet, one after the other."""
    from moeapps.cli.main import Interrupted
    from moeapps.cli.stream_progress import Progress
    from moeapps.cli.stream_report import write_run_report
    from moeapps.cli.stream_results import Results
    from moeapps.streams.evaluation import STATE

    results = Results.read(folder, config["models"])
    seeds = config["seeds"]
    with _stop_requests() as asked, Progress(len(seeds)) as progress:
        for index, seed in enumerate(seeds):
            state = folder.checkpoints / f"seed_{seed}"
            if seed not in results.complete:
                evaluation = _prepare(config, seed)
                if (state / STATE).is_file():
                    evaluation.restore(state)
                saved = time.monotonic()
                while evaluation.step():
                    progress.show(evaluation, index, seed)
                    if asked or time.monotonic() - saved > every:
                        evaluation.save(state)
                        saved = time.monotonic()
                    if asked:
                        results.add(seed, evaluation)
                        write_run_report(folder, config, results)
                        raise Interrupted(
                            f"Stopped after instance {evaluation.done:,} of "
                            f"{len(evaluation.stream):,}, seed {seed}. The report so far is in "
                            f"{folder.path}. Go on with: moeapps stream --resume {folder.path}"
                        )
                results.add(seed, evaluation, complete=True)
                results.write(folder)
            # The seed is in results.npz now, so its state is of no more use.
            shutil.rmtree(state, ignore_errors=True)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return results


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or SIGTERM asks to stop; a second one stops at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
