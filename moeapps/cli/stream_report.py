"""The report of ``moeapps stream``, drawn from a run folder alone."""

import csv
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from moeapps.cli.quickstart import mean_spread
from moeapps.cli.stream_results import Results, summary
from moeapps.errors import RunFolderError
from moeapps.streams.metrics import accuracy, kappa_m, kappa_temporal
from moeapps.streams.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moeapps.training.report import Report
    from moeapps.training.runs import RunFolder

HEADER = (
    "model", "accuracy, %", "kappa-M, %", "kappa-temporal, %", "instances / CPU s",
    "drifts seen", "instances to recover",
)  # fmt: skip


def table_rows(results: Results) -> list[tuple[str, ...]]:
    """The summary as text: mean and standard deviation over the seeds."""
    rows = []
    for name, numbers in summary(results).items():
        speed = np.mean(numbers["instances_per_cpu_second"])
        recovery = numbers["recovery"]
        asked = len(results.drifts) * len(results.seeds)
        back = f"{np.mean(recovery):,.0f} ({len(recovery)} of {asked})" if recovery else "-"
        rows.append(
            (
                name,
                *(
                    mean_spread(tuple(numbers[key]), scale=100, digits=2)
                    for key in ("accuracy", "kappa_m", "kappa_temporal")
                ),
                f"{speed:,.0f}",
                mean_spread(tuple(numbers["drifts"])) if any(numbers["drifts"]) else "-",
                back,
            )
        )
    return rows


def summary_table(results: Results, config: dict[str, Any]) -> Any:
    """The summary for the terminal."""
    from rich.table import Table

    title = f"\n{config['data']}: {_scope(results, config)}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="left" if index == 0 else "right")
    for cells in table_rows(results):
        table.add_row(*cells)
    return table


def _scope(results: Results, config: dict[str, Any]) -> str:
    seeds = len(results.seeds)
    text = f"{int(results.ends[-1]):,} instances, {seeds} seed{'s' if seeds > 1 else ''}"
    return text + (f", labels {config['delay']:,} instances late" if config["delay"] else "")


def write_run_report(run: "RunFolder", config: dict[str, Any], results: Results) -> None:
    """Write results, metrics and all forms of the report."""
    from moeapps.training import report

    results.write(run)
    run.write_text("metrics.csv", _metrics_csv(results))
    complete = set(config["seeds"]) <= set(results.complete)
    run.write_report(
        {
            "schema": 1,
            "domain": "streams",
            "status": "complete" if complete else "partial",
            "model": results.models[0],
            "dataset": str(config["data"]),
            "synthetic": bool(results.facts["synthetic"]),
            "instances": int(results.ends[-1]),
            "seeds": results.seeds,
            "metrics": summary(results),
        }
    )
    report.write(make_report(run, config, results), run.path)


def _metrics_csv(results: Results) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["model", "seed", "instance", "accuracy", "kappa_m", "kappa_temporal", "living"]
    )
    for (name, seed), record in results.records.items():
        windows = record.windows()
        columns = (accuracy(windows), kappa_m(windows), kappa_temporal(windows), record.living)
        for end, *values in zip(record.ends, *columns, strict=True):
            writer.writerow([name, seed, end, *("" if v != v else f"{v:.6g}" for v in values)])
    return buffer.getvalue()


def make_report(
    run: "RunFolder", config: dict[str, Any], results: Results | None = None
) -> "Report":
    """The report of a run, from its files.

    Raises:
        RunFolderError: The run was killed before it wrote any result.
    """
    from moeapps.streams.figures import CAPTIONS
    from moeapps.training.report import Picture, Report, Section, Table

    results = Results.read(run, config["models"]) if results is None else results
    if not results.records:
        raise RunFolderError(
            f"{run.path} has no results yet. Go on with the run: moeapps stream --resume {run.path}"
        )
    made = " (synthetic data)" if results.facts["synthetic"] else ""
    report = Report(
        f"{' and '.join(results.models[:1])} on {results.facts['title']}{made}",
        f"run {run.path.name}, {_scope(results, config)}",
    )
    if not set(config["seeds"]) <= set(results.complete):
        report.notices.append(
            "This run is partial: it was interrupted before its end. Go on with: "
            f"moeapps stream --resume {run.path}"
        )
    if results.facts["synthetic"]:
        report.notices.append("The data is synthetic: it was generated from a seed, not measured.")
    table = Table(HEADER, tuple(table_rows(results)))
    report.sections.append(Section("Result", text=reading(results), table=table))
    pictures = tuple(
        Picture(name, figure, CAPTIONS[name.partition("_")[0]])
        for name, figure in figures(results).items()
    )
    report.sections.append(Section("Figures", pictures=pictures))
    report.sections.append(Section("How to run it again", code=command(config)))
    environment = run.path / "environment.txt"
    if environment.is_file():
        report.sections.append(Section("Environment", code=environment.read_text(encoding="utf-8")))
    return report


def command(config: dict[str, Any]) -> str:
    """The command line that starts the run again."""
    words = ["moeapps stream", config["models"][0], "--data", str(config["data"])]
    if config["target"] is not None:
        words += ["--target", config["target"]]
    if config["models"][1:]:
        words += ["--baselines", *config["models"][1:]]
    if config["limit"] is not None:
        words += ["--limit", str(config["limit"])]
    words += ["--seeds", *map(str, config["seeds"])]
    words += ["--delay", str(config["delay"])] if config["delay"] else []
    words += ["--window", str(config["window"])] if config["window"] != 1000 else []
    for owner, settings in config["settings"].items():
        front = "" if owner == config["models"][0] else f"{owner}."
        words += [f"--set {front}{key}={value}" for key, value in settings.items()]
    return " ".join(words) + (" --predictions" if config["predictions"] else "")


def reading(results: Results) -> str:
    """What the numbers say, computed from them."""
    found = summary(results)
    score = {name: float(np.mean(numbers["accuracy"])) for name, numbers in found.items()}
    best = max(score, key=score.__getitem__)
    first = results.models[0]
    text = f"**{best}** is right most often: {score[best]:.2%} of the instances."
    if first != best:
        text += f" **{first}** is {100 * (score[best] - score[first]):.2f} points behind it."
    gains = [float(np.nanmean(found[best][key])) for key in ("kappa_m", "kappa_temporal")]
    if gains[0] <= 0:
        text += " That is no better than always saying the most frequent class so far."
    if gains[1] <= 0:
        text += " That is no better than repeating the last label."
    unequal = {len(record.ends) for record in results.records.values()}
    if len(unequal) > 1:
        text += " Seeds that did not get to the end count as far as they got."
    text += (
        "\n\nkappa-M is the gain over always saying the class most frequent so far, kappa-temporal "
        "the gain over repeating the last label; 0 is no gain, 100 is perfect. CPU seconds count "
        "the model's own work, not the making of the stream."
    )
    if results.drifts:
        text += (
            ' "Instances to recover" is a mean over as many changes and seeds as it says; the '
            "others were not recovered from."
        )
    return text


def figures(results: Results) -> "dict[str, Figure]":
    """Figures by name; what follows ``_`` is a model."""
    from moeapps.streams import figures as draw

    ends, drifts, width = results.ends, results.drifts, float(results.facts["drift_width"])
    shown = [drift for drift in drifts if drift < ends[-1]]
    first = results.seeds[0]
    found = {
        "accuracy": draw.windowed_accuracy(
            ends,
            {name: results.mean(name, _accuracy) for name in results.models},
            drifts=shown,
            drift_width=width,
            detected={name: results.records[name, first].drifts for name in results.models},
        )
    }
    living = {name: results.mean(name, lambda record: record.living) for name in results.models}
    living = {name: values for name, values in living.items() if np.isfinite(values).any()}
    if living:
        found["living"] = draw.living_experts(ends, living, drifts=shown, drift_width=width)
    for name in results.models:
        arrays = results.records[name, first].arrays()
        if arrays["usage"].shape[1] > 1 and arrays["usage"].any():
            found[f"usage_{name.replace(':', '_')}"] = draw.expert_usage(
                arrays["ends"], arrays["usage"], drifts=shown, name=f"{name}, seed {first}"
            )
    if shown:
        times = {name: results.recovery(name)[:, : len(shown)] for name in results.models}
        found["recovery"] = draw.recovery_times(shown, times)
    return found


def _accuracy(record: Record) -> np.ndarray:
    return accuracy(record.windows())
