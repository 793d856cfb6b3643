"""Flash attention in Triton as a peer of attention and extend: what an engine that writes its own
Triton kernels gets.

    tuner_of()          the kernel under triton.autotune, its list of tiles by the width of heads
    prefill(), extend() one launch on torch's current stream

The kernels are triton_attention_kernels.py's. The first call for a kind of arrays and a length
times the list, which waits for the device and cannot be captured into a graph.
"""
from __future__ import annotations

import functools
import importlib
import time
from typing import Any, Callable

from harness.contest import ArraySet, Case, Contestant, Unavailable
from peers import attention, extend
from peers.triton_compile import side_by_side

LOG2E = 1.4426950408889634
TILES = {  # width of keys: (BLOCK_M, BLOCK_N, warps, stages)
    64: ((128, 128, 8, 3), (128, 64, 8, 3), (128, 64, 4, 3), (128, 128, 4, 2), (64, 64, 4, 3)),
    128: ((128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 4, 3), (128, 64, 8, 2), (64, 64, 4, 3),
          (128, 128, 8, 3)),
    192: ((128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 2), (128, 64, 8, 3)),
    256: ((128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 4, 2), (64, 32, 4, 3)),
}

KEY = ("most", "pages", "window", "HQ", "GROUP", "D", "D2", "DV", "CAUSAL", "PACKED", "PAGE")


def tiles_for(width: int) -> tuple[tuple[int, int, int, int], ...]:
    """What the tuner of heads of that width may choose from."""
    return TILES[min(known for known in TILES if known >= min(width, 256))]


def text_of(config: Any) -> str:
    """A triton.Config in words."""
    blocks = " ".join(f"{name}={value}" for name, value in config.kwargs.items())
    return f"{blocks} warps={config.num_warps} stages={config.num_stages}"


class Given:
    """A kernel in one config of its tuner's list, launched as the tuner is."""

    def __init__(self, tuner: Any, text: str) -> None:
        chosen = [config for config in tuner.configs if text in ("any", text_of(config))]
        if not chosen:
            names = ", ".join(map(text_of, tuner.configs))
            raise ValueError(f"config={text}: must be one of {names}")
        self.best_config, self._kernel = chosen[0], tuner.fn

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        chosen = self.best_config.all_kwargs()
        sizes = grid(chosen) if callable(grid) else grid
        return lambda *arguments, **more: self._kernel[sizes](*arguments, **more, **chosen)


def tuned(kernel: Any, configs: list[Any], key: list[str]) -> Any:
    """The kernel under triton.autotune."""
    return importlib.import_module("triton").autotune(configs=configs, key=key)(kernel)


@functools.lru_cache(maxsize=None)
def tuner_of(width: int) -> Any:
    """The prefill kernel for keys of that width."""
    triton = importlib.import_module("triton")
    kernels = importlib.import_module("peers.triton_attention_kernels")
    configs = [triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
               for m, n, warps, stages in tiles_for(width)]
    return tuned(kernels.prefill, configs, list(KEY))


def columns_of(width: int) -> tuple[int, int]:
    """A width as a power of two and the rest, one too or 0."""
    first = 1 << (width.bit_length() - 1)
    return first, width - first


def launch(arrays: dict[str, Any], most: int, scale: float, constants: dict[str, Any],
           window: int = 0, tuner: Any = None) -> None:
    """One launch. arrays: q k v o, rows that lie together, and what else there is of sinks,
    borders, k_cache, v_cache, table and prefixes; most: queries of the longest sequence."""
    q, table = arrays["q"], arrays.get("table")
    (d, d2), hq = columns_of(q.shape[-1]), q.shape[-2]
    sequences = arrays["borders"].shape[0] - 1 if "borders" in arrays else q.shape[0]
    given = [arrays.get(name, q) for name in ("q", "k", "v", "o", "sinks", "borders", "k_cache",
                                              "v_cache", "table", "prefixes")]
    pages = table.shape[1] if table is not None else 0

    def grid(values: dict[str, Any]) -> tuple[int, int, int]:
        return -(-most // values["BLOCK_M"]), hq, sequences

    tuner = tuner or tuner_of(d + d2)
    tuner[grid](*given, most, pages, window, scale * LOG2E, HQ=hq,
                GROUP=hq // arrays["k"].shape[-2], D=d, D2=d2, DV=arrays["v"].shape[-1],
                SINKS="sinks" in arrays, PACKED="borders" in arrays, WINDOW=bool(window),
                **constants)


def prefill_call(params: dict[str, Any], arrays: ArraySet, tuner: Any = None) -> Callable[[], None]:
    """One call of attention."""
    size = attention.sizes_of(params)
    given = {name: arrays[name] for name in ("q", "k", "v", "o")}
    if "sinks" in arrays.inputs:
        given["sinks"] = arrays["sinks"]
    if "cu_seqlens" in arrays.inputs:
        given["borders"] = arrays["cu_seqlens"]
    return functools.partial(launch, given, max(size.lengths), size.rule.scale,
                             {"CAUSAL": size.rule.causal, "PAGE": 0}, size.rule.window, tuner)


def extend_call(params: dict[str, Any], arrays: ArraySet, tuner: Any = None) -> Callable[[], None]:
    """One call of extend."""
    size = extend.sizes_of(params)
    names = {"borders": "cu_seqlens_q", "table": "page_table", "prefixes": "prefix_lens"}
    given = {name: arrays[names.get(name, name)]
             for name in ("q", "k", "v", "o", "k_cache", "v_cache", *names)}
    return functools.partial(launch, given, size.t, size.rule.scale,
                             {"CAUSAL": True, "PAGE": size.page}, 0, tuner)


def call_of(case: Case, arrays: ArraySet, tuner: Any = None) -> Callable[[], None]:
    """attention's or extend's."""
    make = extend_call if "prefix" in case.params else prefill_call
    return make(case.params, arrays, tuner)


def width_of(case: Case) -> int:
    """Of a case's keys."""
    return int(case.params["d"])


# ---- First calls ------------------------------------------------------------------------------


HAS_CONFIGS = True  # first_call() can be given one


def load() -> None:
    """Import torch, Triton and the kernels. ImportError: one is not installed."""
    importlib.import_module("peers.triton_attention_kernels")
    importlib.import_module("torch")


def first_call(case: Case, config: str) -> Callable[[], dict[str, Any]]:
    """For start_child.py: the call on the first set, autotuned, or in `config` or "any"."""
    tuner = given_or_tuned(tuner_of(width_of(case)), config)
    call_of(case, case.sets[0], tuner)()
    return lambda: said_of(tuner)


def given_or_tuned(tuner: Any, config: str) -> Any:
    """The tuner itself where no config is named."""
    return Given(tuner, config) if config else tuner


def said_of(tuner: Any) -> dict[str, Any]:
    """What a tuner did in this process; nothing of what came from disk."""
    if isinstance(tuner, Given):
        return {"config": text_of(tuner.best_config)}
    timings = getattr(tuner, "configs_timings", None) or {}
    return {"config": text_of(tuner.best_config), "candidates": len(timings),
            "tuning_s": float(getattr(tuner, "bench_time", 0.0) or 0.0)}


# ---- The peer ---------------------------------------------------------------------------------


class Tuned(Contestant):
    """Calls of an autotuned kernel; tuned when it is made."""

    name = "triton"

    def __init__(self, calls: list[Callable[[], None]], tuner: Any, detail: str = "") -> None:
        self._calls = calls
        begin = time.monotonic()
        with side_by_side():
            calls[0]()
        self.first_s = time.monotonic() - begin
        self.first_how = "candidates compiled side by side"
        self.detail = detail + text_of(tuner.best_config)

    def run(self, index: int) -> None:
        self._calls[index]()

    def close(self) -> None:
        self._calls = []


class TritonPeer:
    """The entry `triton` of attention and extend."""

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
        if case.params["dtype"] not in ("bf16", "f16"):
            return []
        calls = [call_of(case, arrays) for arrays in case.sets]
        return [[Tuned(calls, tuner_of(width_of(case)))]]


PEER = TritonPeer()
