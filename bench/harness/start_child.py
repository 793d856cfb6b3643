"""One new process that does one thing of a family's and prints its figures: a child of starts.py.

    start_child.py JOB          JOB: a JSON object with "what" and

        quern    arrays | context, [tune,] first call, result on the host | figures
        peer     arrays | first call, result on the host                  | figures
        context  arrays | a quern context, no kernel                      | figures
        llvm     arrays | LLVM loaded, an empty object linked, no quern   | figures
        bare     arrays |                                                 | figures
                        ^ the inner clock begins                          ^ and ends

The inner clock begins when imports are done, inputs are on the device and a copy from it has been
made, so that the device's context is up. The outer one is the parent's: `end_s` is on the clock
that all processes share (CLOCK_MONOTONIC), and the parent knows when it called exec. What is not
needed before a clock stops is imported after it.

    device "cpu" | "cuda:0"     cache FILE
    family NAME                 whose adapter is peers/NAME.py
    shape {COLUMN: TEXT}        a line of one of its shape files
    tune_s SECONDS              quern: tune before the call, 0: not
    peer NAME                   the module of peers/ that has load() and first_call()
    config TEXT                 peer: this one, "any" of its list; "": autotuned
    object FILE                 llvm: an object that defines empty()

One JSON object on stdout; a failure is a line on stderr and exit status 1. The outputs are compared
with the adapter's reference after the clocks: wrong ones are a failure. It measures once and judges
no time.
"""
from __future__ import annotations

import importlib
import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from harness.contest import Case

    Job = dict[str, Any]
    Figures = dict[str, Any]

HOST_POOL = (1 << 20) + 43  # random numbers that arrays are cut from: a process makes few


def resident_kb() -> int:
    """VmRSS of this process in KiB."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    raise RuntimeError("/proc/self/status: no VmRSS")


# ---- The case -------------------------------------------------------------------------------


def case_of(job: Job) -> Case:
    """The shape's arrays, one set of them; the device is up afterwards: copies were made."""
    from harness import arrays
    from harness.contest import poison

    made: arrays.Arrays
    if job["device"] == "cpu":
        made = arrays.HostArrays(HOST_POOL, 1)
    else:
        importlib.import_module("torch").cuda.set_device(job["device"])
        made = arrays.CudaArrays(job["device"], 1)
    adapter = importlib.import_module(f"peers.{job['family']}")
    kind = job["device"].partition(":")[0]
    params = adapter.params_of(job["shape"], adapter.DTYPES[kind][0])
    case: Case = adapter.make_case(params, job["device"], threads(), made)
    poison(case.sets[0])
    fetch(case)
    return case


def threads() -> int:
    """Of the CPU, as the parent has it."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def fetch(case: Case) -> None:
    """Bring the outputs into host memory, and wait for that."""
    for array in {**case.sets[0].outputs, **case.sets[0].inouts}.values():
        if hasattr(array, "cpu"):
            array.cpu()


def figures_of(begin_s: float, **more: Any) -> Figures:
    """The clock stops here."""
    end_s = time.monotonic()
    return {"inner_s": end_s - begin_s, "end_s": end_s, "rss_kb": resident_kb(), **more}


def checked(case: Case, figures: Figures) -> Figures:
    """`figures`, if the outputs are right. Raises Wrong."""
    from harness.contest import require

    errors = case.compare(0, 1)
    require(errors, max(case.tolerance, case.peer_tolerance if "peer" in figures else 0.0))
    return {**figures, "rel_err": errors.whole}


# ---- What a process does ----------------------------------------------------------------------


def quern_first(job: Job) -> Figures:
    """Context, tuning if asked for, one call."""
    case = case_of(job)
    adapter = importlib.import_module(f"peers.{job['family']}")
    import quern  # after torch, which it then knows

    begin_s = time.monotonic()
    context = quern.Context(device=job["device"], cache=job["cache"])
    call = adapter.call_of(case, context, 0)
    tuned = call.tune(job["tune_s"]) if job["tune_s"] else None
    prepared = call.prepare()
    prepared()
    fetch(case)
    figures = figures_of(begin_s)
    figures.update(
        artifact=prepared.artifact,
        config_from=prepared.config_from,
        config=f"{prepared.variant} {prepared.config}",
        compile_ms=sum(step["compile_ms"] for step in prepared.steps),
    )
    if tuned is not None:
        figures.update(candidates=tuned.candidates, tuning_s=tuned.seconds)
    return checked(case, figures)


def quern_context(job: Job) -> Figures:
    """A context and no kernel: quern where no compiler or linker is needed."""
    import quern

    case_of(job)
    begin_s = time.monotonic()
    context = quern.Context(device=job["device"], cache=job["cache"])
    return figures_of(begin_s, families=len(context.families()))


def peer_first(job: Job) -> Figures:
    """The peer's call, autotuned or in one config. Its cache: TRITON_CACHE_DIR.

    Its module has load(), which imports what it needs, and first_call(case, config), which makes
    the call, and returns a function to be called when the clock has stopped: it brings outputs to
    where the case wants them and returns what is known of the tuning, {"config", "candidates",
    "tuning_s"}.
    """
    module = importlib.import_module(f"peers.{job['peer']}")
    module.load()
    case = case_of(job)
    begin_s = time.monotonic()
    finish = module.first_call(case, job["config"])
    fetch(case)
    figures = figures_of(begin_s, peer=job["peer"])
    figures.update(finish())
    return checked(case, figures) if job["config"] != "none" else figures


def nothing(job: Job) -> Figures:
    """The interpreter, NumPy or torch, quern's Python and the arrays."""
    import quern

    case_of(job)
    return figures_of(time.monotonic(), version=quern.__version__)


# ---- LLVM alone -------------------------------------------------------------------------------


def llvm_library() -> Any:
    """libLLVM 19 or newer, its symbols resolved when they are used, as quern has them."""
    import ctypes

    names = ("libLLVM.so.19.1", "libLLVM-19.so.1", "libLLVM-19.so",
             "/usr/lib/llvm-19/lib/libLLVM.so.1", "libLLVM.so.20.1", "libLLVM.so.21.1")
    loader = ctypes.CDLL(None)
    loader.dlopen.restype = ctypes.c_void_p
    for name in names:
        handle = loader.dlopen(name.encode(), os.RTLD_LAZY | os.RTLD_LOCAL)
        if handle:
            return ctypes.CDLL(name, handle=handle)
    raise RuntimeError("llvm: none of " + " ".join(names))


def llvm_set_up(llvm: Any) -> None:
    """The native target, as its three functions are named."""
    target = "AArch64" if os.uname().machine == "aarch64" else "X86"
    for part in ("TargetInfo", "Target", "TargetMC"):
        getattr(llvm, f"LLVMInitialize{target}{part}")()


def llvm_alone(job: Job) -> Figures:
    """What any program that links one object with ORC has to do, and nothing else."""
    import ctypes
    from ctypes import byref, c_char_p, c_uint64, c_void_p

    nothing(job)
    begin_s = time.monotonic()
    llvm = llvm_library()
    llvm_set_up(llvm)
    jit, buffer, why, address = c_void_p(), c_void_p(), c_char_p(), c_uint64()
    llvm.LLVMOrcLLJITGetMainJITDylib.restype = c_void_p
    for name in ("CreateLLJIT", "LLJITAddObjectFile", "LLJITLookup"):
        getattr(llvm, "LLVMOrc" + name).restype = c_void_p
    path = os.fsencode(job["object"])
    if (llvm.LLVMOrcCreateLLJIT(byref(jit), None)
            or llvm.LLVMCreateMemoryBufferWithContentsOfFile(path, byref(buffer), byref(why))
            or llvm.LLVMOrcLLJITAddObjectFile(
                jit, c_void_p(llvm.LLVMOrcLLJITGetMainJITDylib(jit)), buffer)
            or llvm.LLVMOrcLLJITLookup(jit, byref(address), b"empty")):
        raise RuntimeError("llvm: refuses an empty object")
    ctypes.CFUNCTYPE(None)(address.value or 0)()
    return figures_of(begin_s)


KINDS: dict[str, Callable[[Job], Figures]] = {
    "quern": quern_first,
    "peer": peer_first,
    "context": quern_context,
    "llvm": llvm_alone,
    "bare": nothing,
}


def main() -> int:
    job = json.loads(sys.argv[1])
    try:
        figures = KINDS[job["what"]](job)
    except Exception as error:  # any library's: the parent has the line
        line = " ".join(str(error).split())
        print(f"{job['what']}: {type(error).__name__}: {line}"[:400], file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
