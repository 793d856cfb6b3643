"""What harness/call_child.py calls of moe: a token of two small experts."""
from __future__ import annotations

from harness.call_child import Bench, Way

SMALLEST = {"tokens": "1", "experts": "8", "topk": "2", "hidden": "128", "inter": "64"}
LARGER = {**SMALLEST, "tokens": "128"}
TINY = {"cpu": SMALLEST, "cuda": SMALLEST}
DISPATCHED = {"cpu": LARGER, "cuda": LARGER}
PARAM = "tokens"
ROWS = {
    "dispatch, tokens the same": (64,),
    "dispatch, tokens within a bucket": (64, 33, 40, 51, 64, 60, 47, 39),
    "dispatch, tokens across 8 buckets": (1, 2, 3, 8, 9, 17, 64, 128),
}


def ways(bench: Bench) -> list[Way]:
    """None but those that every family has."""
    return []
