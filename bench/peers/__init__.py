"""Families and the libraries that they are compared with.

    <family>.py     an adapter: shapes' columns, arrays, work, reference, ours, list of peers
    <library>.py    one library: the object PEER, or the list PEERS (harness/contest.py's Peer)

A new family is an adapter with what peers/gemm.py has, and its name here. A new library is a file
and its name in the PEERS of the families that it computes.
"""

FAMILIES = ["gemm", "kda", "gdn", "attention", "extend", "decode", "mla", "moe", "grouped_gemm",
            "routing"]
