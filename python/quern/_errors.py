"""The one exception of the package."""

from __future__ import annotations

from typing import Any, Optional


class Error(RuntimeError):
    """What quern refuses or cannot do. Its text is one line that names the argument.

    ``status`` is the library's name of the outcome: "INVALID", "UNSUPPORTED", "SEALED",
    "NO_COMPILER", "DEVICE" and so on, as listed in quern.h; refusals of the Python layer itself
    are "INVALID".
    """

    status: str

    def __init__(self, text: str, status: str = "INVALID") -> None:
        super().__init__(text)
        self.status = status

    def __reduce__(self) -> "tuple[type[Error], tuple[str, str]]":
        return type(self), (str(self), self.status)


def invalid(name: Optional[str], text: str) -> Error:
    """An Error about the argument ``name``, or about none: "b: shape (3,): must be (4,)"."""
    return Error(f"{name}: {text}" if name else text)


def require_text(name: str, value: Any) -> None:
    """Error unless it is a str or None."""
    if value is not None and not isinstance(value, str):
        raise Error(f"{name}={value!r}: must be text")


def require_seconds(name: str, value: Any) -> None:
    """Error unless it is a positive number or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise Error(f"{name}={value!r}: must be a number of seconds above 0, or None")
