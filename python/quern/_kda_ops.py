"""The functions of templates/kda as operators of PyTorch, as _ops.py makes them."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch

from ._errors import invalid
from ._families import kda, kda_conv, kda_norm, kda_step
from ._ops import Operator, check_plain, names


def _check_final(given: Dict[str, Any]) -> None:
    """NAME_out returns nothing: what is asked for must be given."""
    if given.get("output_final_state") and given.get("final_state") is None and \
            given.get("states") is None:
        raise invalid("final_state", "must be given with out: an operator makes all or none")


_DELTA = "q k v g beta A_log? dt_bias? initial_state?"
OPERATORS = {
    operator.function.name: operator._replace(check_out=_check_final)
    for operator in (
        Operator(kda.KDA_PREFILL, f"{_DELTA} cu_seqlens?", "slots?",
                 "out final_state? states? chunk_states?", "v"),
        Operator(kda.GDN_PREFILL, f"{_DELTA} cu_seqlens?", "slots?",
                 "out final_state? states? chunk_states?", "v"),
        Operator(kda.KDA_DECODE, _DELTA, "slots? parents?",
                 "out final_state? states? step_states?", "v"),
        Operator(kda.GDN_DECODE, _DELTA, "slots? parents?",
                 "out final_state? states? step_states?", "v"),
        Operator(kda_conv.CAUSAL_CONV1D, "x weight bias? cu_seqlens? has_initial? initial_state?",
                 "slots?", "out final_state? states?", "x"),
        Operator(kda_conv.CAUSAL_CONV1D_UPDATE, "x weight bias?", "slots?", "out states windows?",
                 "x", False),
        Operator(kda_step.KDA_STEP, "x weight bias? g beta A_log? dt_bias? z? norm_weight?",
                 "slots", "out conv_states states", "x", False),
        Operator(kda_norm.L2NORM, "x", "", "out", "x"),
        Operator(kda_norm.GATED_RMSNORM, "x z weight", "", "out", "x"),
        Operator(kda_norm.KDA_GATE_CUMSUM, "g A_log? dt_bias? cu_seqlens?", "", "out", "g"),
    )
}


# ---- While torch.compile traces ------------------------------------------------------------------


def _made_out(operator: Operator, given: Dict[str, Any], named: Dict[str, Any]) -> torch.Tensor:
    """A new out, of zeros where tokens may belong to no sequence."""
    like, name = given[operator.like], operator.function.name
    shape, dtype = like.shape, like.dtype
    if name == "kda_gate_cumsum":
        dtype = torch.float32
    elif name == "kda_step" and given["states"].dim() == 4:  # else it is refused
        states = given["states"].shape
        shape = (like.shape[0], states[1], states[2 if named["state_v_first"] else 3])
    if name in ("kda_prefill", "gdn_prefill") and given["cu_seqlens"] is not None:
        return like.new_zeros(shape, dtype=dtype)
    return like.new_empty(shape, dtype=dtype)


def _made_final(operator: Operator, given: Dict[str, Any], named: Dict[str, Any]) -> torch.Tensor:
    """A new final_state; of arguments that are refused any tensor."""
    first, borders = given[operator.inputs.split()[0]], given.get("cu_seqlens")
    is_delta = operator.like == "v"
    is_packed = operator.function.family != "kda_decode" and first.dim() == (3 if is_delta else 2)
    n = 1 if is_packed or not first.dim() else first.shape[0]
    if borders is not None:
        n = borders.shape[0] - 1 if borders.dim() else 0
    if not is_delta:
        taps = given["weight"].shape[-1] - 1 if given["weight"].dim() == 2 else 0
        return first.new_empty((n, taps, first.shape[-1]))
    v, before = given["v"], given["initial_state"]
    shape: Any = (0,)
    if first.dim() == v.dim() and v.dim() in (3, 4):
        last = (v.shape[-1], first.shape[-1])
        shape = (n, v.shape[-2], *(last if named["state_v_first"] else last[::-1]))
    return v.new_empty(shape, dtype=torch.float32 if before is None else before.dtype)


def traced(name: str, values: Tuple[Any, ...], options: Tuple[Any, ...]) -> Any:
    """What the function `name` is then: NAME, or where an argument is written NAME_out."""
    operator = OPERATORS[name]
    function = operator.function
    given: Dict[str, Any] = dict(zip(function.arrays, values))
    named: Dict[str, Any] = dict(zip(function.options, options))
    check_plain(function, named)
    rest = {key: given[key] for key in (*names(operator.others), *names(operator.written))
            if given[key] is not None}
    inputs = [given[key] for key in names(operator.inputs)]
    wants_final = named.get("output_final_state", False)
    if operator.is_pure and not rest:
        made = getattr(torch.ops.quern, name).default(*inputs, **named)
        if len(function.outputs) == 1:
            return made
        return made[0], made[1] if wants_final else None
    if given["out"] is None:
        rest["out"] = _made_out(operator, given, named)
    if wants_final and all(given.get(key) is None for key in ("final_state", "states", "slots")):
        rest["final_state"] = _made_final(operator, given, named)
    every = {key: value for key, value in zip(names(operator.inputs), inputs)
             if value is not None}
    getattr(torch.ops.quern, name + "_out").default(**every, **rest, **named)
    if len(function.outputs) == 1:
        return rest["out"]
    return rest["out"], rest.get("final_state")
