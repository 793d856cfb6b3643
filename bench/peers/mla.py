"""The adapter of mla_decode: what bench/beside.py must know to compare it.

    shape file --> params    b kv sq hq page kv_dtype dtype
    arrays                   q [b, sq, hq, 576], kv_cache [pages, page, 576], page_table, seq_lens
                             --> o [b, sq, hq, 512]

Absorbed attention: all heads attend to one latent row of 576 a token, whose first 512 columns are
the values. Query i of sq sees the first kv - sq + 1 + i tokens. e4m3: a token is 656 bytes, 512 of
e4m3, 4 f32 factors of 128 of them each, 64 bf16. Pages are distinct and in no order.

Work is counted as 2 (576 + 512) flops a query, head and token, and in bytes of the cache, q and o.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Sequence

from harness.arrays import BYTES, Arrays
from harness.contest import ArraySet, Case, Contestant, Say
from peers import columns
from peers.attend import Part, Reference, Rule, loud, module_of
from peers.attention import PEER, TOLERANCE, pairs_of, set_count
from peers.named_call import NamedCall, seen
from peers.ours import plain
from peers.pages import scattered, tokens

if TYPE_CHECKING:
    import quern

    Params = dict[str, int | str]

NAME = "mla"
COLUMNS = {"b": False, "kv": True, "sq": False, "hq": True, "page": False, "kv_dtype": False,
           "dtype": False}
DTYPES = {"cpu": ["bf16", "f32", "f16"], "cuda": ["bf16", "f16"]}  # the default first
DEFAULT_SHAPES = {"cpu": "cpu", "cuda": "gpu"}
GROUPS = ["hq sq <= 16", "hq sq > 16", "b=1"]
PEERS: dict[str, dict[str, str]] = {
    "cpu": {"numpy": "numpy_attention"},
    "cuda": {"triton": "triton_mla", "dense": "torch_mla"},
}
STARTS = {  # of harness/starts.py: lines of a shape file, the first one tuned
    "cpu": [{"b": "2", "kv": "256", "hq": "16", "page": "64"}],
    "cuda": [{"b": "16", "kv": "4096", "hq": "128", "page": "64"},
             {"b": "16", "kv": "4096", "hq": "16", "page": "64"}],
}
START_PEERS = {"cuda": "triton_mla"}  # whose first calls stand beside ours
CALLS = "mla_calls"  # what call_child.py calls
BESIDE = {"cpu": "peer", "cuda": "triton"}  # whose figures stand beside ours there
WIDTH, VALUES, ROPE = 576, 512, 64
TOKEN_BYTES = 656  # of e4m3: VALUES, 4 factors, ROPE in bf16
FACTORS = 4


# ---- Shapes -----------------------------------------------------------------------------------


def params_of(row: dict[str, str], dtype: str) -> Params:
    """The parameters of a line of a shape file; `dtype` where it has none. Raises BadOption."""
    dtype = columns.word({"dtype": row.get("dtype", dtype)}, "dtype", list(BYTES))
    return {"b": columns.whole(row, "b", 1), "kv": columns.whole(row, "kv", 0),
            "sq": columns.whole(row, "sq", 1), "hq": columns.whole(row, "hq", 0),
            "page": columns.page({"page": "64", **row}), "dtype": dtype,
            "kv_dtype": columns.word(row, "kv_dtype", [dtype, "e4m3"])}


def label(params: Params) -> str:
    """"b=128 kv=8192 h=16 page=64 bf16"; what is as usual is left out."""
    words = [f"b={params['b']}", f"kv={params['kv']}"]
    words += [f"sq={params['sq']}"] if params["sq"] != 1 else []
    words += [f"h={params['hq']}", f"page={params['page']}", str(params["dtype"])]
    words += [] if params["kv_dtype"] == params["dtype"] else [f"kv {params['kv_dtype']}"]
    return " ".join(words)


def groups(params: Params) -> list[str]:
    """Which of GROUPS a shape belongs to."""
    if params["b"] == 1:
        return ["b=1"]
    return ["hq sq <= 16" if int(params["hq"]) * int(params["sq"]) <= 16 else "hq sq > 16"]


@dataclass
class Sizes:
    """A shape's numbers."""

    b: int
    kv: int
    sq: int
    hq: int
    page: int

    @property
    def rule(self) -> Rule:
        """Of the reference."""
        return Rule(WIDTH ** -0.5, self.sq > 1)


def sizes_of(params: Params) -> Sizes:
    """What the parameters come to."""
    return Sizes(*(int(params[name]) for name in ("b", "kv", "sq", "hq", "page")))


def flops_of(params: Params) -> float:
    """2 (576 + 512) a query, head and token that is seen."""
    size = sizes_of(params)
    return 2.0 * size.b * pairs_of(size.sq, size.kv, size.rule) * size.hq * (WIDTH + VALUES)


def token_bytes(params: Params) -> int:
    """Of one in the cache."""
    return TOKEN_BYTES if params["kv_dtype"] == "e4m3" else WIDTH * BYTES[str(params["dtype"])]


def bytes_of(params: Params) -> float:
    """The cache, q and o."""
    size = sizes_of(params)
    rows = size.b * size.sq * size.hq * (WIDTH + VALUES) * BYTES[str(params["dtype"])]
    return float(size.b * size.kv * token_bytes(params) + rows)


# ---- A case -----------------------------------------------------------------------------------


def packed_tokens(arrays: Arrays, shape: tuple[int, int]) -> Any:
    """Random tokens of 656 bytes, [pages, page, 656]; torch."""
    xp = module_of(arrays.empty((1,), "f32"))
    values = arrays.random((*shape, VALUES), "e4m3")
    factors = arrays.random((*shape, FACTORS), "f32").abs_() + 0.5
    rope = arrays.random((*shape, ROPE), "bf16")
    return xp.cat([part.view(xp.uint8) for part in (values, factors, rope)], -1)


def unpacked(rows: Any) -> Any:
    """[tokens, 576] in f64 of [tokens, 656] bytes."""
    xp = module_of(rows)
    values = rows[:, :VALUES].view(xp.float8_e4m3fn).double()
    factors = rows[:, VALUES:VALUES + 4 * FACTORS].contiguous().view(xp.float32).double()
    rope = rows[:, VALUES + 4 * FACTORS:].contiguous().view(xp.bfloat16).double()
    scaled = values.reshape(-1, FACTORS, VALUES // FACTORS) * factors[..., None]
    return xp.cat([scaled.reshape(-1, VALUES), rope], -1)


class Latent:
    """Sequences in the pages of a latent cache; of attend.Reference."""

    def __init__(self, params: Params, sets: Sequence[ArraySet], arrays: Arrays) -> None:
        self._size, self._sets, self._arrays = sizes_of(params), sets, arrays
        self._params = params
        self.count, self.heads = self._size.b, 1

    def part(self, index: int, sequence: int, heads: Sequence[int]) -> Part:
        """Of attend.Parts."""
        arrays, dtype = self._sets[index], str(self._params["dtype"])
        rows = tokens(arrays["kv_cache"], arrays["page_table"][sequence], self._size.kv)
        rows = unpacked(rows) if self._params["kv_dtype"] == "e4m3" else \
            self._arrays.floats(rows, dtype, True)
        q = self._arrays.floats(arrays["q"][sequence], dtype, True)
        return Part(q, rows[:, None], rows[:, None, :VALUES])

    def output(self, index: int, sequence: int) -> Any:
        """Of attend.Parts."""
        return self._sets[index]["o"][sequence]


def make_set(params: Params, size: Sizes, arrays: Arrays) -> ArraySet:
    """The arrays of one call."""
    dtype, pages = str(params["dtype"]), scattered([size.kv] * size.b, size.page)
    shape = (pages.count, size.page)
    cache = packed_tokens(arrays, shape) if params["kv_dtype"] == "e4m3" else \
        arrays.random((*shape, WIDTH), dtype)
    inputs = {"q": loud(arrays.random((size.b, size.sq, size.hq, WIDTH), dtype), dtype),
              "kv_cache": cache,
              "page_table": arrays.integers(pages.entries, "i32").reshape(size.b, pages.width),
              "seq_lens": arrays.integers([size.kv] * size.b, "i32")}
    return ArraySet(inputs, {"o": arrays.empty((size.b, size.sq, size.hq, VALUES), dtype)})


def make_case(params: Params, device: str, threads: int, arrays: Arrays) -> Case:
    """The case with its sets filled. MemoryError where not even one fits."""
    if params["kv_dtype"] == "e4m3" and device == "cpu":
        raise MemoryError("tokens of 656 bytes are made on a GPU alone")
    size, dtype, used = sizes_of(params), str(params["dtype"]), int(bytes_of(params))
    sets = [make_set(params, size, arrays) for _ in range(set_count(used, arrays, 2))]
    flops = flops_of(params)
    reference = Reference(Latent(params, sets, arrays), sets, size.rule, flops, arrays, dtype)
    return Case(label(params), params, device, threads, flops, bytes_of(params), sets,
                TOLERANCE[dtype], reference.errors, dtype=dtype,
                reads=[found["kv_cache"] for found in sets],
                peer_tolerance=PEER * TOLERANCE[dtype])


# ---- Ours -------------------------------------------------------------------------------------


def call_of(case: Case, context: quern.Context, index: int) -> NamedCall:
    """mla_decode on a set."""
    arrays, dtype = case.sets[index], str(case.params["dtype"])
    found = {"out": seen(arrays["o"], dtype), "causal": int(case.params["sq"]) > 1}
    found.update({name: seen(arrays[name], dtype) for name in ("q", "kv_cache")})
    found.update({name: arrays[name] for name in ("page_table", "seq_lens")})
    return NamedCall(context, "mla_decode", found)


def ours(case: Case, tuned: quern.Context, untuned: quern.Context, seconds: float,
         choice: dict[str, str], say: Say) -> tuple[list[Contestant], float]:
    """ours.plain(): our contestants and the seconds that tuning took. Raises quern.Error."""
    return plain(case, call_of, (tuned, untuned), seconds, choice, say)
