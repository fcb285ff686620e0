"""Names that load on first use, and the extra to install when a package they need is missing."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from moeapps.errors import MissingExtraError

DOMAINS = ("graphs", "recsys", "streams", "vision")
"""Subpackages whose further packages are an extra of the same name."""

_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


@contextmanager
def needs_extra(domain: str) -> Iterator[None]:
    """Inside, a package that is not installed is an error that says what to install.

    Raises:
        MissingExtraError: A package of another project is missing.

    Example:
        >>> with needs_extra("graphs"):
        ...     import no_such_package
        Traceback (most recent call last):
        moeapps.errors.MissingExtraError: ... Install it with: pip install "moeapps[graphs]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "moeapps"):
            raise
        name = _DISTRIBUTIONS.get(package, package.replace("_", "-"))
        raise MissingExtraError(domain, name) from error


def import_part(module: str) -> ModuleType:
    """Import a module; a package that its domain's extra would have installed is named.

    Raises:
        MissingExtraError: The domain's packages are not installed.
        ModuleNotFoundError: Any other module is missing.

    Example:
        >>> import_part("moeapps.errors").__name__
        'moeapps.errors'
    """
    domain = module.split(".")[1] if module.startswith("moeapps.") else ""
    if domain not in DOMAINS:
        return importlib.import_module(module)
    with needs_extra(domain):
        return importlib.import_module(module)


def lazy_names(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names load on first use (PEP 562).

    Args:
        package: The package's ``__name__``.
        names: Public name to the module that defines it.

    Example:
        >>> load, listing = lazy_names("shop", {"sqrt": "math"})
        >>> load("sqrt")(9.0), listing()
        (3.0, ['sqrt'])
    """

    def load(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_part(names[name]), name)

    return load, lambda: sorted(names)
