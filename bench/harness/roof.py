"""The machine's limits, measured: flops a second by dtype, bytes a second from memory.

    cpu     bench/roof.c, built as roof.so: multiply-adds in registers; one read of 320 MiB
    cuda    clock_cuda.measure_roof(): a large product, a large copy

A limit is what nothing disturbed: the CPU's are measured again after each shape, and the highest
stand. Its reader also plays in cases that are bound by reading one array (Case.reads): there the
rate in the very rounds counts, which says more than one taken minutes before.
"""
from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

from harness.arrays import Arrays
from harness.contest import Case, Contestant, Unavailable

KINDS = {"f32": 0, "bf16": 1, "amx": 2}  # enum roof_kind
READ_ELEMENTS = 80 << 20  # of 4 bytes
READABLE = 1 << 20  # bytes that are worth reading with threads


class Pattern(ctypes.Structure):
    """struct roof_pattern of bench/roof.c."""

    _fields_ = [("streams", ctypes.c_int), ("ahead", ctypes.c_int), ("span", ctypes.c_int64)]


class CpuRoof:
    """roof.so, and what it measured. Raises Unavailable where it is not built."""

    def __init__(self, threads: int, library: str, arrays: Arrays) -> None:
        self._threads = threads
        self._pattern = Pattern(1, 0, 0)
        self._peaks = dict.fromkeys(KINDS, 0.0)
        self._rate = 0.0
        self._so = ctypes.CDLL(str(shared_object("roof.so", library)))
        self._so.roof_peak.restype = ctypes.c_double
        self._so.roof_read.restype = ctypes.c_uint64
        self._data = arrays.random((READ_ELEMENTS,), "f32")
        self._reading = (ctypes.c_void_p(self._data.ctypes.data),
                         ctypes.c_int64(self._data.nbytes))
        self._so.roof_choose(*self._reading, ctypes.byref(self._pattern))

    def measure(self) -> dict[str, Any]:
        """{"flops": {dtype: a second}, "bytes_per_s", "how"}: the highest of all times it was
        called; half a second."""
        for kind, number in KINDS.items():
            again = self._so.roof_peak(number, self._threads, ctypes.c_double(0.1))
            self._peaks[kind] = max(self._peaks[kind], again)
        for _ in range(3):
            begin = time.perf_counter()
            self._so.roof_read(*self._reading, self._threads, ctypes.byref(self._pattern))
            seconds = time.perf_counter() - begin
            self._rate = max(self._rate, self._data.nbytes / seconds)
        peaks = self._peaks
        unit = "tdpbf16ps" if peaks["amx"] > peaks["bf16"] else "vdpbf16ps"
        bf16 = max(peaks["amx"], peaks["bf16"])
        how = (f"{self._threads} threads: f32 multiply-adds in registers; bf16 "
               f"{unit if bf16 else 'has no instruction here: as f32'}; f16 as f32; "
               f"{self._data.nbytes >> 20} MiB read once; the highest of the run")
        return {"flops": {"f32": peaks["f32"], "f16": peaks["f32"], "bf16": bf16 or peaks["f32"]},
                "bytes_per_s": self._rate, "how": how}

    def reader(self, case: Case) -> list[list[Contestant]]:
        """The entry that only reads case.reads; [] where that is too little to time."""
        if not case.reads or case.reads[0].nbytes < READABLE:
            return []
        return [[Reader(case, self._so.roof_read, self._pattern)]]


class Reader(Contestant):
    """Reads case.reads of a set, all threads, in the order that roof_choose() found."""

    name, role, computes = "read", "reader", False

    def __init__(self, case: Case, read: Any, pattern: Pattern) -> None:
        self._read = read
        self._arguments = [(ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(array.nbytes),
                            case.threads, ctypes.byref(pattern)) for array in case.reads]

    def run(self, index: int) -> None:
        self._read(*self._arguments[index])


def shared_object(name: str, library: str) -> Path:
    """A shared object made of bench/*.c: beside the build's library, else in the tree's build/."""
    places = [Path(library).parent / "bench" / name,
              Path(__file__).resolve().parents[2] / "build" / "bench" / name]
    if os.environ.get("QUERN_BUILD"):
        places.insert(0, Path(os.environ["QUERN_BUILD"]) / "bench" / name)
    for place in places:
        if place.is_file():
            return place
    raise Unavailable(f"bench/{name} is not built: `make bench` builds it")
