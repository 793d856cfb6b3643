"""The functions of attention as operators of PyTorch, as _ops.py makes them.

set_kv_buffer makes nothing: torch.ops.quern.set_kv_buffer_out, which writes to its caches, is all
there is of it.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch

from ._errors import invalid
from ._families import attention, attention_decode, kv_cache, mla
from ._forms import pair
from ._numbers import is_number, require_f32
from ._ops import Operator, check_plain, names


def _check_lse(given: Dict[str, Any]) -> None:
    """NAME_out returns nothing: what is asked for must be given."""
    if given.get("return_lse") and given.get("lse") is None:
        raise invalid("lse", "must be given with out: an operator makes all or none")


_FACTORS = "k_scale? v_scale? sinks?"
OPERATORS = {
    operator.function.name: operator._replace(check_out=_check_lse)
    for operator in (
        Operator(attention.ATTENTION, "q k v sinks? cu_seqlens_q? cu_seqlens_k?", "", "out lse?"),
        Operator(attention.ATTENTION_EXTEND,
                 "q k v k_cache v_cache cu_seqlens_q page_table? kv_indptr? kv_indices? "
                 f"prefix_lens? {_FACTORS}", "", "out lse?"),
        Operator(attention_decode.ATTENTION_DECODE,
                 f"q k_cache v_cache page_table seq_lens shared_table? shared_len? {_FACTORS}", "",
                 "out lse?"),
        Operator(mla.MLA_DECODE, "q kv_cache page_table? seq_lens? indices?", "", "out lse?"),
        Operator(mla.CONCAT_MLA_K, "k_nope k_rope", "", "out"),
        Operator(mla.CONCAT_MLA_ABSORB_Q, "a b", "", "out"),
        Operator(attention_decode.MERGE_STATE, "v_a s_a v_b s_b", "", "v_merged s_merged"),
        Operator(attention_decode.MERGE_STATE_V2, "v_a s_a v_b s_b", "", "v_merged s_merged"),
        Operator(kv_cache.SET_KV_BUFFER,
                 "k v? loc positions? cos_sin_cache? k_scale? v_scale?", "",
                 "k_cache v_cache? q?", is_pure=False),
    )
}


def _made(name: str, function: str, given: Dict[str, Any]) -> torch.Tensor:
    """A new output where another one is given; of arguments that are refused any tensor."""
    if name in ("v_merged", "s_merged"):
        like = given["v_a" if name == "v_merged" else "s_a"]
        return like.new_empty(like.shape)
    q = given["q"]
    if name == "lse":
        return q.new_empty(q.shape[:-1], dtype=torch.float32)
    values = given["v_cache" if function == "attention_decode" else "v"] \
        if function != "mla_decode" else None
    return q.new_empty((*q.shape[:-1], 512 if values is None else values.shape[-1]))


def traced(name: str, values: Tuple[Any, ...], options: Tuple[Any, ...]) -> Any:
    """What the function `name` is while torch.compile traces: NAME, or NAME_out where an argument
    is written."""
    operator = OPERATORS[name]
    function = operator.function
    given: Dict[str, Any] = dict(zip(function.arrays, values))
    named: Dict[str, Any] = dict(zip(function.options, options))
    check_plain(function, named)
    if "window_size" in named:
        named["window_size"] = pair("window_size", named["window_size"])
    for key in operator.inputs.split():
        if "?" not in key and given[key] is None:
            raise invalid(key, "must be given")
    first = given[names(operator.inputs)[0]]
    for key in function.numbers:
        if given[key] is not None and is_number(given[key]):
            require_f32(key, given[key])
            given[key] = first.new_full((1,), given[key], dtype=torch.float32)
    written = {key: given[key] for key in names(operator.written) if given[key] is not None}
    inputs = [given[key] for key in names(operator.inputs)]
    wants_lse = named.get("return_lse", False) or given.get("lse") is not None
    returned = [key for key in function.outputs if key != "lse" or wants_lse]
    if operator.is_pure and not written:
        made = getattr(torch.ops.quern, name).default(*inputs, **named)
        return made[0] if len(function.outputs) > len(returned) else made
    for key in returned:
        if key not in written:
            written[key] = _made(key, name, given)
    every = {key: value for key, value in zip(names(operator.inputs), inputs) if value is not None}
    getattr(torch.ops.quern, name + "_out").default(**every, **written, **named)
    results = tuple([written[key] for key in returned])
    return results[0] if len(results) == 1 else results or None
