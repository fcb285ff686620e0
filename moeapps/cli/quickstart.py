"""``moeapps quickstart``: the main job of each domain, without files to fetch, in minutes."""

import argparse
import importlib
import importlib.util
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeapps.errors import ConfigError, MissingExtraError, RunFolderError, UnknownNameError
from moeapps.lazy import needs_extra

if TYPE_CHECKING:
    from moeapps.training.report import Section

# One part per domain or task. Each module has ``run(*, seeds, fast, say) -> Part``.
PARTS = {
    "graphs": "moeapps.cli.quickstart_graphs",
    "recsys": "moeapps.cli.quickstart_recsys",
    "streams": "moeapps.cli.quickstart_streams",
    "vision": "moeapps.cli.quickstart_vision",
    "restoration": "moeapps.cli.quickstart_restoration",
    "counting": "moeapps.cli.quickstart_counting",
}
# What a part cannot run without, besides what moeapps itself needs.
NEEDS = {
    "graphs": ("torch_geometric",),
    "recsys": (),
    "streams": ("numba", "river"),
    "vision": ("sklearn",),
    "restoration": ("skimage", "sklearn", "PIL"),
    "counting": ("scipy",),
}
# The extra that brings it, where that has another name.
EXTRAS = {"restoration": "vision", "counting": "vision"}
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "skimage": "scikit-image", "PIL": "pillow"}
HEADER = ("model", "test accuracy, %", "time per training, s", "to the weak expert, %")


@dataclass(frozen=True)
class Row:
    """One model in the final table.

    Args:
        model: Its name.
        scores: Test score per seed: a share in [0, 1], or in the unit that the part's header names.
        seconds: Training time per seed.
        weak_share: Share of rows sent to the weak expert per seed; empty for single models.
    """

    model: str
    scores: tuple[float, ...]
    seconds: tuple[float, ...]
    weak_share: tuple[float, ...] = ()


@dataclass
class Part:
    """What one domain's part produced.

    Args:
        title: One line: data and question.
        rows: One per model.
        reading: What the numbers say, computed from them.
        sections: Of the report, after the table.
        facts: Plain values for ``report.json``.
        header: Names of the columns of the table.
        cells: The table as text, where it is not that of trained models.
        synthetic: All of the data is generated.
        seeds: How often every model was trained.
    """

    title: str
    rows: list[Row]
    reading: str
    sections: "list[Section]" = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    header: tuple[str, ...] = HEADER
    cells: list[tuple[str, ...]] = field(default_factory=list)
    synthetic: bool = True
    seeds: int = 1


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "quickstart",
        help="train the main models and show what came out",
        allow_abbrev=False,
    )
    parser.add_argument(
        "parts", metavar="PART", nargs="*", help=f"{', '.join(PARTS)} [all that are installed]"
    )
    parser.add_argument("--seeds", metavar="N", type=int, default=5, help="how often [5]")
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the report [runs/quickstart/<time>]"
    )
    parser.add_argument(
        "--only", metavar="PART", action="append", help=f"one of: {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--fast", action="store_true", help="tiny data, one seed: does everything run?"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the parts, print one table, write one report."""
    if options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds} is too small. Choose 1 or more.")
    from moeapps.cli.console import console, messages

    out = messages()
    names = _parts([*options.parts, *(options.only or [])])
    for name in PARTS:
        if (missing := _missing(name)) and name not in names:
            out.print(f"{name} is left out: {_lacks(name, missing)}", markup=False)
    folder = _folder(options.out)
    began = time.monotonic()
    seeds = 1 if options.fast else options.seeds
    parts = {}
    for name in names:
        with needs_extra(EXTRAS.get(name, name)):
            parts[name] = importlib.import_module(PARTS[name]).run(
                seeds=seeds, fast=options.fast, say=lambda text: out.print(text, markup=False)
            )
    for part in parts.values():
        console().print(_terminal_table(part))
        console().print(part.reading, markup=False)
    _write(folder, parts, seconds=time.monotonic() - began, seeds=seeds, fast=options.fast)
    console().print(f"report: {folder / 'report.html'}", markup=False)
    return 0


def _parts(given: list[str]) -> list[str]:
    """The parts to run: those named, else all that are installed."""
    for name in given:
        if name not in PARTS:
            raise UnknownNameError("part", name, PARTS)
        if missing := _missing(name):
            raise _lacks(name, missing)
    names = list(dict.fromkeys(given)) or [name for name in PARTS if not _missing(name)]
    if not names:
        raise MissingExtraError("graphs", str(_missing("graphs")))
    return names


def _missing(name: str) -> str | None:
    """A package that a part needs and that is not installed."""
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            return _DISTRIBUTIONS.get(package, package.replace("_", "-"))
    return None


def _lacks(name: str, package: str) -> MissingExtraError:
    return MissingExtraError(EXTRAS.get(name, name), package)


def mean_spread(values: tuple[float, ...], *, scale: float = 1.0, digits: int = 1) -> str:
    """Mean and standard deviation (of a sample) as text.

    Example:
        >>> mean_spread((0.5, 0.7), scale=100)
        '60.0 ± 14.1'
        >>> mean_spread((0.5,), scale=100)
        '50.0'
    """
    import statistics

    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def table_rows(part: Part) -> list[tuple[str, ...]]:
    """The rows of the final table as text."""
    return part.cells or [
        (
            row.model,
            mean_spread(row.scores, scale=100),
            mean_spread(row.seconds),
            mean_spread(row.weak_share, scale=100) if row.weak_share else "-",
        )
        for row in part.rows
    ]


def _titled(part: Part) -> str:
    return f"{part.title}, {part.seeds} seed{'' if part.seeds == 1 else 's'}"


def _terminal_table(part: Part) -> Any:
    from rich.table import Table

    table = Table(title=f"\n{_titled(part)}", title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(part.header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for cells in table_rows(part):
        table.add_row(*cells)
    return table


def _folder(given: str | None) -> Path:
    from moeapps.training.runs import RunFolder

    if given is None:
        return RunFolder.create("runs", "quickstart", "").path
    folder = Path(given)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"Cannot make the folder {folder} ({error.strerror}). Choose another with --out DIR."
        ) from error
    RunFolder(folder).check_writable()
    return folder


def _write(folder: Path, parts: dict[str, Part], *, seconds: float, seeds: int, fast: bool) -> None:
    from moeapps.cli.report import duration
    from moeapps.training.report import Report, Section, Table, write
    from moeapps.training.runs import RunFolder, environment_text

    made = [name for name, part in parts.items() if part.synthetic]
    synthetic = len(made) == len(parts)
    report = Report(
        "moeapps quickstart" + (" (synthetic data)" if synthetic else ""),
        f"{duration(seconds)} in all",
    )
    if made:
        what = "The data" if synthetic else f"The data of the part on {' and '.join(made)}"
        report.notices.append(f"{what} is synthetic: it was generated from seeds, not measured.")
    if fast:
        report.notices.append(
            "This was a trial run on tiny data (--fast): read no meaning into it."
        )
    for part in parts.values():
        table = Table(part.header, tuple(table_rows(part)))
        report.sections.append(Section(_titled(part), text=part.reading, table=table))
        report.sections += part.sections
    command = f"moeapps quickstart {' '.join(parts)}"
    command += " --fast" if fast else f" --seeds {seeds}"
    report.sections.append(Section("How to run it again", code=command))
    report.sections.append(Section("Environment", code=environment_text()))
    run = RunFolder(folder)
    write(report, folder)
    run.write_environment()
    run.write_report(
        {
            "schema": 1,
            "status": "trial" if fast else "complete",
            "synthetic": synthetic,
            "seconds": seconds,
            "parts": {
                name: {
                    **part.facts,
                    "rows": [
                        {
                            "model": row.model, "scores": row.scores, "seconds": row.seconds,
                            "weak_share": row.weak_share,
                        }
                        for row in part.rows
                    ],
                }
                for name, part in parts.items()
            },
        }
    )  # fmt: skip
