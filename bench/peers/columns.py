"""Columns of a shape file, read and checked: what several adapters ask of theirs.

Every function takes a line as the file has it (empty columns left out) and raises BadOption, which
names the column, its value and what is allowed.
"""
from __future__ import annotations

from typing import Sequence

from harness.shapes import BadOption

Row = dict[str, str]


def whole(row: Row, name: str, otherwise: int, least: int = 1) -> int:
    """A column that counts."""
    text = row.get(name, str(otherwise))
    if not text.isdecimal() or int(text) < least:
        raise BadOption(f"{name}={text}: must be a whole number, {least} or more")
    return int(text)


def word(row: Row, name: str, words: Sequence[str]) -> str:
    """A column that is one of a few words, the first where it is not there."""
    text = row.get(name, words[0])
    if text not in words:
        raise BadOption(f"{name}={text}: must be one of {' '.join(words)}")
    return text


def lengths(text: str) -> list[int]:
    """Of "1300+547"; [] of ""."""
    parts = text.split("+") if text else []
    if not all(part.isdecimal() and int(part) for part in parts):
        raise BadOption(f"lengths={text}: must be whole numbers, 1 or more, with + between them")
    return [int(part) for part in parts]


def heads(row: Row) -> tuple[int, int]:
    """hq and hkv, which is as many unless it is given."""
    hq = whole(row, "hq", 0)
    hkv = whole(row, "hkv", hq)
    if hq % hkv:
        raise BadOption(f"hkv={hkv}: must be a divisor of hq={hq}")
    return hq, hkv


def page(row: Row) -> int:
    """Tokens of a page."""
    size = whole(row, "page", 16)
    if size & (size - 1) or size > 256:
        raise BadOption(f"page={size}: must be a power of two up to 256")
    return size
