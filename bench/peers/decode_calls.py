"""What harness/call_child.py calls of decode: a token of one small head."""
from __future__ import annotations

from harness.call_child import Bench, Way

SMALLEST = {"b": "1", "kv": "16", "hq": "1", "d": "64"}
LARGER = {"b": "128", "kv": "16", "hq": "1", "d": "64"}
TINY = {"cpu": SMALLEST, "cuda": SMALLEST}
DISPATCHED = {"cpu": LARGER, "cuda": LARGER}
PARAM = "b"
ROWS = {
    "dispatch, b the same": (64,),
    "dispatch, b within a bucket": (64, 33, 40, 51, 64, 60, 47, 39),
    "dispatch, b across 8 buckets": (1, 2, 3, 8, 9, 17, 64, 128),
}


def ways(bench: Bench) -> list[Way]:
    """None but those that every family has."""
    return []
