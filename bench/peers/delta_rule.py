"""The gated delta rule's adapter: what bench/beside.py must know to compare kda_prefill and
kda_decode. KDA (kda.py) and GDN (gdn.py) are this with a decay for a channel and for a head.

    shape file --> params       op t n h hv k v gate state layout lengths dtype
    prefill    q k v g beta A_log dt_bias cu_seqlens initial_state --> o final_state
    decode     q k v g beta A_log dt_bias slots, states in place    --> o
    make_case      arrays, work, tolerance, and the recurrence that every output meets
    ours           quern as tuned and as untuned

g is the gate's raw input and beta logits, both in the dtype of q, k and v; the gate, the sigmoid
and the norms of q and k are part of the call. The states of decode lie in a pool of a quarter more
slots than there are sequences, in no order; the slots that are not named must keep their bits.

The reference is the recurrence in float64 on the same inputs. A call in place goes on from what the
last one left, so that after a replay of a graph it is held against as many steps.
"""
from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.arrays import BYTES, Arrays
from harness.contest import ArraySet, Case, Contestant, Errors, Say
from harness.errors import errors_of, greater
from harness.shapes import BadOption
from peers import recurrence
from peers.ours import plain

if TYPE_CHECKING:
    import quern

    Params = dict[str, int | str]

COLUMNS = {"op": True, "t": False, "n": False, "h": True, "hv": False, "k": False, "v": False,
           "gate": False, "state": False, "layout": False, "lengths": False, "dtype": False}
DTYPES = {"cpu": ["bf16", "f32"], "cuda": ["bf16", "f16"]}  # the default first
DEFAULT_SHAPES = {"cpu": "cpu", "cuda": "gpu"}
GROUPS = ["prefill", "decode"]
WORDS = {"op": ["prefill", "decode"], "gate": ["bounded", "softplus", "none"],
         "layout": ["vk", "kv"], "state": ["f32", "bf16", "f16"]}
LOWER_BOUND = -5.0
TOLERANCE = {"f32": 1e-4, "f16": 5e-3, "bf16": 5e-3}  # of o and of states
BF16_STATE = 2e-2
LONG = 16384  # tokens of a single sequence whose reference is computed in PARTS
PARTS = 32
PEER = 4  # times the tolerance: a peer that keeps it plays, with its error beside its time


# ---- Shapes ---------------------------------------------------------------------------------


def whole(row: dict[str, str], name: str, otherwise: int) -> int:
    """A column that counts."""
    text = row.get(name, str(otherwise))
    if not text.isdecimal() or int(text) < 1:
        raise BadOption(f"{name}={text}: must be a whole number, 1 or more")
    return int(text)


def word(row: dict[str, str], name: str) -> str:
    """A column that is one of a few words, the first where it is not there."""
    text = row.get(name, WORDS[name][0])
    if text not in WORDS[name]:
        raise BadOption(f"{name}={text}: must be one of {' '.join(WORDS[name])}")
    return text


def params_of(row: dict[str, str], dtype: str, decay: str) -> Params:
    """The parameters of a line of a shape file; `dtype` where it has none. Raises BadOption."""
    op, n, h = word(row, "op"), whole(row, "n", 1), whole(row, "h", 0)
    hv = whole(row, "hv", h)
    if hv % h:
        raise BadOption(f"hv={hv}: must be a multiple of h={h}")
    t = whole(row, "t", n if op == "decode" else 0)
    params: Params = {"op": op, "t": t, "n": n, "h": h, "hv": hv, "k": whole(row, "k", 128),
                      "v": whole(row, "v", 128), "gate": word(row, "gate"),
                      "state": word(row, "state"), "layout": word(row, "layout"),
                      "lengths": row.get("lengths", ""), "dtype": row.get("dtype", dtype),
                      "decay": decay}
    if params["dtype"] not in BYTES:
        raise BadOption(f"dtype={params['dtype']}: must be one of {' '.join(BYTES)}")
    if op == "decode" and (t != n or params["lengths"]):
        raise BadOption(f"op=decode: t={t} and lengths={params['lengths']} must be left out: a "
                        "sequence has one token")
    check_lengths(params)
    return params


def check_lengths(params: Params) -> None:
    """Raises BadOption where they are not what t and n say."""
    text, t, n = str(params["lengths"]), int(params["t"]), int(params["n"])
    parts = text.split("+") if text else []
    if text and not (all(part.isdecimal() for part in parts) and len(parts) == n
                     and sum(map(int, parts)) == t):
        raise BadOption(f"lengths={text}: must be n={n} whole numbers with + between them, "
                        f"together t={t}")
    if not text and t % n:
        raise BadOption(f"t={t}: must be a multiple of n={n} where no lengths are given")


def label(params: Params) -> str:
    """"prefill t=8192 h=64 bounded bf16"; what is as usual is left out."""
    words = [str(params["op"])]
    if params["op"] == "prefill":
        words.append(f"t={params['t']}")
    if params["op"] == "decode" or params["n"] != 1:
        words.append(f"n={params['n']}")
    words.append(f"h={params['h']}")
    if params["hv"] != params["h"]:
        words.append(f"hv={params['hv']}")
    words += [f"{name}={params[name]}" for name in "kv" if params[name] != 128]
    words += ["packed"] if params["lengths"] else []
    words += [str(params["gate"]), str(params["dtype"])]
    words += [f"{name}={params[name]}" for name in ("state", "layout")
              if params[name] != WORDS[name][0]]
    return " ".join(words)


def groups(params: Params) -> list[str]:
    """Which of GROUPS a shape belongs to."""
    return [str(params["op"])]


@dataclass
class Sizes:
    """A shape's numbers."""

    t: int
    n: int
    h: int
    hv: int
    k: int
    v: int
    channels: int  # of g: k, or 1
    slots: int  # of the pool, decode only
    lengths: list[int]

    @property
    def starts(self) -> list[int]:
        """The first token of each sequence."""
        return [sum(self.lengths[:place]) for place in range(self.n)]


def sizes_of(params: Params) -> Sizes:
    """What the parameters come to."""
    t, n, h, hv, k, v = (int(params[name]) for name in ("t", "n", "h", "hv", "k", "v"))
    text = str(params["lengths"])
    lengths = [int(part) for part in text.split("+")] if text else [t // n] * n
    channels = k if params["decay"] == "channel" else 1
    slots = n + n // 4 + 1 if params["op"] == "decode" else 0
    return Sizes(t, n, h, hv, k, v, channels, slots, lengths)


def flops_of(params: Params) -> float:
    """As the families count it: chunks of 64 for prefill (152,064 a token and head at 128), the
    steps of the recurrence for decode."""
    size = sizes_of(params)
    k, v = size.k, size.v
    each = 6 * k * v + 40 * (6 * k + 4 * v) + 2560 if params["op"] == "prefill" else 7 * k * v
    return float(size.t * size.hv * each)


def bytes_of(params: Params) -> float:
    """The least that a call must move: every input and output once, a state there and back."""
    size, width = sizes_of(params), BYTES[str(params["dtype"])]
    row = 2 * size.h * size.k + size.hv * (2 * size.v + size.channels + 1)
    states = 2 * size.n * size.hv * size.k * size.v * BYTES[str(params["state"])]
    return float(size.t * row * width + states)


# ---- A case ---------------------------------------------------------------------------------


def make_case(params: Params, device: str, threads: int, arrays: Arrays) -> Case:
    """The case with its sets filled. MemoryError where not even one fits twice over."""
    size = sizes_of(params)
    used = int(bytes_of(params))
    state_bytes = size.hv * size.k * size.v * BYTES[str(params["state"])]
    taken = used + max(0, size.slots - size.n) * state_bytes
    room = arrays.free_bytes() // 4
    if taken > room:
        raise MemoryError(f"{taken >> 20} MiB of arrays, {room >> 20} MiB may be taken")
    count = max(1, min(arrays.sets_needed(used), room // taken))
    make = decode_set if params["op"] == "decode" else prefill_set
    cu_seqlens = arrays.integers([0, *(start + length for start, length in
                                       zip(size.starts, size.lengths))], "i64")
    sets = [make(params, size, arrays, cu_seqlens) for _ in range(count)]
    limit = TOLERANCE[str(params["dtype"])]
    limit = max(limit, BF16_STATE) if params["state"] == "bf16" else limit
    reference = Reference(params, size, sets, arrays)
    return Case(label(params), params, device, threads, flops_of(params), bytes_of(params), sets,
                limit, reference.errors, reference.restore, dtype=str(params["dtype"]),
                peer_tolerance=PEER * limit)


def moved(array: Any, factor: float, offset: float) -> Any:
    """f32: uniform numbers brought into another range, in place."""
    array *= factor
    array += offset
    return array


def token_inputs(params: Params, size: Sizes, arrays: Arrays, lead: tuple[int, ...]
                 ) -> dict[str, Any]:
    """What is there for each token, and the gate's own: its channels forget from next to nothing
    to 2.5 nats a token (softplus: to 16, by the head)."""
    dtype = str(params["dtype"])
    found = {"q": arrays.random((*lead, size.h, size.k), dtype),
             "k": arrays.random((*lead, size.h, size.k), dtype),
             "v": arrays.random((*lead, size.hv, size.v), dtype),
             "beta": arrays.random((*lead, size.hv), dtype)}
    g_shape = (*lead, size.hv, size.channels)
    if params["gate"] == "none":
        found["g"] = moved(arrays.random(g_shape, "f32"), 1.5, -1.5)
        return found
    found["g"] = arrays.random(g_shape, dtype)
    most = math.log(16) if params["gate"] == "softplus" else 1.0
    found["A_log"] = moved(arrays.random((size.hv,), "f32"), most / 2, most / 2)
    found["dt_bias"] = moved(arrays.random((size.hv, size.channels), "f32"), 3.0, -3.0)
    return found


def state_shape(params: Params, size: Sizes, count: int) -> tuple[int, ...]:
    """Of so many states."""
    ends = (size.k, size.v) if params["layout"] == "kv" else (size.v, size.k)
    return (count, size.hv, *ends)


def prefill_set(params: Params, size: Sizes, arrays: Arrays, cu_seqlens: Any) -> ArraySet:
    """The arrays of kda_prefill; cu_seqlens is one for all sets."""
    state = str(params["state"])
    shape = state_shape(params, size, size.n)
    inputs = token_inputs(params, size, arrays, (size.t,))
    inputs["initial_state"] = arrays.random(shape, state)
    if params["lengths"]:
        inputs["cu_seqlens"] = cu_seqlens
    return ArraySet(inputs, {"o": arrays.empty((size.t, size.hv, size.v), str(params["dtype"])),
                             "final_state": arrays.empty(shape, state)})


def decode_set(params: Params, size: Sizes, arrays: Arrays, cu_seqlens: Any) -> ArraySet:
    """The arrays of kda_decode, one token a sequence."""
    inputs = token_inputs(params, size, arrays, (size.n, 1))
    inputs["slots"] = arrays.integers(random.sample(range(size.slots), size.n), "i32")
    return ArraySet(inputs, {"o": arrays.empty((size.n, 1, size.hv, size.v), str(params["dtype"]))},
                    {"states": arrays.random(state_shape(params, size, size.slots),
                                             str(params["state"]))})


# ---- The reference --------------------------------------------------------------------------


def copied(array: Any) -> Any:
    """An array of its own with the same bits."""
    return array.clone() if hasattr(array, "clone") else array.copy()


def module_of(array: Any) -> Any:
    """torch or NumPy, whose functions take the array."""
    import importlib

    return importlib.import_module("torch" if hasattr(array, "clone") else "numpy")


class Reference:
    """The recurrence's outputs of a case's first and last set, computed when first asked for."""

    def __init__(self, params: Params, size: Sizes, sets: list[ArraySet], arrays: Arrays) -> None:
        self._params, self._size, self._sets, self._arrays = params, size, sets, arrays
        self._before = {index: copied(sets[index]["states"]) for index in {0, len(sets) - 1}
                        if sets[index].inouts}
        self._known: dict[int, tuple[int, Any, Any]] = {}  # set: calls, o, states in kv

    def restore(self, index: int) -> None:
        """The pool as it was made."""
        if index in self._before:
            self._sets[index]["states"][...] = self._before[index]

    def errors(self, index: int, calls: int) -> Errors:
        """The greatest of o's and the states'; inf where an unused slot has changed."""
        calls = calls if self._before else 1
        if self._known.get(index, (0,))[0] != calls:
            self._known[index] = (calls, *self._compute(index, calls))
        _, o, states = self._known[index]
        arrays = self._sets[index]
        found = errors_of(self._heads(arrays["o"]), o.swapaxes(0, 1))
        if not self._before:
            return greater(found, errors_of(self._states(arrays["final_state"]), states))
        slots = arrays["slots"].tolist()
        found = greater(found, errors_of(self._states(arrays["states"][slots]), states))
        others = [slot for slot in range(self._size.slots) if slot not in set(slots)]
        if bool((arrays["states"][others] != self._before[index][others]).any()):
            return Errors(math.inf, math.inf)
        return found

    def _heads(self, o: Any) -> Any:
        """o as [heads, tokens, v]."""
        size = self._size
        o = self._arrays.floats(o, str(self._params["dtype"]), True)
        return o.reshape(size.t, size.hv, size.v).swapaxes(0, 1)

    def _states(self, states: Any) -> Any:
        """States as [.., k, v]."""
        states = self._arrays.floats(states, str(self._params["state"]), True)
        return states if self._params["layout"] == "kv" else states.swapaxes(-1, -2)

    def _compute(self, index: int, calls: int) -> tuple[Any, Any]:
        """o of the last of so many calls, and the states after it."""
        size, arrays = self._size, self._sets[index]
        xp = module_of(arrays["o"])
        tokens = tokens_of(xp, arrays, self._params, size, self._arrays)
        if self._before:
            begun = self._before[index][arrays["slots"].tolist()]
        else:
            begun = arrays["initial_state"]
        states = copied(self._states(begun))
        order = sorted(range(size.n), key=lambda place: -size.lengths[place])
        state = states[order]
        o = xp.empty_like(tokens.v)
        if size.n == 1 and size.t >= LONG:
            recurrence.run_long(xp, tokens, state, size.k ** -0.5, o, PARTS)
            return o, state
        for _ in range(calls):
            recurrence.run(tokens, [size.starts[place] for place in order],
                           [size.lengths[place] for place in order], state, size.k ** -0.5, o)
        states[order] = state
        return o, states


def tokens_of(xp: Any, arrays: ArraySet, params: Params, size: Sizes, made: Any,
              is_double: bool = True) -> recurrence.Tokens:
    """What the recurrence takes, of a set's inputs. `made` has floats()."""
    dtype, gate = str(params["dtype"]), str(params["gate"])

    def rows(name: str, kind: str, *shape: int) -> Any:
        return made.floats(arrays[name], kind, is_double).reshape(size.t, *shape)

    x = rows("g", "f32" if gate == "none" else dtype, size.hv, size.channels)
    a_log = None
    if gate != "none":
        a_log = made.floats(arrays["A_log"], "f32", is_double)
        x = x + made.floats(arrays["dt_bias"], "f32", is_double)
    q, k = (recurrence.spread(recurrence.normalised(xp, rows(name, dtype, size.h, size.k)), size.hv)
            for name in "qk")
    return recurrence.Tokens(q, k, rows("v", dtype, size.hv, size.v),
                             recurrence.decays(xp, gate, x, a_log, LOWER_BOUND),
                             1 / (1 + xp.exp(-rows("beta", dtype, size.hv))))


# ---- Ours -----------------------------------------------------------------------------------


def named(array: Any, dtype: str) -> Any:
    """NumPy's 16-bit integers are named bf16; anything else is what it says."""
    if dtype != "bf16" or hasattr(array, "clone"):
        return array
    import quern

    return quern.view(array, "bf16")


def batched(params: Params, arrays: ArraySet) -> dict[str, Any]:
    """A set's token arrays as [sequences, tokens, heads, ...], packed ones as one sequence; g of
    GDN without channels."""
    size = sizes_of(params)
    batch = 1 if params["lengths"] else size.n
    lead = (batch, size.t // batch)
    g = (size.hv,) if params["decay"] == "scalar" else (size.hv, size.k)
    shapes = {"q": (size.h, size.k), "k": (size.h, size.k), "v": (size.hv, size.v), "g": g,
              "beta": (size.hv,), "o": (size.hv, size.v)}
    return {name: arrays[name].reshape(*lead, *shape) for name, shape in shapes.items()}


def arguments_of(params: Params, arrays: ArraySet) -> dict[str, Any]:
    """What quern's function takes, of a set."""
    dtype, state, gate = (str(params[name]) for name in ("dtype", "state", "gate"))
    found = {"out" if name == "o" else name: named(
        array, "f32" if name == "g" and gate == "none" else dtype)
        for name, array in batched(params, arrays).items()}
    found.update(use_qk_l2norm_in_kernel=True, use_beta_sigmoid_in_kernel=True,
                 use_gate_in_kernel=gate != "none", state_v_first=params["layout"] == "vk")
    if gate != "none":
        found.update(A_log=arrays["A_log"], dt_bias=arrays["dt_bias"].reshape(-1))
    if gate == "bounded":
        found["lower_bound"] = LOWER_BOUND
    if params["lengths"]:
        found["cu_seqlens"] = arrays["cu_seqlens"]
    if params["op"] == "decode":
        found.update(states=named(arrays["states"], state), slots=arrays["slots"])
    else:
        found.update({name: named(arrays[name], state)
                      for name in ("initial_state", "final_state")})
    return found


class DeltaCall:
    """quern.kda_prefill() and its like on a set."""

    def __init__(self, case: Case, context: quern.Context, index: int) -> None:
        rule = "kda" if case.params["decay"] == "channel" else "gdn"
        self._name = f"{rule}_{case.params['op']}"
        self._context = context
        self._arguments = arguments_of(case.params, case.sets[index])

    def prepare(self, variant: str | None = None, config: str | None = None) -> quern.Prepared:
        """Of ours.Call."""
        return self._context.prepare(self._name, **self._arguments, variant=variant, config=config)

    def tune(self, seconds: float, variant: str | None = None) -> quern.TuneResult:
        """Of ours.Call."""
        return self._context.tune(self._name, **self._arguments, variant=variant, budget=seconds)


call_of = DeltaCall  # of a set


def ours(case: Case, tuned: quern.Context, untuned: quern.Context, seconds: float,
         choice: dict[str, str], say: Say) -> tuple[list[Contestant], float]:
    """ours.plain(): our contestants and the seconds that tuning took. Raises quern.Error."""
    return plain(case, call_of, (tuned, untuned), seconds, choice, say)
