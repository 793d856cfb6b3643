"""Triton as a peer: a GEMM of our own in Triton, autotuned, as an engine would have it on Hopper.

    gemm(a, b, out) --> tuner of (dtype, alignment) --> plans that suit m, n, k --> benchmark of
                        each, the first time that a shape is seen --> launch of the fastest

    m > 128    tiles of 64 to 256 rows: tensor descriptors (TMA) in a persistent grid, or pointers
    m <= 128   one row of tiles of 16 to 128 rows, 1 to 8 parts of k; descriptors of 64 or 128 rows
    float32    pointers and exact f32 arithmetic (input_precision="ieee"), no TF32

Grids that fill the device twice over are not split. Descriptors need rows and bases that are
multiples of 16 bytes; other arrays get the pointer plans alone.

triton.autotune is used with its defaults: its own benchmark, which empties the L2 before each run,
and no cache of its results on disk unless TRITON_CACHE_AUTOTUNING=1 asks for one. Compiled kernels
are in Triton's cache on disk as always. The kernels are in triton_kernels.py; torch and Triton are
imported by load(), so that this module can be imported without them.

One thread, and one stream a device at a time: split products share one buffer of partial sums.
"""
from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, Callable, Iterator, NamedTuple, Optional

from harness.contest import Case, Contestant, Unavailable

if TYPE_CHECKING:
    import torch

PARTIALS_BYTES = 64 << 20
MOST_TILES = 1 << 16  # of a split product
WAVES = 2  # a grid of so many programs an SM needs no further split


class Plan(NamedTuple):
    """A tile, its pipeline, and which of the two kernels: one config of the autotuner."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    split_k: int = 1
    is_tma: bool = False
    stores: int = 1

    def __str__(self) -> str:
        loads = f"tma stores={self.stores}" if self.is_tma else f"split_k={self.split_k}"
        return (f"{self.block_m}x{self.block_n}x{self.block_k} warps={self.warps} "
                f"stages={self.stages} {loads}")


class Tuning(NamedTuple):
    """What the autotuner did for a shape."""

    plan: str  # the fastest
    candidates: int  # benchmarked, compilation included
    seconds: float  # all of it; 0 where the results came from Triton's cache on disk


DESCRIPTOR_PLANS = (
    Plan(128, 256, 64, 8, 3, is_tma=True),
    Plan(128, 256, 64, 8, 4, is_tma=True, stores=2),
    Plan(256, 128, 64, 8, 3, is_tma=True),
    Plan(128, 128, 64, 8, 4, is_tma=True),
    Plan(128, 128, 128, 8, 3, is_tma=True),
    Plan(64, 256, 64, 4, 4, is_tma=True),
    Plan(64, 128, 64, 4, 5, is_tma=True),
    Plan(64, 64, 128, 4, 4, is_tma=True),
)
POINTER_PLANS = (
    Plan(128, 256, 64, 8, 3),
    Plan(128, 128, 64, 8, 4),
    Plan(128, 128, 64, 4, 4),
    Plan(128, 128, 32, 4, 4),
    Plan(64, 128, 64, 4, 4),
    Plan(64, 64, 64, 4, 4),
    Plan(64, 64, 32, 4, 4),
)
FLOAT_PLANS = (
    Plan(128, 128, 16, 8, 3),
    Plan(128, 128, 32, 8, 3),
    Plan(128, 64, 32, 8, 3),
    Plan(64, 128, 32, 8, 3),
    Plan(64, 64, 32, 4, 3),
    Plan(64, 64, 16, 4, 4),
)
WIDE_PLANS = DESCRIPTOR_PLANS + POINTER_PLANS + FLOAT_PLANS


def skinny_plans(is_float: bool) -> Iterator[Plan]:
    """Plans for m <= 128: one row of tiles, as many parts of k as may be needed."""
    shapes = ((64, 64, 4), (32, 64, 4)) if is_float else ((64, 128, 4), (128, 64, 4), (32, 256, 3))
    for block_m in (16, 32, 64, 128):
        for block_n, block_k, stages in shapes:
            for split_k in (1, 2, 4, 8):
                depth = min(block_k, 32 if is_float else 64) if block_m == 128 else block_k
                yield Plan(block_m, block_n, depth, 4, stages, split_k)


def plans_for(is_float: bool, is_aligned: bool) -> list[Plan]:
    """Everything that the tuner of this kind of arrays may choose from, without repetitions."""
    wide = FLOAT_PLANS if is_float else POINTER_PLANS
    descriptors = DESCRIPTOR_PLANS if is_aligned and not is_float else ()
    return list(dict.fromkeys((*descriptors, *wide, *skinny_plans(is_float))))


def ceil_div(value: int, by: int) -> int:
    return -(-value // by)


def tiles_of(plan: Plan, m: int, n: int, batches: int) -> int:
    return ceil_div(m, plan.block_m) * ceil_div(n, plan.block_n) * batches


def can_split(plan: Plan, tiles: int, k: int, cores: int) -> bool:
    """Whether that many parts of k have work, the device has room, and the buffers too."""
    programs = tiles * plan.split_k
    return (programs < 2 * WAVES * cores and tiles <= MOST_TILES
            and programs * plan.block_m * plan.block_n * 4 <= PARTIALS_BYTES
            and ceil_div(k, plan.block_k) >= 2 * plan.split_k)


def is_suitable(plan: Plan, m: int, n: int, k: int, batches: int, cores: int) -> bool:
    """Whether the plan is worth a benchmark for this product on a device of that many SMs."""
    if m > 128:
        return plan in WIDE_PLANS
    rows = max(64 if plan.is_tma else 16, 1 << (m - 1).bit_length())
    tiles = tiles_of(plan, m, n, batches)
    return plan.block_m == rows and (plan.split_k == 1 or can_split(plan, tiles, k, cores))


# ---- Triton's side --------------------------------------------------------------------------


def load() -> None:
    """Import torch, Triton and the kernels, which gemm() would do first. ImportError: one is not
    installed."""
    importlib.import_module("peers.triton_kernels")
    importlib.import_module("torch")


def config_of(plan: Plan) -> Any:
    """The plan as a triton.Config."""
    import triton

    block = {"BLOCK_M": plan.block_m, "BLOCK_N": plan.block_n, "BLOCK_K": plan.block_k}
    kind = {"GROUP_M": 8, "SPLIT_K": plan.split_k, "TMA": int(plan.is_tma), "STORES": plan.stores}
    return triton.Config({**block, **kind}, num_warps=plan.warps, num_stages=plan.stages)


def plan_of(config: Any) -> Plan:
    """The plan that became this triton.Config."""
    values = config.kwargs
    return Plan(values["BLOCK_M"], values["BLOCK_N"], values["BLOCK_K"], config.num_warps,
                config.num_stages, values["SPLIT_K"], bool(values["TMA"]), values["STORES"])


def scratch(size: int, alignment: int, stream: Optional[int]) -> torch.Tensor:
    """Memory for the descriptors that a launch makes; torch's allocator aligns it to 512 bytes."""
    import torch

    return torch.empty(size, dtype=torch.int8, device="cuda")


@functools.lru_cache(maxsize=None)
def split_buffers(device: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Partial sums, f32, and the counters of arrivals, which every launch leaves at zero."""
    import torch

    partials = torch.empty(PARTIALS_BYTES // 4, dtype=torch.float32, device=device)
    return partials, torch.zeros(MOST_TILES, dtype=torch.int32, device=device)


class Launcher:
    """The autotuned kernel for one kind of arrays on one device."""

    def __init__(self, device: int, is_float: bool, is_aligned: bool) -> None:
        import torch
        import triton
        from peers import triton_kernels

        self.cores = torch.cuda.get_device_properties(device).multi_processor_count
        self.buffers = split_buffers(device)
        self.plans = plans_for(is_float, is_aligned)
        even = {"IS_EVEN_K": lambda values: values["K"] % values["BLOCK_K"] == 0}
        self.kernel = triton.heuristics(even)(triton_kernels.product)
        self.tuner = triton.autotune(
            configs=[config_of(plan) for plan in self.plans],
            key=["M", "N", "K", "batches", "a_row", "b_row", "d_row"],
            prune_configs_by={"early_config_prune": self.suitable},
        )(self.kernel)
        triton.set_allocator(scratch)

    def suitable(self, configs: list[Any], values: dict[str, Any], **_: Any) -> list[Any]:
        """The configs worth a benchmark: what triton.autotune asks before it tunes a shape."""
        m, n, k, batches = (int(values[name]) for name in ("M", "N", "K", "batches"))
        return [x for x in configs if is_suitable(plan_of(x), m, n, k, batches, self.cores)]

    def launch(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor,
               config: Optional[str]) -> None:
        """On the current stream; the config with this text, or the tuner's choice."""
        m, k = a.shape[-2:]
        n = b.shape[-2]
        is_batched = a.dim() == 3
        batches = a.shape[0] if is_batched else 1
        steps = [x.stride(0) if is_batched else 0 for x in (a, b, out)]
        rows = [x.stride(-2) for x in (a, b, out)]

        def grid(values: dict[str, Any]) -> tuple[int, int, int]:
            tiles = ceil_div(m, values["BLOCK_M"]) * ceil_div(n, values["BLOCK_N"])
            if values["TMA"]:
                return min(self.cores, tiles * batches), 1, 1
            return tiles, values["SPLIT_K"], batches

        arguments = (a, b, out, *self.buffers, m, n, k, batches, *rows, *steps)
        if config is None:
            self.tuner[grid](*arguments, IS_BATCHED=is_batched)
        else:
            self.kernel[grid](*arguments, IS_BATCHED=is_batched, **self.given(config))

    def given(self, config: str) -> dict[str, Any]:
        """The constants of the plan with this text. ValueError: these arrays have none such."""
        for plan in self.plans:
            if str(plan) == config:
                return dict(config_of(plan).all_kwargs())
        names = ", ".join(map(str, self.plans))
        raise ValueError(f"config={config}: must be one of {names} for these arrays")


def is_aligned(array: torch.Tensor) -> bool:
    """Whether descriptors can address it."""
    row_bytes = array.stride(-2) * array.element_size()
    is_whole = array.dim() == 2 or array.is_contiguous()
    return bool(array.data_ptr() % 16 == 0 and row_bytes % 16 == 0 and is_whole)


@functools.lru_cache(maxsize=None)
def launcher_at(device: int, is_float: bool, are_aligned: bool) -> Launcher:
    return Launcher(device, is_float, are_aligned)


def launcher_of(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Launcher:
    """The launcher for these arrays' dtype, alignment and device. ImportError: see load()."""
    are_aligned = is_aligned(a) and is_aligned(b) and is_aligned(out)
    return launcher_at(a.get_device(), a.element_size() == 4, are_aligned)


def gemm(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor,
         config: Optional[str] = None) -> None:
    """out = a b^T on the current stream of the current device, which must be the arrays'.

    a [m, k], b [n, k], out [m, n], or all three with a batch in front; all bf16, f16 or f32, last
    dimension of stride 1. The first call for a shape benchmarks the plans that suit it, which waits
    for the device and cannot be captured into a graph. config: a Tuning.plan, taken as it is,
    without a benchmark; ValueError where these arrays have none such. ImportError where torch or
    Triton is missing.
    """
    launcher_of(a, b, out).launch(a, b, out, config)


def tune(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Tuning:
    """gemm(a, b, out), and what its autotuner did; candidates=0 if it knew the shape already."""
    launcher = launcher_of(a, b, out)
    tuner = launcher.tuner
    known = len(tuner.cache)
    tuner.bench_time = 0.0
    launcher.launch(a, b, out, None)
    plan = str(plan_of(tuner.best_config))
    candidates = len(tuner.configs_timings) if len(tuner.cache) > known else 0
    return Tuning(plan, candidates, tuner.bench_time)


HAS_CONFIGS = True  # first_call() can be given one


def first_call(case: Case, config: str) -> Callable[[], dict[str, Any]]:
    """For start_child.py: gemm() on the first set, autotuned or in `config`, "any" of the list."""
    a, b, out = (case.sets[0][name] for name in ("a", "b", "out"))
    config = str(WIDE_PLANS[0]) if config == "any" else config
    if config:
        gemm(a, b, out, config)
        return lambda: {"config": config}
    tuned = tune(a, b, out)
    return lambda: {"config": tuned.plan, "candidates": tuned.candidates,
                    "tuning_s": tuned.seconds}


def reset() -> None:
    """Forget what was tuned and compiled in this process; Triton's cache on disk stays."""
    from peers import triton_kernels

    launcher_at.cache_clear()
    triton_kernels.product.device_caches.clear()


# ---- The peer -------------------------------------------------------------------------------


class Product(Contestant):
    """gemm() on the arrays of a case; tuned when it is run first."""

    name = "triton"

    def __init__(self, case: Case) -> None:
        self.sets = case.sets
        self.is_tuned = False

    def run(self, index: int) -> None:
        a, b, out = (self.sets[index][name] for name in ("a", "b", "out"))
        if self.is_tuned:
            gemm(a, b, out)
            return
        done = tune(a, b, out)
        self.is_tuned = True
        self.detail = done.plan
        if done.candidates:
            self.detail += f", fastest of {done.candidates}, tuned in {done.seconds:.1f} s"


class TritonGemm:
    """The entry `triton`: bf16, f16 and f32, the output of the inputs' dtype."""

    name = "triton"

    def open(self, device: str, threads: int) -> None:
        """Make `device` the current one and load Triton; Unavailable without either."""
        try:
            load()
        except ImportError as problem:
            raise Unavailable(str(problem)) from problem
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise Unavailable("torch finds no CUDA device")
        torch.cuda.set_device(device)

    def version(self) -> str:
        return f"Triton {importlib.import_module('triton').__version__}"

    def enter(self, case: Case) -> list[list[Contestant]]:
        if case.params["dtype"] not in ("bf16", "f16", "f32"):
            return []
        return [[Product(case)]]


PEER = TritonGemm()
