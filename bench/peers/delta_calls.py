"""What harness/call_child.py calls of the gated delta rule: a decoded token of one small head."""
from __future__ import annotations

from harness.call_child import Bench, Way

SMALLEST = {"op": "decode", "n": "1", "h": "1", "k": "64", "v": "64", "gate": "softplus"}
TINY = {"cpu": SMALLEST, "cuda": SMALLEST}
DISPATCHED = {"cpu": {**SMALLEST, "n": "128"}, "cuda": {**SMALLEST, "n": "128"}}
PARAM = "n"
ROWS = {
    "dispatch, n the same": (64,),
    "dispatch, n within a bucket": (64, 33, 40, 51, 64, 60, 47, 39),
    "dispatch, n across 8 buckets": (1, 2, 3, 8, 9, 17, 64, 128),
}


def ways(bench: Bench) -> list[Way]:
    """None but those that every family has."""
    return []
