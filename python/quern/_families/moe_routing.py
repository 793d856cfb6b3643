"""templates/moe, which experts a token goes to: topk_softmax, topk_sigmoid, moe_fused_gate.

      gating_output  [T, E]      ──>      topk_weights f32 [T, topk],  topk_ids i32 [T, topk]

Argument names are those of SGLang's functions, which write to topk_weights and topk_ids: given
here, they are written, too; without them new arrays are made.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from .._context import Context
from .._errors import Error, invalid
from .._forms import (Arrays, checks_of, given, real, require, require_float, whole)
from .._plan import Function, Inferred
from .attention import run_function

_MADE = ("topk_weights", "topk_ids")


def number_of(options: dict[str, Any], name: str, otherwise: float) -> Optional[Any]:
    """An option that is a number, or its text; None where it is not given or says nothing."""
    value = options[name]
    return None if value is None or float(value) == otherwise else value


def scalars(options: dict[str, Any]) -> dict[str, Any]:
    """Parameters of the cap and the factor, where there are such."""
    found = {"softcap": number_of(options, "moe_softcapping", 0.0),
             "scaling": number_of(options, "routed_scaling_factor", 1.0)}
    return {name: value for name, value in found.items() if value is not None}


def bias_of(arrays: Arrays, name: str, experts: int) -> dict[str, Any]:
    """The flag that there is one."""
    bias = arrays[name]
    if bias is not None:
        require(name, bias, (experts,), "one of each expert", "f32")
    return {"bias": bias is not None}


def _count(arrays: Arrays, options: dict[str, Any], tokens: int) -> int:
    """topk: as it is given, else columns of an output."""
    topk = options["topk"]
    for name in _MADE:
        array = arrays[name]
        if array is None:
            continue
        if topk is None and len(array.shape) == 2:
            topk = array.shape[1]
        require(name, array, (tokens, topk), f"{topk} for each token",
                "f32" if name == "topk_weights" else "i32")
    if topk is None:
        raise Error("topk: must be given, or topk_weights or topk_ids, whose columns it is")
    return topk


def _chosen(arrays: Arrays, options: dict[str, Any], logits: str, bias: str) -> tuple[
        dict[str, Any], dict[str, Any], dict[str, tuple[str, str]]]:
    """Parameters of what is chosen from, what is made, and where sizes come from."""
    x = given(arrays, logits)
    if len(x.shape) != 2:
        raise invalid(logits, f"shape {x.shape}: must be [T, E]")
    require_float(logits, x)
    require(logits, x, x.shape, "")
    tokens, experts = x.shape
    topk = _count(arrays, options, tokens)
    params = {"tokens": tokens, "experts": experts, "topk": topk, "dtype": x.dtype,
              "renormalize": options["renormalize"], **bias_of(arrays, bias, experts)}
    made = {"topk_weights": ((tokens, topk), "f32"), "topk_ids": ((tokens, topk), "i32")}
    return params, made, {"tokens": (logits, "T"), "experts": (logits, "E")}


def _infer(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    params, made, origins = _chosen(arrays, options, "gating_output", "correction_bias")
    return Inferred({**params, **scalars(options)}, made=made, origins=origins)


_ARRAYS = ("gating_output", "correction_bias", *_MADE)
_FIELDS = ("logits", "bias", "weights", "ids")
_OPTIONS: dict[str, Any] = {"topk": None, "renormalize": False, "moe_softcapping": 0.0,
                            "routed_scaling_factor": None}
CHECKS: dict[str, Callable[[str, Any], Any]] = {"topk": whole, "routed_scaling_factor": real}


def _topk(name: str) -> Function:
    return Function(name, _ARRAYS, _FIELDS, _MADE, _OPTIONS, _infer, name,
                    ("gating_output", "correction_bias", *_MADE), name,
                    checks={**checks_of(_OPTIONS), **CHECKS})


TOPK_SOFTMAX = _topk("topk_softmax")
TOPK_SIGMOID = _topk("topk_sigmoid")


def topk_softmax(gating_output: Any, topk: Optional[int] = None, *, renormalize: bool = False,
                 moe_softcapping: float = 0.0, correction_bias: Any = None,
                 routed_scaling_factor: Optional[float] = None, topk_weights: Any = None,
                 topk_ids: Any = None, context: Optional[Context] = None, stream: Any = None
                 ) -> Any:
    """The topk largest logits of each token and their softmax: (topk_weights, topk_ids).

    gating_output [T, E], f32, bf16 or f16: a router's logits of E experts, at most 1024
    topk          experts of a token, at most 32; None: columns of topk_weights or topk_ids
    renormalize   weights of a token are divided by their sum
    moe_softcapping   c above 0: logits x are c tanh(x / c)
    correction_bias   f32 [E], added to the logits, also for the weights
    routed_scaling_factor   factor of the weights; None: 1
    topk_weights, topk_ids   f32 and i32 [T, topk], where the results go; None: new arrays
    context       None: the default one of the device that gating_output is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    The largest first, of equal ones the lower expert; NaN counts as -infinity. Any thread. Error:
    an argument, by its name.
    """
    return run_function(TOPK_SOFTMAX, (gating_output, correction_bias, topk_weights, topk_ids),
                        (topk, renormalize, moe_softcapping, routed_scaling_factor), context,
                        stream)


def topk_sigmoid(gating_output: Any, topk: Optional[int] = None, *, renormalize: bool = False,
                 moe_softcapping: float = 0.0, correction_bias: Any = None,
                 routed_scaling_factor: Optional[float] = None, topk_weights: Any = None,
                 topk_ids: Any = None, context: Optional[Context] = None, stream: Any = None
                 ) -> Any:
    """The topk largest sigmoids of each token: (topk_weights, topk_ids).

    correction_bias   f32 [E], added to the sigmoids for choosing; the weights are without it

    gating_output, topk, renormalize, moe_softcapping, routed_scaling_factor, topk_weights,
    topk_ids, context, stream, order and Error as for topk_softmax().
    """
    return run_function(TOPK_SIGMOID, (gating_output, correction_bias, topk_weights, topk_ids),
                        (topk, renormalize, moe_softcapping, routed_scaling_factor), context,
                        stream)


# ---- Groups ------------------------------------------------------------------------------------


def groups_of(options: dict[str, Any]) -> dict[str, Any]:
    """Parameters of the groups, where they are given."""
    found = {"groups": options["num_expert_group"], "topk_group": options["topk_group"]}
    return {name: value for name, value in found.items() if value is not None}


def _infer_gate(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    params, made, origins = _chosen(arrays, options, "input_tensor", "bias")
    params.update(groups_of(options), shared=options["num_fused_shared_experts"],
                  scoring=options["scoring_func"],
                  apply_scaling=options["apply_routed_scaling_factor_on_output"],
                  **scalars(options))
    return Inferred(params, made=made, origins={
        **origins, "groups": ("num_expert_group", ""), "topk_group": ("topk_group", ""),
        "shared": ("num_fused_shared_experts", "")})


_GATE_ARRAYS = ("input_tensor", "bias", *_MADE)
_GATE_OPTIONS: dict[str, Any] = {
    "num_expert_group": 1, "topk_group": 1, "topk": None, "num_fused_shared_experts": 0,
    "routed_scaling_factor": None, "apply_routed_scaling_factor_on_output": False,
    "renormalize": True, "scoring_func": "sigmoid", "moe_softcapping": 0.0}
MOE_FUSED_GATE = Function(
    "moe_fused_gate", _GATE_ARRAYS, _FIELDS, _MADE, _GATE_OPTIONS, _infer_gate, "moe_fused_gate",
    _GATE_ARRAYS, "moe_fused_gate", checks={**checks_of(_GATE_OPTIONS), **CHECKS})


def moe_fused_gate(input_tensor: Any, bias: Any = None, num_expert_group: int = 1,
                   topk_group: int = 1, topk: Optional[int] = None,
                   num_fused_shared_experts: int = 0,
                   routed_scaling_factor: Optional[float] = None,
                   apply_routed_scaling_factor_on_output: bool = False, *,
                   renormalize: bool = True, scoring_func: str = "sigmoid",
                   moe_softcapping: float = 0.0, topk_weights: Any = None,
                   topk_ids: Any = None, context: Optional[Context] = None, stream: Any = None
                   ) -> Any:
    """Experts of the best groups, as DeepSeek-V3 chooses them: (topk_weights, topk_ids).

    input_tensor  [T, E], f32, bf16 or f16: a router's logits
    bias          f32 [E], added to the scores for choosing; the weights are without it
    num_expert_group, topk_group   E experts in so many groups, of which so many are kept: those
                  whose two best experts have the greatest sum; 1 and 1 (Kimi-K2): no groups
    topk          experts of a token, the shared ones among them; None: columns of the outputs
    num_fused_shared_experts   n: the last n columns are experts E to E + n - 1, of weight
                  1 / routed_scaling_factor
    routed_scaling_factor   None: 1. It is a factor of the weights only with
    apply_routed_scaling_factor_on_output, with which weights of shared experts are 1
    renormalize   weights of the routed experts are divided by their sum
    scoring_func  "sigmoid" or "softmax"
    moe_softcapping   as in topk_softmax()
    topk_weights, topk_ids   f32 and i32 [T, topk], where the results go; None: new arrays

    context, stream, order and Error as for topk_softmax(); of equal groups the lower one.
    """
    return run_function(
        MOE_FUSED_GATE, (input_tensor, bias, topk_weights, topk_ids),
        (num_expert_group, topk_group, topk, num_fused_shared_experts, routed_scaling_factor,
         apply_routed_scaling_factor_on_output, renormalize, scoring_func, moe_softcapping),
        context, stream)
