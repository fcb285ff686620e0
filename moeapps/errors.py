"""Errors that moeapps raises. Each also derives from the builtin a caller would catch.

A message has three parts: what is wrong with the value, what was expected, what to do next.
"""

import difflib
from collections.abc import Iterable


class MoeappsError(Exception):
    """Base of every error raised on purpose by moeapps."""


class ArgumentError(MoeappsError, ValueError):
    """An argument has a value, shape or dtype that cannot work."""


class ConfigError(MoeappsError, ValueError):
    """A configuration file or a command-line override is wrong."""


class UnknownNameError(MoeappsError, KeyError, ValueError):
    """A name is not in a table; the message offers the closest ones."""

    def __init__(self, kind: str, name: object, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        if close:
            advice = "Did you mean " + " or ".join(repr(c) for c in close) + "?"
        else:
            advice = "Known: " + ", ".join(known) + "."
        self.message = f"Unknown {kind} {str(name)!r}. {advice}" + (f" {hint}" if hint else "")
        super().__init__(self.message)

    def __str__(self) -> str:  # KeyError would print the repr
        return self.message


class MissingExtraError(MoeappsError, ImportError):
    """A package is not installed; ``extra`` of moeapps, or ``command``, would have installed it."""

    def __init__(self, extra: str, package: str, command: str | None = None) -> None:
        command = command or f'pip install "moeapps[{extra}]"'
        super().__init__(f"{package} is not installed. Install it with: {command}")


class IdRangeError(MoeappsError, ValueError, IndexError):
    """An id is negative or beyond its vocabulary."""


class DataNotFoundError(MoeappsError, FileNotFoundError):
    """Data files are not where they should be."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DataIntegrityError(MoeappsError, OSError):
    """A data file is truncated, corrupt or not the published one."""


class OfflineError(MoeappsError, OSError):
    """A download was asked for while MOEAPPS_OFFLINE is set."""


class CheckpointError(MoeappsError, RuntimeError):
    """A checkpoint is truncated, corrupt or belongs to another model."""


class RunFolderError(MoeappsError, OSError):
    """A run folder is missing, incomplete or cannot be written."""


class GateError(MoeappsError, ValueError):
    """A gate got input it cannot route, or produced an invalid routing."""


class CollapseWarning(UserWarning):
    """A gate sends (almost) every row to the same expert."""
