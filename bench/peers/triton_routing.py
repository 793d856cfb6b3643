"""Routing in Triton as a peer: softmax as an iterated maximum, a token a program, and slots sorted
by three kernels. The kernels are triton_moe_kernels.py's.
"""
from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any, Callable

from harness.contest import ArraySet, Case, Contestant
from peers import moe, routing
from peers.routing import integers
from peers.triton_attention import TritonPeer
from peers.triton_moe import align, power_of_two


def call_of(case: Case, arrays: ArraySet) -> Callable[[], Any]:
    """One call of a set."""
    kernels = importlib.import_module("peers.triton_moe_kernels")
    size = routing.sizes_of(case.params)
    if case.params["op"] == "softmax":
        given = arrays["logits"], arrays["weights"], integers(arrays["ids"]), size.experts
        return lambda: kernels.choose[(size.tokens,)](
            *given, TOPK=size.topk, BLOCK_E=power_of_two(size.experts),
            BLOCK_K=power_of_two(size.topk), RENORMALIZE=True)
    torch = importlib.import_module("torch")
    counts, starts = (torch.empty(size.experts, dtype=torch.int32, device=arrays["ids"].device)
                      for _ in range(2))
    buffers = SimpleNamespace(ids=arrays["ids"], counts=counts, starts=starts,
                              sorted=integers(arrays["sorted"]),
                              blocks_of=integers(arrays["blocks"]), used=integers(arrays["used"]))
    layer = moe.Sizes(size.tokens, size.experts, size.topk, 0, 0)
    return lambda: align(kernels, layer, size.block, buffers)


class Calls(Contestant):
    """One call a set."""

    name = "triton"

    def __init__(self, calls: list[Callable[[], Any]]) -> None:
        self._calls = calls

    def run(self, index: int) -> None:
        self._calls[index]()

    def close(self) -> None:
        self._calls = []


class TritonRouting(TritonPeer):
    """The entry `triton` of routing."""

    def enter(self, case: Case) -> list[list[Contestant]]:
        """[] of sigmoids and groups."""
        if case.params["op"] not in ("softmax", "align"):
            return []
        return [[Calls([call_of(case, arrays) for arrays in case.sets])]]


PEER = TritonRouting()
