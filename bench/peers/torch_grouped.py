"""torch as a peer of grouped_gemm: torch._grouped_mm with offsets on the device; on the CPU a loop
of products, whose offsets the host knows.
"""
from __future__ import annotations

import importlib
from typing import Any

from harness.contest import ArraySet, Case, Contestant
from peers import grouped_gemm
from peers.torch_attention import Call, TorchPeer
from peers.torch_attention_cpu import TorchCpu, tensor
from peers.torch_moe import Layer


def call_of(arrays: ArraySet) -> Call:
    """() --> out."""
    torch = importlib.import_module("torch")
    a, b, ends = arrays["a"], arrays["b"].transpose(1, 2), arrays["offsets"][1:]
    return lambda: torch._grouped_mm(a, b, offs=ends)


class Loop(Contestant):
    """A product for each expert, on the case's own memory."""

    name, detail = "torch", "a loop of products"

    def __init__(self, case: Case) -> None:
        self._torch = importlib.import_module("torch")
        dtype = str(case.params["dtype"])
        starts = grouped_gemm.sizes_of(case.params).starts
        self._sets = []
        for arrays in case.sets:
            a, b, out = (tensor(arrays[name], dtype) for name in ("a", "b", "out"))
            self._sets.append([(a[begin:end], b[expert].T, out[begin:end]) for expert, (begin, end)
                               in enumerate(zip(starts, starts[1:])) if end > begin])

    def run(self, index: int) -> None:
        with self._torch.inference_mode():
            for a, b, out in self._sets[index]:
                self._torch.matmul(a, b, out=out)

    def close(self) -> None:
        self._sets = []


class TorchGrouped:
    """The entry `torch` on either device."""

    name = "torch"

    def __init__(self) -> None:
        self._is_cpu = True
        self._opened: Any = None

    def open(self, device: str, threads: int) -> None:
        """Unavailable without torch, or on a GPU without a usable one."""
        self._is_cpu = device == "cpu"
        self._opened = TorchCpu() if self._is_cpu else TorchPeer("torch")
        self._opened.open(device, threads)

    def version(self) -> str:
        return str(self._opened.version())

    def enter(self, case: Case) -> list[list[Contestant]]:
        """[] of what _grouped_mm does not take."""
        if self._is_cpu:
            return [[Loop(case)]]
        if case.params["dtype"] != "bf16":
            return []
        return [[Layer("torch", "_grouped_mm", case, [call_of(arrays) for arrays in case.sets])]]


PEER = TorchGrouped()
