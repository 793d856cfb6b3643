"""The adapter of routing: what bench/beside.py must know to compare topk_softmax, topk_sigmoid,
moe_fused_gate and moe_align_block_size.

    shape file --> params    op tokens experts topk groups topk_group block dtype
    softmax sigmoid gate     logits [tokens, experts] (gate: bias [experts])
                             --> weights, ids [tokens, topk]
    align                    ids [tokens, topk] --> sorted, blocks, used

Weights are made to sum to 1. Outputs of integers are views of f32, so that they can be poisoned.

The reference is float64. What is compared of ids is the scores of the experts that they name, in
order, so that a tie may go either way; tokens of which two groups are within CLOSE of each other,
one of them kept, are left out. Sorted slots must be the same to the last, and stable.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.arrays import BYTES, Arrays
from harness.contest import ArraySet, Case, Contestant, Errors, Say
from harness.errors import errors_of, greater
from harness.shapes import BadOption
from peers import columns
from peers.attend import module_of
from peers.attention import set_count
from peers.moe import SPREAD, chosen
from peers.named_call import NamedCall, seen
from peers.ours import plain

if TYPE_CHECKING:
    import quern

    Params = dict[str, int | str]

NAME = "routing"
OPS = ["softmax", "sigmoid", "gate", "align"]
COLUMNS = {"op": True, "tokens": True, "experts": True, "topk": True, "groups": False,
           "topk_group": False, "block": False, "dtype": False}
DTYPES = {"cpu": ["f32", "bf16", "f16"], "cuda": ["f32", "bf16", "f16"]}  # the default first
DEFAULT_SHAPES = {"cpu": "cpu", "cuda": "gpu"}
GROUPS = OPS
PEERS: dict[str, dict[str, str]] = {
    "cpu": {"torch": "torch_routing"},
    "cuda": {"torch": "torch_routing", "compiled": "torch_routing", "triton": "triton_routing"},
}
STARTS = {  # of harness/starts.py: lines of a shape file, the first one tuned
    "cpu": [{"op": "softmax", "tokens": "64", "experts": "128", "topk": "8"}],
    "cuda": [{"op": "softmax", "tokens": "4096", "experts": "128", "topk": "8"}],
}
START_PEERS: dict[str, str] = {}
CALLS = "routing_calls"  # what call_child.py calls
BESIDE = {"cpu": "peer", "cuda": "torch"}  # whose figures stand beside ours there
TOLERANCE = 1e-5
CLOSE = 1e-6


# ---- Shapes -----------------------------------------------------------------------------------


def params_of(row: dict[str, str], dtype: str) -> Params:
    """The parameters of a line of a shape file; `dtype` where it has none. Raises BadOption."""
    found: Params = {"op": columns.word({"op": row.get("op", "")}, "op", OPS)}
    found.update({name: columns.whole(row, name, 0) for name in ("tokens", "experts", "topk")})
    found.update({name: columns.whole(row, name, 1) for name in ("groups", "topk_group")})
    found["block"] = columns.whole(row, "block", 64)
    found["dtype"] = columns.word({"dtype": row.get("dtype", dtype)}, "dtype", list(BYTES))
    if int(found["topk"]) > int(found["experts"]):
        raise BadOption(f"topk={found['topk']}: must be at most experts={found['experts']}")
    if int(found["experts"]) % int(found["groups"]):
        raise BadOption(f"groups={found['groups']}: must be a divisor of "
                        f"experts={found['experts']}")
    return found


def label(params: Params) -> str:
    """"gate t=5000 e=256 k=8 groups=8/4 f32"; what is as usual is left out."""
    words = [str(params["op"]), f"t={params['tokens']}", f"e={params['experts']}",
             f"k={params['topk']}"]
    if params["op"] == "align":
        return " ".join([*words, f"block={params['block']}"])
    if params["groups"] != 1:
        words.append(f"groups={params['groups']}/{params['topk_group']}")
    return " ".join([*words, str(params["dtype"])])


def groups(params: Params) -> list[str]:
    """Which of GROUPS a shape belongs to."""
    return [str(params["op"])]


@dataclass
class Sizes:
    """A shape's numbers."""

    tokens: int
    experts: int
    topk: int
    groups: int
    topk_group: int
    block: int

    @property
    def slots(self) -> int:
        """Of all tokens."""
        return self.tokens * self.topk

    @property
    def rows(self) -> int:
        """Of sorted slots with their padding, at most."""
        if self.slots < self.experts + 1:
            return self.slots * self.block
        padded = self.slots + (self.experts + 1) * (self.block - 1)
        return -(-padded // self.block) * self.block


def sizes_of(params: Params) -> Sizes:
    """What the parameters come to."""
    return Sizes(*(int(params[name]) for name in
                   ("tokens", "experts", "topk", "groups", "topk_group", "block")))


def flops_of(params: Params) -> float:
    """One a logit, or a slot: it is bytes that count."""
    size = sizes_of(params)
    return float(size.tokens * (size.topk if params["op"] == "align" else size.experts))


def bytes_of(params: Params) -> float:
    """Logits, weights and ids; ids, sorted slots and blocks."""
    size = sizes_of(params)
    if params["op"] == "align":
        return float(4 * (size.slots + size.rows + size.rows // size.block + 1))
    return float(size.tokens * size.experts * BYTES[str(params["dtype"])] + 8 * size.slots)


def integers(array: Any) -> Any:
    """f32 as the i32 that they are."""
    import importlib

    if hasattr(array, "clone"):
        return array.view(importlib.import_module("torch").int32)
    return array.view("i4")


# ---- A case -----------------------------------------------------------------------------------


def choosing_set(params: Params, size: Sizes, arrays: Arrays) -> ArraySet:
    """Logits and what becomes of them."""
    dtype = str(params["dtype"])
    logits = arrays.random((size.tokens, size.experts), dtype)
    if dtype != "bf16" or hasattr(logits, "clone"):
        logits *= SPREAD
    inputs = {"logits": logits}
    if params["op"] == "gate":
        inputs["bias"] = arrays.random((size.experts,), "f32")
    shape = (size.tokens, size.topk)
    return ArraySet(inputs, {"weights": arrays.empty(shape, "f32"),
                             "ids": arrays.empty(shape, "f32")})


def aligning_set(size: Sizes, arrays: Arrays) -> ArraySet:
    """Ids, all of a token different, and what becomes of them."""
    ids = chosen(arrays.random((size.tokens, size.experts), "f32"), size.topk)
    ids = ids.int() if hasattr(ids, "clone") else ids.astype("i4")
    ids = ids.contiguous() if hasattr(ids, "clone") else ids.copy()
    shapes = {"sorted": size.rows, "blocks": size.rows // size.block, "used": 1}
    return ArraySet({"ids": ids}, {name: arrays.empty((count,), "f32")
                                   for name, count in shapes.items()})


def make_case(params: Params, device: str, threads: int, arrays: Arrays) -> Case:
    """The case with its sets filled. MemoryError where not even one fits."""
    size, is_align = sizes_of(params), params["op"] == "align"
    count = set_count(int(bytes_of(params)), arrays)
    sets = [aligning_set(size, arrays) if is_align else choosing_set(params, size, arrays)
            for _ in range(count)]
    reference = Aligned(size, sets) if is_align else Chosen(params, size, sets, arrays)
    return Case(label(params), params, device, threads, flops_of(params), bytes_of(params), sets,
                TOLERANCE, reference.errors)


def ranked(values: Any) -> tuple[Any, Any]:
    """Largest first, ties to the lower index: values and indices."""
    if hasattr(values, "clone"):
        found = (-values).sort(dim=-1, stable=True)
        return -found.values, found.indices
    order = (-values).argsort(-1, kind="stable")
    return module_of(values).take_along_axis(values, order, -1), order


def at(values: Any, indices: Any) -> Any:
    """values[t, indices[t, j]]."""
    if hasattr(values, "clone"):
        return values.gather(-1, indices.long())
    return module_of(values).take_along_axis(values, indices.astype("i8"), -1)


class Chosen:
    """Experts and their weights, in float64."""

    def __init__(self, params: Params, size: Sizes, sets: list[ArraySet], arrays: Arrays) -> None:
        self._params, self._size, self._sets, self._arrays = params, size, sets, arrays

    def errors(self, index: int, calls: int) -> Errors:
        """A Case's `compare`; inf where an id is no expert."""
        arrays, size = self._sets[index], self._size
        ids, keys, scores, is_clear = integers(arrays["ids"]), *self._scores(arrays)
        if not bool(((ids >= 0) & (ids < size.experts)).all()):
            return Errors(math.inf, math.inf)
        best, order = ranked(keys)
        wanted = at(scores, order[:, :size.topk])
        wanted = wanted / wanted.sum(-1)[:, None]
        weights = self._arrays.floats(arrays["weights"], "f32", True)
        return greater(errors_of(at(keys, ids)[is_clear], best[is_clear, :size.topk]),
                       errors_of(weights[is_clear], wanted[is_clear]))

    def _scores(self, arrays: ArraySet) -> tuple[Any, Any, Any]:
        """What experts are chosen by, what they weigh, and the tokens that are compared."""
        x = self._arrays.floats(arrays["logits"], str(self._params["dtype"]), True)
        xp, op = module_of(x), self._params["op"]
        if op == "softmax":
            scores = xp.exp(x - x.max())
            return scores, scores, x[:, 0] == x[:, 0]
        scores = 1 / (1 + xp.exp(-x))
        if op == "sigmoid":
            return scores, scores, x[:, 0] == x[:, 0]
        keys = scores + self._arrays.floats(arrays["bias"], "f32", True)
        kept, is_clear = self._kept(keys)
        return xp.where(kept, keys, -10.0 + 0 * keys), scores, is_clear

    def _kept(self, keys: Any) -> tuple[Any, Any]:
        """Which experts are of the groups that are kept, and the tokens where that is clear."""
        size = self._size
        each = keys.reshape(size.tokens, size.groups, -1)
        sums = ranked(each)[0][..., :2].sum(-1)
        values, order = ranked(sums)
        places = ranked(-order)[1]  # of each group among the ranks
        gap = values[:, size.topk_group - 1] - values[:, min(size.topk_group, size.groups - 1)]
        is_clear = (gap > CLOSE) | (size.topk_group == size.groups)
        kept = (places < size.topk_group)[..., None] & (each == each)
        return kept.reshape(size.tokens, size.experts), is_clear


class Aligned:
    """Sorted slots, which are right or wrong."""

    def __init__(self, size: Sizes, sets: list[ArraySet]) -> None:
        self._size, self._sets = size, sets

    def errors(self, index: int, calls: int) -> Errors:
        """A Case's `compare`."""
        size, arrays = self._size, self._sets[index]
        got = {name: integers(arrays[name]).tolist() for name in ("sorted", "blocks", "used")}
        slots: list[list[int]] = [[] for _ in range(size.experts)]
        for slot, expert in enumerate(arrays["ids"].reshape(-1).tolist()):
            slots[expert].append(slot)
        wanted, blocks = [], []
        for expert, found in enumerate(slots):
            padding = -len(found) % size.block
            wanted += found + [size.slots] * padding
            blocks += [expert] * ((len(found) + padding) // size.block)
        is_right = (got["used"] == [len(wanted)] and got["sorted"][:len(wanted)] == wanted
                    and got["blocks"][:len(blocks)] == blocks)
        return Errors(0.0, 0.0) if is_right else Errors(1.0, 1.0)


# ---- Ours -------------------------------------------------------------------------------------


def call_of(case: Case, context: quern.Context, index: int) -> NamedCall:
    """One of the functions on a set."""
    arrays, op, size = case.sets[index], case.params["op"], sizes_of(case.params)
    if op == "align":
        return NamedCall(context, "moe_align_block_size", {
            "topk_ids": arrays["ids"], "block_size": size.block, "num_experts": size.experts,
            "sorted_token_ids": integers(arrays["sorted"]),
            "expert_ids": integers(arrays["blocks"]),
            "num_tokens_post_pad": integers(arrays["used"])})
    found: dict[str, Any] = {"topk_weights": arrays["weights"], "topk_ids": integers(arrays["ids"]),
                             "topk": size.topk, "renormalize": True}
    logits = seen(arrays["logits"], str(case.params["dtype"]))
    if op != "gate":
        return NamedCall(context, f"topk_{op}", {**found, "gating_output": logits})
    return NamedCall(context, "moe_fused_gate", {
        **found, "input_tensor": logits, "bias": arrays["bias"], "num_expert_group": size.groups,
        "topk_group": size.topk_group})


def ours(case: Case, tuned: quern.Context, untuned: quern.Context, seconds: float,
         choice: dict[str, str], say: Say) -> tuple[list[Contestant], float]:
    """ours.plain(): our contestants and the seconds that tuning took. Raises quern.Error."""
    return plain(case, call_of, (tuned, untuned), seconds, choice, say)
