"""A value that holds inside a ``with`` block, for eager and for compiled code."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Scoped(Generic[T]):
    """A context variable that compiled code can read as well.

    Eager code sees the value of its own thread or task. The compiler of older torch releases cannot
    trace a context variable, so while compiling the value is read from a plain attribute: what the
    process set last.

    Example:
        >>> colour = Scoped("colour", "grey")
        >>> with colour.set("red"):
        ...     print(colour.get())
        red
        >>> colour.get()
        'grey'
    """

    def __init__(self, name: str, default: T) -> None:
        self._variable = ContextVar(name, default=default)
        self._shared = default

    def get(self) -> T:
        """The value in force."""
        return self._shared if torch.compiler.is_compiling() else self._variable.get()

    @contextmanager
    def set(self, value: T) -> Iterator[None]:
        """Put ``value`` in force for the block, also when it ends by an exception."""
        before, token = self._shared, self._variable.set(value)
        self._shared = value
        try:
            yield
        finally:
            self._shared = before
            self._variable.reset(token)
