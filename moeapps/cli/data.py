"""``moeapps data``: what sets there are, where they live, whether they are whole."""

import argparse
import importlib
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from moeapps.cli.console import console
from moeapps.data import DatasetCard, data_home
from moeapps.data.download import fetch
from moeapps.data.integrity import verify_file
from moeapps.errors import DataIntegrityError, DataNotFoundError, UnknownNameError

# Domains with data sets. Each has ``list_datasets``, ``card`` and ``load`` in ``datasets``.
DOMAINS = ("graphs", "recsys", "streams", "vision")


def register(subparsers: Any) -> None:
    """Add ``data`` and its actions to the command line's subparsers."""
    parser = subparsers.add_parser("data", help="list, check and fetch data sets")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    root = argparse.ArgumentParser(add_help=False)
    root.add_argument("--root", type=Path, help="data home (default: MOEAPPS_DATA or the cache)")

    listing = actions.add_parser("list", parents=[root], help="sets that can be loaded by name")
    listing.add_argument("pattern", nargs="?", default="*", help="shell pattern, like 'tw*'")
    listing.set_defaults(run=run_list)
    info = actions.add_parser("info", parents=[root], help="the card of a set")
    info.add_argument("name")
    info.set_defaults(run=run_info)
    check = actions.add_parser("check", parents=[root], help="are its files there and whole")
    check.add_argument("name")
    check.set_defaults(run=run_check)
    path = actions.add_parser("path", parents=[root], help="data home, or the folder of a set")
    path.add_argument("name", nargs="?")
    path.set_defaults(run=run_path)
    download = actions.add_parser("download", parents=[root], help="fetch what is missing")
    download.add_argument("name")
    download.set_defaults(run=run_download)


def run_list(args: argparse.Namespace) -> int:
    """Print one line per set."""
    table = Table("name", "domain", "metric", "size", "classes", "state", box=None)
    home = data_home(args.root)
    for entry in cards(args.pattern):
        what, count = next(iter(entry.sizes.items()))
        table.add_row(
            entry.name, entry.domain, entry.metric, f"{count:,} {what}", str(entry.classes or "-"),
            _state(entry, home),
        )  # fmt: skip
    console().print(table)
    _say(f"Data home: {escape(str(home))}")
    return 0


def run_info(args: argparse.Namespace) -> int:
    """Print the card of a set."""
    entry = find_card(args.name)
    home = data_home(args.root)
    sizes = ", ".join(f"{count:,} {what}" for what, count in entry.sizes.items())
    classes = f"{entry.classes} classes, " if entry.classes else ""
    rows = {
        "title": entry.title,
        "domain": entry.domain,
        "task": f"{entry.task}, {classes}{entry.metric}",
        "sizes": sizes,
        "splits": entry.splits,
        "licence": entry.licence,
        "source": f"{entry.source}, {entry.url}",
        "citation": entry.citation,
        "synthetic": "yes, made from a seed" if entry.synthetic else "no",
        "state": _state(entry, home),
    }
    if entry.notes:
        rows["notes"] = entry.notes
    for key, value in rows.items():
        _say(f"[bold]{key:<10}[/bold] {escape(value)}")
    for file in entry.files:
        mark = "checksum recorded" if file.sha256 else "checksum not recorded"
        kind = ", optional" if file.optional else ""
        _say(
            f"[bold]file      [/bold] {escape(file.path)} ({mark}{kind})",
        )
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Check the files of a set, then read it; 1 when something is wrong."""
    entry = find_card(args.name)
    home = data_home(args.root)
    wrong = False
    for file in entry.files:
        path = file.find(home)
        if path is None:
            verdict = "absent (optional)" if file.optional else "[red]missing[/red]"
            wrong |= not file.optional
        elif path != home / file.path:
            verdict = f"{escape(str(path.relative_to(home)))} stands in for it"
        else:
            try:
                verify_file(path, sha256=file.sha256, size=file.size)
                verdict = "ok" if file.sha256 else "there, checksum not recorded"
            except DataIntegrityError as error:
                wrong, verdict = True, f"[red]wrong[/red] {escape(str(error))}"
        _say(f"{escape(file.path)}: {verdict}")
    if wrong:
        _say(f"Official page: {escape(entry.source)}, {entry.url}")
        return 1
    data = _datasets(entry.domain).load(entry.name, root=home)
    if entry.domain == "graphs":
        found = f"{data.num_nodes:,} nodes, {data.edge_source}; {data.split_source}"
    elif entry.domain in ("recsys", "vision"):
        rows = ", ".join(f"{count:,} {split}" for split, count in data.num_rows.items())
        found = f"rows {rows}; {data.split_source}"
    else:
        X, _ = data.rows(0, min(len(data), 1000))  # noqa: N806
        found = f"{len(data):,} instances, {X.shape[1]} features, {len(data.class_names)} classes"
    _say(f"{entry.title} reads well: {found}.")
    return 0


def run_path(args: argparse.Namespace) -> int:
    """Print the data home or the folder of a set, nothing else."""
    path = data_home(args.root)
    if args.name is not None:
        entry = find_card(args.name)
        if not entry.files:
            raise DataNotFoundError(
                f"{entry.title} has no folder: it is made from a seed or comes with a package. "
                f"Load it with load({entry.name!r})."
            )
        path = (path / entry.files[0].path).parent
    _say(escape(str(path)))
    return 0


def run_download(args: argparse.Namespace) -> int:
    """Fetch what is missing of a set; 0 when all of it is there afterwards."""
    from moeapps.data.locate import locate

    entry = find_card(args.name)
    home = data_home(args.root)
    if entry.downloadable and entry.files:
        fetch(entry, home)
    found = locate(entry, root=home)
    _say(f"{entry.title}: {len(found)} files in {escape(str(home))}")
    return 0


def cards(pattern: str = "*") -> list[DatasetCard]:
    """Cards of the sets of all domains whose names match. Imports nothing heavy."""
    found = [
        datasets.card(name)
        for datasets in map(_datasets, DOMAINS)
        for name in datasets.list_datasets(pattern)
    ]
    return sorted(found, key=lambda card: (card.domain, card.name))


def find_card(name: str) -> DatasetCard:
    """The card of a set of any domain.

    Raises:
        UnknownNameError: With the closest names.
    """
    known: dict[str, DatasetCard] = {}
    for domain in DOMAINS:
        datasets = _datasets(domain)
        try:
            card: DatasetCard = datasets.card(name)
            return card
        except UnknownNameError:
            known |= datasets.DATASETS
    raise UnknownNameError("data set", name, known, hint="See: moeapps data list")


def _datasets(domain: str) -> Any:
    return importlib.import_module(f"moeapps.{domain}.datasets")


def _state(card: DatasetCard, home: Path) -> str:
    needed = [file for file in card.files if not file.optional]
    if not needed:
        return "made on demand"
    there = sum(file.find(home) is not None for file in needed)
    if there == len(needed):
        return "here"
    how = "can be downloaded" if card.downloadable else "place by hand"
    return f"{there} of {len(needed)} files; {how}" if there else how


def _say(text: str) -> None:
    console().print(text, soft_wrap=True)
