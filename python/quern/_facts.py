"""What the machine has (doctor) and what the cache holds (stats)."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NamedTuple, Optional

from . import _structs
from ._errors import Error

if TYPE_CHECKING:
    from ._context import Context


class Stats(NamedTuple):
    """Of one cache file, over all processes that have used it."""

    artifacts: int  # compiled kernels
    tuned: int  # winners of tunings
    trials: int  # candidates measured
    misses_recorded: int  # buckets that were called untuned
    bytes: int  # of the file
    compiles: int  # since the cache was created, as the next two
    hits: int
    misses: int


def stats(context: "Context") -> Stats:
    result = _structs.CacheStats()
    with context._use() as handle:
        context._check(context._library.quern_cache_stats(handle, ctypes.byref(result)))
    return Stats(*(getattr(result, name) for name in Stats._fields))


def doctor(library: ctypes.CDLL, handle: ctypes.c_void_p) -> "dict[str, dict[str, str]]":
    """Facts by section, "cpu", "cuda" and "cache", in the library's order."""
    facts: "dict[str, dict[str, str]]" = {}

    def fact(_: Optional[int], section: bytes, name: bytes, value: bytes) -> None:
        facts.setdefault(section.decode(), {})[name.decode()] = value.decode(errors="replace")

    status = library.quern_doctor(handle, _structs.FactCallback(fact), None)
    if status:
        raise Error(library.quern_errmsg(handle).decode(errors="replace"))
    return facts
