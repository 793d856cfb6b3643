"""What the machine has (doctor), what the cache holds (stats), what there is to call (families)."""

from __future__ import annotations

import ctypes
from typing import NamedTuple, Optional

from . import _context, _structs
from ._errors import Error


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


def doctor() -> dict[str, dict[str, str]]:
    """What this machine has: {"cpu": {...}, "cuda": {...}, "cache": {...}}, all text.

    A backend that cannot be used has "usable": "no" and a "reason" that says how to get it.
    """
    return _context.any_default().doctor()


def stats() -> Stats:
    """What the default cache holds and how often it served."""
    return _context.any_default().stats()


def families() -> dict[str, str]:
    """The families that the library brings: what each computes, in a line."""
    return _context.any_default().families()


def stats_of(context: _context.Context) -> Stats:
    result = _structs.CacheStats()
    context._ask("quern_cache_stats", ctypes.byref(result))
    return Stats(*(getattr(result, name) for name in Stats._fields))


def read(library: ctypes.CDLL, handle: ctypes.c_void_p) -> dict[str, dict[str, str]]:
    """Facts by section, "cpu", "cuda" and "cache", in the library's order."""
    facts: dict[str, dict[str, str]] = {}

    def fact(_: Optional[int], section: bytes, name: bytes, value: bytes) -> None:
        facts.setdefault(section.decode(), {})[name.decode()] = value.decode(errors="replace")

    status = library.quern_doctor(handle, _structs.FactCallback(fact), None)
    if status:
        raise Error(library.quern_errmsg(handle).decode(errors="replace"))
    return facts
