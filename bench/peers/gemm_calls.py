"""What harness/call_child.py calls of gemm's: a tiny product in every way that there is."""
from __future__ import annotations

from typing import Any, Iterator

from harness.call_child import Bench, Way, python_way

TINY = {"cpu": {"m": "4", "n": "16", "k": "16", "dtype": "f32"},
        "cuda": {"m": "16", "n": "64", "k": "64", "dtype": "bf16"}}
DISPATCHED = {"cpu": {"m": "128", "n": "256", "k": "256", "dtype": "f32"},
              "cuda": {"m": "128", "n": "256", "k": "256", "dtype": "bf16"}}
PARAM = "m"
ROWS = {
    "dispatch, m the same": (64,),
    "dispatch, m within a bucket": (64, 33, 40, 51, 64, 60, 47, 39),
    "dispatch, m across 8 buckets": (1, 2, 3, 8, 9, 17, 64, 128),
}


def ways(bench: Bench) -> list[Way]:
    """quern's from Python, torch's, on a GPU Triton's."""
    found = list(quern_ways(bench))
    if bench.torch is not None:
        found += torch_ways(bench)
    if bench.kind == "cuda":
        try:
            for way in triton_ways(bench):
                way.batch(1)
                found.append(way)
        except Exception as error:  # Triton's: the others are measured without it
            bench.skipped["triton"] = f"{type(error).__name__}: {error}"[:400]
    return found


def arrays(bench: Bench) -> list[Any]:
    """a, b, d: NumPy arrays on the CPU, torch tensors on a GPU."""
    made = bench.case(TINY).sets[0]
    return [made[name] for name in ("a", "b", "out")]


def quern_ways(bench: Bench) -> Iterator[Way]:
    """The package's own function, and a prepared call on other arrays."""
    import quern

    a, b, d = arrays(bench)
    a2, _, d2 = arrays(bench)
    prepared = quern.prepare("gemm", a, b, out=d)
    yield python_way("Prepared(a=.., out=..)", "quern", prepared, a=a2, out=d2)
    yield python_way("quern.gemm(a, b, out=d)", "quern", quern.gemm, a, b, out=d)


def torch_ways(bench: Bench) -> Iterator[Way]:
    """`import quern`, with torch there, has defined the operators."""
    a, b, d = arrays(bench)
    if bench.kind == "cpu":
        a, b, d = (bench.torch.from_numpy(x) for x in (a, b, d))
    operators = bench.torch.ops.quern
    yield python_way("torch.ops.quern.gemm(a, b)", "quern", operators.gemm, a, b)
    yield python_way("torch.ops.quern.gemm_out(a, b, d)", "quern", operators.gemm_out, a, b, d)
    yield python_way("torch.matmul(a, bt, out=d)", "torch", bench.torch.matmul, a, b.mT, out=d)


def triton_ways(bench: Bench) -> Iterator[Way]:
    """The benchmark's autotuned GEMM, by its function."""
    from peers import triton_gemm

    a, b, d = arrays(bench)
    yield python_way("Triton, autotuned gemm(a, b, d)", "triton", triton_gemm.gemm, a, b, d)
    yield triton_launch(bench, a, b, d)


def triton_launch(bench: Bench, a: Any, b: Any, d: Any) -> Way:
    """The kernel that it launches, kernel[grid](...), in one tile, with nothing around it."""
    from peers.triton_kernels import product

    (m, k), n = a.shape, b.shape[0]
    counters = bench.torch.zeros(1, dtype=bench.torch.int32, device=bench.device)
    sizes = (m, n, k, 1, k, k, n, m * k, n * k, m * n)
    kernel = product[(1, 1, 1)]
    return python_way("Triton, kernel[grid](...)", "triton", kernel, a, b, d, d, counters,
                      *sizes, BLOCK_M=16, BLOCK_N=64, BLOCK_K=64, GROUP_M=1, SPLIT_K=1, TMA=0,
                      STORES=1, IS_BATCHED=False, IS_EVEN_K=True, num_warps=4, num_stages=2)
