"""A module or more for a folder of templates/, a function a family: the field's argument names.

To add one: a module with a _plan.Function that says how the spec follows from the arrays, and the
function that hands its arguments to _call.run(); then its lines below, in quern/__init__.py, and a
method of _context.Context.
Without any, a family is served by quern.call() all the same.
"""

from __future__ import annotations

from typing import Any, Callable

from .._plan import Function
from . import activation as _activation
from . import attention as _attention
from . import attention_decode as _decode
from . import copy as _copy
from . import gemm as _gemm
from . import grouped_gemm as _grouped
from . import kda as _kda
from . import kda_conv as _conv
from . import kda_norm as _norm
from . import kda_step as _step
from . import kv_cache as _kv_cache
from . import mla as _mla
from . import moe as _moe
from . import moe_align as _align
from . import moe_routing as _routing
from . import norm_rope as _rope

FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (
        _activation.gelu_and_mul, _activation.gelu_tanh_and_mul, _activation.silu_and_mul,
        _align.apply_shuffle_mul_sum, _align.moe_align_block_size, _align.moe_sum,
        _align.moe_sum_reduce, _align.prepare_moe_input, _align.shuffle_rows,
        _attention.attention, _attention.attention_extend, _conv.causal_conv1d,
        _conv.causal_conv1d_update, _copy.copy, _decode.attention_decode, _decode.merge_state,
        _decode.merge_state_v2, _gemm.gemm, _gemm.gemm_pack, _grouped.grouped_gemm,
        _kda.gdn_decode, _kda.gdn_prefill, _kda.kda_decode, _kda.kda_prefill,
        _kv_cache.set_kv_buffer, _mla.concat_mla_absorb_q, _mla.concat_mla_k, _mla.mla_decode,
        _moe.fused_moe, _norm.gated_rmsnorm, _norm.kda_gate_cumsum, _norm.l2norm,
        _rope.fused_qk_norm_rope, _routing.moe_fused_gate, _routing.topk_sigmoid,
        _routing.topk_softmax, _step.kda_step)}
DESCRIPTIONS: dict[str, Function] = {function.name: function for function in (
    _activation.GELU_AND_MUL, _activation.GELU_TANH_AND_MUL, _activation.SILU_AND_MUL,
    _align.APPLY_SHUFFLE_MUL_SUM, _align.MOE_ALIGN_BLOCK_SIZE, _align.MOE_SUM,
    _align.MOE_SUM_REDUCE, _align.PREPARE_MOE_INPUT, _align.SHUFFLE_ROWS,
    _attention.ATTENTION, _attention.ATTENTION_EXTEND, _conv.CAUSAL_CONV1D,
    _conv.CAUSAL_CONV1D_UPDATE, _copy.COPY, _decode.ATTENTION_DECODE, _decode.MERGE_STATE,
    _decode.MERGE_STATE_V2, _gemm.GEMM, _gemm.GEMM_PACK, _grouped.GROUPED_GEMM, _kda.GDN_DECODE,
    _kda.GDN_PREFILL, _kda.KDA_DECODE, _kda.KDA_PREFILL, _kv_cache.SET_KV_BUFFER,
    _mla.CONCAT_MLA_ABSORB_Q, _mla.CONCAT_MLA_K, _mla.MLA_DECODE, _moe.FUSED_MOE,
    _norm.GATED_RMSNORM, _norm.KDA_GATE_CUMSUM, _norm.L2NORM, _rope.FUSED_QK_NORM_ROPE,
    _routing.MOE_FUSED_GATE, _routing.TOPK_SIGMOID, _routing.TOPK_SOFTMAX, _step.KDA_STEP)}
DESCRIPTIONS.update(attention_prefill=_attention.ATTENTION, moe=_moe.FUSED_MOE)
