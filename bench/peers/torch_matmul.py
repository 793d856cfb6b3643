"""torch.matmul as a peer: what a program in PyTorch calls, and gets.

    2-D   torch.matmul(a, b.mT, out=out)        3-D   torch.bmm(a, b.mT, out=out)

bf16, f16 and f32, the output of the inputs' dtype. TF32 is off for f32; reductions of split
products in bf16 and f16 are allowed, which is torch's own setting. On torch's current stream.
"""
from __future__ import annotations

import importlib
from typing import Any

from harness.contest import Case, Contestant, Unavailable


class Matmul(Contestant):
    """torch's product on the arrays of a case."""

    name = "torch"

    def __init__(self, case: Case) -> None:
        torch = importlib.import_module("torch")
        is_batched = case.params["batch"] != 1
        self._product = torch.bmm if is_batched else torch.matmul
        self._sets = [(arrays["a"], arrays["b"].mT, arrays["out"]) for arrays in case.sets]
        self.detail = "torch.bmm" if is_batched else "torch.matmul"

    def run(self, index: int) -> None:
        a, b, out = self._sets[index]
        self._product(a, b, out=out)


class TorchMatmul:
    """The entry `torch`."""

    name = "torch"

    def __init__(self) -> None:
        self._torch: Any = None

    def open(self, device: str, threads: int) -> None:
        """Make `device` the current one, and f32 products f32; Unavailable without either."""
        try:
            torch = importlib.import_module("torch")
        except ImportError as problem:
            raise Unavailable(str(problem)) from problem
        if not torch.cuda.is_available():
            raise Unavailable("torch finds no CUDA device")
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = False
        self._torch = torch

    def version(self) -> str:
        return f"PyTorch {self._torch.__version__}" if self._torch else "PyTorch, not opened"

    def enter(self, case: Case) -> list[list[Contestant]]:
        return [[Matmul(case)]] if case.params["dtype"] in ("bf16", "f16", "f32") else []


PEER = TorchMatmul()
