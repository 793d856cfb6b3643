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
from harness.contest import ArraySet, Case, Contestant, Errors, Say
from harness.errors import errors_of
from harness.shapes import BadOption
from peers.ours import Quern, plain, tune

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
STARTS = {  # of harness/starts.py: lines of a shape file, the first one tuned
    "cpu": [{"m": "64", "n": "256", "k": "256", "dtype": "f32"},
            {"m": "64", "n": "256", "k": "256", "dtype": "bf16"},
            {"m": "1", "n": "256", "k": "256", "dtype": "f32"}],
    "cuda": [{"m": "512", "n": "4096", "k": "4096", "dtype": "bf16"}],
}
START_PEERS = {"cuda": "triton_gemm"}  # whose first calls stand beside ours
CALLS = "gemm_calls"  # what call_child.py calls
BESIDE = {"cpu": "torch", "cuda": "triton, torch"}  # whose figures stand beside ours there
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
    sets = [ArraySet({"a": arrays.random((*lead, m, k), dtype),
                      "b": arrays.random((*lead, n, k), dtype)},
                     {"out": arrays.empty((*lead, m, n), dtype)}) for _ in range(count)]
    limit = tolerance(dtype, k)
    is_reading = m <= 16 and batch == 1  # mostly of its weights
    return Case(label(params), params, device, threads, 2.0 * batch * m * n * k, float(size), sets,
                limit, Reference(sets, dtype, limit, arrays).errors, dtype=dtype,
                reads=[each["b"] for each in sets] if is_reading else [])


def expected_square(k: int) -> float:
    """What the square of a sum of k products of random inputs is in the mean: the least that
    errors are held against, as a few sums may happen to come out small."""
    return k / 9


class Reference:
    """The f32 products of the sets' inputs, each computed when first asked for."""

    def __init__(self, sets: list[ArraySet], dtype: str, limit: float, arrays: Arrays) -> None:
        self._sets, self._dtype, self._limit, self._arrays = sets, dtype, limit, arrays
        self._known: dict[int, Any] = {}

    def errors(self, index: int, calls: int = 1) -> Errors:
        """Of the set's output; a row that has an element far off is off by inf."""
        if index not in self._known:
            self._known[index] = self._compute(self._sets[index])
        wanted = self._known[index]
        output = self._arrays.floats(self._sets[index]["out"], self._dtype)
        least = expected_square(self._sets[index]["a"].shape[-1])
        errors = errors_of(output, wanted, least)
        typical = math.sqrt(max(least, float((wanted * wanted).mean())))
        is_far = float(abs(output - wanted).max()) > 16 * self._limit * typical
        return errors._replace(row=math.inf) if is_far else errors

    def _compute(self, arrays: ArraySet) -> Any:
        """A block of b's rows at a time: as f32 they take memory."""
        product = self._arrays.empty(arrays["out"].shape, "f32")
        a = self._arrays.floats(arrays["a"], self._dtype)
        step = max(1, REFERENCE_ROWS // math.prod(a.shape[:-2]))
        for first in range(0, product.shape[-1], step):
            b = self._arrays.floats(arrays["b"][..., first:first + step, :], self._dtype)
            product[..., first:first + step] = a @ b.swapaxes(-1, -2)
        self._verify(arrays, product)
        return product

    def _verify(self, arrays: ArraySet, product: Any) -> None:
        """Hold the reference against float64 sums at places of the last matrix of the batch."""
        a, b, d = (x[-1] if x.ndim == 3 else x for x in (arrays["a"], arrays["b"], product))
        rows = random.choices(range(a.shape[0]), k=PLACES)
        columns = random.choices(range(b.shape[0]), k=PLACES)
        sums = (self._arrays.floats(a[rows], self._dtype, True) @
                self._arrays.floats(b[columns], self._dtype, True).swapaxes(-1, -2))
        taken = self._arrays.floats(d[rows][:, columns], "f32", True)
        error = errors_of(taken, sums, expected_square(a.shape[-1])).whole
        if not error <= tolerance("f32", a.shape[-1]):
            raise ArithmeticError(f"the reference itself is off by {error:.2e}")


# ---- Ours -----------------------------------------------------------------------------------


class GemmCall:
    """quern.gemm() on a set, b perhaps packed."""

    def __init__(self, case: Case, context: quern.Context, index: int, b: Any = None,
                 **options: Any) -> None:
        arrays = case.sets[index]
        self._context = context
        self._arrays = seen(case, arrays["a"]), seen(case, arrays["b"]) if b is None else b
        self._options = {"out": seen(case, arrays["out"]), **options}

    def prepare(self, variant: str | None = None, config: str | None = None) -> quern.Prepared:
        """Of ours.Call."""
        return self._context.prepare("gemm", *self._arrays, **self._options, variant=variant,
                                     config=config)

    def tune(self, seconds: float, variant: str | None = None) -> quern.TuneResult:
        """Of ours.Call."""
        return self._context.tune("gemm", *self._arrays, **self._options, variant=variant,
                                  budget=seconds)


def call_of(case: Case, context: quern.Context, index: int) -> GemmCall:
    """The call of a set, b as it lies."""
    return GemmCall(case, context, index)


def seen(case: Case, array: Any) -> Any:
    """The array as quern takes it: NumPy's 16-bit integers are named bf16."""
    if case.device != "cpu" or case.params["dtype"] != "bf16":
        return array
    import quern

    return quern.view(array, "bf16")


def packed_calls(case: Case, context: quern.Context) -> list[GemmCall]:
    """Calls on every b in panels, brought there by gemm_pack."""
    import quern

    packed = [quern.gemm_pack(seen(case, arrays["b"]), width=PANEL, context=context)
              for arrays in case.sets]
    return [GemmCall(case, context, index, b, packed=PANEL) for index, b in enumerate(packed)]


def ours(case: Case, tuned: quern.Context, untuned: quern.Context, seconds: float,
         choice: dict[str, str], say: Say) -> tuple[list[Contestant], float]:
    """Our contestants and the seconds that tuning took. `choice`: variant, config, or nothing.

    `seconds` 0 tunes nothing: then there is one contestant less. Where a packed b plays too, each
    of the two is tuned for half of it. Raises quern.Error.
    """
    is_packing = case.device == "cpu" and case.params["dtype"] != "f16" and not choice
    seconds = seconds / 2 if is_packing else seconds
    found, tune_s = plain(case, call_of, (tuned, untuned), seconds, choice, say)
    if is_packing:
        packed = packed_calls(case, tuned)
        packed_s = tune(packed[0], seconds, None, say) if seconds > 0 else 0.0
        tune_s += packed_s
        found.append(Quern("quern prepacked", "ours", packed, {}, packed_s))
    return found, tune_s
