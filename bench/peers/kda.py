"""KDA (Kimi Delta Attention): the gated delta rule with a decay for each channel of the key.

The adapter is peers/delta_rule.py; here is what is KDA's own.
"""
from __future__ import annotations

from peers import delta_rule
from peers.delta_rule import (COLUMNS, DEFAULT_SHAPES, DTYPES, GROUPS, call_of, groups, label,
                              make_case, ours)

__all__ = ["BESIDE", "COLUMNS", "DEFAULT_SHAPES", "DTYPES", "GROUPS", "CALLS", "NAME", "PEERS",
           "STARTS", "START_PEERS", "call_of", "groups", "label", "make_case", "ours", "params_of"]

NAME = "kda"
PEERS = {
    "cpu": {"numpy": "numpy_delta_rule"},
    "cuda": {"fla": "fla_delta_rule", "flash-kda": "flash_kda_peer"},
}

STARTS = {  # of harness/starts.py: lines of a shape file, the first one tuned
    "cpu": [{"op": "prefill", "t": "512", "h": "8"},
            {"op": "decode", "n": "16", "h": "8"}],
    "cuda": [{"op": "prefill", "t": "8192", "h": "8"},
             {"op": "decode", "n": "64", "h": "8"}],
}
START_PEERS = {"cuda": "fla_delta_rule"}  # whose first calls stand beside ours
CALLS = "delta_calls"  # what call_child.py calls
BESIDE = {"cpu": "peer", "cuda": "fla"}  # whose figures stand beside ours there


def params_of(row: dict[str, str], dtype: str) -> dict[str, int | str]:
    """delta_rule.params_of(), with KDA's decay."""
    return delta_rule.params_of(row, dtype, "channel")
