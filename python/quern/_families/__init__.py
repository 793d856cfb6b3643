"""One module a folder of templates/, with one function a family: the field's argument names.

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

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "copy": _copy.copy, "gemm": _gemm.gemm, "gemm_pack": _gemm.gemm_pack,
}
DESCRIPTIONS: dict[str, Function] = {
    "copy": _copy.COPY, "gemm": _gemm.GEMM, "gemm_pack": _gemm.GEMM_PACK,
}
