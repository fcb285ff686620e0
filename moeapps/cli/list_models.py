"""``moeapps list``: what can be built by name."""

import argparse
from typing import Any

from moeapps.errors import UnknownNameError
from moeapps.registry import MODELS, list_models, model_info


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "list", help="models that can be built by name", allow_abbrev=False
    )
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'graphs/*' or 'mow*'")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    from rich.table import Table

    from moeapps.cli.configs import CLASSES
    from moeapps.cli.console import console

    names = list_models(options.pattern)
    if not names:
        raise UnknownNameError("model", options.pattern, MODELS, hint="See: moeapps list")
    table = Table(title="models", title_justify="left", box=None, pad_edge=False)
    for column in ("name", "task", "what it is", "paper"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for name in names:
        entry = model_info(name)
        table.add_row(name, entry.task, entry.summary, entry.paper)
    out = console()
    out.print(table)
    if options.pattern == "*":
        out.print(
            f"\nclasses for configurations: {', '.join(sorted(CLASSES))}"
            "\nmore: moeapps info NAME, moeapps data list",
            markup=False,
        )
    return 0
