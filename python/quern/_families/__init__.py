"""A module or more for a folder of templates/, a function a family: the field's argument names.

To add one: a module with a _plan.Function that says how the spec follows from the arrays, and the
function that hands its arguments to _call.run(); then its lines below, in quern/__init__.py, and a
method of _context.Context.
Without any, a family is served by quern.call() all the same.
"""

from __future__ import annotations

from typing import Any, Callable

from .._plan import Function
from . import copy as _copy
from . import gemm as _gemm
from . import kda as _kda
from . import kda_conv as _conv
from . import kda_norm as _norm
from . import kda_step as _step

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "causal_conv1d": _conv.causal_conv1d, "causal_conv1d_update": _conv.causal_conv1d_update,
    "copy": _copy.copy, "gated_rmsnorm": _norm.gated_rmsnorm, "gdn_decode": _kda.gdn_decode,
    "gdn_prefill": _kda.gdn_prefill, "gemm": _gemm.gemm, "gemm_pack": _gemm.gemm_pack,
    "kda_decode": _kda.kda_decode, "kda_gate_cumsum": _norm.kda_gate_cumsum,
    "kda_prefill": _kda.kda_prefill, "kda_step": _step.kda_step, "l2norm": _norm.l2norm,
}
DESCRIPTIONS: dict[str, Function] = {function.name: function for function in (
    _conv.CAUSAL_CONV1D, _conv.CAUSAL_CONV1D_UPDATE, _copy.COPY, _norm.GATED_RMSNORM,
    _kda.GDN_DECODE, _kda.GDN_PREFILL, _gemm.GEMM, _gemm.GEMM_PACK, _kda.KDA_DECODE,
    _norm.KDA_GATE_CUMSUM, _kda.KDA_PREFILL, _step.KDA_STEP, _norm.L2NORM)}
