"""templates/copy: copy."""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array
from .._call import is_traced, key_value, run
from .._context import Context
from .._errors import invalid
from .._plan import Function, Inferred


def _infer(arrays: dict[str, Optional[Array]], options: dict[str, Any]) -> Inferred:
    x = arrays["x"]
    if x is None:
        raise invalid("x", "must be given")
    if len(x.shape) != 1:
        raise invalid("x", f"shape {x.shape}: must have 1 dimension")
    if options["inplace"] and arrays["out"] is None:
        raise invalid("out", "must be given with inplace=True")
    params = {"n": x.shape[0], "dtype": x.dtype, "inplace": options["inplace"]}
    if options["alpha"] is not None:
        params["alpha"] = options["alpha"]
    return Inferred(params)


COPY = Function("copy", ("x", "out"), ("x", "out"), ("out",), {"alpha": None, "inplace": False},
                _infer, "copy", ("x", "out"), "copy")


def copy(x: Any, out: Any = None, *, alpha: Optional[float] = None, inplace: bool = False,
         context: Optional[Context] = None, stream: Any = None) -> Any:
    """out[n] = alpha x[n]; with ``inplace`` out[n] += alpha x[n]. Without ``alpha`` it is 1.

    x, out     [n], f32, bf16 or f16, both of one dtype; ``out`` may be ``x`` itself. None: a new
               one, except with ``inplace``
    context    None: the default one of the device that x is on
    stream     CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Returns out. Any thread. Error: an argument, by its name.
    """
    if is_traced() and context is None and stream is None:
        from .. import torch_ops
        return torch_ops.traced_copy(x, out, alpha, inplace)
    return run(COPY, (x, out), (key_value(alpha), inplace), context, stream)
