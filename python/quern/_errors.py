"""The one exception of the package, and the checks of plain arguments."""

from __future__ import annotations

import numbers
import operator
import os
from typing import Any, Optional


class Error(RuntimeError):
    """What quern refuses or cannot do. Its text is one line that names the argument.

    ``status`` is the library's name of the outcome, of the list in quern.h: "MISS", "UNSUPPORTED",
    "CHECK_FAILED", "INVALID", "NO_MEMORY", "NO_COMPILER", "COMPILE", "LOAD", "DEVICE", "STORE",
    "SEALED", "IO", "INTERNAL"; refusals of the Python layer itself are "INVALID".
    """

    status: str

    def __init__(self, text: str, status: str = "INVALID") -> None:
        super().__init__(text)
        self.status = status

    def __reduce__(self) -> tuple[type[Error], tuple[str, str]]:
        return type(self), (str(self), self.status)


def invalid(name: Optional[str], text: str) -> Error:
    """An Error about the argument ``name``, or about none: "b: shape (3,): must be (4,)"."""
    return Error(f"{name}: {text}" if name else text)


def encoded(name: str, value: Any) -> Optional[bytes]:
    """Text or a path as C takes it; None of None. Error: it is neither, or cannot be."""
    try:
        raw = None if value is None else os.fsencode(value)
    except TypeError:
        raise Error(f"{name}={value!r}: must be text or a path") from None
    except UnicodeEncodeError:
        raise Error(f"{name}={value!r}: must be text that can be encoded") from None
    if raw is not None and b"\0" in raw:
        raise Error(f"{name}={value!r}: must not contain NUL")
    return raw


def require_text(name: str, value: Any) -> None:
    """Error unless it is a str or None."""
    if value is not None and not isinstance(value, str):
        raise Error(f"{name}={value!r}: must be text")


def require_seconds(name: str, value: Any) -> None:
    """Error unless it is a positive number or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not float(value) > 0:
        raise Error(f"{name}={value!r}: must be a number of seconds above 0, or None")


def require_callable(name: str, value: Any, form: str) -> None:
    """Error unless it can be called, or is None."""
    if value is not None and not callable(value):
        raise Error(f"{name}={value!r}: must be callable as {form}")


def count_of(name: str, value: Any, least: int = 0) -> int:
    """A C int of at least ``least``; 0 of None. Error: none."""
    if value is None:
        return 0
    try:
        count = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = -1
    if not least <= count < 2**31:
        raise Error(f"{name}={value!r}: must be a whole number from {least} to {2**31 - 1}, or "
                    "None")
    return count
