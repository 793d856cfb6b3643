"""Paged caches of a case: which pages hold a sequence's tokens, and its tokens from them.

    table [b, max_pages]   pages of each sequence, distinct, in no order; what is beyond a
                           sequence's own is no page (-1)
    cache [pages, page, heads, d]
"""
from __future__ import annotations

import importlib
import random
from dataclasses import dataclass
from typing import Any, Sequence


@dataclass
class Pages:
    """Where the tokens of some sequences lie."""

    page: int
    table: list[list[int]]  # of each sequence its pages
    count: int  # of the cache

    @property
    def width(self) -> int:
        """Of the table."""
        return max(1, max(map(len, self.table), default=1))

    @property
    def entries(self) -> list[int]:
        """The table, row by row."""
        return [entry for row in self.table for entry in row + [-1] * (self.width - len(row))]


def scattered(lengths: Sequence[int], page: int) -> Pages:
    """Pages for sequences of so many tokens, in an order drawn anew."""
    needs = [-(-length // page) for length in lengths]
    places = list(range(sum(needs)))
    random.shuffle(places)
    table = []
    for need in needs:
        table.append(places[:need])
        del places[:need]
    return Pages(page, table, max(1, sum(needs)))


def tokens(cache: Any, row: Any, length: int) -> Any:
    """[length, ...] of the cache, as its elements are: of the pages that `row`, an array, begins
    with."""
    page = cache.shape[1]
    own = row[:-(-length // page)]
    shape = (own.shape[0] * page, *cache.shape[2:])
    if not hasattr(own, "clone"):
        return cache[own].reshape(shape)[:length]
    bits = importlib.import_module("torch").uint8  # e4m3 is not picked from everywhere
    picked = (cache.view(bits) if cache.element_size() == 1 else cache)[own.long()]
    return picked.view(cache.dtype).reshape(shape)[:length]


def joined(parts: Sequence[Any]) -> Any:
    """One behind the other."""
    if hasattr(parts[0], "clone"):
        return importlib.import_module("torch").cat(tuple(parts))
    return importlib.import_module("numpy").concatenate(tuple(parts))
