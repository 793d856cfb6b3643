"""A module or more for a folder of templates/, a function a family: the field's argument names.

To add one: a module with a _plan.Function that says how the spec follows from the arrays, and the
function that hands its arguments to _call.run(); then its lines below, in quern/__init__.py, and a
method of _context.Context.
Without any, a family is served by quern.call() all the same.
"""

from __future__ import annotations

from typing import Any, Callable

from .._plan import Function
from . import attention as _attention
from . import attention_decode as _decode
from . import copy as _copy
from . import gemm as _gemm
from . import kda as _kda
from . import kda_conv as _conv
from . import kda_norm as _norm
from . import kda_step as _step
from . import kv_cache as _kv_cache
from . import mla as _mla

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "attention": _attention.attention, "attention_decode": _decode.attention_decode,
    "attention_extend": _attention.attention_extend, "causal_conv1d": _conv.causal_conv1d,
    "causal_conv1d_update": _conv.causal_conv1d_update,
    "concat_mla_absorb_q": _mla.concat_mla_absorb_q, "concat_mla_k": _mla.concat_mla_k,
    "copy": _copy.copy, "gated_rmsnorm": _norm.gated_rmsnorm, "gdn_decode": _kda.gdn_decode,
    "gdn_prefill": _kda.gdn_prefill, "gemm": _gemm.gemm, "gemm_pack": _gemm.gemm_pack,
    "kda_decode": _kda.kda_decode, "kda_gate_cumsum": _norm.kda_gate_cumsum,
    "kda_prefill": _kda.kda_prefill, "kda_step": _step.kda_step, "l2norm": _norm.l2norm,
    "merge_state": _decode.merge_state, "merge_state_v2": _decode.merge_state_v2,
    "mla_decode": _mla.mla_decode, "set_kv_buffer": _kv_cache.set_kv_buffer,
}
DESCRIPTIONS: dict[str, Function] = {function.name: function for function in (
    _attention.ATTENTION, _decode.ATTENTION_DECODE, _attention.ATTENTION_EXTEND,
    _conv.CAUSAL_CONV1D, _conv.CAUSAL_CONV1D_UPDATE, _mla.CONCAT_MLA_ABSORB_Q, _mla.CONCAT_MLA_K,
    _copy.COPY, _norm.GATED_RMSNORM, _kda.GDN_DECODE, _kda.GDN_PREFILL, _gemm.GEMM,
    _gemm.GEMM_PACK, _kda.KDA_DECODE, _norm.KDA_GATE_CUMSUM, _kda.KDA_PREFILL, _step.KDA_STEP,
    _norm.L2NORM, _decode.MERGE_STATE, _decode.MERGE_STATE_V2, _mla.MLA_DECODE,
    _kv_cache.SET_KV_BUFFER)}
DESCRIPTIONS["attention_prefill"] = _attention.ATTENTION
