"""oneDNN's matmul as a peer, through versions 2 and 3 of its C interface. f32 and bf16.

    describe a, b, d --> plan (primitive descriptor) --> primitive --> execute, for each set
                           |
    prepacked: b's format is left to the plan, and b is brought into it by a reorder beforehand

    onednn             b [n, k] as it lies, seen as [k, n] with strides
    onednn prepacked   a copy of b for each set in the format of oneDNN's choice

A batch is one product of rank 3. d has the dtype of a and b; a bf16 product is summed in f32.
Version 2 has descriptors as structs of the caller's (dnnl_memory_desc_t, 696 bytes;
dnnl_matmul_desc_t, 2800): they are only ever passed by address, so a larger block of bytes does.
In version 3 they are the library's, behind pointers. Nothing else differs here.

The number of threads is that of OpenMP in the thread that calls open() and enter(); run() must be
called there. DNNL_LIBRARY names the file; else the one of the PyPI wheels, then the loader's.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from ctypes import byref, c_char_p, c_int, c_int64, c_size_t, c_uint, c_void_p
from typing import Any, Sequence

import numpy as np

from harness.contest import Case, Contestant, Unavailable
from peers.native import address, aligned, load, require_cpu, shape_of, symbol

DTYPES = {"bf16": 2, "f32": 3}
CPU, IN_ORDER, ANY_FORMAT = 1, 1, 1
QUERY_IMPLEMENTATION, QUERY_WEIGHTS = 8, 131
SOURCE, DESTINATION, WEIGHTS = 1, 17, 33
COUNT = c_int(3)  # of a product's arguments
DESCRIPTOR_BYTES = 8192  # more than any struct of version 2
OPENMP = 2
RUNTIMES = {0: "no threads", 1: "no threads", OPENMP: "OpenMP", 4: "TBB", 8: "a thread pool"}


class Version(ctypes.Structure):
    """dnnl_version_t"""

    _fields_ = [("major", c_int), ("minor", c_int), ("patch", c_int), ("hash", c_char_p),
                ("cpu_runtime", c_uint), ("gpu_runtime", c_uint)]


class Argument(ctypes.Structure):
    """dnnl_exec_arg_t"""

    _fields_ = [("arg", c_int), ("memory", c_void_p)]


class Refused(RuntimeError):
    """A call of oneDNN's that failed, with its status."""


class Matrix:
    """Dimensions and strides (in elements) of an array; strides=None: any format."""

    def __init__(self, dims: Sequence[int], strides: Sequence[int] | None, dtype: str) -> None:
        self.rank = c_int(len(dims))
        self.dims = (c_int64 * len(dims))(*dims)
        self.strides = (c_int64 * len(dims))(*strides) if strides else None
        self.dtype = c_int(DTYPES[dtype])


class Library:
    """What both versions have in common: an engine, a stream, and calls that raise Refused."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self.handle = handle
        self.engine = self.make("dnnl_engine_create", c_int(CPU), c_size_t(0))
        self.stream = self.make("dnnl_stream_create", self.engine, c_uint(IN_ORDER))
        self.execute = symbol(handle, "dnnl_primitive_execute")
        self.wait = symbol(handle, "dnnl_stream_wait")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that returns a status; raises Refused where that is not success."""
        status = symbol(self.handle, name)(*arguments)
        if status:
            raise Refused(f"{name} gives status {status}")

    def make(self, name: str, *arguments: Any) -> c_void_p:
        """Call a function that hands over an object by its first parameter."""
        made = c_void_p()
        self.call(name, byref(made), *arguments)
        return made

    def describe(self, matrix: Matrix, held: contextlib.ExitStack) -> c_void_p:
        """A memory descriptor, for as long as `held` is open."""
        raise NotImplementedError

    def plan(self, a: c_void_p, b: c_void_p, d: c_void_p) -> c_void_p:
        """The primitive descriptor of d = a b."""
        raise NotImplementedError


class Library2(Library):
    """Version 2: descriptors are the caller's bytes."""

    def describe(self, matrix: Matrix, held: contextlib.ExitStack) -> c_void_p:
        block = aligned(DESCRIPTOR_BYTES)
        held.callback(address, block)  # which keeps it
        at = c_void_p(address(block))
        if matrix.strides:
            self.call("dnnl_memory_desc_init_by_strides", at, matrix.rank, matrix.dims,
                      matrix.dtype, matrix.strides)
        else:
            self.call("dnnl_memory_desc_init_by_tag", at, matrix.rank, matrix.dims, matrix.dtype,
                      c_int(ANY_FORMAT))
        return at

    def plan(self, a: c_void_p, b: c_void_p, d: c_void_p) -> c_void_p:
        block = aligned(DESCRIPTOR_BYTES)
        operation = c_void_p(address(block))
        self.call("dnnl_matmul_desc_init", operation, a, b, None, d)
        return self.make("dnnl_primitive_desc_create", operation, None, self.engine, None)


class Library3(Library):
    """Version 3: descriptors are objects."""

    def describe(self, matrix: Matrix, held: contextlib.ExitStack) -> c_void_p:
        if matrix.strides:
            made = self.make("dnnl_memory_desc_create_with_strides", matrix.rank, matrix.dims,
                             matrix.dtype, matrix.strides)
        else:
            made = self.make("dnnl_memory_desc_create_with_tag", matrix.rank, matrix.dims,
                             matrix.dtype, c_int(ANY_FORMAT))
        held.callback(self.call, "dnnl_memory_desc_destroy", made)
        return made

    def plan(self, a: c_void_p, b: c_void_p, d: c_void_p) -> c_void_p:
        return self.make("dnnl_matmul_primitive_desc_create", self.engine, a, b, None, d, None)


# ---- A product -----------------------------------------------------------------------------


class Product(Contestant):
    """One product, ready to run on any of the case's sets.

    Everything of oneDNN's that it made is in `_held`, and destroyed by close(), newest first.
    """

    def __init__(self, library: Library, case: Case, is_packed: bool) -> None:
        """Plan it and, where is_packed, bring the weights into its format. Raises Refused."""
        self.name = "onednn prepacked" if is_packed else "onednn"
        self.against = "quern prepacked" if is_packed else "quern"
        self._library = library
        self._held = contextlib.ExitStack()
        self._sets: list[Any] = []
        with contextlib.ExitStack() as unfinished:
            unfinished.callback(self.close)
            self._prepare(case, is_packed)
            unfinished.pop_all()

    def run(self, index: int) -> None:
        library = self._library
        status = library.execute(self._primitive, library.stream, COUNT, self._sets[index])
        status = status or library.wait(library.stream)
        if status:
            raise Refused(f"dnnl_primitive_execute gives status {status}")

    def close(self) -> None:
        self._sets = []
        self._held.close()

    def _prepare(self, case: Case, is_packed: bool) -> None:
        library = self._library
        a, b, d = (library.describe(matrix, self._held) for matrix in matrices(case))
        weights = library.describe(any_format(case), self._held) if is_packed else b
        plan = library.plan(a, weights, d)
        self._held.callback(library.call, "dnnl_primitive_desc_destroy", plan)
        self.detail = implementation(library, plan)
        self._primitive = self._create(plan)
        for arrays in case.sets:
            memory_b = self._memory(b, arrays["b"])
            if is_packed:
                memory_b = self._packed(memory_b, b, wanted_weights(library, plan))
            self._sets.append((Argument * 3)(Argument(SOURCE, self._memory(a, arrays["a"])),
                                             Argument(WEIGHTS, memory_b),
                                             Argument(DESTINATION, self._memory(d, arrays["out"]))))

    def _create(self, plan: c_void_p) -> c_void_p:
        primitive = self._library.make("dnnl_primitive_create", plan)
        self._held.callback(self._library.call, "dnnl_primitive_destroy", primitive)
        return primitive

    def _memory(self, description: c_void_p, array: np.ndarray) -> c_void_p:
        """A memory object on the array, which is kept with it."""
        library = self._library
        memory = library.make("dnnl_memory_create", description, library.engine,
                              c_void_p(address(array)))
        self._held.callback(destroy_memory, library, memory, array)
        return memory

    def _packed(self, source: c_void_p, from_: c_void_p, to: c_void_p) -> c_void_p:
        """The weights in `source`, in another format."""
        library = self._library
        size_bytes = symbol(library.handle, "dnnl_memory_desc_get_size", c_size_t)(to)
        packed = self._memory(to, aligned(size_bytes))
        plan = library.make("dnnl_reorder_primitive_desc_create", from_, library.engine, to,
                            library.engine, None)
        self._held.callback(library.call, "dnnl_primitive_desc_destroy", plan)
        arguments = (Argument * 2)(Argument(SOURCE, source), Argument(DESTINATION, packed))
        library.call("dnnl_primitive_execute", self._create(plan), library.stream, c_int(2),
                     arguments)
        library.call("dnnl_stream_wait", library.stream)
        return packed


def destroy_memory(library: Library, memory: c_void_p, array: np.ndarray) -> None:
    """Destroy a memory object; holding this call holds its array."""
    library.call("dnnl_memory_destroy", memory)


def matrices(case: Case) -> tuple[Matrix, Matrix, Matrix]:
    """a [m, k], b as [k, n], d [m, n]; of rank 3 where there is a batch."""
    m, n, k, batch, dtype = shape_of(case)
    sizes = ((m, k, k, 1), (k, n, 1, k), (m, n, n, 1))
    if batch == 1:
        a, b, d = (Matrix(it[:2], it[2:], dtype) for it in sizes)
    else:
        a, b, d = (Matrix((batch, *it[:2]), (it[0] * it[1], *it[2:]), dtype) for it in sizes)
    return a, b, d


def any_format(case: Case) -> Matrix:
    """b as [k, n] in the format of oneDNN's choice."""
    _, n, k, batch, dtype = shape_of(case)
    return Matrix((k, n) if batch == 1 else (batch, k, n), None, dtype)


def wanted_weights(library: Library, plan: c_void_p) -> c_void_p:
    """The format that the plan chose for b: the plan's, and gone with it."""
    query = symbol(library.handle, "dnnl_primitive_desc_query_md", c_void_p)
    found = query(plan, c_int(QUERY_WEIGHTS), c_int(0))
    if not found:
        raise Refused("dnnl_primitive_desc_query_md gives no weights")
    return c_void_p(found)


def implementation(library: Library, plan: c_void_p) -> str:
    """What oneDNN calls the code that it chose: "brg:avx512_core"."""
    name = c_char_p()
    library.call("dnnl_primitive_desc_query", plan, c_int(QUERY_IMPLEMENTATION), c_int(0),
                 byref(name))
    return (name.value or b"?").decode()


# ---- The peer ------------------------------------------------------------------------------


class OneDnn:
    """The peer. Open and run it in one thread."""

    name = "onednn"

    def __init__(self) -> None:
        self._library: Library | None = None
        self._threads = 1

    def open(self, device: str, threads: int) -> None:
        """Load oneDNN; raises Unavailable, also for a version other than 2 and 3."""
        require_cpu(device)
        self._threads = threads
        if self._library:
            return
        given = os.environ.get("DNNL_LIBRARY")
        names = [given] if given else ["libdnnl.so.3", "libdnnl.so.2"]
        handle, _ = load("oneDNN", names, [os.path.join(sys.prefix, "lib")])
        versions = {2: Library2, 3: Library3}
        major = version_of(handle).major
        if major not in versions:
            raise Unavailable(f"oneDNN {major} has an interface that is not known")
        try:
            self._library = versions[major](handle)
        except Refused as refused:
            raise Unavailable(f"no engine: {refused}") from None

    def version(self) -> str:
        """oneDNN 2.6.3, OpenMP"""
        found = version_of(self._get().handle)
        runtime = RUNTIMES.get(found.cpu_runtime, f"runtime {found.cpu_runtime}")
        return f"oneDNN {found.major}.{found.minor}.{found.patch}, {runtime}"

    def enter(self, case: Case) -> list[list[Contestant]]:
        if shape_of(case).dtype not in DTYPES:
            return []
        library = self._get()
        self._set_threads(library)
        return [[Product(library, case, is_packed)] for is_packed in (False, True)]

    def _set_threads(self, library: Library) -> None:
        """OpenMP's, in this thread: looked for in the libraries that oneDNN has loaded."""
        if version_of(library.handle).cpu_runtime == OPENMP:
            symbol(library.handle, "omp_set_num_threads", None)(c_int(self._threads))

    def _get(self) -> Library:
        if not self._library:
            raise Unavailable("oneDNN is not open")
        return self._library


def version_of(handle: ctypes.CDLL) -> Version:
    """What the library says that it is."""
    found: Version = symbol(handle, "dnnl_version", ctypes.POINTER(Version))().contents
    return found


PEER = OneDnn()
