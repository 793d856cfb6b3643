"""templates/moe, a whole layer: fused_moe, from router logits to the sum over a token's experts.

      hidden_states [T, K]     gating_output [T, E]
      w1 [E, 2 N, K], gate rows first     w2 [E, K, N]       ──>     out [T, K]

Argument names are those of SGLang's and vLLM's fused_moe().
"""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array
from .._context import Context
from .._errors import Error, invalid
from .._forms import Arrays, checks_of, given, real, require, require_float, whole
from .._kv_forms import absent
from .._plan import Function, Inferred
from .attention import run_function
from .moe_routing import bias_of, groups_of, scalars

_SHARED = "num_fused_shared_experts"


def _weights(arrays: Arrays, options: dict[str, Any], x: Array) -> dict[str, Any]:
    """Sizes and dtype of w1 and w2, and their factors."""
    w1, w2 = given(arrays, "w1"), given(arrays, "w2")
    if len(w1.shape) != 3 or w1.shape[1] % 2:
        raise invalid("w1", f"shape {w1.shape}: must be [E, 2 N, K]")
    kept, inter, hidden = w1.shape[0], w1.shape[1] // 2, x.shape[1]
    require("w1", w1, (kept, w1.shape[1], hidden), f"as hidden_states is {tuple(x.shape)}")
    require("w2", w2, (kept, hidden, inter), f"as w1 is {tuple(w1.shape)}", w1.dtype)
    if w1.dtype not in (x.dtype, "i8"):
        raise invalid("w1", f"dtype {w1.dtype}: must be {x.dtype}, as hidden_states is, or i8")
    if w1.dtype == "i8":
        require("w1_scale", given(arrays, "w1_scale"), (kept, 2 * inter), "one of each row", "f32")
        require("w2_scale", given(arrays, "w2_scale"), (kept, hidden), "one of each row", "f32")
    else:
        absent(arrays, ("w1_scale", "w2_scale"), "unless w1 and w2 are of i8")
    local = kept - options[_SHARED]
    if local < 0:
        raise Error(f"{_SHARED}={options[_SHARED]}: must be at most {kept}, the experts of w1")
    return {"inter": inter, "hidden": hidden, "w_dtype": w1.dtype, "local": local,
            "shared": options[_SHARED]}


def _routing(arrays: Arrays, options: dict[str, Any], tokens: int, local: int) -> dict[str, Any]:
    """Parameters of how experts are chosen."""
    logits, mapping = given(arrays, "gating_output"), arrays["expert_map"]
    require_float("gating_output", logits)
    if len(logits.shape) != 2:
        raise invalid("gating_output", f"shape {logits.shape}: must be [T, E]")
    experts = logits.shape[1]
    if (options["num_expert_group"] or 1) > 1 and options["topk_group"] is None:
        raise invalid("topk_group", f"must be given with num_expert_group="
                      f"{options['num_expert_group']}")
    if options["topk"] is None:
        raise invalid("topk", "must be given")
    require("gating_output", logits, (tokens, experts), "a row of each token")
    if mapping is not None:
        require("expert_map", mapping, (experts,), "one of each expert", "i32")
    elif local != experts:
        raise invalid("gating_output", f"shape {tuple(logits.shape)}: must have {local} columns, "
                      "the routed experts of w1, unless expert_map is given")
    return {"experts": experts, "topk": options["topk"], "logits_dtype": logits.dtype,
            "scoring": options["scoring_func"], "renormalize": options["renormalize"],
            "mapped": mapping is not None, **groups_of(options), **scalars(options),
            **bias_of(arrays, "correction_bias", experts)}


def _infer(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    x, out, inplace = given(arrays, "hidden_states"), arrays["out"], options["inplace"]
    if len(x.shape) != 2:
        raise invalid("hidden_states", f"shape {x.shape}: must be [T, K]")
    require_float("hidden_states", x)
    require("hidden_states", x, x.shape, "")
    weights = _weights(arrays, options, x)
    params = {"tokens": x.shape[0], "dtype": x.dtype, "activation": options["activation"],
              "inplace": inplace, **weights,
              **_routing(arrays, options, x.shape[0], weights["local"])}
    if options["gemm1_clamp_limit"] is not None:
        params["limit"] = options["gemm1_clamp_limit"]
    origins = {"tokens": ("hidden_states", "T"), "hidden": ("hidden_states", "K"),
               "inter": ("w1", "N"), "experts": ("gating_output", "E"), "topk": ("topk", ""),
               "groups": ("num_expert_group", ""), "topk_group": ("topk_group", ""),
               "shared": (_SHARED, ""), "local": ("w1", "E")}
    if inplace:
        absent(arrays, ("out",), "with inplace=True, which writes over hidden_states")
        return Inferred(params, origins=origins, returned=("hidden_states",))
    if out is not None:
        require("out", out, tuple(x.shape), "as hidden_states is", x.dtype)
    return Inferred(params, made={"out": (tuple(x.shape), x.dtype)}, origins=origins)


_ARRAYS = ("hidden_states", "gating_output", "correction_bias", "expert_map", "w1", "w2",
           "w1_scale", "w2_scale", "out")
_FIELDS = ("x", "logits", "bias", "expert_map", "w13", "w2", "w13_scale", "w2_scale", "out")
_OPTIONS: dict[str, Any] = {
    "topk": None, "renormalize": True, "inplace": False, "activation": "silu",
    "num_expert_group": None, "topk_group": None, "scoring_func": "softmax",
    "routed_scaling_factor": None, "moe_softcapping": 0.0, _SHARED: 0, "gemm1_clamp_limit": None}
_CHECKS = {**checks_of(_OPTIONS), "topk": whole, "routed_scaling_factor": real,
           "gemm1_clamp_limit": real, "num_expert_group": whole, "topk_group": whole}
FUSED_MOE = Function(
    "moe", _ARRAYS, _FIELDS, ("out",), _OPTIONS, _infer, "fused_moe",
    ("hidden_states", "w1", "w2", "gating_output", "correction_bias", "expert_map", "w1_scale",
     "w2_scale", "out"), "fused_moe", checks=_CHECKS)


def fused_moe(hidden_states: Any, w1: Any, w2: Any, gating_output: Any, topk: int,
              renormalize: bool = True, inplace: bool = False, activation: str = "silu", *,
              num_expert_group: Optional[int] = None, topk_group: Optional[int] = None,
              scoring_func: str = "softmax", correction_bias: Any = None,
              routed_scaling_factor: Optional[float] = None, moe_softcapping: float = 0.0,
              num_fused_shared_experts: int = 0, expert_map: Any = None,
              gemm1_clamp_limit: Optional[float] = None, w1_scale: Any = None,
              w2_scale: Any = None, out: Any = None, context: Optional[Context] = None,
              stream: Any = None) -> Any:
    """A mixture-of-experts layer, from a router's logits to its output: one call.

    hidden_states [T, K], bf16 or f16, on the CPU also f32
    w1            [E, 2 N, K] of the same dtype: of each expert the gate's rows, then the others
    w2            [E, K, N]; on the CPU w1 and w2 may also be of i8, with
    w1_scale, w2_scale   f32 [E, 2 N] and [E, K]: a factor of each row
    gating_output [T, E], f32, bf16 or f16
    topk, renormalize, moe_softcapping, correction_bias   as topk_softmax() has them, or with
    scoring_func  "sigmoid" topk_sigmoid(), or with
    num_expert_group, topk_group   moe_fused_gate()
    routed_scaling_factor   factor of the routed experts' weights; None: 1
    inplace       the result is written over hidden_states, which is returned
    activation    of the gate: "silu", "gelu", "gelu_tanh" or "swiglu_oai"
    gemm1_clamp_limit   the gate is at most this, the other factor within plus and minus this
    num_fused_shared_experts   so many experts at the end of w1 and w2 are every token's, with
                  weight 1
    expert_map    i32 [E]: where each expert lies in w1 and w2, -1: not here, it adds nothing
    out           like hidden_states; None: a new one
    context       None: the default one of the device that hidden_states is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Returns out. Any thread. Error: an argument, by its name.
    """
    values = (hidden_states, gating_output, correction_bias, expert_map, w1, w2, w1_scale,
              w2_scale, out)
    return run_function(FUSED_MOE, values,
                        (topk, renormalize, inplace, activation, num_expert_group, topk_group,
                         scoring_func, routed_scaling_factor, moe_softcapping,
                         num_fused_shared_experts, gemm1_clamp_limit), context, stream)
