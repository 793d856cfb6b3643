"""torch's attention for decode: keys and values dense rather than in pages.

    dense    equal lengths: scaled_dot_product_attention, FlashAttention-2's and cuDNN's, whichever
             is faster; lengths that differ: torch.nn.attention.varlen. A common prefix is there for
             each sequence anew

The keys of each sequence are brought side by side before anything is timed: no engine has them so,
and it is a point of reference. e4m3 has no entry.
"""
from __future__ import annotations

import importlib
from itertools import accumulate
from typing import Any, Callable

from harness.contest import ArraySet, Case, Contestant
from peers import decode
from peers.torch_attention import (Call, Form, TorchPeer, dense_call, first_that_runs, forms_of,
                                   packed_call, repeated)


def equal_forms(case: Case, size: decode.Sizes, backend: Any) -> list[Form]:
    """Of scaled_dot_product_attention, [b, 1, hq, d] over [b, kv, hkv, d]."""
    torch = importlib.import_module("torch")
    group = size.hq // size.hkv

    def form(repeat: bool) -> Callable[[ArraySet], Call]:
        def call_of(arrays: ArraySet) -> Call:
            k, v = (repeated(torch.stack([decode.keys_of(arrays, size, sequence, name)
                                          for sequence in range(len(size.lengths))]),
                             group if repeat else 1, 2) for name in "kv")
            return dense_call(backend, arrays["q"][:, None], k, v, False)

        return call_of

    return [(said, form(repeat)) for said, repeat, _ in forms_of(group, False)]


def packed_forms(case: Case, size: decode.Sizes) -> list[Form]:
    """Of varlen_attn."""
    torch = importlib.import_module("torch")
    group, b = size.hq // size.hkv, len(size.lengths)

    def form(repeat: bool) -> Callable[[ArraySet], Call]:
        def call_of(arrays: ArraySet) -> Call:
            k, v = (repeated(torch.cat([decode.keys_of(arrays, size, sequence, name)
                                        for sequence in range(b)]), group if repeat else 1, 1)
                    for name in "kv")
            whole = {"dtype": torch.int32, "device": k.device}
            borders = (torch.arange(b + 1, **whole),
                       torch.tensor([0, *accumulate(size.totals)], **whole))
            return packed_call(arrays["q"], k, v, borders, (1, max(size.totals)), False)

        return call_of

    return [(said, form(repeat)) for said, repeat, _ in forms_of(group, False)]


class DenseDecode(TorchPeer):
    """The entry `dense` of decode."""

    def enter(self, case: Case) -> list[list[Contestant]]:
        """[] of a cache in e4m3."""
        if case.params["kv_dtype"] != case.params["dtype"] or case.params["dtype"] == "f32":
            return []
        size = decode.sizes_of(case.params)
        if len(set(size.lengths)) > 1:
            return [first_that_runs("dense", "varlen_attn", case, packed_forms(case, size))]
        backends = importlib.import_module("torch.nn.attention").SDPBackend
        found: list[Contestant] = []
        why: Exception | None = None
        for said, backend in (("FlashAttention-2", backends.FLASH_ATTENTION),
                              ("cuDNN", backends.CUDNN_ATTENTION)):
            try:
                found += first_that_runs("dense", f"scaled_dot_product_attention, {said}", case,
                                         equal_forms(case, size, backend))
            except RuntimeError as failure:
                why = failure
        if why and not found:
            raise why
        return [found]


PEER = DenseDecode("dense")
