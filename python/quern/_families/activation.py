"""templates/activation: silu_and_mul and its like, the gate of a layer times its other half.

      input [.., 2 D], the gate first  ──>  out [.., D],  quantised  out [.., D], scales [.., D / G]
"""

from __future__ import annotations

from typing import Any, Optional

from .._context import Context
from .._errors import Error, invalid
from .._forms import Arrays, given, joined, product, real, require, require_float, whole
from .._plan import Function, Inferred
from .attention import run_function
from .moe_routing import number_of

_CODES = {"e4m3": "e4m3", "i8": "i8", None: "none"}


def _infer(arrays: Arrays, options: dict[str, Any], activation: str) -> Inferred:
    x, out, scales, word = (given(arrays, "input"), arrays["out"], arrays["scales"],
                            options["quantize"])
    if len(x.shape) < 2 or x.shape[-1] % 2:
        raise invalid("input", f"shape {x.shape}: must be [.., 2 D]")
    require_float("input", x)
    if word not in _CODES:
        raise Error(f"quantize={word}: must be None, e4m3 or i8")
    lead, width, group = tuple(x.shape[:-1]), x.shape[-1] // 2, options["group_size"]
    columns = max(1, width // group) if group else 1
    made = {"out": ((*lead, width), word or x.dtype)}
    if word:
        made["scales"] = (*lead, columns), "f32"
    elif scales is not None:
        raise invalid("scales", "must not be given without quantize")
    views = {"input": joined("input", x, 1)}
    for name, array in (("out", out), ("scales", scales)):
        if array is not None:
            require(name, array, made[name][0], f"as input is {tuple(x.shape)}", made[name][1])
            views[name] = joined(name, array, 1)
    params = {"tokens": product(lead), "width": width, "dtype": x.dtype, "quantize": _CODES[word],
              "activation": activation, "group": group}
    limit = number_of(options, "limit", 0.0)
    if limit is not None:
        params["limit"] = limit
    return Inferred(params, views, made=made, returned=tuple(made), origins={
        "tokens": ("input", "T"), "width": ("input", "D"), "group": ("group_size", "")})


def _function(name: str, activation: str) -> Function:
    def infer(arrays: Arrays, options: dict[str, Any]) -> Inferred:
        return _infer(arrays, options, activation)

    return Function("silu_and_mul", ("input", "out", "scales"), ("x", "out", "scales"),
                    ("out", "scales"), {"limit": None, "quantize": None, "group_size": 0}, infer,
                    name, ("input", "out", "scales"), name,
                    checks={"limit": real, "group_size": whole})


SILU_AND_MUL = _function("silu_and_mul", "silu")
GELU_AND_MUL = _function("gelu_and_mul", "gelu")
GELU_TANH_AND_MUL = _function("gelu_tanh_and_mul", "gelu_tanh")


def silu_and_mul(input: Any, out: Any = None, *, limit: Optional[float] = None,
                 quantize: Optional[str] = None, group_size: int = 0, scales: Any = None,
                 context: Optional[Context] = None, stream: Any = None) -> Any:
    """silu(input[.., :D]) times input[.., D:], in f32 and rounded once.

    input         [.., 2 D], bf16, f16 or f32
    out           [.., D]; None: a new one
    limit         the gate is at most this, the other half within plus and minus this
    quantize      "e4m3" or "i8": out is of codes, and scales are returned with it
    group_size    columns that share a scale: 128, or 0, all of a row
    scales        f32 [.., D / group_size], or [.., 1]; None: a new one
    context       None: the default one of the device that input is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Returns out, or (out, scales). Any thread. Error: an argument, by its name.
    """
    return run_function(SILU_AND_MUL, (input, out, scales), (limit, quantize, group_size), context,
                        stream)


def gelu_and_mul(input: Any, out: Any = None, *, limit: Optional[float] = None,
                 quantize: Optional[str] = None, group_size: int = 0, scales: Any = None,
                 context: Optional[Context] = None, stream: Any = None) -> Any:
    """silu_and_mul() with gelu, x (1 + erf(x / sqrt 2)) / 2.

    input, out, limit, quantize, group_size, scales, context and stream as for silu_and_mul().
    """
    return run_function(GELU_AND_MUL, (input, out, scales), (limit, quantize, group_size), context,
                        stream)


def gelu_tanh_and_mul(input: Any, out: Any = None, *, limit: Optional[float] = None,
                      quantize: Optional[str] = None, group_size: int = 0, scales: Any = None,
                      context: Optional[Context] = None, stream: Any = None) -> Any:
    """silu_and_mul() with gelu by its approximation of tanh.

    input, out, limit, quantize, group_size, scales, context and stream as for silu_and_mul().
    """
    return run_function(GELU_TANH_AND_MUL, (input, out, scales), (limit, quantize, group_size),
                        context, stream)
