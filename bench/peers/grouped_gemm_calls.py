"""What harness/call_child.py calls of grouped_gemm: a few rows of small experts."""
from __future__ import annotations

from harness.call_child import Bench, Way

SMALLEST = {"experts": "4", "rows": "4", "n": "64", "k": "64"}
LARGER = {**SMALLEST, "rows": "32"}
TINY = {"cpu": SMALLEST, "cuda": SMALLEST}
DISPATCHED = {"cpu": LARGER, "cuda": LARGER}
PARAM = "m"
ROWS = {
    "dispatch, m the same": (64,),
    "dispatch, m within a bucket": (64, 33, 40, 51, 64, 60, 47, 39),
    "dispatch, m across 8 buckets": (1, 2, 3, 8, 9, 17, 64, 128),
}


def ways(bench: Bench) -> list[Way]:
    """None but those that every family has."""
    return []
