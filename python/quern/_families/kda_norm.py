"""templates/kda, what is around the delta rule: l2norm, gated_rmsnorm, kda_gate_cumsum."""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array
from .._call import is_traced, options_of, run
from .._context import Context
from .._errors import Error, invalid
from .._forms import (Arrays, checks_of, count_sequences, gate_of, given, joined, product, require,
                      require_float, require_shape, widened)
from .._plan import Function, Inferred

_ACTIVATIONS = {"sigmoid": "sigmoid", "silu": "silu", "swish": "silu"}
_ORIGINS = {"d": ("x", "D"), "h": ("x", "H"), "t": ("x", "T")}
_CUMSUM_ORIGINS = {"t": ("g", "T"), "n": ("g", "B"), "hv": ("g", "HV"), "k": ("g", "K"),
                   "chunk": ("chunk_size", "")}


def _run(function: Function, values: tuple[Any, ...], options: tuple[Any, ...],
         context: Optional[Context], stream: Any) -> Any:
    if is_traced() and context is None and stream is None:
        from .. import torch_ops
        return torch_ops.traced(function.name, values, options)
    return run(function, values, options_of(function, options), context, stream)


def _rows(name: str, array: Array) -> Array:
    """[.., H, D] as [t, H, D]; [t, D] as [t, 1, D]."""
    if len(array.shape) < 3:
        array = widened(array, len(array.shape) - 1)
    if len(array.shape) < 3:
        array = widened(array, 0)
    return joined(name, array, 2)


def _infer_rows(arrays: Arrays, like: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Array]]:
    """x and what has its shape."""
    x = given(arrays, "x")
    if not x.shape:
        raise invalid("x", "shape (): must have at least 1 dimension")
    require_float("x", x)
    views: dict[str, Array] = {}
    for name in ("x", *like):
        array = arrays[name]
        if array is not None:
            require(name, array, x.shape, "as x is")
            views[name] = _rows(name, array)
    t, h, d = views["x"].shape
    return {"t": t, "h": h, "d": d, "dtype": x.dtype}, views


def _infer_l2norm(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    params, views = _infer_rows(arrays, ("out",))
    x = given(arrays, "x")
    return Inferred({**params, "eps": options["eps"]}, views,
                    made={"out": (tuple(x.shape), x.dtype)}, origins=_ORIGINS)


L2NORM = Function("l2norm", ("x", "out"), ("x", "out"), ("out",), {"eps": 1e-6}, _infer_l2norm,
                  "l2norm", ("x", "out"), "l2norm", checks=checks_of({"eps": 1e-6}))


def l2norm(x: Any, eps: float = 1e-6, *, out: Any = None, context: Optional[Context] = None,
           stream: Any = None) -> Any:
    """x / sqrt(sum of x^2 + eps) over the last dimension, of at most 1024.

    x             [.., D], f32, bf16 or f16; of [.., H, D] tokens and heads may have any stride
    eps           added to the sum of squares
    out           like x, may be x itself; None: a new one
    context       None: the default one of the device that x is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Returns out. Any thread. Error: an argument, by its name.
    """
    return _run(L2NORM, (x, out), (eps,), context, stream)


def _infer_rmsnorm(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    x, z, weight = (given(arrays, name) for name in ("x", "z", "weight"))
    params, views = _infer_rows(arrays, ("z", "out"))
    require("weight", weight, (params["d"],), f"as x is {x.shape}")
    if options["activation"] not in _ACTIVATIONS:
        raise Error(f"activation={options['activation']}: must be one of: sigmoid silu swish")
    return Inferred({**params, "z": z.dtype, "weight": weight.dtype, "eps": options["eps"],
                     "act": _ACTIVATIONS[options["activation"]]}, views,
                    made={"out": (tuple(x.shape), x.dtype)}, origins=_ORIGINS)


GATED_RMSNORM = Function("gated_rmsnorm", ("x", "z", "weight", "out"), ("x", "z", "weight", "out"),
                         ("out",), {"activation": "sigmoid", "eps": 1e-5}, _infer_rmsnorm,
                         "gated_rmsnorm", ("x", "z", "weight", "out"), "gated_rmsnorm",
                         checks=checks_of({"eps": 1e-5}))


def gated_rmsnorm(x: Any, z: Any, weight: Any, *, activation: str = "sigmoid", eps: float = 1e-5,
                  out: Any = None, context: Optional[Context] = None, stream: Any = None) -> Any:
    """x / sqrt(mean of x^2 + eps) weight act(z) over the last dimension, of at most 1024.

    x, z          [.., D], f32, bf16 or f16 each; of [.., H, D] tokens and heads may have any stride
    weight        [D], f32, bf16 or f16
    activation    of z: "sigmoid", as KDA has it; "silu" or "swish", as GDN has
    eps           added to the mean of squares: the model's rms_norm_eps
    out           like x, may be x or z itself; None: a new one

    Returns out. context, stream, Error and threads as for l2norm().
    """
    return _run(GATED_RMSNORM, (x, z, weight, out), (activation, eps), context, stream)


def _infer_cumsum(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    g, decay, borders = given(arrays, "g"), options["decay"], arrays["cu_seqlens"]
    if decay not in ("channel", "scalar"):
        raise Error(f"decay={decay}: must be one of: channel scalar")
    kept = 2 if decay == "channel" else 1
    if len(g.shape) not in (kept + 1, kept + 2):
        last = "HV, K" if decay == "channel" else "HV"
        raise invalid("g", f"shape {g.shape}: must be [B, T, {last}], or packed [T, {last}]")
    lead, width = tuple(g.shape[:-kept]), (*g.shape[-kept:], 1)[:2]
    n = count_sequences(arrays, "g", lead)
    params = {"t": product(lead), "n": n, "hv": width[0], "k": width[1], "g": g.dtype,
              "decay": decay, "varlen": borders is not None, "chunk": str(options["chunk_size"])}
    if borders is not None:
        params["index"] = borders.dtype
    views: dict[str, Array] = {}
    if arrays["A_log"] is not None:
        gate, views = gate_of(arrays, options["lower_bound"], width)
        params.update(gate)
    elif arrays["dt_bias"] is not None or options["lower_bound"] is not None:
        raise invalid("A_log", "must be given with dt_bias or lower_bound")
    for name in ("g", "out"):
        array = arrays[name]
        if array is not None:
            require_shape(name, array, g.shape, "as g is")
            view = joined(name, array, kept)
            views[name] = view if decay == "channel" else widened(view, 2)
    return Inferred(params, views, made={"out": (tuple(g.shape), "f32")},
                    origins=_CUMSUM_ORIGINS)


_CUMSUM_ARRAYS = ("g", "A_log", "dt_bias", "cu_seqlens", "out")
KDA_GATE_CUMSUM = Function("kda_gate_cumsum", _CUMSUM_ARRAYS, _CUMSUM_ARRAYS, ("out",),
                           {"lower_bound": None, "chunk_size": 64, "decay": "channel"},
                           _infer_cumsum, "kda_gate_cumsum", _CUMSUM_ARRAYS, "kda_gate_cumsum",
                           checks=checks_of({"lower_bound": None, "chunk_size": 64}))


def kda_gate_cumsum(g: Any, A_log: Any = None, *, dt_bias: Any = None,
                    lower_bound: Optional[float] = None, cu_seqlens: Any = None,
                    chunk_size: int = 64, decay: str = "channel", out: Any = None,
                    context: Optional[Context] = None, stream: Any = None) -> Any:
    """Gates and their running sums within chunks, in base 2: FLA's kda_gate_chunk_cumsum().

    g             [B, T, HV, K] or packed [T, HV, K]; with decay="scalar" (GDN) without the K
    A_log, dt_bias, lower_bound, cu_seqlens   as for kda_prefill(); without A_log g is a logarithm
                  of decay already
    chunk_size    16, 32 or 64: sums begin anew so often, and with each sequence
    out           f32, shaped like g; None: a new one. Tokens of no sequence are not written

    Returns out: at token i the sum over its chunk's tokens up to i, divided by ln 2. context,
    stream, Error and threads as for l2norm().
    """
    return _run(KDA_GATE_CUMSUM, (g, A_log, dt_bias, cu_seqlens, out),
                (lower_bound, chunk_size, decay), context, stream)
