"""GDN (Gated DeltaNet): the gated delta rule with one decay for a head.

The adapter is peers/delta_rule.py; here is what is GDN's own.
"""
from __future__ import annotations

from peers import delta_rule
from peers.delta_rule import (COLUMNS, DEFAULT_SHAPES, DTYPES, GROUPS, call_of, groups, label,
                              make_case, ours)

__all__ = ["BESIDE", "COLUMNS", "DEFAULT_SHAPES", "DTYPES", "GROUPS", "CALLS", "NAME", "PEERS",
           "STARTS", "START_PEERS", "call_of", "groups", "label", "make_case", "ours", "params_of"]

NAME = "gdn"
PEERS = {
    "cpu": {"numpy": "numpy_delta_rule"},
    "cuda": {"fla": "fla_delta_rule"},
}

STARTS = {  # of harness/starts.py: lines of a shape file, the first one tuned
    "cpu": [{"op": "prefill", "t": "512", "h": "4", "hv": "8", "gate": "softplus"},
            {"op": "decode", "n": "16", "h": "4", "hv": "8", "gate": "softplus"}],
    "cuda": [{"op": "prefill", "t": "8192", "h": "16", "hv": "32", "gate": "softplus"},
             {"op": "decode", "n": "64", "h": "16", "hv": "32", "gate": "softplus"}],
}
START_PEERS = {"cuda": "fla_delta_rule"}  # whose first calls stand beside ours
CALLS = "delta_calls"  # what call_child.py calls
BESIDE = {"cpu": "peer", "cuda": "fla"}  # whose figures stand beside ours there


def params_of(row: dict[str, str], dtype: str) -> dict[str, int | str]:
    """delta_rule.params_of(), with GDN's decay."""
    return delta_rule.params_of(row, dtype, "scalar")
