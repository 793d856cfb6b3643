"""What the peers of the CPU share: finding a library, binding its functions, calls made ready.

    library, path = load("oneDNN", ["libdnnl.so.3", "libdnnl.so.2"], [sys.prefix + "/lib"])
    gemm = symbol(library, "cblas_sgemm")
    entry = Prepared("mkl", "sgemm", [[(gemm, arguments of set 0)], [(gemm, arguments of set 1)]])

A prepared call's arguments are ctypes objects made once, so that a timed call only hands them over.
Loading is RTLD_LOCAL: two libraries with the same symbols do not see each other.
"""
from __future__ import annotations

import ctypes
import os
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from harness.contest import Case, Contestant, Unavailable

ALIGNMENT = 64  # bytes: a cache line, the widest vector

DI_LINKMAP = ctypes.c_int(2)  # RTLD_DI_LINKMAP of dlinfo()

Call = tuple[Callable[..., Any], Sequence[Any]]  # a function and its arguments


class Shape(NamedTuple):
    """d[batch, m, n] = a[batch, m, k] b[batch, n, k]^T"""

    m: int
    n: int
    k: int
    batch: int
    dtype: str


class Places(NamedTuple):
    """Addresses of one product's arrays."""

    a: int
    b: int
    out: int


class LinkMap(ctypes.Structure):
    """The first fields of struct link_map, <link.h>"""

    _fields_ = [("base", ctypes.c_void_p), ("name", ctypes.c_char_p)]


def shape_of(case: Case) -> Shape:
    """The case's parameters; a batch that is not given is 1."""
    m, n, k = (int(case.params[name]) for name in "mnk")
    return Shape(m, n, k, int(case.params.get("batch", 1)), str(case.params["dtype"]))


def require_cpu(device: str) -> None:
    """Raise Unavailable for any other device."""
    if device != "cpu":
        raise Unavailable(f"is for the CPU, not for {device}")


def load(what: str, names: Sequence[str], folders: Sequence[str] = ()) -> tuple[ctypes.CDLL, str]:
    """The first that loads, and its path: in `folders`, then on the loader's path.

    Raises Unavailable with the names that were tried and the loader's last line.
    """
    refused = ""
    there = [os.path.join(folder, name) for folder in folders for name in names]
    for name in [path for path in there if os.path.exists(path)] + list(names):
        try:
            library = ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_LOCAL)
        except OSError as error:
            refused = refused or str(error)
        else:
            return library, path_of(library)
    places = "".join(f"{folder}, " for folder in folders)
    raise Unavailable(f"no {what}: {', '.join(names)} in {places}the loader's path ({refused})")


def path_of(library: ctypes.CDLL) -> str:
    """The file that a library was loaded from, as the loader has it."""
    link = ctypes.POINTER(LinkMap)()
    found = ctypes.CDLL(None).dlinfo(ctypes.c_void_p(library._handle), DI_LINKMAP,
                                     ctypes.byref(link))
    if found:
        raise Unavailable(f"{library._name} is loaded from a file that cannot be found")
    return os.fsdecode(link.contents.name)


def symbol(library: ctypes.CDLL, name: str, result: Any = ctypes.c_int) -> Callable[..., Any]:
    """A function of the library; raises Unavailable where it has none of that name.

    Its arguments must be ctypes objects: nothing is declared, so nothing is converted.
    """
    try:
        function = library[name]
    except AttributeError:
        raise Unavailable(f"{library._name} lacks {name}") from None
    function.restype = result
    return function


def address(array: Any) -> int:
    """Where a contiguous NumPy array begins; raises ValueError for another."""
    if not array.flags.c_contiguous:
        raise ValueError(f"array strides={array.strides}: must be contiguous")
    return int(array.ctypes.data)


def aligned(size_bytes: int) -> np.ndarray:
    """Fresh bytes at a multiple of ALIGNMENT, from NumPy as the case's own arrays are."""
    block = np.empty(size_bytes + ALIGNMENT, np.uint8)
    skipped = -block.ctypes.data % ALIGNMENT
    return block[skipped:skipped + size_bytes]


def places_of(case: Case, index: int) -> Iterator[Places]:
    """Addresses of the products of one set, one for each of the batch."""
    shape, arrays = shape_of(case), case.sets[index]
    a, b, out = (address(arrays[name]) for name in ("a", "b", "out"))
    item = arrays["a"].itemsize
    for z in range(shape.batch):
        yield Places(a + z * shape.m * shape.k * item, b + z * shape.n * shape.k * item,
                     out + z * shape.m * shape.n * arrays["out"].itemsize)


class Prepared(Contestant):
    """C calls with their arguments, a list of them for each set."""

    def __init__(self, name: str, detail: str, calls: list[list[Call]], owned: Any = None,
                 against: str = "quern") -> None:
        self.name, self.against = name, against
        self.detail = detail
        self._calls = calls
        self._owned = owned  # arrays that the arguments point into

    def run(self, index: int) -> None:
        for function, arguments in self._calls[index]:
            function(*arguments)

    def close(self) -> None:
        self._calls = []
        self._owned = None
