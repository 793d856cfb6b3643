"""The functions of mixtures of experts as operators of PyTorch, as _ops.py makes them.

Of several outputs an operator makes all, or writes to all: some of each is refused while
torch.compile traces. torch.ops.quern.fused_moe_inplace_out is fused_moe(inplace=True), which
writes to hidden_states; fused_qk_norm_rope_out writes to qkv, and is all there is of it.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch

from . import _torch
from ._errors import invalid
from ._families import (DESCRIPTIONS, activation, grouped_gemm, moe, moe_align, moe_routing,
                        norm_rope)
from ._ops import Operator, check_plain, names
from ._plan import Function


_ASKED = {"blockscale_offsets": "blockscale", "scales": "quantize"}  # outputs by options


def _check_asked(given: Dict[str, Any]) -> None:
    """NAME_out returns nothing: what is asked for must be given."""
    for output, option in _ASKED.items():
        if given.get(option) and given.get(output) is None:
            raise invalid(output, "must be given with the other outputs: an operator makes all or "
                          "none")


def _layer(name: str, inplace: bool) -> Function:
    """fused_moe() that is in place, or never is, as a function of its own."""
    function = moe.FUSED_MOE
    options = {key: value for key, value in function.options.items() if key != "inplace"}

    def infer(arrays: Any, given: Any) -> Any:
        return function.infer(arrays, {**given, "inplace": inplace})

    return function._replace(infer=infer, options=options, key=(name, "operator"), name=name,
                             outputs=() if inplace else function.outputs)


_LAYER = "w1 w2 gating_output correction_bias? expert_map? w1_scale? w2_scale?"
_OUTPUTS = "topk_weights topk_ids"
OPERATORS = {
    operator.function.name: operator
    for operator in (
        Operator(moe_routing.TOPK_SOFTMAX, "gating_output correction_bias?", "", _OUTPUTS),
        Operator(moe_routing.TOPK_SIGMOID, "gating_output correction_bias?", "", _OUTPUTS),
        Operator(moe_routing.MOE_FUSED_GATE, "input_tensor bias?", "", _OUTPUTS),
        Operator(moe_align.MOE_ALIGN_BLOCK_SIZE, "topk_ids expert_map?", "",
                 "sorted_token_ids expert_ids num_tokens_post_pad"),
        Operator(moe_align.PREPARE_MOE_INPUT, "topk_ids", "",
                 "expert_offsets problem_sizes1 problem_sizes2 input_permutation "
                 "output_permutation blockscale_offsets?", check_out=_check_asked),
        Operator(moe_align.SHUFFLE_ROWS, "input_tensor dst2src_map", "", "output_tensor"),
        Operator(moe_align.APPLY_SHUFFLE_MUL_SUM, "input permutation factors?", "", "output"),
        Operator(moe_align.MOE_SUM, "input_tensor", "", "output_tensor"),
        Operator(moe_align.MOE_SUM_REDUCE, "input_tensor topk_weights?", "", "output_tensor"),
        Operator(grouped_gemm.GROUPED_GEMM,
                 "a b offsets? expert_ids? num_rows? counts? row_ids?", "", "out"),
        Operator(_layer("fused_moe", False), f"hidden_states {_LAYER}", "", "out"),
        Operator(_layer("fused_moe_inplace", True), _LAYER, "", "hidden_states", is_pure=False),
        *(Operator(function, "input", "", "out scales?", check_out=_check_asked)
          for function in (activation.SILU_AND_MUL, activation.GELU_AND_MUL,
                           activation.GELU_TANH_AND_MUL)),
        Operator(norm_rope.FUSED_QK_NORM_ROPE, "q_weight k_weight position_ids", "", "qkv",
                 is_pure=False),
    )
}


def traced(name: str, values: Tuple[Any, ...], options: Tuple[Any, ...]) -> Any:
    """What the function `name` is while torch.compile traces it: NAME, or NAME_out where outputs
    are given. TypeError, which can be traced: what neither is."""
    function = DESCRIPTIONS[name]
    given: Dict[str, Any] = dict(zip(function.arrays, values))
    named: Dict[str, Any] = dict(zip(function.options, options))
    check_plain(function, named)
    if named.pop("inplace", False):
        name = "fused_moe_inplace"
        if given["out"] is not None:
            raise TypeError("out: must not be given with inplace=True, which writes over "
                            "hidden_states")
    if isinstance(named.get("out_dtype"), str):
        named["out_dtype"] = _torch.dtype_of(named["out_dtype"])
    operator = OPERATORS[name]
    for key in (*operator.inputs.split(), *operator.written.split()):
        is_made = key.rstrip("?") in function.outputs
        if "?" not in key and not is_made and given[key] is None:
            raise TypeError(f"{key}: must be given")
    inputs = {key: given[key] for key in names(operator.inputs) if given[key] is not None}
    written = {key: given[key] for key in names(operator.written) if given[key] is not None}
    if operator.is_pure and not written:
        return _made(operator, inputs, named)
    for key in operator.written.split():
        if "?" not in key and key not in written:
            raise TypeError(f"{key}: must be given with {next(iter(written))}, while "
                            "torch.compile traces: an operator makes all or none")
    getattr(torch.ops.quern, name + "_out").default(**inputs, **written, **named)
    results = tuple(written.values()) if function.outputs else (None,)
    return results[0] if len(results) == 1 else results


def _made(operator: Operator, inputs: Dict[str, Any], named: Dict[str, Any]) -> Any:
    """What NAME makes; without the last output where that is not asked for."""
    function = operator.function
    made = getattr(torch.ops.quern, function.name).default(**inputs, **named)
    if len(function.outputs) < 2:
        return made
    option = _ASKED.get(function.outputs[-1])
    kept = made if option is None or named[option] else made[:-1]
    return kept if len(kept) > 1 else kept[0]
