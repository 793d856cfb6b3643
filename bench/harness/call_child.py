"""What one warm call of a family costs on the host: a child of starts.py, in a process of its own.

    call_child.py JOB        JOB: {"device": "cpu" | "cuda:0", "library": build/bench/call_cost.so,
                                   "family": NAME, whose adapter is peers/NAME.py}

    round 1   C launch, Prepared(), C run, gemm(), ..., Triton     100 calls each
              Triton, ..., gemm(), C run, Prepared(), C launch     and back
    round 2   ...

A way of calling has one figure a round, the lesser of its two batches (others may have had the
processor during one); what is reported is the median over the rounds and the MAD, in nanoseconds a
call. The overhead of Prepared() is taken within a round, too. The call is tiny: on the CPU, on
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
import importlib
import itertools
import json
import math
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from harness.figures import mad, median
from harness.start_child import case_of

if TYPE_CHECKING:
    from harness.contest import Case

CALLS = 100  # a batch: the driver's queue holds 1024
ROUNDS = 51
DISPATCHES = 4096
SPIN_CYCLES = 6_000_000  # about 3 ms: longer than the slowest batch takes to enqueue


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
        call = QuernCall(stream or None, workspace or None,
                         prepared.workspace_bytes if workspace else 0)
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
    """A family's tiny call on one device, and the ways to make it.

    What is called is said by the module `calls` of the family's adapter (peers/gemm_calls.py):

        TINY, DISPATCHED   lines of a shape file, by the kind of device
        PARAM, ROWS        the parameter that dispatches change, and through which values, by row
        ways(bench)        further ways of calling, quern's and peers'; a peer that is not there
                           goes into bench.skipped
    """

    def __init__(self, device: str, family: str) -> None:
        self.device, self.family = device, family
        self.kind = device.partition(":")[0]
        self.skipped: dict[str, str] = {}
        self.torch = self.import_torch()
        import quern  # after torch, which it then knows

        self.adapter = importlib.import_module(f"peers.{family}")
        self.calls = importlib.import_module(f"peers.{self.adapter.CALLS}")
        self.context = quern.Context(device=device)

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

    def case(self, shapes: dict[str, Any]) -> Case:
        """Arrays of their own for the shape of this kind of device."""
        return case_of({"device": self.device, "family": self.family, "shape": shapes[self.kind]})

    def prepared(self, case: Case) -> Any:
        """quern's call of it, prepared."""
        return self.adapter.call_of(case, self.context, 0).prepare()

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
        return FromC(library, prepared, stream, workspace)

    def ways(self, library: str) -> list[Way]:
        """The first two are what its overhead is taken between."""
        prepared = self.prepared(self.case(self.calls.TINY))
        c = self.from_c(library, prepared)
        return [Way("quern_launch() from C", "quern", functools.partial(c.timed, "launch")),
                python_way("Prepared() from Python", "quern", prepared),
                Way("quern_run() from C", "quern", functools.partial(c.timed, "run")),
                *self.calls.ways(self)]


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
    """A row for each way that the parameter may go."""
    prepared = bench.prepared(bench.case(bench.calls.DISPATCHED))
    c = bench.from_c(library, prepared)
    names = [word.partition("=")[0] for word in prepared.spec.split()[1:]]
    index = names.index(bench.calls.PARAM)
    rows = []
    for name, values in bench.calls.ROWS.items():
        samples = [c.dispatch(index, values, DISPATCHES) for _ in range(ROUNDS)]
        rows.append(figures(name, "quern", samples))
    return rows


def main() -> int:
    job = json.loads(sys.argv[1])
    gc.disable()
    try:
        bench = Bench(job["device"], job["family"])
        rows = measure_dispatch(bench, job["library"]) + measure_calls(bench, job["library"])
    except Exception as error:  # any library's: the parent has the line
        line = " ".join(str(error).split())
        print(f"calls: {type(error).__name__}: {line}"[:400], file=sys.stderr)
        return 1
    print(json.dumps({"rows": rows, "rounds": ROUNDS, "skipped": bench.skipped}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
