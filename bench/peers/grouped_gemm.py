"""The adapter of grouped_gemm: what bench/beside.py must know to compare it.

    shape file --> params    experts rows n k dtype
    arrays                   a [experts rows, k], b [experts, n, k], offsets i32 [experts + 1]
                             --> out [experts rows, n]

rows: of each expert; 256+0+17: of each in turn, repeated over the experts. Flops are 2 n k a row,
bytes those of a, out and the matrices of experts that have rows. The reference is the f32 product
of the exact inputs for some experts, drawn anew for each case; the rest must be finite.
"""
from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.arrays import BYTES, Arrays
from harness.contest import ArraySet, Case, Contestant, Errors, Say
from harness.errors import errors_of, greater
from harness.shapes import BadOption
from peers import columns
from peers.attend import module_of
from peers.attention import PEER, TOLERANCE, set_count
from peers.named_call import NamedCall, seen
from peers.ours import plain

if TYPE_CHECKING:
    import quern

    Params = dict[str, int | str]

NAME = "grouped_gemm"
COLUMNS = {"experts": True, "rows": True, "n": True, "k": True, "dtype": False}
DTYPES = {"cpu": ["bf16", "f32", "f16"], "cuda": ["bf16", "f16"]}  # the default first
DEFAULT_SHAPES = {"cpu": "cpu", "cuda": "gpu"}
GROUPS = ["rows <= 64", "rows > 64"]
PEERS: dict[str, dict[str, str]] = {
    "cpu": {"torch": "torch_grouped"},
    "cuda": {"torch": "torch_grouped", "triton": "triton_grouped"},
}
STARTS = {  # of harness/starts.py: lines of a shape file, the first one tuned
    "cpu": [{"experts": "4", "rows": "16", "n": "128", "k": "128"}],
    "cuda": [{"experts": "64", "rows": "128", "n": "2048", "k": "2304"}],
}
START_PEERS: dict[str, str] = {}
CALLS = "grouped_gemm_calls"  # what call_child.py calls
BESIDE = {"cpu": "peer", "cuda": "torch"}  # whose figures stand beside ours there
CHECKED = {"cpu": 4e9, "cuda": 4e12}  # flops of a set's reference


# ---- Shapes -----------------------------------------------------------------------------------


def params_of(row: dict[str, str], dtype: str) -> Params:
    """The parameters of a line of a shape file; `dtype` where it has none. Raises BadOption."""
    found: Params = {name: columns.whole(row, name, 0) for name in ("experts", "n", "k")}
    parts = row["rows"].split("+")
    if not all(part.isdecimal() for part in parts) or not any(map(int, parts)):
        raise BadOption(f"rows={row['rows']}: must be a whole number, or several with + between "
                        "them, not all 0")
    found["rows"] = row["rows"]
    found["dtype"] = columns.word({"dtype": row.get("dtype", dtype)}, "dtype", list(BYTES))
    return found


def label(params: Params) -> str:
    """"128 x 64, 1536 2048 bf16"."""
    return (f"{params['experts']} x {params['rows']}, {params['n']} {params['k']} "
            f"{params['dtype']}")


@dataclass
class Sizes:
    """A shape's numbers."""

    rows: list[int]  # of each expert
    n: int
    k: int

    @property
    def starts(self) -> list[int]:
        """offsets."""
        return [0, *itertools.accumulate(self.rows)]


def sizes_of(params: Params) -> Sizes:
    """What the parameters come to."""
    parts = [int(part) for part in str(params["rows"]).split("+")]
    rows = list(itertools.islice(itertools.cycle(parts), int(params["experts"])))
    return Sizes(rows, int(params["n"]), int(params["k"]))


def groups(params: Params) -> list[str]:
    """Which of GROUPS a shape belongs to, by the mean of its rows."""
    size = sizes_of(params)
    return [GROUPS[0 if sum(size.rows) <= 64 * len(size.rows) else 1]]


def flops_of(params: Params) -> float:
    """2 n k a row."""
    size = sizes_of(params)
    return 2.0 * sum(size.rows) * size.n * size.k


def bytes_of(params: Params) -> float:
    """a, out, and the matrices of experts that have rows."""
    size = sizes_of(params)
    used = sum(rows > 0 for rows in size.rows)
    elements = sum(size.rows) * (size.n + size.k) + used * size.n * size.k
    return float(elements * BYTES[str(params["dtype"])])


# ---- A case -----------------------------------------------------------------------------------


def make_case(params: Params, device: str, threads: int, arrays: Arrays) -> Case:
    """The case with its sets filled. MemoryError where not even one fits."""
    size, dtype, used = sizes_of(params), str(params["dtype"]), int(bytes_of(params))
    offsets, total = arrays.integers(size.starts, "i32"), sum(size.rows)
    sets = [ArraySet({"a": arrays.random((total, size.k), dtype),
                      "b": arrays.random((len(size.rows), size.n, size.k), dtype),
                      "offsets": offsets}, {"out": arrays.empty((total, size.n), dtype)})
            for _ in range(set_count(used, arrays))]
    reference = Reference(params, size, sets, arrays)
    return Case(label(params), params, device, threads, flops_of(params), bytes_of(params), sets,
                TOLERANCE[dtype], reference.errors, dtype=dtype,
                peer_tolerance=PEER * TOLERANCE[dtype])


class Reference:
    """The rows of some experts, computed when first asked for."""

    def __init__(self, params: Params, size: Sizes, sets: list[ArraySet], arrays: Arrays) -> None:
        self._dtype, self._size, self._sets, self._arrays = (str(params["dtype"]), size, sets,
                                                             arrays)
        kind = "cuda" if getattr(sets[0]["a"], "is_cuda", False) else "cpu"
        held = [expert for expert, rows in enumerate(size.rows) if rows]
        count = max(1, min(len(held), int(len(held) * CHECKED[kind] / flops_of(params))))
        self._experts = sorted({held[-1], *random.sample(held, count)})
        self._known: dict[int, dict[int, Any]] = {}

    def errors(self, index: int, calls: int) -> Errors:
        """A Case's `compare`; inf where a row of another expert is no number."""
        arrays = self._sets[index]
        if index not in self._known:
            self._known[index] = {expert: self._wanted(arrays, expert)
                                  for expert in self._experts}
        whole = self._arrays.floats(arrays["out"], self._dtype)
        if not bool(module_of(whole).isfinite(whole).all()):
            return Errors(math.inf, math.inf)
        worst = Errors(0.0, 0.0)
        for expert, wanted in self._known[index].items():
            worst = greater(worst, errors_of(whole[self._rows(expert)], wanted))
        return worst

    def _rows(self, expert: int) -> slice:
        return slice(*self._size.starts[expert:expert + 2])

    def _wanted(self, arrays: ArraySet, expert: int) -> Any:
        a, b = (self._arrays.floats(x, self._dtype) for x in
                (arrays["a"][self._rows(expert)], arrays["b"][expert]))
        return a @ b.T


# ---- Ours -------------------------------------------------------------------------------------


def call_of(case: Case, context: quern.Context, index: int) -> NamedCall:
    """grouped_gemm on a set."""
    arrays, dtype = case.sets[index], str(case.params["dtype"])
    found = {name: seen(arrays[name], dtype) for name in ("a", "b", "out")}
    return NamedCall(context, "grouped_gemm", {**found, "offsets": arrays["offsets"]})


def ours(case: Case, tuned: quern.Context, untuned: quern.Context, seconds: float,
         choice: dict[str, str], say: Say) -> tuple[list[Contestant], float]:
    """ours.plain(): our contestants and the seconds that tuning took. Raises quern.Error."""
    return plain(case, call_of, (tuned, untuned), seconds, choice, say)
