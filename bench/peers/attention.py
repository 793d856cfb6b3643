"""The adapter of attention_prefill: what bench/beside.py must know to compare it.

    shape file --> params    b s hq hkv d dv mask window sinks lengths dtype
    arrays                   q [b, s, hq, d], k [b, s, hkv, d], v [b, s, hkv, dv]
                             --> o [b, s, hq, dv]; lengths: packed, b = 1, and cu_seqlens

Work is counted in keys that are seen: 2 (d + dv) flops a query, head and key; bytes are those of q,
k, v and o, once. The reference is attention in float64 (attend.py).
"""
from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Sequence

from harness.arrays import BYTES, Arrays
from harness.contest import ArraySet, Case, Contestant, Say
from harness.shapes import BadOption
from peers import columns
from peers.attend import Part, Reference, Rule, loud
from peers.named_call import NamedCall, seen
from peers.ours import plain

if TYPE_CHECKING:
    import quern

    Params = dict[str, int | str]

NAME = "attention"
COLUMNS = {"b": False, "s": False, "hq": True, "hkv": False, "d": False, "dv": False,
           "mask": False, "window": False, "sinks": False, "lengths": False, "dtype": False}
DTYPES = {"cpu": ["bf16", "f32", "f16"], "cuda": ["bf16", "f16"]}  # the default first
DEFAULT_SHAPES = {"cpu": "cpu", "cuda": "gpu"}
GROUPS = ["d128", "d128 full", "d128 causal", "other widths", "packed, window"]
PEERS = {
    "cpu": {"numpy": "numpy_attention", "torch": "torch_attention_cpu", "gemm": "quern_gemm"},
    "cuda": {"flash": "torch_attention", "cudnn": "torch_attention", "triton": "triton_attention"},
}
STARTS = {  # of harness/starts.py: lines of a shape file, the first one tuned
    "cpu": [{"b": "1", "s": "256", "hq": "4", "mask": "causal"}],
    "cuda": [{"b": "1", "s": "4096", "hq": "32", "hkv": "8", "mask": "causal"},
             {"b": "1", "s": "4096", "hq": "16", "d": "256", "mask": "full"}],
}
START_PEERS = {"cuda": "triton_attention"}  # whose first calls stand beside ours
CALLS = "attention_calls"  # what call_child.py calls
BESIDE = {"cpu": "peer", "cuda": "triton"}  # whose figures stand beside ours there
TOLERANCE = {"f32": 1e-5, "f16": 1e-3, "bf16": 6e-3}
PEER = 4  # times the tolerance: a peer that keeps it plays, with its error beside its time
MASKS = ["full", "causal"]


# ---- Shapes -----------------------------------------------------------------------------------


def params_of(row: dict[str, str], dtype: str) -> Params:
    """The parameters of a line of a shape file; `dtype` where it has none. Raises BadOption."""
    packed = columns.lengths(row.get("lengths", ""))
    if packed and ("b" in row or "s" in row):
        raise BadOption(f"lengths={row['lengths']}: b and s must be left out: they follow from it")
    hq, hkv = columns.heads(row)
    d = columns.whole(row, "d", 128)
    params: Params = {
        "b": len(packed) or columns.whole(row, "b", 1),
        "s": sum(packed) or columns.whole(row, "s", 0), "hq": hq, "hkv": hkv, "d": d,
        "dv": columns.whole(row, "dv", d), "mask": columns.word(row, "mask", MASKS),
        "window": columns.whole(row, "window", 0, 0),
        "sinks": columns.word(row, "sinks", ["no", "yes"]), "lengths": row.get("lengths", ""),
        "dtype": columns.word({"dtype": row.get("dtype", dtype)}, "dtype", list(BYTES))}
    if int(params["dv"]) > d:
        raise BadOption(f"dv={params['dv']}: must be at most d={d}")
    return params


def heads_label(params: Params) -> str:
    """"32/8 d128", "16 d192/128"."""
    hq, hkv, d, dv = (params[name] for name in ("hq", "hkv", "d", "dv"))
    return (f"{hq}" if hq == hkv else f"{hq}/{hkv}") + f" d{d}" + ("" if dv == d else f"/{dv}")


def label(params: Params) -> str:
    """"b=4 s=4096 h=32/8 d128 causal bf16"; what is as usual is left out."""
    words = ["packed" if params["lengths"] else f"b={params['b']}", f"s={params['s']}",
             f"h={heads_label(params)}", str(params["mask"])]
    words += [f"window={params['window']}"] if params["window"] else []
    words += ["sinks"] if params["sinks"] == "yes" else []
    return " ".join([*words, str(params["dtype"])])


def groups(params: Params) -> list[str]:
    """Which of GROUPS a shape belongs to."""
    if params["lengths"] or params["window"]:
        return ["packed, window"]
    if params["d"] != 128:
        return ["other widths"]
    return ["d128", f"d128 {params['mask']}"]


@dataclass
class Sizes:
    """A shape's numbers."""

    lengths: list[int]
    hq: int
    hkv: int
    d: int
    dv: int
    rule: Rule

    @property
    def t(self) -> int:
        """Tokens of all sequences."""
        return sum(self.lengths)

    @property
    def borders(self) -> list[int]:
        """cu_seqlens."""
        return [0, *accumulate(self.lengths)]


def sizes_of(params: Params) -> Sizes:
    """What the parameters come to."""
    b, s, hq, hkv, d, dv = (int(params[x]) for x in ("b", "s", "hq", "hkv", "d", "dv"))
    lengths = columns.lengths(str(params["lengths"])) or [s] * b
    rule = Rule(d ** -0.5, params["mask"] == "causal", int(params["window"]))
    return Sizes(lengths, hq, hkv, d, dv, rule)


def pairs_of(sq: int, sk: int, rule: Rule) -> int:
    """Pairs of a query and a key that it sees, in one sequence."""
    found = 0
    for place in (range(sq) if rule.causal or rule.window else ()):
        at = place + sk - sq
        end = min(sk, at + 1) if rule.causal else min(sk, at + rule.window)
        begin = max(0, at - rule.window + 1) if rule.window else 0
        found += max(0, end - begin)
    return found if rule.causal or rule.window else sq * sk


def flops_of(params: Params) -> float:
    """2 (d + dv) a query, head and key that is seen."""
    size = sizes_of(params)
    pairs = sum(pairs_of(length, length, size.rule) for length in size.lengths)
    return 2.0 * pairs * size.hq * (size.d + size.dv)


def bytes_of(params: Params) -> float:
    """q, k, v and o."""
    size = sizes_of(params)
    row = (size.hq + size.hkv) * (size.d + size.dv)
    return float(size.t * row * BYTES[str(params["dtype"])])


# ---- A case -----------------------------------------------------------------------------------


def set_count(used: int, arrays: Arrays, times: int = 1) -> int:
    """Sets of so many bytes. MemoryError where not even one fits, `times` over with what peers
    keep of their own."""
    room = arrays.free_bytes() // (4 * times)
    if used > room:
        raise MemoryError(f"{used >> 20} MiB of arrays, {room >> 20} MiB may be taken")
    return max(1, min(arrays.sets_needed(used), room // used))


class Packed:
    """Parts of q, k, v and o that lie together; of attend.Reference."""

    def __init__(self, params: Params, sets: Sequence[ArraySet], arrays: Arrays) -> None:
        self._size, self._sets, self._arrays = sizes_of(params), sets, arrays
        self._dtype = str(params["dtype"])
        self.count, self.heads = len(self._size.lengths), self._size.hkv

    def part(self, index: int, sequence: int, heads: Sequence[int]) -> Part:
        """Of attend.Parts."""
        arrays, group = self._sets[index], self._size.hq // self._size.hkv
        readers = [head * group + each for head in heads for each in range(group)]
        q, k, v = (self._rows(index, name, sequence)[:, wanted]
                   for name, wanted in (("q", readers), ("k", list(heads)), ("v", list(heads))))
        sinks = None
        if "sinks" in arrays.inputs:
            sinks = self._arrays.floats(arrays["sinks"], "f32", True)[readers]
        q, k, v = (self._arrays.floats(x, self._dtype, True) for x in (q, k, v))
        return Part(q, k, v, sinks)

    def output(self, index: int, sequence: int) -> Any:
        """Of attend.Parts."""
        return self._rows(index, "o", sequence)

    def _rows(self, index: int, name: str, sequence: int) -> Any:
        array = self._sets[index][name]
        begin, end = self._size.borders[sequence:sequence + 2]
        return array.reshape(-1, *array.shape[2:])[begin:end]


def make_set(params: Params, size: Sizes, arrays: Arrays, borders: Any) -> ArraySet:
    """The arrays of one call."""
    dtype = str(params["dtype"])
    lead = (1, size.t) if params["lengths"] else (len(size.lengths), size.lengths[0])
    inputs = {"q": loud(arrays.random((*lead, size.hq, size.d), dtype), dtype),
              "k": arrays.random((*lead, size.hkv, size.d), dtype),
              "v": arrays.random((*lead, size.hkv, size.dv), dtype)}
    if params["sinks"] == "yes":
        inputs["sinks"] = arrays.random((size.hq,), "f32")
    if params["lengths"]:
        inputs["cu_seqlens"] = borders
    return ArraySet(inputs, {"o": arrays.empty((*lead, size.hq, size.dv), dtype)})


def make_case(params: Params, device: str, threads: int, arrays: Arrays) -> Case:
    """The case with its sets filled. MemoryError where not even one fits."""
    size, dtype, used = sizes_of(params), str(params["dtype"]), int(bytes_of(params))
    borders = arrays.integers(size.borders, "i32")
    sets = [make_set(params, size, arrays, borders) for _ in range(set_count(used, arrays, 2))]
    flops = flops_of(params)
    reference = Reference(Packed(params, sets, arrays), sets, size.rule, flops, arrays, dtype)
    return Case(label(params), params, device, threads, flops, bytes_of(params), sets,
                TOLERANCE[dtype], reference.errors, dtype=dtype,
                peer_tolerance=PEER * TOLERANCE[dtype])


# ---- Ours -------------------------------------------------------------------------------------


def call_of(case: Case, context: quern.Context, index: int) -> NamedCall:
    """attention_prefill on a set."""
    arrays, dtype = case.sets[index], str(case.params["dtype"])
    found: dict[str, Any] = {name: seen(arrays[name], dtype) for name in "qkv"}
    found.update(out=seen(arrays["o"], dtype), causal=case.params["mask"] == "causal")
    if case.params["window"]:
        found["window_size"] = (int(case.params["window"]) - 1,) * 2
    if case.params["sinks"] == "yes":
        found["sinks"] = arrays["sinks"]
    if case.params["lengths"]:
        found.update(cu_seqlens_q=arrays["cu_seqlens"], cu_seqlens_k=arrays["cu_seqlens"])
    return NamedCall(context, "attention", found)


def ours(case: Case, tuned: quern.Context, untuned: quern.Context, seconds: float,
         choice: dict[str, str], say: Say) -> tuple[list[Contestant], float]:
    """ours.plain(): our contestants and the seconds that tuning took. Raises quern.Error."""
    return plain(case, call_of, (tuned, untuned), seconds, choice, say)
