"""torch as peers of a layer of experts on a GPU.

    grouped_mm   slots sorted by expert (a stable sort), rows gathered, torch._grouped_mm for both
                 products with offsets that are counted on the device, index_add of weighed rows
    gathered     few tokens: the experts' weights gathered (that is, copied) and torch.bmm

Both choose by softmax and topk, and leave everything on the device.
"""
from __future__ import annotations

import importlib
from typing import Any

from harness.contest import ArraySet, Case, Contestant
from peers import moe
from peers.torch_attention import Call, Torch, TorchPeer

MOST_GATHERED = 8  # tokens


class Layer(Torch):
    """Calls that return out."""

    def deliver(self, index: int) -> None:
        self._sets[index]["out"].copy_(self._made[index])


def route(torch: Any, logits: Any, topk: int) -> tuple[Any, Any]:
    """Weights and ids, [tokens, topk]."""
    weights, ids = torch.topk(torch.softmax(logits, -1), topk)
    return weights / weights.sum(-1, keepdim=True), ids


def grouped_call(arrays: ArraySet, size: moe.Sizes) -> Call:
    """() --> out."""
    torch = importlib.import_module("torch")
    x, logits = arrays["x"], arrays["logits"]
    w13, w2 = (arrays[name].transpose(1, 2) for name in ("w13", "w2"))
    experts = torch.arange(size.experts, device=x.device)

    def call() -> Any:
        weights, ids = route(torch, logits, size.topk)
        sorted_ids, slots = torch.sort(ids.reshape(-1), stable=True)
        ends = torch.searchsorted(sorted_ids, experts, right=True).to(torch.int32)
        tokens = slots // size.topk
        gate, up = torch._grouped_mm(x[tokens], w13, offs=ends).chunk(2, -1)
        y = torch._grouped_mm(torch.nn.functional.silu(gate) * up, w2, offs=ends)
        y = y * weights.reshape(-1)[slots, None]
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        return out.index_add_(0, tokens, y).to(x.dtype)

    return call


def gathered_call(arrays: ArraySet, size: moe.Sizes) -> Call:
    """() --> out."""
    torch = importlib.import_module("torch")
    x, logits, w13, w2 = (arrays[name] for name in ("x", "logits", "w13", "w2"))

    def call() -> Any:
        weights, ids = route(torch, logits, size.topk)
        flat = ids.reshape(-1)
        rows = x.repeat_interleave(size.topk, 0)[..., None]
        gate, up = torch.bmm(w13[flat], rows).chunk(2, 1)
        y = torch.bmm(w2[flat], torch.nn.functional.silu(gate) * up)
        y = y.reshape(size.tokens, size.topk, size.hidden) * weights[..., None]
        return y.sum(1).to(x.dtype)

    return call


class TorchMoe(TorchPeer):
    """The entries `grouped_mm` and `gathered` of moe."""

    def enter(self, case: Case) -> list[list[Contestant]]:
        size = moe.sizes_of(case.params)
        if self.name == "gathered" and size.tokens > MOST_GATHERED:
            return []
        if self.name == "grouped_mm" and case.params["dtype"] != "bf16":
            return []
        make, said = (grouped_call, "sort, _grouped_mm, index_add") if self.name == "grouped_mm" \
            else (gathered_call, "weights gathered, bmm")
        calls = [make(arrays, size) for arrays in case.sets]
        return [[Layer(self.name, said, case, calls)]]


PEERS = [TorchMoe("grouped_mm"), TorchMoe("gathered")]
