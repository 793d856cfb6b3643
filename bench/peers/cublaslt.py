"""cuBLASLt as a peer: every algorithm that its heuristic proposes, called through ctypes.

    our rows first   d[m, n]   = a[m, k] b[n, k]^T
    columns first    d^T[n, m] = op(b) a^T     its A is our b (k x n, transposed), its B our a
                                               (k x m), its D our d (n x m); batches are strided

    entry `cublaslt`         the fastest of up to 8 proposals
    entry `cublaslt first`   the first proposal alone: what a caller gets who asks for one

bf16, f16 and f32, the output of the inputs' dtype, f32 accumulation; f32 is CUBLAS_COMPUTE_32F, no
TF32. Alpha 1, beta 0, 64 MiB of workspace, reductions of split products as the library likes them.
The library is torch's own: the one in the process, else the one below site-packages/nvidia, the
loader's path, CUDA_HOME, /usr/local/cuda. Constants are those of cublasLt.h in CUDA 12 and 13.

Contiguous arrays aligned to 256 bytes (torch.empty's are). One thread, one stream at a time: all
calls share the workspace.
"""
from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import weakref
from ctypes import byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Optional

from harness.contest import Case, Contestant, Unavailable

if TYPE_CHECKING:
    import torch

PROPOSALS = 8
WORKSPACE_BYTES = 64 << 20
NAMES = ("libcublasLt.so.13", "libcublasLt.so.12")
TYPES = {"bf16": 14, "f16": 2, "f32": 0}  # cudaDataType_t
R_32F = 0
COMPUTE_32F = 68  # cublasComputeType_t
OP_T = 1
DESC_TRANSA = 3
LAYOUT_BATCH_COUNT, LAYOUT_BATCH_STRIDE = 5, 6
PREFERENCE_WORKSPACE = 1
CONFIG_ID, CONFIG_SPLIT_K = 0, 2
NOT_SUPPORTED = 15  # cublasStatus_t


class Proposal(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t; its first field is the cublasLtMatmulAlgo_t."""

    _fields_ = [("algorithm", c_uint64 * 8), ("workspace_bytes", c_size_t), ("state", c_int),
                ("waves", c_float), ("reserved", c_int * 4)]


CALLS: dict[str, list[Any]] = {  # all return a cublasStatus_t; handles are pointers
    "cublasLtCreate": [c_void_p],
    "cublasLtMatmulDescCreate": [c_void_p, c_int, c_int],
    "cublasLtMatmulDescSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulDescDestroy": [c_void_p],
    "cublasLtMatrixLayoutCreate": [c_void_p, c_int, c_uint64, c_uint64, c_int64],
    "cublasLtMatrixLayoutSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatrixLayoutDestroy": [c_void_p],
    "cublasLtMatmulPreferenceCreate": [c_void_p],
    "cublasLtMatmulPreferenceSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulPreferenceDestroy": [c_void_p],
    "cublasLtMatmulAlgoGetHeuristic": [c_void_p] * 7 + [c_int, c_void_p, c_void_p],
    "cublasLtMatmulAlgoConfigGetAttribute": [c_void_p, c_int, c_void_p, c_size_t, c_void_p],
    "cublasLtMatmul": [c_void_p] * 14 + [c_size_t, c_void_p],
}


class LtError(RuntimeError):
    """A call that failed: "cublasLtMatmul: CUBLAS_STATUS_NOT_SUPPORTED"."""

    def __init__(self, call: str, status: int, name: str) -> None:
        super().__init__(f"{call}: {name}")
        self.status = status


# ---- The library ----------------------------------------------------------------------------


def bundled(name: str) -> Iterator[str]:
    """Below site-packages/nvidia, where torch's wheels have their CUDA libraries."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        yield from map(str, sorted(Path(root).glob(f"*/lib/{name}")))


def installed(name: str) -> Iterator[str]:
    """The loader's path, then toolkits."""
    yield name
    for root in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        for folder in ("lib64", "lib"):
            if root:
                yield f"{root}/{folder}/{name}"


def load() -> ctypes.CDLL:
    """The first that can be loaded, one that is in the process before all others; Unavailable."""
    for name in NAMES:
        try:
            return ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        except OSError:
            continue  # not in the process
    places = [*(x for name in NAMES for x in bundled(name)),
              *(x for name in NAMES for x in installed(name))]
    for place in places:
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue  # all places are named below
    raise Unavailable("no libcublasLt: looked for " + ", ".join(places))


class Library:
    """libcublasLt's functions, each raising LtError where it fails, and its version."""

    def __init__(self) -> None:
        self._so = load()
        self._so.cublasLtGetStatusName.restype = c_char_p
        self._so.cublasLtGetVersion.restype = c_size_t
        for name, types in CALLS.items():
            function = getattr(self._so, name)
            function.argtypes, function.restype = types, c_int
        self.matmul = self._so.cublasLtMatmul

    def call(self, name: str, *arguments: Any) -> None:
        """One of CALLS."""
        self.check(name, getattr(self._so, name)(*arguments))

    def check(self, name: str, status: int) -> None:
        """LtError where `status`, of the call `name`, is a failure."""
        if status:
            raise LtError(name, status, self._so.cublasLtGetStatusName(status).decode())

    def create(self, name: str, *arguments: Any) -> c_void_p:
        """A handle from a call that stores it through its first parameter."""
        handle = c_void_p()
        self.call(name, byref(handle), *arguments)
        return handle

    def version(self) -> str:
        """"13.1.0"."""
        number = int(self._so.cublasLtGetVersion())
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


# ---- One product ----------------------------------------------------------------------------


class Product:
    """Descriptors of a case and what cuBLASLt would run for it; freed with the last user."""

    def __init__(self, library: Library, handle: c_void_p, case: Case) -> None:
        self.library, self.handle = library, handle
        self._owned: list[tuple[str, c_void_p]] = []
        weakref.finalize(self, free_all, library, self._owned)
        m, n, k, batch = (int(case.params[name]) for name in ("m", "n", "k", "batch"))
        kind = TYPES[str(case.params["dtype"])]
        self.desc = self._own("MatmulDesc", COMPUTE_32F, R_32F)
        transposed = c_int32(OP_T)
        library.call("cublasLtMatmulDescSetAttribute", self.desc, DESC_TRANSA, byref(transposed), 4)
        self.a = self._layout(kind, k, n, batch)
        self.b = self._layout(kind, k, m, batch)
        self.d = self._layout(kind, n, m, batch)
        self.proposals = self._ask()

    def _own(self, kind: str, *arguments: Any) -> c_void_p:
        made = self.library.create(f"cublasLt{kind}Create", *arguments)
        self._owned.append((f"cublasLt{kind}Destroy", made))
        return made

    def _layout(self, kind: int, rows: int, columns: int, batch: int) -> c_void_p:
        """Column-major without gaps; `batch` of them one behind the other."""
        made = self._own("MatrixLayout", kind, rows, columns, rows)
        if batch > 1:
            count, stride = c_int32(batch), c_int64(rows * columns)
            set_attribute = "cublasLtMatrixLayoutSetAttribute"
            self.library.call(set_attribute, made, LAYOUT_BATCH_COUNT, byref(count), 4)
            self.library.call(set_attribute, made, LAYOUT_BATCH_STRIDE, byref(stride), 8)
        return made

    def _ask(self) -> list[Proposal]:
        """The heuristic's proposals, its first choice first; [] where it knows none."""
        found, count = (Proposal * PROPOSALS)(), c_int()
        preference = self._own("MatmulPreference")
        limit = c_uint64(WORKSPACE_BYTES)
        self.library.call("cublasLtMatmulPreferenceSetAttribute", preference, PREFERENCE_WORKSPACE,
                          byref(limit), 8)
        try:
            self.library.call("cublasLtMatmulAlgoGetHeuristic", self.handle, self.desc, self.a,
                              self.b, self.d, self.d, preference, PROPOSALS, found, byref(count))
        except LtError as failure:
            if failure.status == NOT_SUPPORTED:
                return []
            raise
        return [proposal for proposal in found[:count.value] if not proposal.state]

    def config(self, proposal: Proposal, attribute: int) -> int:
        """A 32-bit attribute of an algorithm."""
        value, written = c_int32(), c_size_t()
        self.library.call("cublasLtMatmulAlgoConfigGetAttribute", proposal.algorithm, attribute,
                          byref(value), 4, byref(written))
        return value.value


def free_all(library: Library, owned: list[tuple[str, c_void_p]]) -> None:
    """Destroy what a Product made, the newest first."""
    for destroy, handle in reversed(owned):
        library.call(destroy, handle)


class Algorithm(Contestant):
    """One proposal on the arrays of a case."""

    def __init__(self, name: str, product: Product, place: int, case: Case,
                 workspace: torch.Tensor) -> None:
        self._torch = importlib.import_module("torch")
        self._product, self._library = product, product.library
        self._sets, self._workspace = case.sets, workspace
        self._one, self._zero = c_float(1), c_float(0)
        self._proposal = product.proposals[place]
        self.name = name
        algorithm, split_k = (product.config(self._proposal, attribute)
                              for attribute in (CONFIG_ID, CONFIG_SPLIT_K))
        self.detail = f"proposal {place + 1}: algorithm {algorithm}, split_k {split_k}"

    def run(self, index: int) -> None:
        """On torch's current stream. Raises LtError."""
        product, arrays = self._product, self._sets[index]
        out = arrays["out"].data_ptr()
        status = self._library.matmul(
            product.handle, product.desc, byref(self._one), arrays["b"].data_ptr(), product.a,
            arrays["a"].data_ptr(), product.b, byref(self._zero), out, product.d, out, product.d,
            self._proposal.algorithm, self._workspace.data_ptr(), WORKSPACE_BYTES,
            self._torch.cuda.current_stream().cuda_stream)
        self._library.check("cublasLtMatmul", status)


class CublasLt:
    """The entries `cublaslt` and `cublaslt first`."""

    name = "cublaslt"

    def __init__(self) -> None:
        self._library: Optional[Library] = None
        self._handle = c_void_p()
        self._workspace: Optional[torch.Tensor] = None

    def open(self, device: str, threads: int) -> None:
        """Make `device` the current one; Unavailable without torch, a GPU or the library."""
        try:
            torch = importlib.import_module("torch")
        except ImportError as problem:
            raise Unavailable(str(problem)) from problem
        if not torch.cuda.is_available():
            raise Unavailable("torch finds no CUDA device")
        torch.cuda.set_device(device)
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._library = Library()
        try:
            self._handle = self._library.create("cublasLtCreate")
        except LtError as problem:
            raise Unavailable(str(problem)) from problem

    def version(self) -> str:
        return f"cuBLASLt {self._library.version()}" if self._library else "cuBLASLt, not opened"

    def enter(self, case: Case) -> list[list[Contestant]]:
        """After open(); [] for other dtypes and products that it does not have."""
        if case.params["dtype"] not in TYPES or not self._library or self._workspace is None:
            return []
        product = Product(self._library, self._handle, case)
        if not product.proposals:
            return []
        everyone: list[Contestant] = [
            Algorithm(self.name, product, place, case, self._workspace)
            for place in range(len(product.proposals))]
        first = Algorithm(f"{self.name} first", product, 0, case, self._workspace)
        return [everyone, [first]]


PEER = CublasLt()
