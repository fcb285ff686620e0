"""``moeapps report RUN``: everything a run folder can tell, drawn again from its files alone."""

import argparse
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from moeapps.training.report import Report, Section
    from moeapps.training.runs import RunFolder


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "report", help="write a run's report again from its folder", allow_abbrev=False
    )
    parser.add_argument(
        "folder", metavar="RUN", help="folder that 'moeapps fit' or 'moeapps stream' printed"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the report and say where it is."""
    from moeapps.cli.console import console
    from moeapps.training.runs import RunFolder

    folder = RunFolder.open(options.folder)
    folder.check_writable()
    write_report(folder)
    console().print(f"report: {folder.path / 'report.html'}", markup=False)
    return 0


def write_report(run: "RunFolder") -> None:
    """Write ``report.md``, ``report.html`` and ``figures/`` of a run."""
    from moeapps.training import report

    report.write(make_report(run), run.path)


def make_report(run: "RunFolder") -> "Report":
    """The report of a run, from its files."""
    from moeapps.training.report import Picture, Report, Section, Table

    config = run.read_config()
    if config.get("command") == "stream":
        from moeapps.cli import stream_report

        return stream_report.make_report(run, config)
    facts, metrics, results = run.read_report(), run.read_metrics(), run.read_results()
    model, dataset = facts.get("model", run.path.parent.name), facts.get("dataset", "")
    made = " (synthetic data)" if facts.get("synthetic") else ""
    title = f"{model} on {dataset}{made}" if dataset else str(model)
    made_of = [f"run {run.path.name}", f"seed {facts.get('seed', config.get('seed_everything'))}"]
    if facts.get("epochs"):
        made_of.append(f"{facts['epochs']:,} epochs in {duration(float(facts['seconds']))}")
    report = Report(title, ", ".join(made_of))
    if facts.get("status") != "complete":
        report.notices.append(_unfinished(facts.get("status"), run))
    if facts.get("synthetic"):
        report.notices.append("The data is synthetic: it was generated from a seed, not measured.")

    numbers = facts.get("metrics") or _last_values(metrics)
    if numbers:
        rows = tuple((name, _number(float(value))) for name, value in numbers.items())
        tested = facts.get("status") in ("complete", "trial")
        heading = "Test result" if tested else "Where it stands"
        report.sections.append(
            Section(heading, text=_chosen(facts), table=Table(("metric", "value"), rows))
        )
    figures = domain_figures(str(facts.get("domain", "")), results, metrics)
    pictures = tuple(Picture(name, figure, caption) for name, (figure, caption) in figures.items())
    if pictures:
        report.sections.append(Section("Figures", pictures=pictures))
    report.sections += domain_sections(str(facts.get("domain", "")), results)
    shown = {
        key: config[key]
        for key in ("schema", "seed_everything", "model", "data", "trainer")
        if key in config
    }
    report.sections.append(
        Section(
            "How to run it again",
            text=f"`moeapps fit --config {run.config_file}`",
            code=yaml.safe_dump(shown, sort_keys=False),
        )
    )
    environment = run.path / "environment.txt"
    if environment.is_file():
        report.sections.append(Section("Environment", code=environment.read_text(encoding="utf-8")))
    return report


def domain_sections(domain: str, results: "dict[str, np.ndarray]") -> "list[Section]":
    """What a domain has to say besides figures."""
    name = f"moeapps.{domain}.sections"
    if not domain or importlib.util.find_spec(f"moeapps.{domain}") is None:
        return []
    if importlib.util.find_spec(name) is None:
        return []
    found: list[Section] = importlib.import_module(name).sections(results)
    return found


def domain_figures(
    domain: str, results: "dict[str, np.ndarray]", metrics: "dict[str, np.ndarray]"
) -> "dict[str, tuple[Figure, str]]":
    """Figures of the domain, or plain training curves where a domain has none, with captions."""
    if domain and importlib.util.find_spec(f"moeapps.{domain}") is not None:
        name = f"moeapps.{domain}.figures"
        if importlib.util.find_spec(name) is not None:
            module = importlib.import_module(name)
            if hasattr(module, "figures"):
                drawn = module.figures(results, metrics)
                return {key: (figure, module.CAPTIONS[key]) for key, figure in drawn.items()}
    from moeapps.plots import training_curves

    losses = {name: values for name, values in metrics.items() if name.endswith("/loss")}
    if not losses:
        return {}
    figure = training_curves(metrics["epoch"], losses, ylabel="loss")
    return {"losses": (figure, "Loss over the epochs.")}


def duration(seconds: float) -> str:
    """A time a person can read.

    Example:
        >>> duration(3.2), duration(75), duration(4000)
        ('3.2 s', '1 min 15 s', '1 h 6 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _unfinished(status: Any, run: "RunFolder") -> str:
    if status == "trial":
        return "This was a trial (fast_dev_run): one batch per part. Its numbers mean nothing."
    return (
        "This run is partial: it was interrupted before its end. "
        f"Continue it with: moeapps fit --resume {run.path}"
    )


def _chosen(facts: dict[str, Any]) -> str:
    best = facts.get("best") or {}
    if facts.get("status") != "complete":
        return ""
    if best.get("last"):
        return "Weights at the end of the training. The test part was used once."
    text = "Weights chosen on the validation part"
    if best.get("monitor"):
        text += f" by `{best['monitor']}`"
    if best.get("score") is not None:
        text += f": {_number(float(best['score']))}"
    if best.get("epoch") is not None:
        text += f", epoch {best['epoch']}"
    return text + ". The test part was used once, at the end."


def _last_values(metrics: "dict[str, np.ndarray]") -> dict[str, float]:
    import numpy as np

    values = {}
    for name, column in metrics.items():
        known = column[np.isfinite(column)]
        if name not in ("step", "epoch", "phase") and len(known):
            values[name] = float(known[-1])
    return values


def _number(value: float) -> str:
    if value != value:
        return "not defined"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 100 else f"{value:.4f}"
