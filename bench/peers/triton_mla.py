"""Absorbed MLA over pages in Triton as a peer: split-KV, a block of heads a program.

The kernels are triton_attention_kernels.py's; parts and their combining are triton_decode.py's.
"""
from __future__ import annotations

import functools
import importlib
from typing import Any, Callable

from harness.contest import ArraySet, Case, Contestant
from peers import mla
from peers.triton_attention import (LOG2E, TritonPeer, Tuned, given_or_tuned, load, said_of,
                                    tuned)
from peers.triton_decode import buffers_for, cores_of, merge, suitable_splits

TILES = ((16, 32, 4, 2), (16, 64, 4, 2), (16, 32, 8, 2), (32, 32, 8, 2), (64, 64, 8, 2),
         (64, 32, 8, 2))  # (BLOCK_H, BLOCK_N, warps, stages)

__all__ = ["HAS_CONFIGS", "PEER", "first_call", "load"]


def tiles_for(hq: int) -> list[tuple[int, int, int, int]]:
    """Those whose blocks of heads are about full."""
    most = 1 << (max(16, hq) - 1).bit_length()
    return [tile for tile in TILES if tile[0] <= most and (hq <= 16 or tile[0] >= 32)]


@functools.lru_cache(maxsize=None)
def tuner_of(hq: int, splits: tuple[int, ...]) -> Any:
    """The kernel for so many heads and these numbers of parts."""
    triton = importlib.import_module("triton")
    kernels = importlib.import_module("peers.triton_attention_kernels")
    configs = [triton.Config({"BLOCK_H": h, "BLOCK_N": n, "SPLITS": each}, num_warps=warps,
                             num_stages=stages)
               for each in splits for h, n, warps, stages in tiles_for(hq)]
    return tuned(kernels.latent, configs, ["pages", "sequences", "SQ", "PAGE", "ROW"])


def cache_views(cache: Any, is_packed: bool) -> tuple[Any, Any, Any, dict[str, int]]:
    """The latent columns, the rotary ones, the factors; and their rows' widths in elements."""
    if not is_packed:
        width = {"ROW": mla.WIDTH, "ROPE_ROW": mla.WIDTH, "FACTOR_ROW": 0}
        return cache, cache[..., mla.VALUES:], cache, width
    torch = importlib.import_module("torch")
    flat = cache.view(-1)
    factors, rope = mla.VALUES, mla.VALUES + 4 * mla.FACTORS
    width = {"ROW": mla.TOKEN_BYTES, "ROPE_ROW": mla.TOKEN_BYTES // 2,
             "FACTOR_ROW": mla.TOKEN_BYTES // 4}
    return (cache.view(torch.float8_e4m3fn), flat[rope:].view(torch.bfloat16),
            flat[factors:].view(torch.float32), width)


def calls_of(case: Case, count: int, config: str = "") -> tuple[list[Callable[[], None]], Any]:
    """The calls of the first `count` sets, and the tuner that they share, or one config of it."""
    size = mla.sizes_of(case.params)
    cores = cores_of(case.device)
    rows, widest = size.b * size.sq, max(tile[0] for tile in tiles_for(size.hq))
    splits = suitable_splits(rows * -(-size.hq // widest), size.kv, cores)
    tuner = given_or_tuned(tuner_of(size.hq, tuple(splits)), config)
    parts, logs = buffers_for(case.sets[0]["o"], max(splits))

    def call_of(arrays: ArraySet) -> Callable[[], None]:
        *views, width = cache_views(arrays["kv_cache"], case.params["kv_dtype"] == "e4m3")
        table = arrays["page_table"]
        given = (arrays["q"], *views, arrays["o"], parts, logs, table, arrays["seq_lens"],
                 table.shape[1], size.b, mla.WIDTH ** -0.5 * LOG2E)

        def grid(values: dict[str, Any]) -> tuple[int, int, int]:
            return values["SPLITS"], -(-size.hq // values["BLOCK_H"]), rows

        def call() -> None:
            tuner[grid](*given, HQ=size.hq, SQ=size.sq, PAGE=size.page, **width)
            merge(tuner.best_config, parts, logs, arrays["o"])

        return call

    return [call_of(arrays) for arrays in case.sets[:count]], tuner


HAS_CONFIGS = True  # first_call() can be given one


def first_call(case: Case, config: str) -> Callable[[], dict[str, Any]]:
    """For start_child.py: the call on the first set, autotuned, or in `config` or "any"."""
    calls, tuner = calls_of(case, 1, config)
    calls[0]()
    return lambda: said_of(tuner)


class TritonMla(TritonPeer):
    """The entry `triton` of mla."""

    def enter(self, case: Case) -> list[list[Contestant]]:
        """bf16 alone in tokens of 656 bytes, whose rotary columns are."""
        if case.params["dtype"] not in ("bf16", "f16"):
            return []
        if case.params["kv_dtype"] == "e4m3" and case.params["dtype"] != "bf16":
            return []
        calls, tuner = calls_of(case, len(case.sets))
        return [[Tuned(calls, tuner)]]


PEER = TritonMla()
