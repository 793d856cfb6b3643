"""How far an output is off: as a whole, and its worst row.

A row is held against the root mean square of the rows of its own group, so that a group of small
numbers does not hide behind large ones, and a row that happens to be small is not blamed for the
rounding of its neighbours.
"""
from __future__ import annotations

import math
from typing import Any

from harness.contest import Errors


def errors_of(output: Any, wanted: Any, least: float = 0.0) -> Errors:
    """Of floats [..., rows, columns], NumPy's or torch's; the dimensions before the last two count
    groups. `wanted` is finite; what is smaller than `least` (a mean square of its elements) counts
    as that. Nothing in them is no error."""
    wrong = output - wanted
    count, columns = math.prod(wrong.shape), wrong.shape[-1]
    if not count:
        return Errors(0.0, 0.0)
    off, right = (wrong * wrong).sum(-1), (wanted * wanted).sum(-1)
    whole = max(float(right.sum()), count * least)
    worst = (off.amax(-1) if hasattr(off, "amax") else off.max(-1)).reshape(-1).tolist()
    typical = [max(mean, columns * least) for mean in right.mean(-1).reshape(-1).tolist()]
    return Errors(root(float(off.sum()), whole), max(map(root, worst, typical)))


def greater(one: Errors, other: Errors) -> Errors:
    """The greater of each; NaN where either is."""
    return Errors(*(a if a > b or math.isnan(a) else b for a, b in zip(one, other)))


def root(off: float, right: float) -> float:
    """off / right, of norms given as their squares; off itself where all should be 0."""
    return math.sqrt(off / right) if right > 0 else math.sqrt(off)
