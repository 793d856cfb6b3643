"""quern.doctor(), quern.stats(), quern.families(): the default contexts' facts."""

from __future__ import annotations

from . import _context
from ._facts import Stats


def doctor() -> "dict[str, dict[str, str]]":
    """What this machine has: {"cpu": {...}, "cuda": {...}, "cache": {...}}, all text.

    A backend that cannot be used has "usable": "no" and a "reason" that says how to get it.
    """
    return _context.any_default().doctor()


def stats() -> Stats:
    """What the default cache holds and how often it served."""
    return _context.any_default().stats()


def families() -> "dict[str, str]":
    """The families that the library brings: what each computes, in a line."""
    return _context.any_default().families()
