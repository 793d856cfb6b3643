"""Intel MKL as a peer, from the PyPI wheel `mkl` or the loader's path.

    f32     mkl               cblas_sgemm; where m=1 cblas_sgemv is an alternative; a batch is one
                              cblas_sgemm_batch_strided
            mkl prepacked     cblas_sgemm_pack for each set beforehand, cblas_sgemm_compute
    bf16    mkl (f32 out), mkl prepacked (f32 out)
                              cblas_gemm_bf16bf16f32 and its _pack, _compute: the sums stay f32,
                              another product than everyone else's, hence the label

MKL runs on GNU's OpenMP (threading layer GNU) unless MKL_THREADING_LAYER says otherwise. Its INTEL
layer brings libiomp5, whose functions become global and stand in for those of libgomp in every
library loaded later. MKL ends the process where it does not find its layer: what it needs is looked
for beforehand. A batch is a loop of calls except where said above.

The instruction set is MKL's own choice. MKL_ENABLE_INSTRUCTIONS could only lower it on Intel's
processors, and has no effect on others, as its documentation says.
"""
from __future__ import annotations

import ctypes
import glob
import os
import sys
from ctypes import c_float, c_int, c_size_t, c_void_p
from typing import Any, Callable, Iterator

import numpy as np

from harness.contest import Case, Contestant, Unavailable
from peers.native import Call, Places, Prepared, Shape, address, aligned, load, places_of
from peers.native import require_cpu, shape_of, symbol

ROW_MAJOR, AS_IS, TRANSPOSED, PACKED = (c_int(value) for value in (101, 111, 112, 151))
MATRIX_B = c_int(162)
LAYER_GNU, LP64 = 3, 0
ONE, ZERO = c_float(1), c_float(0)


class Mkl:
    """The peer. Threads are set for the whole process."""

    name = "mkl"

    def __init__(self) -> None:
        self._library: ctypes.CDLL | None = None

    def open(self, device: str, threads: int) -> None:
        """Load MKL with GNU's threads; raises Unavailable."""
        require_cpu(device)
        if not self._library:
            folder = os.path.join(sys.prefix, "lib")
            library, path = load("MKL", ["libmkl_rt.so.3", "libmkl_rt.so.2"], [folder])
            choose_threads(library, os.path.dirname(path))
            self._library = library
        symbol(self._library, "MKL_Set_Num_Threads", None)(c_int(threads))

    def version(self) -> str:
        """MKL 2026.2"""
        text = ctypes.create_string_buffer(256)
        symbol(self._get(), "MKL_Get_Version_String", None)(text, c_int(len(text)))
        words = text.value.decode().split()
        return f"MKL {words[words.index('Version') + 1].split('-')[0]}"

    def enter(self, case: Case) -> list[list[Contestant]]:
        dtype = shape_of(case).dtype
        if dtype == "f32":
            return [list(f32_entries(self._get(), case)), [f32_prepacked(self._get(), case)]]
        if dtype == "bf16":
            return [[bf16_entry(self._get(), case, is_packed)] for is_packed in (False, True)]
        return []

    def _get(self) -> ctypes.CDLL:
        if not self._library:
            raise Unavailable("MKL is not open")
        return self._library


def choose_threads(library: ctypes.CDLL, folder: str) -> None:
    """The GNU layer, before MKL's first call; raises Unavailable where it cannot be had."""
    if "MKL_THREADING_LAYER" in os.environ:
        return
    layer = "libmkl_gnu_thread.so"
    if not glob.glob(os.path.join(folder, layer + "*")):
        raise Unavailable(f"{folder} has no {layer}")
    load("OpenMP of GNU", ["libgomp.so.1"])
    symbol(library, "MKL_Set_Interface_Layer")(c_int(LP64))
    if symbol(library, "MKL_Set_Threading_Layer")(c_int(LAYER_GNU)) != LAYER_GNU:
        raise Unavailable("MKL has chosen another threading layer already")


# ---- f32 -----------------------------------------------------------------------------------


def f32_entries(library: ctypes.CDLL, case: Case) -> Iterator[Contestant]:
    """By sgemm, and by sgemv where there is one row; or all of a batch in one call."""
    shape, sets = shape_of(case), range(len(case.sets))
    ways: dict[str, Callable[[Shape, Places], Call]] = {"sgemm": sgemm(library)}
    if shape.m == 1:
        ways["sgemv"] = sgemv(library)
    if shape.batch > 1:
        ways = {"sgemm_batch_strided": sgemm_batch(library)}
    for way, call in ways.items():
        first_only = 1 if shape.batch > 1 else None
        calls = [[call(shape, at) for at in list(places_of(case, index))[:first_only]]
                 for index in sets]
        yield Prepared("mkl", way, calls)


def sgemm(library: ctypes.CDLL) -> Callable[[Shape, Places], Call]:
    """out = a b^T"""
    function = symbol(library, "cblas_sgemm", None)

    def call(shape: Shape, at: Places) -> Call:
        m, n, k = (c_int(size) for size in shape[:3])
        return function, (ROW_MAJOR, AS_IS, TRANSPOSED, m, n, k, ONE, c_void_p(at.a), k,
                          c_void_p(at.b), k, ZERO, c_void_p(at.out), n)
    return call


def sgemv(library: ctypes.CDLL) -> Callable[[Shape, Places], Call]:
    """The same where m=1: b times the only row of a."""
    function = symbol(library, "cblas_sgemv", None)

    def call(shape: Shape, at: Places) -> Call:
        n, k, one = c_int(shape.n), c_int(shape.k), c_int(1)
        return function, (ROW_MAJOR, AS_IS, n, k, ONE, c_void_p(at.b), k, c_void_p(at.a), one,
                          ZERO, c_void_p(at.out), one)
    return call


def sgemm_batch(library: ctypes.CDLL) -> Callable[[Shape, Places], Call]:
    """out = a b^T of the whole batch, from the places of its first product on."""
    function = symbol(library, "cblas_sgemm_batch_strided", None)

    def call(shape: Shape, at: Places) -> Call:
        m, n, k = (c_int(size) for size in shape[:3])
        steps = [c_int(shape.m * shape.k), c_int(shape.n * shape.k), c_int(shape.m * shape.n)]
        return function, (ROW_MAJOR, AS_IS, TRANSPOSED, m, n, k, ONE, c_void_p(at.a), k, steps[0],
                          c_void_p(at.b), k, steps[1], ZERO, c_void_p(at.out), n, steps[2],
                          c_int(shape.batch))
    return call


def f32_prepacked(library: ctypes.CDLL, case: Case) -> Contestant:
    """sgemm_compute on weights that sgemm_pack brought into MKL's own format."""
    shape = shape_of(case)
    m, n, k = (c_int(size) for size in shape[:3])
    compute = symbol(library, "cblas_sgemm_compute", None)
    packing = Packing(library, "cblas_sgemm", shape, (ONE,))
    calls: list[list[Call]] = []
    for index in range(len(case.sets)):
        calls.append([(compute, (ROW_MAJOR, AS_IS, PACKED, m, n, k, c_void_p(at.a), k,
                                 c_void_p(packing.pack(at.b)), k, ZERO, c_void_p(at.out), n))
                      for at in places_of(case, index)])
    return Prepared("mkl prepacked", "sgemm_compute", calls, packing, "quern prepacked")


class Packing:
    """Weights in MKL's own format. They live as long as this."""

    def __init__(self, library: ctypes.CDLL, stem: str, shape: Shape, scale: tuple[Any, ...]):
        m, n, k = (c_int(size) for size in shape[:3])
        get_size = symbol(library, stem + "_pack_get_size", c_size_t)
        self._pack = symbol(library, stem + "_pack", None)
        self._size_bytes = int(get_size(MATRIX_B, m, n, k))
        self._head = (ROW_MAJOR, MATRIX_B, TRANSPOSED, m, n, k, *scale)
        self._k = k
        self._blocks: list[np.ndarray] = []

    def pack(self, b: int) -> int:
        """Where b [n, k] at this address lies packed."""
        block = aligned(self._size_bytes)
        self._blocks.append(block)
        self._pack(*self._head, c_void_p(b), self._k, c_void_p(address(block)))
        return address(block)


# ---- bf16 ----------------------------------------------------------------------------------


class F32Out(Prepared):
    """bf16 in, f32 out: another product, into arrays of its own, rounded into the case's outputs
    for the check alone."""

    def __init__(self, name: str, detail: str, calls: list[list[Call]], owned: Any,
                 sums: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        super().__init__(name, detail, calls, owned, "quern prepacked" if owned else "quern")
        self._sums = sums
        self._outputs = outputs

    def deliver(self, index: int) -> None:
        self._outputs[index][...] = rounded(self._sums[index])
        self._sums[index].fill(np.nan)

    def close(self) -> None:
        super().close()
        self._sums = []


def rounded(values: np.ndarray) -> np.ndarray:
    """f32 as bits of the nearest bf16, ties to even. Finite values."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bf16_entry(library: ctypes.CDLL, case: Case, is_packed: bool) -> Contestant:
    """gemm_bf16bf16f32 on b as it lies, or its _compute on packed weights."""
    shape, stem = shape_of(case), "cblas_gemm_bf16bf16f32"
    way = "_compute" if is_packed else ""
    packing = Packing(library, stem, shape, ()) if is_packed else None
    call = bf16_gemm(symbol(library, stem + way, None), shape, packing)
    sums = [np.full(arrays["out"].shape, np.nan, np.float32) for arrays in case.sets]
    calls = [[call(at) for at in places_into(case, index, out)] for index, out in enumerate(sums)]
    name = "mkl prepacked (f32 out)" if packing else "mkl (f32 out)"
    outputs = [arrays["out"] for arrays in case.sets]
    return F32Out(name, "gemm_bf16bf16f32" + way, calls, packing, sums, outputs)


def bf16_gemm(function: Callable[..., Any], shape: Shape,
              packing: Packing | None) -> Callable[[Places], Call]:
    """out = a b^T, b packed first where there is a packing."""
    m, n, k = (c_int(size) for size in shape[:3])

    def call(at: Places) -> Call:
        b, form = (packing.pack(at.b), PACKED) if packing else (at.b, TRANSPOSED)
        return function, (ROW_MAJOR, AS_IS, form, m, n, k, ONE, c_void_p(at.a), k, c_void_p(b), k,
                          ZERO, c_void_p(at.out), n)
    return call


def places_into(case: Case, index: int, sums: np.ndarray) -> Iterator[Places]:
    """The places of a set's products, with their outputs in `sums`."""
    outputs = sums.reshape(shape_of(case).batch, -1)
    for at, out in zip(places_of(case, index), outputs):
        yield at._replace(out=address(out))


PEER = Mkl()
