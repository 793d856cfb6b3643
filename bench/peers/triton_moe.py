"""A layer of experts in Triton as a peer, as engines that write their own Triton kernels have it.

    choose | count, lay, fill | experts: x w13^T | silu | experts: h w2^T, weighed | add
             or, few: sort_few

Slots are sorted by expert and padded to blocks on the device; both products gather their rows by
the sorted slots. Every tile of a list is an alternative of its own: the harness times all, and the
fastest plays. The kernels are triton_moe_kernels.py's.
"""
from __future__ import annotations

import importlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, NamedTuple, Sequence

from harness.contest import ArraySet, Case, Contestant
from peers import moe
from peers.triton_attention import TritonPeer, load

__all__ = ["HAS_CONFIGS", "PEER", "first_call", "load"]

SCANNED = 1024  # ids that a program of count and fill looks at together
SORTED_TOGETHER = 128  # slots that one program sorts
COLUMNS = 1024  # of silu and add


class Tile(NamedTuple):
    """A config of both products."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    group: int

    def __str__(self) -> str:
        return (f"{self.m}x{self.n}x{self.k} group={self.group} warps={self.warps} "
                f"stages={self.stages}")


FEW = (Tile(16, 32, 256, 4, 3, 1), Tile(16, 64, 128, 4, 4, 1), Tile(16, 64, 256, 4, 3, 1),
       Tile(16, 128, 128, 4, 4, 1), Tile(16, 128, 64, 4, 5, 1))
SOME = (Tile(16, 64, 128, 4, 4, 1), Tile(16, 128, 128, 4, 4, 1), Tile(32, 64, 128, 4, 4, 1),
        Tile(32, 128, 64, 4, 4, 1), Tile(32, 128, 128, 4, 3, 1))
MANY = (Tile(64, 128, 64, 4, 4, 8), Tile(128, 128, 64, 8, 4, 8), Tile(128, 256, 64, 8, 3, 8),
        Tile(64, 256, 64, 8, 4, 8), Tile(64, 128, 64, 8, 3, 16))


def tiles_for(size: moe.Sizes) -> list[Tile]:
    """By the tokens of an expert."""
    each = size.tokens * size.topk / size.experts
    tiles = FEW if each <= 1 else SOME if each <= 16 else MANY
    return [tile for tile in tiles if size.hidden % tile.k == 0 and size.inter % tile.k == 0]


def power_of_two(value: int) -> int:
    """At least `value`."""
    return 1 << (value - 1).bit_length()


class Buffers:
    """What a call keeps between its kernels, for any of the tiles."""

    def __init__(self, size: moe.Sizes, like: Any) -> None:
        torch = importlib.import_module("torch")
        slots = size.tokens * size.topk

        def integers(count: int) -> Any:
            return torch.empty(count, dtype=torch.int32, device=like.device)

        rows = min(slots, size.experts) * 128 + slots
        self.ids, self.counts, self.starts = (integers(n) for n in (slots, size.experts,
                                                                    size.experts))
        self.sorted, self.blocks_of, self.used = integers(rows), integers(rows), integers(1)
        self.weights = torch.empty(slots, dtype=torch.float32, device=like.device)
        self.both, self.h, self.y = (like.new_empty(slots, width) for width in
                                     (2 * size.inter, size.inter, size.hidden))


def route(kernels: Any, size: moe.Sizes, logits: Any, buffers: Buffers) -> None:
    """Ids and weights."""
    kernels.choose[(size.tokens,)](
        logits, buffers.weights, buffers.ids, size.experts, TOPK=size.topk,
        BLOCK_E=power_of_two(size.experts), BLOCK_K=power_of_two(size.topk), RENORMALIZE=True)


def align(kernels: Any, size: moe.Sizes, block: int, buffers: Any) -> int:
    """Sorted slots and blocks; their number at most."""
    slots = size.tokens * size.topk
    blocks = min(slots, (slots + min(slots, size.experts) * (block - 1)) // block)
    if slots <= SORTED_TOGETHER:
        kernels.sort_few[(1,)](buffers.ids, buffers.sorted, buffers.blocks_of, buffers.used,
                               size.experts, slots, blocks, BLOCK_E=power_of_two(size.experts),
                               BLOCK_S=power_of_two(slots), BLOCK_B=power_of_two(blocks),
                               BLOCK_M=block)
        return blocks
    scanned = min(SCANNED, power_of_two(max(16, slots)))
    kernels.count[(size.experts,)](buffers.ids, buffers.counts, slots, BLOCK=scanned)
    kernels.lay[(1,)](buffers.counts, buffers.starts, buffers.blocks_of, buffers.used,
                      size.experts, blocks, BLOCK_E=power_of_two(size.experts), BLOCK_M=block,
                      BLOCK=64)
    kernels.fill[(size.experts,)](buffers.ids, buffers.starts, buffers.counts, buffers.sorted,
                                  slots, BLOCK_M=block, BLOCK=scanned)
    return blocks


def product_of(size: moe.Sizes, tile: Tile, buffers: Buffers, arrays: ArraySet, is_second: bool,
               blocks: int) -> tuple[tuple[Any, ...], dict[str, Any], int]:
    """Arguments and grid of one of the two products."""
    slots = size.tokens * size.topk
    a, b, d = (buffers.h, arrays["w2"], buffers.y) if is_second else \
        (arrays["x"], arrays["w13"], buffers.both)
    n, k = b.shape[1], b.shape[2]
    given = (a, b, d, buffers.sorted, buffers.blocks_of, buffers.used, buffers.weights, slots,
             blocks, n, k)
    constants = {"SHARE": 1 if is_second else size.topk, "WEIGHED": is_second, "BLOCK_M": tile.m,
                 "BLOCK_N": tile.n, "BLOCK_K": tile.k, "GROUP_M": tile.group,
                 "num_warps": tile.warps, "num_stages": tile.stages}
    return given, constants, blocks * -(-n // tile.n)


def compile_all(size: moe.Sizes, tiles: Sequence[Tile], buffers: Buffers, arrays: ArraySet
                ) -> None:
    """Side by side, where Triton can; the first launch of each compiles it otherwise."""
    kernels = importlib.import_module("peers.triton_moe_kernels")
    try:
        mode = importlib.import_module("triton.runtime._async_compile").AsyncCompileMode
    except ImportError:
        return
    with ThreadPoolExecutor() as pool, mode(pool, ignore_errors=True):
        for tile in tiles:
            for is_second in (False, True):
                given, constants, _ = product_of(size, tile, buffers, arrays, is_second, 1)
                kernels.experts.run(*given, grid=(1,), warmup=True, **constants)


def call_of(size: moe.Sizes, tile: Tile, buffers: Buffers, arrays: ArraySet) -> Callable[[], None]:
    """One call of a set."""
    kernels = importlib.import_module("peers.triton_moe_kernels")
    slots = size.tokens * size.topk

    def product(is_second: bool, blocks: int) -> None:
        given, constants, programs = product_of(size, tile, buffers, arrays, is_second, blocks)
        kernels.experts[(programs,)](*given, **constants)

    def call() -> None:
        route(kernels, size, arrays["logits"], buffers)
        blocks = align(kernels, size, tile.m, buffers)
        product(False, blocks)
        kernels.silu[(slots, -(-size.inter // COLUMNS))](buffers.both, buffers.h,
                                                         WIDTH=size.inter, BLOCK=COLUMNS)
        product(True, blocks)
        kernels.add[(size.tokens, -(-size.hidden // COLUMNS))](
            buffers.y, arrays["out"], TOPK=size.topk, WIDTH=size.hidden, BLOCK=COLUMNS)

    return call


# ---- First calls ------------------------------------------------------------------------------


HAS_CONFIGS = True  # first_call() can be given one


def first_call(case: Case, config: str) -> Callable[[], dict[str, Any]]:
    """For start_child.py: the call on the first set, the fastest tile found first, or in `config`
    or "any"."""
    size, arrays = moe.sizes_of(case.params), case.sets[0]
    buffers, tiles, begin = Buffers(size, arrays["x"]), tiles_for(size), time.monotonic()
    chosen = [tile for tile in tiles if config in ("", "any", str(tile))][:1 if config else None]
    if not chosen:
        raise ValueError(f"config={config}: must be one of {', '.join(map(str, tiles))}")
    if not config:
        do_bench = importlib.import_module("triton.testing").do_bench
        chosen.sort(key=lambda tile: do_bench(call_of(size, tile, buffers, arrays)))
    tuning_s = 0.0 if config else time.monotonic() - begin
    call_of(size, chosen[0], buffers, arrays)()
    if config:
        return lambda: {"config": str(chosen[0])}
    return lambda: {"config": str(chosen[0]), "candidates": len(chosen), "tuning_s": tuning_s}


# ---- The peer ---------------------------------------------------------------------------------


class Fused(Contestant):
    """The calls of a case in one tile."""

    name = "triton"

    def __init__(self, tile: Tile, calls: list[Callable[[], None]], begin: float) -> None:
        self.detail, self._calls = str(tile), calls
        calls[0]()
        self.first_s = time.monotonic() - begin
        self.first_how = "tiles compiled side by side"

    def run(self, index: int) -> None:
        self._calls[index]()

    def close(self) -> None:
        self._calls = []


class TritonMoe(TritonPeer):
    """The entry `triton` of moe."""

    def enter(self, case: Case) -> list[list[Contestant]]:
        if case.params["dtype"] not in ("bf16", "f16"):
            return []
        size, begin = moe.sizes_of(case.params), time.monotonic()
        buffers, tiles = Buffers(size, case.sets[0]["x"]), tiles_for(size)
        compile_all(size, tiles, buffers, case.sets[0])
        return [[Fused(tile, [call_of(size, tile, buffers, arrays) for arrays in case.sets], begin)
                 for tile in tiles]]


PEER = TritonMoe()
