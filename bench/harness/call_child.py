"""What one warm call of gemm costs on the host: a child of starts.py, in a process of its own.

    call_child.py JOB        JOB: {"device": "cpu" | "cuda:0", "library": build/bench/call_cost.so}

    round 1   C launch, Prepared(), Prepared(a=..), gemm(), ..., Triton     100 calls each
              Triton, ..., gemm(), Prepared(a=..), Prepared(), C launch     and back
    round 2   ...

A way of calling has one figure a round, the lesser of its two batches (others may have had the
processor during one); what is reported is the median over the rounds and the MAD, in nanoseconds a
call. The overhead of Prepared() is taken within a round, too. The product is tiny: on the CPU, on
one thread, its time is in every figure of quern's; on a GPU the figure is the host's time only:
each batch is enqueued behind a kernel that spins, so that the stream is busy, and the driver's
queue takes the batch whole. bench/call_cost.c makes the calls from C, on the same context, kernel
and arrays, and the dispatches.

One JSON object on stdout: {"rows": [{"name", "side", "ns", "mad_ns"}], "rounds", "skipped"}; a
failure is a line on stderr and exit status 1. It checks no results: harness/start_child.py does.
"""
from __future__ import annotations

import ctypes
import functools
import gc
import itertools
import json
import math
import sys
import time
from typing import Any, Callable, Iterator, NamedTuple

from harness.figures import mad, median
from harness.start_child import inputs_of

CALLS = 100  # a batch: the driver's queue holds 1024
ROUNDS = 51
DISPATCHES = 4096
SPIN_CYCLES = 6_000_000  # about 3 ms: longer than the slowest batch takes to enqueue

TINY = {"cpu": (4, 16, 16, "f32"), "cuda": (16, 64, 64, "bf16")}
DISPATCHED = {"cpu": (128, 256, 256, "f32"), "cuda": (128, 256, 256, "bf16")}
ROWS = {
    "dispatch, m the same": (64,),
    "dispatch, m within a bucket": (64, 33, 40, 51, 64, 60, 47, 39),
    "dispatch, m across 8 buckets": (1, 2, 3, 8, 9, 17, 64, 128),
}


class Way(NamedTuple):
    """One way of calling: batch(calls) returns nanoseconds a call."""

    name: str
    side: str  # "quern" or whose call it is
    batch: Callable[[int], float]


class QuernCall(ctypes.Structure):
    """struct quern_call."""

    _fields_ = [("stream", ctypes.c_void_p), ("workspace", ctypes.c_void_p),
                ("workspace_bytes", ctypes.c_size_t)]


class CallCost(ctypes.Structure):
    """struct call_cost of bench/call_cost.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in
                ("launch", "run", "dispatch", "ctx", "kernel", "spec", "arrays")]
    _fields_ += [("call", QuernCall)]


# ---- From C -----------------------------------------------------------------------------------


def address(what: Any) -> int:
    """Where a ctypes struct or array is; where a pointer, or a number, points to."""
    if isinstance(what, int):
        return what
    if isinstance(what, ctypes.c_void_p):
        return what.value or 0
    if isinstance(what, (ctypes.Structure, ctypes.Array)):
        return ctypes.addressof(what)
    return ctypes.cast(what, ctypes.c_void_p).value or 0


class FromC:
    """quern's functions called by bench/call_cost.c on what `prepared` holds, which is kept."""

    def __init__(self, library: str, prepared: Any, stream: int, workspace: int) -> None:
        import quern

        loaded = ctypes.CDLL(str(quern.library_path()))
        functions = [address(getattr(loaded, "quern_" + name))
                     for name in ("launch", "run", "dispatch")]
        objects = [address(x) for x in
                   (prepared._ctx, prepared._kernel, prepared._spec, prepared._arrays)]
        call = QuernCall(stream or None, workspace or None, prepared.workspace_bytes)
        self.keep = prepared
        self.cost = CallCost(*functions, *objects, call)
        self.code = ctypes.CDLL(library)

    def timed(self, name: str, *args: Any) -> float:
        """Nanoseconds a call of one batch of call_cost_NAME()."""
        ns = ctypes.c_double()
        status = getattr(self.code, "call_cost_" + name)(
            ctypes.byref(self.cost), *args, ctypes.byref(ns))
        if status:
            raise RuntimeError(f"quern_{name}() from C returned {status}")
        return ns.value

    def dispatch(self, index: int, values: tuple[int, ...], calls: int) -> float:
        """quern_dispatch() with the spec's parameter `index` taken from `values`, 2^i of them."""
        array = (ctypes.c_int64 * len(values))(*values)
        return self.timed("dispatch", index, array, len(values), calls)


# ---- From Python ------------------------------------------------------------------------------


def python_batch(function: Callable[[], Any], calls: int) -> float:
    """Nanoseconds a call, the loop's own (about 10 ns) included."""
    begin = time.perf_counter_ns()
    for _ in itertools.repeat(None, calls):
        function()
    return (time.perf_counter_ns() - begin) / calls


def python_way(name: str, side: str, function: Callable[..., Any], *args: Any, **more: Any) -> Way:
    call = functools.partial(function, *args, **more) if args or more else function
    return Way(name, side, functools.partial(python_batch, call))


class Bench:
    """The tiny product on one device: arrays, a second set of them, and the ways to compute it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.kind = device.partition(":")[0]
        self.skipped: dict[str, str] = {}
        self.torch = self.import_torch()

    def import_torch(self) -> Any:
        """torch; None on the CPU where there is none."""
        try:
            import torch
        except ImportError as error:
            if self.kind == "cuda":
                raise
            self.skipped["torch"] = str(error)
            return None
        if self.kind == "cuda":
            torch.cuda.set_device(self.device)
        torch.set_num_threads(1)
        return torch

    def arrays(self, m: int, n: int, k: int, dtype: str) -> list[Any]:
        """a, b, d: NumPy arrays on the CPU, torch tensors on a GPU."""
        job = {"device": self.device, "m": m, "n": n, "k": k, "dtype": dtype}
        return list(inputs_of(job).arrays)

    def occupy(self) -> None:
        """Wait for the device, then give it something that lasts longer than a batch."""
        if self.kind == "cuda":
            self.torch.cuda.synchronize()
            self.torch.cuda._sleep(SPIN_CYCLES)

    def from_c(self, library: str, prepared: Any) -> FromC:
        stream = workspace = 0
        if self.kind == "cuda":
            stream = self.torch.cuda.current_stream().cuda_stream
            self.workspace = self.torch.empty(
                prepared.workspace_bytes, dtype=self.torch.uint8, device=self.device)
            workspace = self.workspace.data_ptr()
        elif prepared.workspace_bytes:
            raise RuntimeError("the tiny product was to need no workspace on the CPU")
        return FromC(library, prepared, stream, workspace)

    def quern_ways(self, library: str) -> Iterator[Way]:
        import quern

        a, b, d = self.arrays(*TINY[self.kind])
        a2, _, d2 = self.arrays(*TINY[self.kind])
        prepared = quern.prepare("gemm", a, b, out=d)
        c = self.from_c(library, prepared)
        yield Way("quern_launch() from C", "quern", functools.partial(c.timed, "launch"))
        yield python_way("Prepared() from Python", "quern", prepared)
        yield python_way("Prepared(a=.., out=..)", "quern", prepared, a=a2, out=d2)
        yield Way("quern_run() from C", "quern", functools.partial(c.timed, "run"))
        yield python_way("quern.gemm(a, b, out=d)", "quern", quern.gemm, a, b, out=d)

    def torch_ways(self) -> Iterator[Way]:
        """After quern_ways(): `import quern`, with torch there, defines the operators."""
        a, b, d = self.arrays(*TINY[self.kind])
        if self.kind == "cpu":
            a, b, d = (self.torch.from_numpy(x) for x in (a, b, d))
        operators = self.torch.ops.quern
        yield python_way("torch.ops.quern.gemm(a, b)", "quern", operators.gemm, a, b)
        yield python_way("torch.ops.quern.gemm_out(a, b, d)", "quern", operators.gemm_out, a, b, d)
        yield python_way("torch.matmul(a, bt, out=d)", "torch", self.torch.matmul, a, b.mT, out=d)

    def triton_ways(self) -> Iterator[Way]:
        """The benchmark's autotuned GEMM, by its function."""
        from peers import triton_gemm

        a, b, d = self.arrays(*TINY[self.kind])
        yield python_way("Triton, autotuned gemm(a, b, d)", "triton", triton_gemm.gemm, a, b, d)
        yield self.triton_launch(a, b, d)

    def triton_launch(self, a: Any, b: Any, d: Any) -> Way:
        """The kernel that it launches, kernel[grid](...), in one tile, with nothing around it."""
        from peers.triton_kernels import product

        (m, k), n = a.shape, b.shape[0]
        counters = self.torch.zeros(1, dtype=self.torch.int32, device=self.device)
        sizes = (m, n, k, 1, k, k, n, m * k, n * k, m * n)
        kernel = product[(1, 1, 1)]
        return python_way("Triton, kernel[grid](...)", "triton", kernel, a, b, d, d, counters,
                          *sizes, BLOCK_M=16, BLOCK_N=64, BLOCK_K=64, GROUP_M=1, SPLIT_K=1, TMA=0,
                          STORES=1, IS_BATCHED=False, IS_EVEN_K=True, num_warps=4, num_stages=2)

    def ways(self, library: str) -> list[Way]:
        found = list(self.quern_ways(library))
        if self.torch is not None:
            found += self.torch_ways()
        if self.kind == "cuda":
            try:
                for way in self.triton_ways():
                    way.batch(1)
                    found.append(way)
            except Exception as error:  # Triton's: the others are measured without it
                self.skipped["triton"] = f"{type(error).__name__}: {error}"[:400]
        return found


# ---- Rounds -----------------------------------------------------------------------------------


def figures(name: str, side: str, samples: list[float]) -> dict[str, Any]:
    return {"name": name, "side": side, "ns": median(samples), "mad_ns": mad(samples)}


def one_round(bench: Bench, ways: list[Way]) -> dict[str, float]:
    """Nanoseconds by name: the lesser of the way there and the way back."""
    least = dict.fromkeys((way.name for way in ways), math.inf)
    for way in [*ways, *reversed(ways)]:
        bench.occupy()
        least[way.name] = min(least[way.name], way.batch(CALLS))
    return least


def measure_calls(bench: Bench, library: str) -> list[dict[str, Any]]:
    """A row for each way, the overhead of Prepared() after it."""
    ways = bench.ways(library)
    one_round(bench, ways)
    rounds = [one_round(bench, ways) for _ in range(ROUNDS)]
    rows = [figures(way.name, way.side, [x[way.name] for x in rounds]) for way in ways]
    c, python = ways[0].name, ways[1].name
    overheads = [x[python] - x[c] for x in rounds]
    rows.insert(2, figures("  its overhead over C", "quern", overheads))
    return rows


def measure_dispatch(bench: Bench, library: str) -> list[dict[str, Any]]:
    """A row for each way that m may go."""
    import quern

    a, b, d = bench.arrays(*DISPATCHED[bench.kind])
    prepared = quern.prepare("gemm", a, b, out=d)
    c = bench.from_c(library, prepared)
    names = [word.partition("=")[0] for word in prepared.spec.split()[1:]]
    index = names.index("m")
    rows = []
    for name, values in ROWS.items():
        samples = [c.dispatch(index, values, DISPATCHES) for _ in range(ROUNDS)]
        rows.append(figures(name, "quern", samples))
    return rows


def main() -> int:
    job = json.loads(sys.argv[1])
    gc.disable()
    try:
        bench = Bench(job["device"])
        rows = measure_dispatch(bench, job["library"]) + measure_calls(bench, job["library"])
    except Exception as error:  # any library's: the parent has the line
        line = " ".join(str(error).split())
        print(f"calls: {type(error).__name__}: {line}"[:400], file=sys.stderr)
        return 1
    print(json.dumps({"rows": rows, "rounds": ROUNDS, "skipped": bench.skipped}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
