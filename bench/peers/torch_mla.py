"""torch as a peer of absorbed MLA: two batched products and a softmax between them, over latent
rows that lie side by side rather than in pages (brought there before anything is timed).

scaled_dot_product_attention takes no heads of 576 in its fast backends, and with the keys of each
head expanded it would read as many times more: so it is not here. The probabilities are in the
dtype of q. e4m3 has no entry.
"""
from __future__ import annotations

import importlib
import math
from typing import Any

from harness.contest import ArraySet, Case, Contestant
from peers import mla
from peers.pages import tokens
from peers.torch_attention import Call, Torch, TorchPeer


def mask_of(like: Any, size: mla.Sizes) -> Any:
    """[sq hq, kv] of 0 and -infinity: what the queries of a sequence see."""
    torch = importlib.import_module("torch")
    query = torch.arange(size.sq, device=like.device).repeat_interleave(size.hq)[:, None]
    place = torch.arange(size.kv, device=like.device)[None]
    mask = torch.zeros(size.sq * size.hq, size.kv, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(place > query + size.kv - size.sq, -math.inf)


def call_of(arrays: ArraySet, size: mla.Sizes) -> Call:
    """() --> o [b, sq, hq, 512]."""
    torch = importlib.import_module("torch")
    rows = torch.stack([tokens(arrays["kv_cache"], arrays["page_table"][sequence], size.kv)
                        for sequence in range(size.b)])
    q = arrays["q"].reshape(size.b, size.sq * size.hq, mla.WIDTH)
    keys, values, scale = rows.transpose(1, 2), rows[..., :mla.VALUES], mla.WIDTH ** -0.5
    mask = mask_of(q, size) if size.sq > 1 else torch.zeros((), dtype=q.dtype, device=q.device)
    beta = 1.0 if size.sq > 1 else 0.0

    def call() -> Any:
        scores = torch.baddbmm(mask, q, keys, beta=beta, alpha=scale)
        return torch.bmm(torch.softmax(scores, -1), values)

    return call


class TorchMla(TorchPeer):
    """The entry `dense` of mla."""

    def enter(self, case: Case) -> list[list[Contestant]]:
        """[] of tokens in e4m3."""
        if case.params["kv_dtype"] != case.params["dtype"] or case.params["dtype"] == "f32":
            return []
        size = mla.sizes_of(case.params)
        calls = [call_of(arrays, size) for arrays in case.sets]
        return [[Torch("dense", "baddbmm, softmax, bmm", case, calls)]]


PEER = TorchMla("dense")
