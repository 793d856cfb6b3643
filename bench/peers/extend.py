"""The adapter of attention_extend: what bench/beside.py must know to compare it.

    shape file --> params    b prefix t hq hkv d page dtype
    arrays                   q [b t, hq, d], k and v [b t, hkv, d], cu_seqlens_q; of the prefixes
                             k_cache and v_cache [pages, page, hkv, d], page_table, prefix_lens
                             --> o [b t, hq, d]

Each of b sequences has a prefix of so many tokens in pages, distinct and in no order, and t new
ones, which see it and, causally, themselves. Work is counted as for attention; bytes are those of
q, k, v, o and the prefixes, once.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Sequence

from harness.arrays import BYTES, Arrays
from harness.contest import ArraySet, Case, Contestant, Say
from peers import columns
from peers.attend import Part, Reference, Rule, loud
from peers.attention import PEER, TOLERANCE, heads_label, pairs_of, set_count
from peers.named_call import NamedCall, seen
from peers.ours import plain
from peers.pages import joined, scattered, tokens

if TYPE_CHECKING:
    import quern

    Params = dict[str, int | str]

NAME = "extend"
COLUMNS = {"b": False, "prefix": True, "t": True, "hq": True, "hkv": False, "d": False,
           "page": False, "dtype": False}
DTYPES = {"cpu": ["bf16", "f32", "f16"], "cuda": ["bf16", "f16"]}  # the default first
DEFAULT_SHAPES = {"cpu": "cpu", "cuda": "gpu"}
GROUPS: list[str] = []
PEERS = {
    "cpu": {"numpy": "numpy_attention"},
    "cuda": {"triton": "triton_attention", "dense": "torch_attention"},
}
STARTS = {  # of harness/starts.py: lines of a shape file, the first one tuned
    "cpu": [{"prefix": "128", "t": "64", "hq": "4"}],
    "cuda": [{"prefix": "4096", "t": "512", "hq": "32", "hkv": "8"}],
}
START_PEERS = {"cuda": "triton_attention"}  # whose first calls stand beside ours
CALLS = "extend_calls"  # what call_child.py calls
BESIDE = {"cpu": "peer", "cuda": "triton"}  # whose figures stand beside ours there


# ---- Shapes -----------------------------------------------------------------------------------


def params_of(row: dict[str, str], dtype: str) -> Params:
    """The parameters of a line of a shape file; `dtype` where it has none. Raises BadOption."""
    hq, hkv = columns.heads(row)
    d = columns.whole(row, "d", 128)
    return {"b": columns.whole(row, "b", 1), "prefix": columns.whole(row, "prefix", 0),
            "t": columns.whole(row, "t", 0), "hq": hq, "hkv": hkv, "d": d, "dv": d,
            "page": columns.page(row),
            "dtype": columns.word({"dtype": row.get("dtype", dtype)}, "dtype", list(BYTES))}


def label(params: Params) -> str:
    """"b=4 4096+512 h=32/8 d128 page=16 bf16"."""
    return (f"b={params['b']} {params['prefix']}+{params['t']} h={heads_label(params)} "
            f"page={params['page']} {params['dtype']}")


def groups(params: Params) -> list[str]:
    """None."""
    return []


@dataclass
class Sizes:
    """A shape's numbers."""

    b: int
    prefix: int
    t: int  # new tokens of each sequence
    hq: int
    hkv: int
    d: int
    page: int

    @property
    def rule(self) -> Rule:
        """Of the reference."""
        return Rule(self.d ** -0.5, True)

    @property
    def borders(self) -> list[int]:
        """cu_seqlens_q."""
        return [sequence * self.t for sequence in range(self.b + 1)]


def sizes_of(params: Params) -> Sizes:
    """What the parameters come to."""
    return Sizes(*(int(params[name]) for name in ("b", "prefix", "t", "hq", "hkv", "d", "page")))


def flops_of(params: Params) -> float:
    """4 d a query, head and key that is seen."""
    size = sizes_of(params)
    pairs = pairs_of(size.t, size.prefix + size.t, size.rule)
    return 4.0 * size.b * pairs * size.hq * size.d


def bytes_of(params: Params) -> float:
    """q, k, v, o and the prefixes."""
    size = sizes_of(params)
    rows = size.b * (2 * size.t * size.hq + 2 * (size.t + size.prefix) * size.hkv)
    return float(rows * size.d * BYTES[str(params["dtype"])])


# ---- A case -----------------------------------------------------------------------------------


def keys_of(arrays: ArraySet, size: Sizes, sequence: int, name: str) -> Any:
    """All keys ("k") or values ("v") of a sequence, [prefix + t, hkv, d], as they are."""
    prefix = tokens(arrays[f"{name}_cache"], arrays["page_table"][sequence], size.prefix)
    return joined((prefix, arrays[name][sequence * size.t:(sequence + 1) * size.t]))


class Extended:
    """Sequences whose keys are a prefix in pages and the new tokens; of attend.Reference."""

    def __init__(self, params: Params, sets: Sequence[ArraySet], arrays: Arrays) -> None:
        self._size, self._sets, self._arrays = sizes_of(params), sets, arrays
        self._dtype = str(params["dtype"])
        self.count, self.heads = self._size.b, self._size.hkv

    def part(self, index: int, sequence: int, heads: Sequence[int]) -> Part:
        """Of attend.Parts."""
        size, arrays = self._size, self._sets[index]
        group = size.hq // size.hkv
        readers = [head * group + each for head in heads for each in range(group)]
        q = arrays["q"][sequence * size.t:(sequence + 1) * size.t][:, readers]
        k, v = (keys_of(arrays, size, sequence, name)[:, list(heads)] for name in "kv")
        return Part(*(self._arrays.floats(x, self._dtype, True) for x in (q, k, v)))

    def output(self, index: int, sequence: int) -> Any:
        """Of attend.Parts."""
        t = self._size.t
        return self._sets[index]["o"][sequence * t:(sequence + 1) * t]


def make_set(params: Params, size: Sizes, arrays: Arrays) -> ArraySet:
    """The arrays of one call."""
    layout = scattered([size.prefix] * size.b, size.page)
    dtype, t = str(params["dtype"]), size.b * size.t
    inputs = {"q": loud(arrays.random((t, size.hq, size.d), dtype), dtype)}
    inputs.update({name: arrays.random((t, size.hkv, size.d), dtype) for name in "kv"})
    inputs.update({name: arrays.random((layout.count, size.page, size.hkv, size.d), dtype)
                   for name in ("k_cache", "v_cache")})
    inputs.update(
        page_table=arrays.integers(layout.entries, "i32").reshape(size.b, layout.width),
        prefix_lens=arrays.integers([size.prefix] * size.b, "i32"),
        cu_seqlens_q=arrays.integers(size.borders, "i32"))
    return ArraySet(inputs, {"o": arrays.empty((t, size.hq, size.d), dtype)})


def make_case(params: Params, device: str, threads: int, arrays: Arrays) -> Case:
    """The case with its sets filled. MemoryError where not even one fits."""
    size, dtype, used = sizes_of(params), str(params["dtype"]), int(bytes_of(params))
    sets = [make_set(params, size, arrays) for _ in range(set_count(used, arrays, 2))]
    flops = flops_of(params)
    reference = Reference(Extended(params, sets, arrays), sets, size.rule, flops, arrays,
                          dtype)
    return Case(label(params), params, device, threads, flops, bytes_of(params), sets,
                TOLERANCE[dtype], reference.errors, dtype=dtype,
                peer_tolerance=PEER * TOLERANCE[dtype])


# ---- Ours -------------------------------------------------------------------------------------


def call_of(case: Case, context: quern.Context, index: int) -> NamedCall:
    """attention_extend on a set."""
    arrays, dtype = case.sets[index], str(case.params["dtype"])
    found = {name: seen(arrays[name], dtype) for name in ("q", "k", "v", "k_cache", "v_cache")}
    found.update({name: arrays[name] for name in arrays.inputs if name not in found})
    return NamedCall(context, "attention_extend", {**found, "out": seen(arrays["o"], dtype)})


def ours(case: Case, tuned: quern.Context, untuned: quern.Context, seconds: float,
         choice: dict[str, str], say: Say) -> tuple[list[Contestant], float]:
    """ours.plain(): our contestants and the seconds that tuning took. Raises quern.Error."""
    return plain(case, call_of, (tuned, untuned), seconds, choice, say)
