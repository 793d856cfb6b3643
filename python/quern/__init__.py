"""quern: kernels made at run time for your shapes, your dtypes and your processor or GPU.

    import numpy as np
    import quern

    a = np.random.rand(64, 256).astype(np.float32)
    b = np.random.rand(128, 256).astype(np.float32)
    d = quern.gemm(a, b)                       # d = a b^T; the first call compiles
    product = quern.prepare("gemm", a, b, out=d)
    product()                                  # the same again, for hot loops
    print(product.variant, product.config, quern.tune("gemm", a, b, out=d, budget=5).speedup)

Arrays are NumPy's, torch's, quern.view()s of these, or whatever supports DLPack. Functions work in
a default context of the device that the arrays are on; quern.Context has its own cache, mode and
options. What goes wrong is quern.Error. Nothing is loaded before the first use.
"""

from __future__ import annotations

from importlib import import_module as _import_module

from ._arrays import View, view
from ._call import call, has_operators as _has_operators
from ._context import Context
from ._errors import Error
from ._facts import Stats, doctor, families, stats
from ._library import library_path
from ._prepared import Prepared, prepare
from ._structs import VERSION as __version__
from ._tune import TuneEntry, TuneProgress, TuneResult, tune
from ._families.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from ._families.attention import attention, attention_extend
from ._families.attention_decode import attention_decode, merge_state, merge_state_v2
from ._families.copy import copy
from ._families.gemm import gemm, gemm_pack
from ._families.grouped_gemm import grouped_gemm
from ._families.kda import gdn_decode, gdn_prefill, kda_decode, kda_prefill
from ._families.kda_conv import causal_conv1d, causal_conv1d_update
from ._families.kda_norm import gated_rmsnorm, kda_gate_cumsum, l2norm
from ._families.kda_step import kda_step
from ._families.kv_cache import set_kv_buffer
from ._families.mla import concat_mla_absorb_q, concat_mla_k, mla_decode
from ._families.moe import fused_moe
from ._families.moe_align import (apply_shuffle_mul_sum, moe_align_block_size, moe_sum,
                                  moe_sum_reduce, prepare_moe_input, shuffle_rows)
from ._families.moe_routing import moe_fused_gate, topk_sigmoid, topk_softmax
from ._families.norm_rope import fused_qk_norm_rope
from ._sdpa import Replacement, replace_sdpa, scaled_dot_product_attention

__all__ = ["Context", "Error", "Prepared", "Replacement", "Stats", "TuneEntry", "TuneProgress",
           "TuneResult", "View", "__version__", "apply_shuffle_mul_sum", "attention",
           "attention_decode", "attention_extend", "call", "causal_conv1d", "causal_conv1d_update",
           "concat_mla_absorb_q", "concat_mla_k", "copy", "doctor", "families", "fused_moe",
           "fused_qk_norm_rope", "gated_rmsnorm", "gdn_decode", "gdn_prefill", "gelu_and_mul",
           "gelu_tanh_and_mul", "gemm", "gemm_pack", "grouped_gemm", "kda_decode",
           "kda_gate_cumsum", "kda_prefill", "kda_step", "l2norm", "library_path", "merge_state",
           "merge_state_v2", "mla_decode", "moe_align_block_size", "moe_fused_gate", "moe_sum",
           "moe_sum_reduce", "prepare", "prepare_moe_input", "replace_sdpa",
           "scaled_dot_product_attention", "set_kv_buffer", "shuffle_rows", "silu_and_mul",
           "stats", "topk_sigmoid", "topk_softmax", "tune", "view"]

if _has_operators():
    _import_module(".torch_ops", __name__)
