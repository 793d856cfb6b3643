"""torch on the CPU as a peer of a layer of experts: the loop over the experts that are hit, each
with its tokens gathered, as models written in PyTorch have it.
"""
from __future__ import annotations

import importlib
from typing import Any

from harness.contest import Case, Contestant
from peers import moe
from peers.torch_attention_cpu import TorchCpu, tensor


class Loop(Contestant):
    """Calls on the case's own memory."""

    name, detail = "torch", "a loop over the experts hit"

    def __init__(self, case: Case) -> None:
        self._torch = importlib.import_module("torch")
        dtype = str(case.params["dtype"])
        self._topk = moe.sizes_of(case.params).topk
        self._sets = [{name: tensor(arrays[name], "f32" if name == "logits" else dtype)
                       for name in ("x", "logits", "w13", "w2", "out")} for arrays in case.sets]

    def run(self, index: int) -> None:
        with self._torch.inference_mode():
            self._layer(self._sets[index])

    def _layer(self, arrays: dict[str, Any]) -> None:
        torch, x = self._torch, arrays["x"]
        linear, silu = torch.nn.functional.linear, torch.nn.functional.silu
        weights, ids = torch.topk(torch.softmax(arrays["logits"], -1), self._topk)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros(x.shape)
        for expert in ids.unique().tolist():
            tokens, places = torch.where(ids == expert)
            gate, up = linear(x[tokens], arrays["w13"][expert]).chunk(2, -1)
            y = linear(silu(gate) * up, arrays["w2"][expert])
            out.index_add_(0, tokens, y * weights[tokens, places, None])
        arrays["out"].copy_(out)

    def close(self) -> None:
        self._sets = []


class TorchMoeCpu(TorchCpu):
    """The entry `torch` of moe."""

    def enter(self, case: Case) -> list[list[Contestant]]:
        return [[Loop(case)]]


PEER = TorchMoeCpu()
