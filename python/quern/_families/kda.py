"""templates/kda, the gated delta rule: kda_prefill, gdn_prefill, kda_decode, gdn_decode.

      q k   [B, T, H, K]      v  [B, T, HV, V]      beta  [B, T, HV]
      g     [B, T, HV, K] of KDA, [B, T, HV] of GDN

    prefill   B sequences of T tokens; with cu_seqlens B is 1 and T all their tokens; or without
              the B. The family has B and T as one dimension
    decode    B sequences, T tokens each, at most 16; without the T one token each

Argument names are those of FLA's chunk_kda(), chunk_gated_delta_rule() and their fused_recurrent_
forms (flash-linear-attention 0.6), which these take the place of. states, slots, out, final_state,
step_states and parents are quern's.

What is not here: rules of widths, dtypes and ranges, which the library has.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Optional

from .._arrays import Array
from .._call import is_traced, options_of, run
from .._context import Context
from .._errors import Error, invalid
from .._forms import (Arrays, Extents, checks_of, count_sequences, gate_of, given, joined, product,
                      require, require_float, require_shape, widened)
from .._plan import Function, Inferred

_OPTIONS: dict[str, Any] = {
    "scale": None, "output_final_state": False, "use_qk_l2norm_in_kernel": False,
    "use_gate_in_kernel": False, "use_beta_sigmoid_in_kernel": False, "allow_neg_eigval": False,
    "safe_gate": False, "lower_bound": None, "state_v_first": False}
_CHECKS = checks_of(_OPTIONS)
_ORIGINS = {"k": ("k", "K"), "v": ("v", "V"), "h": ("q", "H"), "hv": ("v", "HV"), "n": ("q", "B"),
            "t": ("q", "T"), "steps": ("q", "T"), "capacity": ("states", "slots")}
_PACKED = {"n": ("cu_seqlens", "n")}


class _Sizes:
    """What q, k, v, g and beta say, checked against each other."""

    def __init__(self, arrays: Arrays, decay: str, forms: str) -> None:
        q, k, v, g, beta = (given(arrays, name) for name in ("q", "k", "v", "g", "beta"))
        if len(q.shape) not in (3, 4):
            raise invalid("q", f"shape {q.shape}: must be {forms}")
        self.lead: Extents = tuple(q.shape[:-2])
        self.h, self.k = q.shape[-2:]
        require_float("q", q)
        require("k", k, q.shape, "as q is", q.dtype)
        if tuple(v.shape[:-2]) != self.lead or len(v.shape) != len(q.shape):
            raise invalid("v", f"shape {v.shape}: must be "
                          f"({', '.join(map(str, self.lead))}, HV, V), as q is {q.shape}")
        self.hv, self.v = v.shape[-2:]
        if self.h < 1 or self.hv % self.h:
            raise invalid("v", f"shape {v.shape}: its {self.hv} heads must be a multiple of q's "
                          f"{self.h}")
        require("q", q, q.shape, "")
        require("v", v, v.shape, "", q.dtype)
        self.width: Extents = (self.hv, 1 if decay == "scalar" else self.k)
        self.why = f"as q is {q.shape} and v {v.shape}"
        heads = (*self.lead, self.hv)
        require("beta", beta, heads, self.why)
        if decay == "scalar":  # its heads may have any stride
            require_shape("g", g, heads, self.why)
        else:
            require("g", g, (*heads, self.k), self.why)
        out = arrays["out"]
        if out is not None:
            require("out", out, v.shape, "as v is", q.dtype)


def _state_shape(sizes: _Sizes, is_v_first: bool) -> Extents:
    last = (sizes.v, sizes.k) if is_v_first else (sizes.k, sizes.v)
    return (sizes.hv, *last)


def _check_pool(arrays: Arrays, n: int, shape: Extents, why: str) -> None:
    """states and slots go together, and with nothing that says otherwise what states are."""
    states, slots = arrays["states"], arrays["slots"]
    if states is None or slots is None:
        raise invalid(*(("slots", "must be given with states: which of them are this call's")
                        if slots is None else ("states", "must be given with slots")))
    if arrays["initial_state"] is not None:
        raise invalid("initial_state", "must not be given with states, whose slots hold it")
    if len(states.shape) != 4 or tuple(states.shape[1:]) != shape or states.shape[0] < 1:
        raise invalid("states", f"shape {states.shape}: must be "
                      f"(slots, {', '.join(map(str, shape))}), {why}")
    require("slots", slots, (n,), "one of each sequence", "i32")


def _states(arrays: Arrays, options: dict[str, Any], n: int, sizes: _Sizes
            ) -> tuple[dict[str, Any], dict[str, tuple[Extents, str]]]:
    """Parameters and made outputs of the states, whichever way they are given."""
    is_v_first = options["state_v_first"]
    shape = _state_shape(sizes, is_v_first)
    has_pool = arrays["states"] is not None or arrays["slots"] is not None
    wants_final = options["output_final_state"] or arrays["final_state"] is not None
    dtype, first = "f32", ""
    for name in ("states", "initial_state", "step_states", "final_state"):
        array = arrays.get(name)
        if array is not None and not first:
            dtype, first = array.dtype, name
    for name in ("initial_state", "final_state"):
        array = arrays[name]
        if array is not None:
            require(name, array, (n, *shape), sizes.why, dtype)
    params: dict[str, Any] = {"layout": "vk" if is_v_first else "kv", "state": dtype,
                              "pool": has_pool, "final": wants_final,
                              "initial": arrays["initial_state"] is not None}
    if has_pool:
        if wants_final:
            name = "final_state" if arrays["final_state"] is not None else "output_final_state"
            raise invalid(name, "must not be given with states, whose slots take it")
        _check_pool(arrays, n, shape, sizes.why)
        params["capacity"] = given(arrays, "states").shape[0]
    made: dict[str, tuple[Extents, str]] = {"final_state": ((n, *shape), dtype)}
    return params, made if wants_final else {}


def gate_params(arrays: Arrays, options: dict[str, Any], width: Extents
                ) -> tuple[dict[str, Any], dict[str, Array]]:
    """Parameters and views of the gate, whichever way it is asked for."""
    if options["allow_neg_eigval"] and not options["use_beta_sigmoid_in_kernel"]:
        raise Error("allow_neg_eigval=True: must be False unless use_beta_sigmoid_in_kernel=True; "
                    "a beta that is computed already may be up to 2")
    is_safe = options["safe_gate"]
    if options["use_gate_in_kernel"]:
        if is_safe and options["lower_bound"] is None:
            raise invalid("lower_bound", "must be given with safe_gate=True and "
                          "use_gate_in_kernel=True")
        return gate_of(arrays, options["lower_bound"], width)
    for name in ("A_log", "dt_bias"):
        if arrays[name] is not None:
            raise invalid(name, "must not be given unless use_gate_in_kernel=True")
    return {"gate": "none"}, {}


def _params(arrays: Arrays, options: dict[str, Any], sizes: _Sizes, decay: str) -> dict[str, Any]:
    """Parameters that prefill and decode share, but for states and gate."""
    params = {"h": sizes.h, "hv": sizes.hv, "k": sizes.k, "v": sizes.v, "decay": decay,
              "dtype": given(arrays, "q").dtype, "g": given(arrays, "g").dtype,
              "beta": given(arrays, "beta").dtype,
              "l2norm": options["use_qk_l2norm_in_kernel"],
              "beta_logits": options["use_beta_sigmoid_in_kernel"],
              "neg_eigval": options["allow_neg_eigval"]}
    if options["scale"] is not None:
        params["scale"] = options["scale"]
    return params


# ---- Prefill -----------------------------------------------------------------------------------


def _infer_prefill(decay: str, arrays: Arrays, options: dict[str, Any]) -> Inferred:
    sizes = _Sizes(arrays, decay, "[B, T, H, K], or packed [T, H, K]")
    n, borders = count_sequences(arrays, "q", sizes.lead), arrays["cu_seqlens"]
    states, made = _states(arrays, options, n, sizes)
    gate, views = gate_params(arrays, options, sizes.width)
    for name, kept in (("q", 2), ("k", 2), ("v", 2), ("g", 1 if decay == "scalar" else 2),
                       ("beta", 1), ("out", 2)):
        array = arrays[name]
        if array is not None and len(sizes.lead) == 2:
            views[name] = joined(name, array, kept)
    if decay == "scalar":
        views["g"] = widened(views.get("g", given(arrays, "g")), 2)
    t, kept_states = product(sizes.lead), arrays["chunk_states"]
    params = {**_params(arrays, options, sizes, decay), **states, **gate, "t": t, "n": n,
              "varlen": borders is not None, "chunk_states": kept_states is not None}
    if kept_states is not None:
        shape = _state_shape(sizes, options["state_v_first"])
        require("chunk_states", kept_states, (t // 64 + n, *shape),
                f"a state for every 64 of {t} tokens and one more for each sequence",
                params["dtype"])
    if borders is not None:
        params["index"] = borders.dtype
    made["out"] = tuple(given(arrays, "v").shape), params["dtype"]
    return Inferred(params, views, made=made, zeroed=() if borders is None else ("out",),
                    origins={**_ORIGINS, **({} if borders is None else _PACKED)})


def _prefill(name: str, decay: str) -> Function:
    arrays = ("q", "k", "v", "g", "beta", "A_log", "dt_bias", "cu_seqlens", "initial_state",
              "slots", "out", "final_state", "states", "chunk_states")
    fields = tuple("o" if array == "out" else array for array in arrays)
    return Function("kda_prefill", arrays, fields, ("out", "final_state"), _OPTIONS,
                    partial(_infer_prefill, decay), name, arrays, name, {"decay": decay}, _CHECKS)


KDA_PREFILL = _prefill("kda_prefill", "channel")
GDN_PREFILL = _prefill("gdn_prefill", "scalar")


def _run(function: Function, values: tuple[Any, ...], options: tuple[Any, ...],
         context: Optional[Context], stream: Any) -> Any:
    if is_traced() and context is None and stream is None:
        from .. import torch_ops
        return torch_ops.traced(function.name, values, options)
    return run(function, values, options_of(function, options), context, stream)


def kda_prefill(q: Any, k: Any, v: Any, g: Any, beta: Any, *, A_log: Any = None,
                dt_bias: Any = None, scale: Optional[float] = None, initial_state: Any = None,
                output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
                use_gate_in_kernel: bool = False, use_beta_sigmoid_in_kernel: bool = False,
                allow_neg_eigval: bool = False, safe_gate: bool = False,
                lower_bound: Optional[float] = None, state_v_first: bool = False,
                cu_seqlens: Any = None, states: Any = None, slots: Any = None, out: Any = None,
                final_state: Any = None, chunk_states: Any = None,
                context: Optional[Context] = None, stream: Any = None) -> Any:
    """Kimi Delta Attention over sequences, in chunks: (o, final_state), as FLA's chunk_kda().

    q, k          [B, T, H, K]; [T, H, K] is one sequence, or several packed. K: 64, 128, 256;
                  f32, bf16 or f16. Views are taken as they lie, such as parts of a convolution's
                  output, if the last dimension is contiguous and B and T follow each other
    v             [B, T, HV, V], of q's dtype; value head i reads q's head i // (HV // H). V as K
    g             [B, T, HV, K]: logarithms of decays, at most 0; not a running sum
    beta          [B, T, HV]: how much of a value is taken, from 0 to 1 (or 2)
    scale         factor of o; None: K^-0.5
    cu_seqlens    [n + 1] of i32 or i64, on the device: where packed sequences begin, and where
                  the last one ends; B is 1. None: B sequences of T tokens. Tokens of no sequence
                  are zeros in an o that is made here, and left as they are in an out
    initial_state [n, HV, K, V] of f32, bf16 or f16; None: zeros
    output_final_state   also return the states after, in a new array; else None is returned
    state_v_first   states are [.., V, K], here and in initial_state, final_state and states
    states, slots a pool [capacity, HV, K, V] and i32 [n]: sequence i begins from slot slots[i]
                  and leaves its state there, in place of initial_state and final_state. A pitch
                  between slots is taken. -1: begins from zeros, and is kept nowhere. Slots of one
                  call are distinct; no other slot is touched
    use_qk_l2norm_in_kernel   rows of q and k are first divided by sqrt(sum of squares + 1e-6)
    use_gate_in_kernel   g is raw: the logarithm is -exp(A_log) softplus(g + dt_bias), or with
                  lower_bound that times sigmoid(exp(A_log) (g + dt_bias))
    A_log, dt_bias   f32, [HV] and [HV K] (or [HV, K]); dt_bias may be None
    lower_bound   from -5 to below 0. Without use_gate_in_kernel it says nothing
    safe_gate     FLA's choice of a kernel: there is one form here, safe with any gate
    use_beta_sigmoid_in_kernel, allow_neg_eigval   beta is sigmoid(beta), and that doubled
    out           like v; None: a new one. May be v itself, also where q and k lie between v's rows
    final_state   like initial_state, may be that itself; given, it is written and returned
    chunk_states  [T // 64 + n, HV, K, V] of q's dtype, T of all sequences: where given, the state
                  before tokens 0, 64, 128 ... of sequence i is written to row
                  cu_seqlens[i] // 64 + i and those that follow; other rows are left alone
    context       None: the default one of the device that q is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Any thread; on the CPU it has ended on return, on a GPU it is ordered by the stream. Error: an
    argument, by its name.
    """
    return _run(KDA_PREFILL, (q, k, v, g, beta, A_log, dt_bias, cu_seqlens, initial_state, slots,
                              out, final_state, states, chunk_states),
                (scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel,
                 use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound,
                 state_v_first), context, stream)


def gdn_prefill(q: Any, k: Any, v: Any, g: Any, beta: Any, *, A_log: Any = None,
                dt_bias: Any = None, scale: Optional[float] = None, initial_state: Any = None,
                output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
                use_gate_in_kernel: bool = False, use_beta_sigmoid_in_kernel: bool = False,
                allow_neg_eigval: bool = False, safe_gate: bool = False,
                lower_bound: Optional[float] = None, state_v_first: bool = False,
                cu_seqlens: Any = None, states: Any = None, slots: Any = None, out: Any = None,
                final_state: Any = None, chunk_states: Any = None,
                context: Optional[Context] = None, stream: Any = None) -> Any:
    """Gated DeltaNet over sequences: (o, final_state), as FLA's chunk_gated_delta_rule().

    g             [B, T, HV]: one logarithm of decay for a head, where kda_prefill() has K
    dt_bias       [HV]

    q, k, v, beta, A_log, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
    use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound,
    state_v_first, cu_seqlens, states, slots, out, final_state, chunk_states, context, stream,
    threads and Error as for kda_prefill().
    """
    return _run(GDN_PREFILL, (q, k, v, g, beta, A_log, dt_bias, cu_seqlens, initial_state, slots,
                              out, final_state, states, chunk_states),
                (scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel,
                 use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound,
                 state_v_first), context, stream)


# ---- Decode ------------------------------------------------------------------------------------


def _check_steps(arrays: Arrays, options: dict[str, Any], sizes: _Sizes, n: int) -> None:
    """slots, step_states and parents, as far as they concern decoding alone."""
    slots, saved, parents = arrays["slots"], arrays["step_states"], arrays["parents"]
    if slots is not None and len(sizes.lead) == 2 and n == 1 and \
            tuple(slots.shape) == sizes.lead[1:] != (1,):
        raise invalid("slots", f"shape {slots.shape}: must be (1,): q is {sizes.lead[1]} tokens of "
                      "one sequence; for one token each of several pass q[0], k[0], ...")
    if saved is not None:
        if options["output_final_state"] or arrays["final_state"] is not None:
            raise invalid("final_state", "must not be given with step_states, which has it")
        shape = _state_shape(sizes, options["state_v_first"])
        require("step_states", saved, (*sizes.lead, *shape), sizes.why)
    if parents is not None:
        if saved is None:
            raise invalid("parents", "must not be given without step_states")
        require("parents", parents, sizes.lead, sizes.why, "i32")


def _infer_decode(decay: str, arrays: Arrays, options: dict[str, Any]) -> Inferred:
    sizes = _Sizes(arrays, decay, "[B, T, H, K], or [B, H, K]: one token of each sequence")
    n = sizes.lead[0]
    _check_steps(arrays, options, sizes, n)
    states, made = _states(arrays, options, n, sizes)
    gate, views = gate_params(arrays, options, sizes.width)
    for name in ("q", "k", "v", "g", "beta", "out", "step_states", "parents"):
        array = arrays[name]
        if array is not None and len(sizes.lead) == 1:
            views[name] = widened(array, 1)
    if decay == "scalar":
        views["g"] = widened(views.get("g", given(arrays, "g")), 3)
    params = {**_params(arrays, options, sizes, decay), **states, **gate, "n": n,
              "steps": sizes.lead[1] if len(sizes.lead) == 2 else 1,
              "save": "none" if arrays["step_states"] is None else "states",
              "tree": arrays["parents"] is not None}
    made["out"] = tuple(given(arrays, "v").shape), params["dtype"]
    return Inferred(params, views, made=made, origins=_ORIGINS)


def _decode(name: str, decay: str) -> Function:
    arrays = ("q", "k", "v", "g", "beta", "A_log", "dt_bias", "slots", "initial_state", "parents",
              "out", "final_state", "states", "step_states")
    fields = tuple("o" if array == "out" else array for array in arrays)
    return Function("kda_decode", arrays, fields, ("out", "final_state"), _OPTIONS,
                    partial(_infer_decode, decay), name, arrays, name, {"decay": decay}, _CHECKS)


KDA_DECODE = _decode("kda_decode", "channel")
GDN_DECODE = _decode("gdn_decode", "scalar")


def kda_decode(q: Any, k: Any, v: Any, g: Any, beta: Any, *, A_log: Any = None,
               dt_bias: Any = None, scale: Optional[float] = None, initial_state: Any = None,
               output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
               use_gate_in_kernel: bool = False, use_beta_sigmoid_in_kernel: bool = False,
               allow_neg_eigval: bool = False, safe_gate: bool = False,
               lower_bound: Optional[float] = None, state_v_first: bool = False,
               states: Any = None, slots: Any = None, step_states: Any = None,
               parents: Any = None, out: Any = None, final_state: Any = None,
               context: Optional[Context] = None, stream: Any = None) -> Any:
    """KDA for the next tokens of sequences: (o, final_state), as FLA's fused_recurrent_kda().

    q, k          [B, T, H, K]: T tokens, at most 16, of each of B sequences; or [B, H, K]: one
    v, g, beta, out   with the same [B, T] or [B], else as for kda_prefill(); out may not be v
    states, slots as for kda_prefill(), but a slot of -1 is padding: its rows of o are zeros. So is
                  one outside of the pool, unless QUERN_CHECK=1, with which it is refused
    step_states   [B, T, HV, K, V], [B, HV, K, V]: for speculative decoding the state after every
                  token goes here, and to neither states nor final_state: None is returned for it
    parents       i32 [B, T], with step_states: token i > 0 begins from the state after token
                  parents[i] < i, or if that is below 0 from the one before the call

    A_log, dt_bias, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
    use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound,
    state_v_first, final_state, context, stream, threads and Error as for kda_prefill(), which
    also serves sequences of different lengths (FLA's cu_seqlens).
    """
    return _run(KDA_DECODE, (q, k, v, g, beta, A_log, dt_bias, slots, initial_state, parents, out,
                             final_state, states, step_states),
                (scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel,
                 use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound,
                 state_v_first), context, stream)


def gdn_decode(q: Any, k: Any, v: Any, g: Any, beta: Any, *, A_log: Any = None,
               dt_bias: Any = None, scale: Optional[float] = None, initial_state: Any = None,
               output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
               use_gate_in_kernel: bool = False, use_beta_sigmoid_in_kernel: bool = False,
               allow_neg_eigval: bool = False, safe_gate: bool = False,
               lower_bound: Optional[float] = None, state_v_first: bool = False,
               states: Any = None, slots: Any = None, step_states: Any = None,
               parents: Any = None, out: Any = None, final_state: Any = None,
               context: Optional[Context] = None, stream: Any = None) -> Any:
    """Gated DeltaNet for the next tokens, as FLA's fused_recurrent_gated_delta_rule().

    g             [B, T, HV] or [B, HV]: one logarithm of decay for a head
    beta          the fifth by position, where FLA's function has gk
    dt_bias       [HV]

    q, k, v, beta, A_log, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
    use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound,
    state_v_first, states, slots, step_states, parents, out, final_state, context, stream, threads
    and Error as for kda_decode(). Returns (o, final_state).
    """
    return _run(GDN_DECODE, (q, k, v, g, beta, A_log, dt_bias, slots, initial_state, parents, out,
                             final_state, states, step_states),
                (scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel,
                 use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound,
                 state_v_first), context, stream)
