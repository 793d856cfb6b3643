"""A grouped product in Triton as a peer: tiles are counted on the device from the offsets.

Autotuned over a list of tiles; the kernel is triton_moe_kernels.py's.
"""
from __future__ import annotations

import functools
import importlib
from typing import Any, Callable

from harness.contest import ArraySet, Case, Contestant
from peers import grouped_gemm
from peers.triton_attention import TritonPeer, Tuned, tuned
from peers.triton_moe import power_of_two

FEW = ((16, 64, 128, 4, 4), (16, 128, 128, 4, 4), (16, 128, 64, 4, 5), (16, 256, 64, 4, 4),
       (32, 128, 128, 4, 3))  # (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages)
SOME = ((64, 64, 64, 4, 4), (64, 128, 64, 4, 4), (64, 256, 64, 8, 3), (64, 128, 128, 4, 3),
        (32, 128, 128, 4, 4))
MANY = ((64, 256, 64, 8, 4), (128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (128, 256, 64, 8, 3),
        (128, 256, 64, 8, 4))


def tiles_for(size: grouped_gemm.Sizes) -> tuple[tuple[int, int, int, int, int], ...]:
    """By the rows of an expert."""
    rows = sum(size.rows) / len(size.rows)
    tiles = FEW if rows <= 16 else SOME if rows <= 64 else MANY
    return tuple(tile for tile in tiles if size.k % tile[2] == 0)


@functools.lru_cache(maxsize=None)
def tuner_of(tiles: tuple[tuple[int, int, int, int, int], ...]) -> Any:
    """The kernel with these to choose from."""
    triton = importlib.import_module("triton")
    kernels = importlib.import_module("peers.triton_moe_kernels")
    configs = [triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps,
                             num_stages=stages) for m, n, k, warps, stages in tiles]
    return tuned(kernels.grouped, configs, ["E", "N", "K"])


def call_of(size: grouped_gemm.Sizes, tuner: Any, arrays: ArraySet) -> Callable[[], None]:
    """One call of a set."""
    rows, experts = sum(size.rows), len(size.rows)

    def grid(values: dict[str, Any]) -> tuple[int]:
        tiles_m = min(rows, rows // values["BLOCK_M"] + experts)
        return (tiles_m * -(-size.n // values["BLOCK_N"]),)

    def call() -> None:
        tuner[grid](arrays["a"], arrays["b"], arrays["out"], arrays["offsets"], experts, size.n,
                    size.k, BLOCK_E=power_of_two(experts))

    return call


class TritonGrouped(TritonPeer):
    """The entry `triton` of grouped_gemm."""

    def enter(self, case: Case) -> list[list[Contestant]]:
        size = grouped_gemm.sizes_of(case.params)
        tiles = tiles_for(size)
        if case.params["dtype"] not in ("bf16", "f16") or not tiles:
            return []
        tuner = tuner_of(tiles)
        return [[Tuned([call_of(size, tuner, arrays) for arrays in case.sets], tuner)]]


PEER = TritonGrouped()
