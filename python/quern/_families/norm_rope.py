"""templates/norm_rope: fused_qk_norm_rope, norms and rotary embedding of queries and keys in place.

      qkv [T, (Hq + Hk + Hv) D], or [T, Hq + Hk + Hv, D]     q_weight, k_weight [D]

Argument names are those of SGLang's fused_qk_norm_rope().
"""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array
from .._context import Context
from .._errors import invalid
from .._forms import Arrays, checks_of, given, require, require_float, whole
from .._plan import Function, Inferred
from .attention import run_function

_COUNTS = ("num_heads_q", "num_heads_k", "num_heads_v", "head_dim")


def _heads(array: Array, heads: int, width: int) -> Array:
    """[T, H D] as [T, H, D]."""
    if len(array.shape) == 3:
        return array
    return array._replace(shape=(array.shape[0], heads, width),
                          strides=(array.strides[0], width, 1))


def _infer(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    qkv, weight = given(arrays, "qkv"), given(arrays, "q_weight")
    positions = given(arrays, "position_ids")
    for name in _COUNTS:
        if options[name] is None:
            raise invalid(name, "must be given")
    hq, hk, hv, width = (options[name] for name in _COUNTS)
    heads = hq + hk + hv
    if len(qkv.shape) not in (2, 3):
        raise invalid("qkv", f"shape {qkv.shape}: must be [T, (Hq + Hk + Hv) D]")
    lead = qkv.shape[:1]
    shape = (*lead, heads * width) if len(qkv.shape) == 2 else (*lead, heads, width)
    require_float("qkv", qkv)
    require("qkv", qkv, shape, f"heads {hq} + {hk} + {hv} of {width}")
    for name, array in (("q_weight", weight), ("k_weight", given(arrays, "k_weight"))):
        require(name, array, (width,), f"as head_dim is {width}", qkv.dtype)
    if positions.dtype not in ("i32", "i64"):
        raise invalid("position_ids", f"dtype {positions.dtype}: must be one of: i32 i64")
    require("position_ids", positions, tuple(lead), "one of each token")
    rotary = width if options["rotary_dim"] is None else options["rotary_dim"]
    params = {"tokens": qkv.shape[0], "hq": hq, "hk": hk, "hv": hv, "d": width,
              "dtype": qkv.dtype, "rotary_dim": rotary, "interleaved": not options["is_neox"],
              "index": positions.dtype, "eps": options["eps"], "base": options["base"]}
    params.update(_scaling(options))
    return Inferred(params, {"qkv": _heads(qkv, heads, width)}, origins={
        "tokens": ("qkv", "T"), "hq": ("num_heads_q", ""), "hk": ("num_heads_k", ""),
        "hv": ("num_heads_v", ""), "d": ("head_dim", ""), "rotary_dim": ("rotary_dim", "")})


def _scaling(options: dict[str, Any]) -> dict[str, Any]:
    """Parameters of YaRN, whose factor of 1 is none."""
    found: dict[str, Any] = {}
    if float(options["factor"]) != 1:
        found = {name: options[name] for name in ("factor", "low", "high")}
    if float(options["attention_factor"]) != 1:
        found["attention_factor"] = options["attention_factor"]
    return found


_ARRAYS = ("qkv", "q_weight", "k_weight", "position_ids")
_OPTIONS: dict[str, Any] = {
    **dict.fromkeys(_COUNTS), "eps": 1e-6, "base": 10000.0, "is_neox": True, "factor": 1.0,
    "low": 0.0, "high": 0.0, "attention_factor": 1.0, "rotary_dim": None}
FUSED_QK_NORM_ROPE = Function(
    "fused_qk_norm_rope", _ARRAYS, ("qkv", "q_weight", "k_weight", "positions"), (), _OPTIONS,
    _infer, "fused_qk_norm_rope", _ARRAYS, "fused_qk_norm_rope",
    checks={**checks_of(_OPTIONS), **dict.fromkeys(_COUNTS, whole), "rotary_dim": whole})


def fused_qk_norm_rope(qkv: Any, num_heads_q: int, num_heads_k: int, num_heads_v: int,
                       head_dim: int, eps: float, q_weight: Any, k_weight: Any, base: float,
                       is_neox: bool, position_ids: Any, factor: float = 1.0, low: float = 0.0,
                       high: float = 0.0, attention_factor: float = 1.0,
                       rotary_dim: Optional[int] = None, *, context: Optional[Context] = None,
                       stream: Any = None) -> None:
    """RMS norms of queries and keys, then their rotary embedding, in place.

    qkv           [T, (Hq + Hk + Hv) D], or [T, Hq + Hk + Hv, D], bf16 or f16, on the CPU also f32;
                  values stay as they are
    num_heads_q, num_heads_k, num_heads_v, head_dim   Hq, Hk, Hv and D: 64, 128 or 256
    eps           added to the mean of the squares
    q_weight, k_weight   [D] of qkv's dtype
    base          frequencies are base^(-2 i / rotary_dim)
    is_neox       columns i and i + rotary_dim / 2 are a pair; False: columns 2 i and 2 i + 1
    position_ids  i32 or i64 [T]
    factor, low, high   YaRN: pairs up to low keep their frequencies, those from high on have
                  theirs divided by factor, between them is a ramp; factor 1: none
    attention_factor   factor of cosines and sines
    rotary_dim    columns that are rotated, the first ones; None: D
    context       None: the default one of the device that qkv is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Any thread. Error: an argument, by its name.
    """
    run_function(FUSED_QK_NORM_ROPE, (qkv, q_weight, k_weight, position_ids),
                 (num_heads_q, num_heads_k, num_heads_v, head_dim, eps, base, is_neox, factor, low,
                  high, attention_factor, rotary_dim), context, stream)
