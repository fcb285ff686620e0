"""The two consoles: standard output for results, standard error for everything else."""

import sys

from rich.console import Console

# A pipe or a log file has no width of its own; eighty columns would fold tables for no reason.
_PLAIN_WIDTH = 120


def console() -> Console:
    """Console for results."""
    return _make(stderr=False)


def messages() -> Console:
    """Console for errors, notices and progress."""
    return _make(stderr=True)


def _make(*, stderr: bool) -> Console:
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr,
        width=None if terminal else _PLAIN_WIDTH,
        highlight=False,
        soft_wrap=not terminal,
    )


def show_error(error: BaseException) -> None:
    """Print an error as one red message, without a traceback."""
    messages().print(f"[bold red]error:[/] [red]{_escape(str(error))}[/]")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
