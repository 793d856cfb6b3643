"""The adapter of attention_decode: what bench/beside.py must know to compare it.

    shape file --> params    b kv hq hkv d page kv_dtype shared dtype
    arrays                   q [b, hq, d], k_cache and v_cache [pages, page, hkv, d], page_table,
                             seq_lens, with shared > 0 shared_table and shared_len --> o [b, hq, d]

kv=4096: all sequences have so many tokens; kv=1024-8192: lengths drawn between the two, the same in
every run. shared: tokens of a prefix that all sequences have before their own; whoever has no form
for that reads them through page_table. Pages are distinct and in no order. e4m3: values as they
are, without factors.

Work is counted in bytes of keys and values, those of a shared prefix once.
"""
from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Sequence

from harness.arrays import BYTES, Arrays
from harness.contest import ArraySet, Case, Contestant, Say
from harness.shapes import BadOption
from peers import columns
from peers.attend import Part, Reference, Rule, loud
from peers.attention import PEER, TOLERANCE, heads_label, set_count
from peers.named_call import NamedCall, seen
from peers.ours import plain
from peers.pages import joined, scattered, tokens

if TYPE_CHECKING:
    import quern

    Params = dict[str, int | str]

NAME = "decode"
COLUMNS = {"b": False, "kv": True, "hq": True, "hkv": False, "d": False, "page": False,
           "kv_dtype": False, "shared": False, "dtype": False}
DTYPES = {"cpu": ["bf16", "f32", "f16"], "cuda": ["bf16", "f16"]}  # the default first
DEFAULT_SHAPES = {"cpu": "cpu", "cuda": "gpu"}
GROUPS = ["batch", "b=1", "shared"]
PEERS = {
    "cpu": {"numpy": "numpy_attention", "torch": "torch_attention_cpu"},
    "cuda": {"triton": "triton_decode", "dense": "torch_decode"},
}
STARTS = {  # of harness/starts.py: lines of a shape file, the first one tuned
    "cpu": [{"b": "4", "kv": "512", "hq": "8", "hkv": "2"}],
    "cuda": [{"b": "32", "kv": "4096", "hq": "32", "hkv": "8"},
             {"b": "1", "kv": "1024", "hq": "32", "hkv": "8"}],
}
START_PEERS = {"cuda": "triton_decode"}  # whose first calls stand beside ours
CALLS = "decode_calls"  # what call_child.py calls
BESIDE = {"cpu": "peer", "cuda": "triton"}  # whose figures stand beside ours there
WIDTHS = {**BYTES, "e4m3": 1}


# ---- Shapes -----------------------------------------------------------------------------------


def lengths_of(text: str, b: int) -> list[int]:
    """Of kv: one number, or two with - between, the same lengths each time."""
    parts = text.split("-")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts) \
            or int(parts[0]) > int(parts[-1]):
        raise BadOption(f"kv={text}: must be a number of tokens, 1 or more, or two with - between")
    if len(parts) == 1:
        return [int(text)] * b
    return random.Random(text).choices(range(int(parts[0]), int(parts[1]) + 1), k=b)


def params_of(row: dict[str, str], dtype: str) -> Params:
    """The parameters of a line of a shape file; `dtype` where it has none. Raises BadOption."""
    hq, hkv = columns.heads(row)
    d, dtype = columns.whole(row, "d", 128), row.get("dtype", dtype)
    params: Params = {
        "b": columns.whole(row, "b", 1), "kv": row.get("kv", ""), "hq": hq, "hkv": hkv, "d": d,
        "dv": d, "page": columns.page(row),
        "dtype": columns.word({"dtype": dtype}, "dtype", list(BYTES)),
        "kv_dtype": columns.word(row, "kv_dtype", [dtype, "e4m3"]),
        "shared": columns.whole(row, "shared", 0, 0)}
    lengths_of(str(params["kv"]), 1)
    if int(params["shared"]) % int(params["page"]):
        raise BadOption(f"shared={params['shared']}: must be a multiple of page={params['page']}")
    return params


def label(params: Params) -> str:
    """"b=32 kv=4096 h=32/8 d128 page=16 bf16"; what is as usual is left out."""
    words = [f"b={params['b']}", f"kv={params['kv']}"]
    words += [f"after {params['shared']} shared"] if params["shared"] else []
    words += [f"h={heads_label(params)}", f"page={params['page']}", str(params["dtype"])]
    words += [] if params["kv_dtype"] == params["dtype"] else [f"kv {params['kv_dtype']}"]
    return " ".join(words)


def groups(params: Params) -> list[str]:
    """Which of GROUPS a shape belongs to."""
    return ["shared" if params["shared"] else "b=1" if params["b"] == 1 else "batch"]


@dataclass
class Sizes:
    """A shape's numbers."""

    lengths: list[int]  # of sequences, without what is shared
    shared: int
    hq: int
    hkv: int
    d: int
    page: int

    @property
    def totals(self) -> list[int]:
        """Tokens that each sequence sees."""
        return [self.shared + length for length in self.lengths]


def sizes_of(params: Params) -> Sizes:
    """What the parameters come to."""
    b, shared, hq, hkv, d, page = (int(params[x]) for x in (
        "b", "shared", "hq", "hkv", "d", "page"))
    return Sizes(lengths_of(str(params["kv"]), b), shared, hq, hkv, d, page)


def flops_of(params: Params) -> float:
    """4 d a query head and key."""
    size = sizes_of(params)
    return 4.0 * sum(size.totals) * size.hq * size.d


def bytes_of(params: Params) -> float:
    """Keys and values, q and o; what is shared once."""
    size = sizes_of(params)
    kept = 2 * (size.shared + sum(size.lengths)) * size.hkv * size.d
    rows = 2 * len(size.lengths) * size.hq * size.d
    return float(kept * WIDTHS[str(params["kv_dtype"])] + rows * BYTES[str(params["dtype"])])


# ---- A case -----------------------------------------------------------------------------------


def keys_of(arrays: ArraySet, size: Sizes, sequence: int, name: str) -> Any:
    """All keys ("k") or values ("v") that a sequence sees, [tokens, hkv, d], as they are."""
    cache = arrays[f"{name}_cache"]
    own = tokens(cache, arrays["page_table"][sequence], size.lengths[sequence])
    return joined((tokens(cache, arrays["shared_table"], size.shared), own)) if size.shared else own


class Paged:
    """Sequences in the pages of a cache; of attend.Reference."""

    def __init__(self, params: Params, sets: Sequence[ArraySet], arrays: Arrays) -> None:
        self._size, self._sets, self._arrays = sizes_of(params), sets, arrays
        self._params = params
        self.count, self.heads = len(self._size.lengths), self._size.hkv

    def part(self, index: int, sequence: int, heads: Sequence[int]) -> Part:
        """Of attend.Parts."""
        size, arrays = self._size, self._sets[index]
        group = size.hq // size.hkv
        readers = [head * group + each for head in heads for each in range(group)]
        q = self._arrays.floats(arrays["q"][sequence][readers], str(self._params["dtype"]), True)
        k, v = (self._arrays.floats(keys_of(arrays, size, sequence, name),
                                    str(self._params["kv_dtype"]), True)[:, list(heads)]
                for name in "kv")
        return Part(q[None], k, v)

    def output(self, index: int, sequence: int) -> Any:
        """Of attend.Parts."""
        return self._sets[index]["o"][sequence][None]


def make_set(params: Params, size: Sizes, arrays: Arrays) -> tuple[ArraySet, Any]:
    """The arrays of one call, and the one whose halves k_cache and v_cache are. The common prefix
    lies like one sequence more."""
    dtype, b = str(params["dtype"]), len(size.lengths)
    pages = scattered([*size.lengths, size.shared], size.page)
    shared = pages.table.pop()
    both = arrays.random((2, pages.count, size.page, size.hkv, size.d), str(params["kv_dtype"]))
    inputs = {"q": loud(arrays.random((b, size.hq, size.d), dtype), dtype),
              "k_cache": both[0], "v_cache": both[1],
              "page_table": arrays.integers(pages.entries, "i32").reshape(b, pages.width),
              "seq_lens": arrays.integers(size.lengths, "i32")}
    if size.shared:
        inputs.update(shared_table=arrays.integers(shared, "i32"),
                      shared_len=arrays.integers([size.shared], "i32"))
    return ArraySet(inputs, {"o": arrays.empty((b, size.hq, size.d), dtype)}), both


def make_case(params: Params, device: str, threads: int, arrays: Arrays) -> Case:
    """The case with its sets filled. MemoryError where not even one fits."""
    size, dtype, used = sizes_of(params), str(params["dtype"]), int(bytes_of(params))
    made = [make_set(params, size, arrays) for _ in range(set_count(used, arrays, 2))]
    sets = [found for found, _ in made]
    flops = flops_of(params)
    reference = Reference(Paged(params, sets, arrays), sets, Rule(size.d ** -0.5), flops,
                          arrays, dtype)
    return Case(label(params), params, device, threads, flops, bytes_of(params), sets,
                TOLERANCE[dtype], reference.errors, dtype=dtype, reads=[both for _, both in made],
                peer_tolerance=PEER * TOLERANCE[dtype])


# ---- Ours -------------------------------------------------------------------------------------


def call_of(case: Case, context: quern.Context, index: int) -> NamedCall:
    """attention_decode on a set."""
    arrays, params = case.sets[index], case.params
    found = {name: seen(arrays[name], str(params[kind])) for name, kind in (
        ("q", "dtype"), ("k_cache", "kv_dtype"), ("v_cache", "kv_dtype"))}
    found.update({name: arrays[name] for name in arrays.inputs if name not in found})
    found["out"] = seen(arrays["o"], str(params["dtype"]))
    return NamedCall(context, "attention_decode", found)


def ours(case: Case, tuned: quern.Context, untuned: quern.Context, seconds: float,
         choice: dict[str, str], say: Say) -> tuple[list[Contestant], float]:
    """ours.plain(): our contestants and the seconds that tuning took. Raises quern.Error."""
    return plain(case, call_of, (tuned, untuned), seconds, choice, say)
