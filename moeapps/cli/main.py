"""The front door: ``moeapps COMMAND``. Heavy imports happen inside the commands that need them."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from moeapps.errors import MoeappsError

# Commands in the order of ``--help``. Each module has ``register(subparsers)``.
COMMANDS = (
    "quickstart", "train", "stream", "list_models", "info", "data", "doctor", "report", "diagnose",
    "export",
)  # fmt: skip
FAILED, INTERRUPTED = 2, 130


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a command that can say what is left and how to go on."""


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = argparse.ArgumentParser(
        prog="moeapps",
        description="Mixture-of-experts outside language models: train, test and look inside.",
        epilog="Start with: moeapps quickstart",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in COMMANDS:
        importlib.import_module(f"moeapps.cli.{name}").register(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows ``moeapps``; default the process's own.

    Returns:
        The exit code: 0 done, 1 done but for photos that were left out, 2 a mistake that the
        message explains, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except MoeappsError as error:
        if os.environ.get("MOEAPPS_DEBUG") == "1":
            raise
        from moeapps.cli.console import show_error

        show_error(error)
        return FAILED
    except KeyboardInterrupt as stop:
        said = str(stop) if isinstance(stop, Interrupted) else "interrupted"
        from moeapps.cli.console import messages

        messages().print(said, markup=False)
        return INTERRUPTED
    except BrokenPipeError:  # as in: moeapps list | head
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - until the interpreter ends
        return 0


def _run(given: list[str]) -> int:
    parser = build_parser()
    overrides: list[tuple[str, str]] = []
    if given and given[0] in ("fit", "validate", "test", "predict"):
        from moeapps.cli.overrides import split_overrides

        given, overrides = split_overrides(given)
    options = parser.parse_args(given)
    if options.version:
        from moeapps import __version__
        from moeapps.cli.console import console

        console().print(f"moeapps {__version__}", markup=False)
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    options.overrides = overrides
    return int(options.run(options) or 0)
