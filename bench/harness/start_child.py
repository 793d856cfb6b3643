"""One new process that does one thing of gemm's and prints its figures: a child of starts.py.

    start_child.py JOB          JOB: a JSON object with "what" and

        quern    arrays | context, [tune,] first call, result on the host | figures
        triton   arrays | first call, result on the host                  | figures
        context  arrays | a quern context, no kernel                      | figures
        llvm     arrays | LLVM loaded, an empty object linked, no quern   | figures
        bare     arrays |                                                 | figures
                        ^ the inner clock begins                          ^ and ends

The inner clock begins when imports are done, inputs are on the device and a copy from it has been
made, so that the device's context is up. The outer one is the parent's: `end_s` is on the clock
that all processes share (CLOCK_MONOTONIC), and the parent knows when it called exec. What is not
needed before a clock stops is imported after it.

    device "cpu" | "cuda:0"     m n k dtype ("f32", "bf16")     cache FILE
    tune_s SECONDS              quern: tune before the call, 0: not
    config TEXT                 triton: this one, "any" of its list; "": autotuned
    object FILE                 llvm: an object that defines empty()

One JSON object on stdout; a failure is a line on stderr and exit status 1. The output is compared
with a reference after the clocks: a wrong one is a failure. It measures once and judges no time.
"""
from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    Job = dict[str, Any]
    Figures = dict[str, Any]

TOLERANCE = {"f32": 2e-5, "bf16": 1e-2}


def resident_kb() -> int:
    """VmRSS of this process in KiB."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    raise RuntimeError("/proc/self/status: no VmRSS")


# ---- Inputs ---------------------------------------------------------------------------------


class HostInputs:
    """NumPy arrays a [m, k], b [n, k], d [m, n], random; bf16 as uint16 bits under a quern.view."""

    def __init__(self, job: Job) -> None:
        import numpy

        generator = numpy.random.default_rng()
        self.floats = [generator.random((job[rows], job["k"]), "f4") - 0.5 for rows in "mn"]
        self.d = numpy.full((job["m"], job["n"]), numpy.nan, "f4")
        self.arrays: list[Any] = [*self.floats, self.d]
        if job["dtype"] == "bf16":
            import quern

            bits = [(x.view("u4") >> 16).astype("u2") for x in self.arrays]
            self.floats = [(x.astype("u4") << 16).view("f4") for x in bits[:2]]
            self.d = bits[2]
            self.arrays = [quern.view(x, "bf16") for x in bits]

    def result(self) -> Any:
        """The output in host memory."""
        return self.d

    def error(self) -> float:
        """Relative error of the output against float64 sums."""
        import numpy

        a, b = (x.astype("f8") for x in self.floats)
        is_bits = self.d.dtype == numpy.uint16
        d = (self.d.astype("u4") << 16).view("f4") if is_bits else self.d
        reference = a @ b.T
        return float(numpy.linalg.norm(d - reference) / numpy.linalg.norm(reference))


class DeviceInputs:
    """The same as torch tensors on a CUDA device, which is up afterwards; copies were made."""

    def __init__(self, job: Job) -> None:
        import torch

        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[job["dtype"]]
        torch.cuda.set_device(job["device"])
        self.arrays = [
            (torch.rand(shape, device=job["device"]) - 0.5).to(dtype)
            for shape in ((job["m"], job["k"]), (job["n"], job["k"]), (job["m"], job["n"]))
        ]
        self.arrays[2].fill_(float("nan"))
        self.result()

    def result(self) -> Any:
        """The output in host memory."""
        return self.arrays[2].cpu()

    def error(self) -> float:
        """Relative error of the output against float32 sums."""
        a, b, d = (x.float() for x in self.arrays)
        reference = a @ b.mT
        return float((d - reference).norm() / reference.norm())


def inputs_of(job: Job) -> Any:
    return HostInputs(job) if job["device"] == "cpu" else DeviceInputs(job)


def figures_of(begin_s: float, **more: Any) -> Figures:
    """The clock stops here."""
    end_s = time.monotonic()
    return {"inner_s": end_s - begin_s, "end_s": end_s, "rss_kb": resident_kb(), **more}


def checked(job: Job, inputs: Any, figures: Figures) -> Figures:
    """`figures`, if the output is right."""
    error = inputs.error()
    if not error <= TOLERANCE[job["dtype"]]:
        raise RuntimeError(f"{job['what']}: relative error {error:.3g}: the output is wrong")
    return {**figures, "rel_err": error}


# ---- What a process does ----------------------------------------------------------------------


def quern_first(job: Job) -> Figures:
    """Context, tuning if asked for, one call."""
    inputs = inputs_of(job)
    import quern  # after torch, which it then knows

    a, b, d = inputs.arrays
    begin_s = time.monotonic()
    context = quern.Context(device=job["device"], cache=job["cache"])
    tuned = context.tune("gemm", a, b, out=d, budget=job["tune_s"]) if job["tune_s"] else None
    context.gemm(a, b, out=d)
    inputs.result()
    figures = figures_of(begin_s)
    prepared = context.prepare("gemm", a, b, out=d)
    figures.update(
        artifact=prepared.artifact,
        config_from=prepared.config_from,
        config=f"{prepared.variant} {prepared.config}",
        compile_ms=sum(step["compile_ms"] for step in prepared.steps),
    )
    if tuned is not None:
        figures.update(candidates=tuned.candidates, tuning_s=tuned.seconds)
    return checked(job, inputs, figures)


def quern_context(job: Job) -> Figures:
    """A context and no kernel: quern where no compiler or linker is needed."""
    import quern

    inputs_of(job)
    begin_s = time.monotonic()
    context = quern.Context(device=job["device"], cache=job["cache"])
    return figures_of(begin_s, families=len(context.families()))


def triton_first(job: Job) -> Figures:
    """Triton's GEMM of the benchmark, autotuned or in one config. Its cache: TRITON_CACHE_DIR."""
    from peers import triton_gemm

    triton_gemm.load()
    inputs = inputs_of(job)
    a, b, d = inputs.arrays
    tuned, config = None, job["config"]
    if config == "any":
        config = str(triton_gemm.WIDE_PLANS[0])
    begin_s = time.monotonic()
    if config:
        triton_gemm.gemm(a, b, d, config)
    else:
        tuned = triton_gemm.tune(a, b, d)
    inputs.result()
    figures = figures_of(begin_s, config=config)
    if tuned:
        figures.update(config=tuned.plan, candidates=tuned.candidates, tuning_s=tuned.seconds)
    return checked(job, inputs, figures)


def nothing(job: Job) -> Figures:
    """The interpreter, NumPy or torch, quern's Python and the arrays."""
    import quern

    inputs_of(job)
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
    "triton": triton_first,
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
