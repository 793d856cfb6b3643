"""OpenBLAS as two peers: the system's, and the one in NumPy's wheel. f32 only.

    file --> private copy, loaded with OPENBLAS_CORETYPE=T --> unlinked     for every type T

OpenBLAS chooses its kernels once, when it is loaded, and its own choice need not be the fastest of
those that it has. A copy of the file under another name is another object for the loader, with its
own kernels and threads, so that one process holds all types; the fastest alternative plays.

- A type is tried only where /proc/cpuinfo shows the instructions of its kernels, and kept only
  where openblas_get_corename() says that it took. OPENBLAS_CORETYPE in the environment leaves that
  one alone. Other processors than x86-64: OpenBLAS's own choice alone.
- Copies are loaded with RTLD_DEEPBIND: MKL makes its cblas_* functions global.
- An idle team sleeps after 2^22 cycles, not 2^28 (OPENBLAS_THREAD_TIMEOUT): settling is short.
- A batch is a loop of calls. bf16 is left out: cblas_sbgemm gives f32, another product.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import os
import platform
import shutil
import tempfile
from _ctypes import dlclose
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any, Callable, Iterator

import numpy as np

from harness.contest import Case, Contestant, Unavailable
from peers.native import Call, Places, Prepared, Shape, load, places_of, require_cpu, shape_of
from peers.native import symbol

ROW_MAJOR, AS_IS, TRANSPOSED = 101, 111, 112
THREAD_TIMEOUT = "22"  # log2 of the cycles that an idle thread spins

AVX2 = frozenset({"avx2", "fma"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
CORES = {  # OPENBLAS_CORETYPE: the instructions that it needs
    "Haswell": AVX2,
    "Zen": AVX2,
    "SkylakeX": AVX512,
    "Cooperlake": AVX512 | {"avx512_bf16"},
    "SapphireRapids": AVX512 | {"avx512_bf16", "amx_tile", "amx_bf16"},
}


class Names:
    """What the functions are called, and the integers that they take."""

    def __init__(self, prefix: str, suffix: str, integer: Any) -> None:
        self.prefix = prefix
        self.suffix = suffix
        self.integer = integer

    def __call__(self, name: str) -> str:
        return f"{self.prefix}{name}{self.suffix}"


PLAIN = Names("", "", c_int32)
WHEELS = (Names("scipy_", "64_", c_int64), Names("", "64_", c_int64))


class Copy:
    """One loaded copy of the library, with the kernels of one core type."""

    def __init__(self, library: ctypes.CDLL, names: Names) -> None:
        self.library = library
        self.integer = names.integer
        self.gemm = symbol(library, names("cblas_sgemm"), None)
        self.gemv = symbol(library, names("cblas_sgemv"), None)
        self.set_threads = symbol(library, names("openblas_set_num_threads"), None)
        self.core = text(library, names("openblas_get_corename"))
        self.config = text(library, names("openblas_get_config"))

    def gemm_call(self, shape: Shape, at: Places) -> Call:
        """out = a b^T"""
        m, n, k = (self.integer(size) for size in shape[:3])
        return self.gemm, (c_int32(ROW_MAJOR), c_int32(AS_IS), c_int32(TRANSPOSED), m, n, k,
                           c_float(1), c_void_p(at.a), k, c_void_p(at.b), k, c_float(0),
                           c_void_p(at.out), n)

    def gemv_call(self, shape: Shape, at: Places) -> Call:
        """The same where m=1: b times the only row of a."""
        n, k, one = self.integer(shape.n), self.integer(shape.k), self.integer(1)
        return self.gemv, (c_int32(ROW_MAJOR), c_int32(AS_IS), n, k, c_float(1), c_void_p(at.b), k,
                           c_void_p(at.a), one, c_float(0), c_void_p(at.out), one)

    def alternatives(self, name: str, case: Case) -> Iterator[Contestant]:
        """By sgemm, and by sgemv where there is one row."""
        shape, sets = shape_of(case), range(len(case.sets))
        ways = {"sgemm": self.gemm_call}
        if shape.m == 1:
            ways["sgemv"] = self.gemv_call
        for way, call in ways.items():
            calls = [[call(shape, at) for at in places_of(case, index)] for index in sets]
            yield Prepared(name, f"{self.core} {way}", calls)


class OpenBlas:
    """A peer: `find` gives the file and what its functions are called, or raises Unavailable."""

    def __init__(self, name: str, find: Callable[[], tuple[str, Names]]) -> None:
        self.name = name
        self._find = find
        self._copies: list[Copy] = []

    def open(self, device: str, threads: int) -> None:
        """Load a copy for every core type that fits this processor; raises Unavailable."""
        require_cpu(device)
        if not self._copies:
            path, names = self._find()
            self._copies = list(load_copies(path, names, threads))
        for copy in self._copies:
            copy.set_threads(c_int32(threads))

    def version(self) -> str:
        """The library's version and the core types that are tried, its own choice first."""
        cores = " ".join(copy.core for copy in self._copies)
        return f"{' '.join(self._copies[0].config.split()[:2])} ({cores})"

    def enter(self, case: Case) -> list[list[Contestant]]:
        if shape_of(case).dtype != "f32":
            return []
        return [[entry for copy in self._copies for entry in copy.alternatives(self.name, case)]]


# ---- Finding -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def find_system() -> tuple[str, Names]:
    """The one on the loader's path, which is loaded for a moment to learn where it lies.

    Once a process: later the loader would give one of our copies for that name.
    """
    with environment(OPENBLAS_THREAD_TIMEOUT=THREAD_TIMEOUT):
        library, path = load("OpenBLAS", ["libopenblas.so.0", "libopenblas.so"])
    dlclose(library._handle)
    return os.path.realpath(path), PLAIN


def find_numpy() -> tuple[str, Names]:
    """The one beside NumPy, which names its functions in one of two ways."""
    folder = os.path.join(os.path.dirname(os.path.dirname(np.__file__)), "numpy.libs")
    found = sorted(glob.glob(os.path.join(folder, "*openblas64_*.so*")))
    if not found:
        raise Unavailable(f"NumPy {np.__version__} brings no OpenBLAS in {folder}")
    loaded = ctypes.CDLL(found[0])
    for names in WHEELS:
        if hasattr(loaded, names("cblas_sgemm")):
            return found[0], names
    raise Unavailable(f"{found[0]} lacks {WHEELS[0]('cblas_sgemm')}")


# ---- Copies --------------------------------------------------------------------------------


def load_copies(path: str, names: Names, threads: int) -> Iterator[Copy]:
    """OpenBLAS's own choice first, then every other type that took. Raises Unavailable."""
    given = os.environ.get("OPENBLAS_CORETYPE", "")
    own = load_copy(path, names, threads, given)
    yield own
    for core in [] if given else cores_of(cpu_features()):
        if core.lower() == own.core.lower():
            continue
        copy = load_copy(path, names, threads, core)
        if copy.core.lower() == core.lower():
            yield copy
        else:
            dlclose(copy.library._handle)  # a type unknown to it: another one once more


def load_copy(path: str, names: Names, threads: int, core: str) -> Copy:
    """Load a private copy of the file, which is gone from the disk when this returns."""
    folder = tempfile.mkdtemp(prefix="openblas-")
    mode = os.RTLD_NOW | os.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0)
    settings = {"OPENBLAS_CORETYPE": core or None, "OPENBLAS_NUM_THREADS": str(threads),
                "OPENBLAS_THREAD_TIMEOUT": THREAD_TIMEOUT}
    try:
        private = shutil.copy(path, os.path.join(folder, f"copy-{core or 'own'}.so"))
        with environment(**settings):
            return Copy(ctypes.CDLL(private, mode=mode), names)
    except OSError as error:
        raise Unavailable(f"no copy of {path} can be loaded: {error}") from None
    finally:
        shutil.rmtree(folder)


def cores_of(features: frozenset[str]) -> list[str]:
    """The core types whose instructions are among `features`."""
    return [core for core, needed in CORES.items() if needed <= features]


def cpu_features() -> frozenset[str]:
    """Names of the instruction sets, as Linux has them; none where it is not x86-64."""
    if platform.machine() != "x86_64":
        return frozenset()
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    return frozenset()


@contextlib.contextmanager
def environment(**settings: str | None) -> Iterator[None]:
    """These variables, set or (None) unset, within the block. Not for several threads."""
    before = {name: os.environ.get(name) for name in settings}
    try:
        assign(settings)
        yield
    finally:
        assign(before)


def assign(settings: dict[str, str | None]) -> None:
    """Set or (None) unset variables of the environment, as the C library sees it."""
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def text(library: ctypes.CDLL, name: str) -> str:
    """What a function without parameters says."""
    return str(symbol(library, name, ctypes.c_char_p)().decode())


PEERS = [OpenBlas("openblas", find_system), OpenBlas("openblas-numpy", find_numpy)]
