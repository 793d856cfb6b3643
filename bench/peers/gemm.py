"""The gemm family's adapter: what bench/beside.py must know to compare d = a b^T.

    shape file --> params: m n k batch dtype       a [m,k], b [n,k], out [m,n]: one dtype for all
    make_case      arrays, work, tolerance, and the reference that every output meets
    ours           quern as tuned, as untuned, and on a b that was packed beforehand (CPU)
    PEERS          who else computes it: name -> module of bench/peers, by device

The reference is an f32 product of the exact inputs, itself held against float64 sums at 64 x 64
places. An output passes where its relative error (norms over all of it) is within the dtype's
tolerance and no single element is further off than rounding can be. Random inputs only.
"""
from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

from harness.arrays import BYTES, Arrays
from harness.contest import ArraySet, Case, Contestant, Say
from harness.shapes import BadOption

if TYPE_CHECKING:
    import quern

NAME = "gemm"
COLUMNS = {"m": True, "n": True, "k": True, "batch": False, "dtype": False}
DTYPES = {"cpu": ["f32", "bf16", "f16"], "cuda": ["bf16", "f16", "f32"]}  # the default first
DEFAULT_SHAPES = {"cpu": "cpu", "cuda": "gpu"}
GROUPS = ["m <= 128", "m >= 512"]
PEERS = {
    "cpu": {"openblas": "openblas", "openblas-numpy": "openblas", "mkl": "mkl",
            "onednn": "onednn"},
    "cuda": {"cublaslt": "cublaslt", "torch": "torch_matmul", "triton": "triton_gemm"},
}
PANEL = 32  # columns of a panel of packed weights: gemm_pack's default
REFERENCE_ROWS = 4096  # of b at a time: as f32 they take memory
PLACES = 64  # rows and columns of the reference that are held against float64


# ---- Shapes ---------------------------------------------------------------------------------


def params_of(row: dict[str, str], dtype: str) -> dict[str, int | str]:
    """The parameters of a line of a shape file; `dtype` where it has none. Raises BadOption."""
    params: dict[str, int | str] = {}
    for name in ("m", "n", "k", "batch"):
        text = row.get(name, "1" if name == "batch" else "")
        if not text.isdecimal() or int(text) < 1:
            raise BadOption(f"{name}={text}: must be a whole number, 1 or more")
        params[name] = int(text)
    params["dtype"] = row.get("dtype", dtype)
    if params["dtype"] not in BYTES:
        raise BadOption(f"dtype={params['dtype']}: must be one of {' '.join(BYTES)}")
    return params


def label(params: dict[str, int | str]) -> str:
    """"512 4096 4096 bf16", with the batch in front where it is over 1: "8x 512 ..."."""
    batch = f"{params['batch']}x " if params["batch"] != 1 else ""
    return f"{batch}{params['m']} {params['n']} {params['k']} {params['dtype']}"


def groups(params: dict[str, int | str]) -> list[str]:
    """Which of GROUPS a shape belongs to."""
    m = int(params["m"])
    return ["m <= 128"] * (m <= 128) + ["m >= 512"] * (m >= 512)


# ---- A case ---------------------------------------------------------------------------------


def set_bytes(params: dict[str, int | str]) -> int:
    """Bytes of one set of arrays."""
    m, n, k, batch = (int(params[name]) for name in ("m", "n", "k", "batch"))
    return batch * (m * k + n * k + m * n) * BYTES[str(params["dtype"])]


def tolerance(dtype: str, k: int) -> float:
    """Greatest relative error: rounding of the output, and of f32 sums of length k."""
    sums = max(4e-6, 2e-7 * math.sqrt(k))
    return sums + {"f32": 0.0, "f16": 1e-3, "bf16": 5e-3}[dtype]


def make_case(params: dict[str, int | str], device: str, threads: int, arrays: Arrays) -> Case:
    """The case with its sets filled. MemoryError where not even one fits twice over."""
    m, n, k, batch = (int(params[name]) for name in ("m", "n", "k", "batch"))
    dtype, size = str(params["dtype"]), set_bytes(params)
    lead = () if batch == 1 else (batch,)
    room = arrays.free_bytes() // 4
    if size > room:
        raise MemoryError(f"{size >> 20} MiB of arrays, {room >> 20} MiB may be taken")
    count = max(1, min(arrays.sets_needed(size), room // size))
    sets = [ArraySet(arrays.random((*lead, m, k), dtype), arrays.random((*lead, n, k), dtype),
                     arrays.empty((*lead, m, n), dtype)) for _ in range(count)]
    limit = tolerance(dtype, k)
    return Case(label(params), params, device, threads, 2.0 * batch * m * n * k, float(size), sets,
                limit, Reference(sets, dtype, limit, arrays).error)


def norm_of(product: Any, k: int) -> float:
    """||product||, or what it is expected to be where a few sums happen to come out small."""
    expected = math.sqrt(k * math.prod(product.shape)) / 3
    return max(expected, math.sqrt(float((product * product).sum())))


class Reference:
    """The f32 products of the sets' inputs, each computed when first asked for."""

    def __init__(self, sets: list[ArraySet], dtype: str, limit: float, arrays: Arrays) -> None:
        self._sets, self._dtype, self._limit, self._arrays = sets, dtype, limit, arrays
        self._known: dict[int, Any] = {}

    def error(self, index: int, output: Any) -> float:
        """||output - reference|| / ||reference||; inf where a single element is far off."""
        if index not in self._known:
            self._known[index] = self._compute(self._sets[index])
        wanted, count = self._known[index], math.prod(output.shape)
        wrong = self._arrays.floats(output, self._dtype) - wanted
        norm = norm_of(wanted, self._sets[index].a.shape[-1])
        error = math.sqrt(float((wrong * wrong).sum())) / norm
        if error <= self._limit and (
                float(abs(wrong).max()) > 16 * self._limit * norm / math.sqrt(count)):
            return math.inf
        return error

    def _compute(self, arrays: ArraySet) -> Any:
        """A block of b's rows at a time: as f32 they take memory."""
        product = self._arrays.empty(arrays.out.shape, "f32")
        a = self._arrays.floats(arrays.a, self._dtype)
        step = max(1, REFERENCE_ROWS // math.prod(a.shape[:-2]))
        for first in range(0, product.shape[-1], step):
            b = self._arrays.floats(arrays.b[..., first:first + step, :], self._dtype)
            product[..., first:first + step] = a @ b.swapaxes(-1, -2)
        self._verify(arrays, product)
        return product

    def _verify(self, arrays: ArraySet, product: Any) -> None:
        """Hold the reference against float64 sums at places of the last matrix of the batch."""
        a, b, d = (x[-1] if x.ndim == 3 else x for x in (arrays.a, arrays.b, product))
        rows = random.choices(range(a.shape[0]), k=PLACES)
        columns = random.choices(range(b.shape[0]), k=PLACES)
        sums = (self._arrays.floats(a[rows], self._dtype, True) @
                self._arrays.floats(b[columns], self._dtype, True).swapaxes(-1, -2))
        wrong = self._arrays.floats(d[rows][:, columns], "f32", True) - sums
        error = math.sqrt(float((wrong * wrong).sum())) / norm_of(sums, a.shape[-1])
        if not error <= tolerance("f32", a.shape[-1]):
            raise ArithmeticError(f"the reference itself is off by {error:.2e}")


def is_reading(params: dict[str, int | str]) -> bool:
    """Whether a call mostly reads its weights, so that a reader of them is worth a turn."""
    return int(params["m"]) <= 16 and params["batch"] == 1


# ---- Ours -----------------------------------------------------------------------------------


class Quern(Contestant):
    """quern: one prepared call a set."""

    def __init__(self, case: Case, context: quern.Context, name: str, role: str,
                 options: dict[str, Any], weights: list[Any]) -> None:
        self.name, self.role = name, role
        self._calls = [context.prepare("gemm", seen(case, arrays.a), b, out=seen(case, arrays.out),
                                       **options) for arrays, b in zip(case.sets, weights)]
        first = self._calls[0]
        self.detail = f"{first.config_from}: {first.variant} {first.config}".rstrip()

    def run(self, index: int) -> None:
        self._calls[index]()

    def close(self) -> None:
        self._calls = []


def seen(case: Case, array: Any) -> Any:
    """The array as quern takes it: NumPy's 16-bit integers are named bf16."""
    if case.device != "cpu" or case.params["dtype"] != "bf16":
        return array
    import quern

    return quern.view(array, "bf16")


def packed_weights(case: Case, context: quern.Context) -> list[Any]:
    """Every b in panels, by gemm_pack."""
    import quern

    return [quern.gemm_pack(seen(case, arrays.b), width=PANEL, context=context)
            for arrays in case.sets]


def tune(case: Case, context: quern.Context, options: dict[str, Any], b: Any, seconds: float,
         say: Say) -> float:
    """Tune the case's bucket; the seconds that it took."""
    result = context.tune("gemm", seen(case, case.sets[0].a), b,
                          out=seen(case, case.sets[0].out), budget=seconds, **options)
    say(f"    tuned in {result.seconds:.1f} s: {result.candidates} candidates, "
        f"{result.failed} failed, {result.best.variant} {result.best.config}")
    return float(result.seconds)


def ours(case: Case, tuned: quern.Context, untuned: quern.Context, seconds: float,
         choice: dict[str, str], say: Say) -> tuple[list[Quern], float]:
    """Our contestants and the seconds that tuning took. `choice`: variant, config, or nothing.

    `seconds` 0 tunes nothing: then there is one contestant less. Where a packed b plays too, each
    of the two is tuned for half of it. Raises quern.Error.
    """
    is_packing = case.device == "cpu" and case.params["dtype"] != "f16" and not choice
    seconds = seconds / 2 if is_packing else seconds
    plain = [seen(case, arrays.b) for arrays in case.sets]
    tune_options = {name: value for name, value in choice.items() if name != "config"}
    tune_s = tune(case, tuned, tune_options, plain[0], seconds, say) if seconds > 0 else 0.0
    found = [Quern(case, tuned, "quern", "ours", choice, plain)]
    if seconds > 0:
        found.append(Quern(case, untuned, "quern untuned", "untuned", tune_options, plain))
    if is_packing:
        packed, options = packed_weights(case, tuned), {"packed": PANEL}
        if seconds > 0:
            tune_s += tune(case, tuned, options, packed[0], seconds, say)
        found.append(Quern(case, tuned, "quern prepacked", "ours", options, packed))
    return found, tune_s
