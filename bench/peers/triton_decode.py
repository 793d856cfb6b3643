"""Split-KV decode over pages in Triton as a peer.

    decode     SPLITS parts of each sequence and head of k and v, autotuned with the tile
    combine    the parts made one; not launched where there is one part

The autotuner times the first of the two. A common prefix is read for each sequence anew, through a
table whose rows begin with its pages (made beforehand): its lines come from L2 then. The kernels
are triton_attention_kernels.py's.
"""
from __future__ import annotations

import functools
import importlib
from typing import Any, Callable

from harness.contest import ArraySet, Case, Contestant
from peers import decode
from peers.triton_attention import (LOG2E, TritonPeer, Tuned, given_or_tuned, load, said_of,
                                    tuned)

SPLITS = (1, 2, 4, 8, 16, 32, 64)
TILES = ((64, 4, 3), (128, 4, 2), (32, 4, 4), (64, 8, 3))  # (BLOCK_N, warps, stages)
LEAST_HEADS = 16  # rows of a tile: what tl.dot takes

__all__ = ["HAS_CONFIGS", "PEER", "first_call", "load"]


def suitable_splits(programs: int, kv: int, cores: int) -> list[int]:
    """Numbers of parts worth a benchmark: up to eight programs an SM, 128 keys a part or more."""
    found = [splits for splits in SPLITS
             if splits == 1 or (programs * splits <= 8 * cores and kv >= 128 * splits)]
    return found[-4:]


def cores_of(device: str) -> int:
    """SMs."""
    torch = importlib.import_module("torch")
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.lru_cache(maxsize=None)
def tuner_of(splits: tuple[int, ...]) -> Any:
    """The decode kernel for these numbers of parts."""
    triton = importlib.import_module("triton")
    kernels = importlib.import_module("peers.triton_attention_kernels")
    configs = [triton.Config({"BLOCK_N": n, "SPLITS": each}, num_warps=warps, num_stages=stages)
               for each in splits for n, warps, stages in TILES]
    return tuned(kernels.decode, configs, ["pages", "sequences", "HQ", "GROUP", "D", "PAGE"])


def merge(best: Any, parts: Any, logs: Any, o: Any) -> None:
    """combine(), where the choice that was made has more than one part."""
    splits = best.kwargs["SPLITS"]
    if splits > 1:
        kernels = importlib.import_module("peers.triton_attention_kernels")
        rows, width = o.numel() // o.shape[-1], o.shape[-1]
        kernels.combine[(rows,)](parts, logs, o, DV=width, SPLITS=splits, BLOCK_S=splits)


def buffers_for(o: Any, splits: int) -> tuple[Any, Any]:
    """f32 outputs of so many parts, and their logarithms."""
    torch = importlib.import_module("torch")
    rows, width = o.numel() // o.shape[-1], o.shape[-1]
    return (torch.empty(rows * splits * width, dtype=torch.float32, device=o.device),
            torch.empty(rows * splits, dtype=torch.float32, device=o.device))


def whole_tables(size: decode.Sizes, arrays: ArraySet) -> tuple[Any, Any]:
    """Table and lengths of all that each sequence sees."""
    if not size.shared:
        return arrays["page_table"], arrays["seq_lens"]
    torch = importlib.import_module("torch")
    before = arrays["shared_table"][None].expand(len(size.lengths), -1)
    return (torch.cat([before, arrays["page_table"]], 1).contiguous(),
            arrays["seq_lens"] + size.shared)


def calls_of(case: Case, count: int, config: str = "") -> tuple[list[Callable[[], None]], Any]:
    """The calls of the first `count` sets, and the tuner that they share, or one config of it."""
    size = decode.sizes_of(case.params)
    cores = cores_of(case.device)
    b, group = len(size.lengths), size.hq // size.hkv
    splits = suitable_splits(b * size.hkv, max(size.totals), cores)
    tuner = given_or_tuned(tuner_of(tuple(splits)), config)
    parts, logs = buffers_for(case.sets[0]["o"], max(splits))

    def call_of(arrays: ArraySet) -> Callable[[], None]:
        table, lengths = whole_tables(size, arrays)
        given = (*(arrays[x] for x in ("q", "k_cache", "v_cache", "o")), parts, logs, table,
                 lengths, table.shape[1], b, size.d ** -0.5 * LOG2E)

        def call() -> None:
            tuner[lambda values: (values["SPLITS"], size.hkv, b)](
                *given, HQ=size.hq, GROUP=group, D=size.d, PAGE=size.page,
                BLOCK_H=max(LEAST_HEADS, group))
            merge(tuner.best_config, parts, logs, arrays["o"])

        return call

    return [call_of(arrays) for arrays in case.sets[:count]], tuner


HAS_CONFIGS = True  # first_call() can be given one


def first_call(case: Case, config: str) -> Callable[[], dict[str, Any]]:
    """For start_child.py: the call on the first set, autotuned, or in `config` or "any"."""
    calls, tuner = calls_of(case, 1, config)
    calls[0]()
    return lambda: said_of(tuner)


class TritonDecode(TritonPeer):
    """The entry `triton` of decode."""

    def enter(self, case: Case) -> list[list[Contestant]]:
        if case.params["dtype"] not in ("bf16", "f16"):
            return []
        calls, tuner = calls_of(case, len(case.sets))
        said = "the prefix read for each sequence, " if case.params["shared"] else ""
        return [[Tuned(calls, tuner, said)]]


PEER = TritonDecode()
