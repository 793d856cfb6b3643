"""quern's own product as a yardstick of attention on the CPU: as many flops, in the same dtype.

d = a b^T of 2048 by 2048, k as long as the flops want it, tuned for a second. It computes no
attention and is not checked as such; its ratio is attention's share of the rate of products, timed
in the same rounds.
"""
from __future__ import annotations

import sys
from typing import Any

from harness.arrays import HostArrays
from harness.contest import Case, Contestant, Unavailable
from peers.named_call import seen

SIDE = 2048
POOL = (1 << 20) + 43
TUNE_S = 1.0


class Product(Contestant):
    """One product, whatever the set."""

    name, computes = "gemm", False

    def __init__(self, case: Case, context: Any) -> None:
        dtype, k = str(case.params["dtype"]), max(1, round(case.flops / (2.0 * SIDE * SIDE)))
        arrays = HostArrays(POOL, 1)
        a, b = (seen(arrays.random((SIDE, k), dtype), dtype) for _ in range(2))
        out = seen(arrays.empty((SIDE, SIDE), dtype), dtype)
        context.tune("gemm", a, b, out=out, budget=TUNE_S)
        self._call = context.prepare("gemm", a, b, out=out)
        self.detail = f"quern's product {SIDE} {SIDE} {k}, {self._call.config}"

    def run(self, index: int) -> None:
        self._call()


class GemmPeer:
    """The entry `gemm`."""

    name = "gemm"

    def __init__(self) -> None:
        self._context: Any = None

    def open(self, device: str, threads: int) -> None:
        """A context of its own."""
        quern = sys.modules.get("quern")
        if device != "cpu" or quern is None:
            raise Unavailable("is for the CPU")
        self._context = quern.Context(device="cpu", cache="", threads=threads)

    def version(self) -> str:
        return "quern's gemm, a yardstick"

    def enter(self, case: Case) -> list[list[Contestant]]:
        return [[Product(case, self._context)]]


PEER = GemmPeer()
