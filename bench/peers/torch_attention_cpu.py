"""torch's scaled_dot_product_attention on the CPU, on the case's own memory.

    attention   dense batches without a window and sinks
    decode      equal lengths, on keys and values dense rather than in pages, brought there before
                anything is timed: a point of reference

torch makes the outputs itself; they are taken into the case's for the check alone.
"""
from __future__ import annotations

import importlib
from typing import Any, Callable

from harness.contest import Case, Contestant, Unavailable
from peers import attention, decode


def tensor(array: Any, dtype: str) -> Any:
    """NumPy's array as torch's, the same memory."""
    torch = importlib.import_module("torch")
    if dtype == "bf16":
        return torch.from_numpy(array.view("i2")).view(torch.bfloat16)
    return torch.from_numpy(array)


class Sdpa(Contestant):
    """Calls of [b, heads, s, d]."""

    name = "torch"

    def __init__(self, case: Case, triples: list[tuple[Any, Any, Any]], is_causal: bool,
                 detail: str) -> None:
        self._torch = importlib.import_module("torch")
        self._sets, self._dtype = case.sets, str(case.params["dtype"])
        self._triples = [tuple(x.transpose(1, 2) for x in triple) for triple in triples]
        self._more: dict[str, Any] = {"is_causal": is_causal}
        if self._triples[0][0].shape[1] != self._triples[0][1].shape[1]:
            self._more["enable_gqa"] = True
        self._made: dict[int, Any] = {}
        self.detail = detail

    def run(self, index: int) -> None:
        call: Callable[..., Any] = self._torch.nn.functional.scaled_dot_product_attention
        with self._torch.inference_mode():
            self._made[index] = call(*self._triples[index], **self._more)

    def deliver(self, index: int) -> None:
        o = self._sets[index]["o"]
        tensor(o, self._dtype).copy_(self._made[index].transpose(1, 2).reshape(o.shape))

    def close(self) -> None:
        self._triples, self._made = [], {}


class TorchCpu:
    """The entry `torch`."""

    name = "torch"

    def open(self, device: str, threads: int) -> None:
        """With so many threads; Unavailable without torch."""
        try:
            torch = importlib.import_module("torch")
        except ImportError as problem:
            raise Unavailable(str(problem)) from problem
        torch.set_num_threads(threads)

    def version(self) -> str:
        return f"PyTorch {importlib.import_module('torch').__version__}"

    def enter(self, case: Case) -> list[list[Contestant]]:
        params, dtype = case.params, str(case.params["dtype"])
        if "mask" in params:
            if params["window"] or params["sinks"] == "yes" or params["lengths"]:
                return []
            triples = [tuple(tensor(arrays[x], dtype) for x in "qkv") for arrays in case.sets]
            is_causal = attention.sizes_of(params).rule.causal
            return [[Sdpa(case, triples, is_causal, "scaled_dot_product_attention")]]
        size = decode.sizes_of(params)
        if len(set(size.lengths)) > 1 or params["kv_dtype"] != dtype:
            return []
        torch = importlib.import_module("torch")
        triples = [(tensor(arrays["q"], dtype)[:, None],
                    *(torch.stack([tensor(decode.keys_of(arrays, size, sequence, name), dtype)
                                   for sequence in range(len(size.lengths))]) for name in "kv"))
                   for arrays in case.sets]
        return [[Sdpa(case, triples, False, "scaled_dot_product_attention, dense")]]


PEER = TorchCpu()
