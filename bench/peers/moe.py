"""The adapter of moe, a layer of experts: what bench/beside.py must know to compare fused_moe.

    shape file --> params    tokens experts topk hidden inter logits dtype
    arrays                   x [tokens, hidden], logits f32 [tokens, experts], w13 [experts,
                             2 inter, hidden], w2 [experts, hidden, inter] --> out [tokens, hidden]

Weights are the same in all sets, tokens and logits each set's own, so that the experts hit change
with every call. Of few tokens (FEW) a set goes to none of the experts that the set before it went
to: nothing of what it reads is in a cache. logits: random, alike for all experts; or skewed, less
the logarithm of an expert's rank, so that some get many tokens and some none.

Work is counted as 6 hidden inter flops a token and expert, and in bytes of the weights of the
experts that are hit (counted from the logits; the mean of the sets), x, logits and out. The
reference computes some tokens, drawn anew for each case, in float64; the rest must be finite.
"""
from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.arrays import BYTES, Arrays
from harness.contest import ArraySet, Case, Contestant, Errors, Say
from harness.errors import errors_of
from peers import columns
from peers.attend import module_of
from peers.attention import PEER, TOLERANCE
from peers.named_call import NamedCall, seen
from peers.ours import plain

if TYPE_CHECKING:
    import quern

    Params = dict[str, int | str]

NAME = "moe"
COLUMNS = {"tokens": True, "experts": True, "topk": True, "hidden": True, "inter": True,
           "logits": False, "dtype": False}
DTYPES = {"cpu": ["bf16", "f32", "f16"], "cuda": ["bf16", "f16"]}  # the default first
DEFAULT_SHAPES = {"cpu": "cpu", "cuda": "gpu"}
GROUPS = ["tokens <= 16", "tokens 64 to 256", "tokens >= 1024"]
PEERS: dict[str, dict[str, str]] = {
    "cpu": {"torch": "torch_moe_cpu"},
    "cuda": {"triton": "triton_moe", "grouped_mm": "torch_moe", "gathered": "torch_moe"},
}
STARTS = {  # of harness/starts.py: lines of a shape file, the first one tuned
    "cpu": [{"tokens": "4", "experts": "16", "topk": "4", "hidden": "256", "inter": "128"}],
    "cuda": [{"tokens": "1", "experts": "128", "topk": "8", "hidden": "2048", "inter": "768"},
             {"tokens": "1024", "experts": "128", "topk": "8", "hidden": "2048", "inter": "768"}],
}
START_PEERS = {"cuda": "triton_moe"}  # whose first calls stand beside ours
CALLS = "moe_calls"  # what call_child.py calls
BESIDE = {"cpu": "peer", "cuda": "triton"}  # whose figures stand beside ours there
FEW = 8  # tokens up to which consecutive sets share no expert
SETS = 8  # at least, of calls that do not go to every expert
SPREAD = 4.0  # of logits: uniform in [-SPREAD, SPREAD)
READ = 64  # tokens of a call that reading bounds on the CPU
CHECKED = {"cpu": 4, "cuda": 32}  # tokens of a set that the reference computes


# ---- Shapes -----------------------------------------------------------------------------------


def params_of(row: dict[str, str], dtype: str) -> Params:
    """The parameters of a line of a shape file; `dtype` where it has none. Raises BadOption."""
    found: Params = {name: columns.whole(row, name, 0) for name in
                     ("tokens", "experts", "topk", "hidden", "inter")}
    found["logits"] = columns.word(row, "logits", ["random", "skewed"])
    found["dtype"] = columns.word({"dtype": row.get("dtype", dtype)}, "dtype", list(BYTES))
    return found


def label(params: Params) -> str:
    """"t=16 e=128 k=8 2048 x 768 bf16"; what is as usual is left out."""
    words = [f"t={params['tokens']}", f"e={params['experts']}", f"k={params['topk']}",
             f"{params['hidden']} x {params['inter']}", str(params["dtype"])]
    return " ".join(words + ([] if params["logits"] == "random" else [str(params["logits"])]))


def groups(params: Params) -> list[str]:
    """Which of GROUPS a shape belongs to."""
    tokens = int(params["tokens"])
    return [GROUPS[0 if tokens <= 16 else 1 if tokens < 1024 else 2]]


@dataclass
class Sizes:
    """A shape's numbers."""

    tokens: int
    experts: int
    topk: int
    hidden: int
    inter: int

    @property
    def expert(self) -> int:
        """Elements of the weights of one."""
        return 3 * self.inter * self.hidden


def sizes_of(params: Params) -> Sizes:
    """What the parameters come to."""
    return Sizes(*(int(params[x]) for x in ("tokens", "experts", "topk", "hidden", "inter")))


def flops_of(params: Params) -> float:
    """2 a weight of each token's experts."""
    size = sizes_of(params)
    return 2.0 * size.tokens * size.topk * size.expert


def hit_bytes(params: Params, hit: float) -> float:
    """Of a call that goes to so many experts."""
    size, width = sizes_of(params), BYTES[str(params["dtype"])]
    rows = size.tokens * (2 * size.hidden * width + 4 * size.experts)
    return hit * size.expert * width + rows


# ---- A case -----------------------------------------------------------------------------------


def chosen(logits: Any, topk: int) -> Any:
    """[tokens, topk], the largest first, ties to the lower expert; of NumPy arrays or tensors."""
    if hasattr(logits, "clone"):
        order = (-logits.double()).sort(dim=-1, stable=True).indices
    else:
        order = (-logits.astype("f8")).argsort(-1, kind="stable")
    return order[:, :topk]


def experts_hit(logits: Any, topk: int) -> set[int]:
    """By all tokens."""
    return set(chosen(logits, topk).reshape(-1).tolist())


def drawn_logits(params: Params, size: Sizes, arrays: Arrays, before: set[int]) -> Any:
    """One set's; of few tokens none goes to the experts `before`, if enough others are left."""
    logits = arrays.random((size.tokens, size.experts), "f32")
    logits *= SPREAD
    order = random.sample(range(size.experts), size.experts)
    if params["logits"] == "skewed":
        for rank, expert in enumerate(order):
            logits[:, expert] -= math.log(rank + 1)
    if size.tokens <= FEW and len(before) + size.topk <= size.experts:
        for expert in before:
            logits[:, expert] -= 4 * SPREAD + math.log(size.experts)
    return logits


def make_sets(params: Params, size: Sizes, arrays: Arrays) -> tuple[list[ArraySet], float]:
    """The sets, and the mean number of experts that they go to."""
    dtype = str(params["dtype"])
    used = int(hit_bytes(params, min(size.experts, size.topk * size.tokens)))
    weights = size.experts * size.expert * BYTES[dtype]
    room = arrays.free_bytes() // 4
    if weights > 3 * room:
        raise MemoryError(f"{weights >> 20} MiB of weights, {3 * room >> 20} MiB may be taken")
    count = arrays.sets_needed(used)
    count = max(count, SETS) if count > 1 and size.tokens * size.topk <= 4 * size.experts else count
    w13 = arrays.random((size.experts, 2 * size.inter, size.hidden), dtype)
    w2 = arrays.random((size.experts, size.hidden, size.inter), dtype)
    sets, before, hits = [], set(), []
    for _ in range(count):
        logits = drawn_logits(params, size, arrays, before)
        before = experts_hit(logits, size.topk)
        hits.append(len(before))
        x = arrays.random((size.tokens, size.hidden), dtype)
        sets.append(ArraySet({"x": x, "logits": logits, "w13": w13, "w2": w2},
                             {"out": arrays.empty((size.tokens, size.hidden), dtype)}))
    return sets, sum(hits) / len(hits)


def make_case(params: Params, device: str, threads: int, arrays: Arrays) -> Case:
    """The case with its sets filled. MemoryError where not even one fits."""
    size, dtype = sizes_of(params), str(params["dtype"])
    sets, hit = make_sets(params, size, arrays)
    reference = Reference(params, size, sets, arrays)
    reads = []
    if device == "cpu" and size.tokens <= READ:  # as much as the experts hit, elsewhere each time
        flat = sets[0]["w13"].reshape(-1)
        length = min(flat.size, int(hit * size.expert))
        starts = [place * length % (flat.size - length + 1) for place in range(len(sets))]
        reads = [flat[start:start + length] for start in starts]
    return Case(label(params), params, device, threads, flops_of(params), hit_bytes(params, hit),
                sets, TOLERANCE[dtype], reference.errors, dtype=dtype, reads=reads,
                peer_tolerance=PEER * TOLERANCE[dtype])


class Reference:
    """Some tokens of each end of the sets in float64, computed when first asked for."""

    def __init__(self, params: Params, size: Sizes, sets: list[ArraySet], arrays: Arrays) -> None:
        self._dtype, self._size, self._sets, self._arrays = (str(params["dtype"]), size, sets,
                                                             arrays)
        kind = "cuda" if getattr(sets[0]["x"], "is_cuda", False) else "cpu"
        count = min(size.tokens, CHECKED[kind])
        middle = random.sample(range(size.tokens), count)
        self._tokens = sorted({0, size.tokens - 1, *middle})
        self._known: dict[int, Any] = {}

    def errors(self, index: int, calls: int) -> Errors:
        """A Case's `compare`; inf where another token's output is no number."""
        if index not in self._known:
            self._known[index] = self._wanted(self._sets[index])
        out = self._sets[index]["out"]
        whole = self._arrays.floats(out, self._dtype)
        if not bool(module_of(out).isfinite(whole).all()):
            return Errors(math.inf, math.inf)
        return errors_of(self._arrays.floats(out[self._tokens], self._dtype, True),
                         self._known[index])

    def _wanted(self, arrays: ArraySet) -> Any:
        xp = module_of(arrays["x"])
        logits = self._arrays.floats(arrays["logits"], "f32", True)[self._tokens]
        ids = chosen(arrays["logits"][self._tokens], self._size.topk).tolist()
        x = self._arrays.floats(arrays["x"][self._tokens], self._dtype, True)
        rows = []
        for token, experts in enumerate(ids):
            weights = xp.exp(logits[token, experts] - logits[token].max())
            weights = weights / weights.sum()
            rows.append(sum(weights[place] * self._expert(xp, arrays, expert, x[token])
                            for place, expert in enumerate(experts)))
        return xp.stack(rows)

    def _expert(self, xp: Any, arrays: ArraySet, expert: int, x: Any) -> Any:
        """One expert of one token."""
        both = self._arrays.floats(arrays["w13"][expert], self._dtype, True) @ x
        gate, up = both[:self._size.inter], both[self._size.inter:]
        h = gate / (1 + xp.exp(-gate)) * up
        return self._arrays.floats(arrays["w2"][expert], self._dtype, True) @ h


# ---- Ours -------------------------------------------------------------------------------------


def call_of(case: Case, context: quern.Context, index: int) -> NamedCall:
    """fused_moe on a set."""
    arrays, dtype = case.sets[index], str(case.params["dtype"])
    names = {"hidden_states": "x", "w1": "w13", "w2": "w2", "out": "out"}
    found: dict[str, Any] = {name: seen(arrays[own], dtype) for name, own in names.items()}
    found.update(gating_output=arrays["logits"], topk=int(case.params["topk"]), renormalize=True)
    return NamedCall(context, "fused_moe", found)


def ours(case: Case, tuned: quern.Context, untuned: quern.Context, seconds: float,
         choice: dict[str, str], say: Say) -> tuple[list[Contestant], float]:
    """ours.plain(): our contestants and the seconds that tuning took. Raises quern.Error."""
    return plain(case, call_of, (tuned, untuned), seconds, choice, say)
