"""What harness/call_child.py calls of extend: 16 tokens of a small head after 16."""
from __future__ import annotations

from harness.call_child import Bench, Way

SMALLEST = {"prefix": "16", "t": "16", "hq": "1", "d": "64"}
LARGER = {"prefix": "16", "t": "128", "hq": "1", "d": "64"}
TINY = {"cpu": SMALLEST, "cuda": SMALLEST}
DISPATCHED = {"cpu": LARGER, "cuda": LARGER}
PARAM = "t"
ROWS = {
    "dispatch, t the same": (64,),
    "dispatch, t within a bucket": (64, 33, 40, 51, 64, 60, 47, 39),
    "dispatch, t across 8 buckets": (1, 2, 3, 8, 9, 17, 64, 128),
}


def ways(bench: Bench) -> list[Way]:
    """None but those that every family has."""
    return []
