"""templates/kda, a decode step of a whole layer between its projections: kda_step.

      x       [n, D], D = 2 H K + HV V: q, k and v, heads side by side      weight  [D, W]
      beta    [n, HV]     g  [n, HV, K] of KDA, [n, HV] of GDN              z       [n, HV, V]

K, V and HV are those of the states, [capacity, HV, K, V]; H is what then follows from D.
"""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array
from .._call import is_traced, options_of, run
from .._context import Context
from .._errors import Error, invalid
from .._forms import Arrays, checks_of, given, require, require_shape, widened
from .._plan import Function, Inferred
from .kda import gate_params
from .kda_conv import ORIGINS, filters, turned

_NORMS = {"sigmoid": "sigmoid", "silu": "silu", "swish": "silu"}
_ORIGINS = {**ORIGINS, "k": ("states", "K"), "v": ("states", "V"), "hv": ("states", "HV"),
            "h": ("x", "H"), "n": ("x", "n")}


def _heads(states: Array, width: int, is_v_first: bool) -> dict[str, int]:
    """h, hv, k and v. Error: such heads do not make up x."""
    if len(states.shape) != 4:
        last = "V, K" if is_v_first else "K, V"
        raise invalid("states", f"shape {states.shape}: must be (slots, HV, {last})")
    hv, k, v = states.shape[1:]
    if is_v_first:
        k, v = v, k
    h = (width - hv * v) // (2 * k) if k else 0
    if h < 1 or 2 * h * k + hv * v != width or hv % h:
        raise invalid("x", f"{width} channels: must be 2 H {k} + {hv * v}, with H a divisor of "
                      f"{hv}, as states is {states.shape}")
    return {"h": h, "hv": hv, "k": k, "v": v}


def _norm(arrays: Arrays, options: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Parameters of the norm: there is one where z is given."""
    word, z, weight = options["norm_activation"], arrays["z"], arrays["norm_weight"]
    if not isinstance(word, str) or word not in _NORMS:
        raise Error(f"norm_activation={word}: must be one of: sigmoid silu swish")
    if z is None:
        if weight is not None:
            raise invalid("z", "must be given with norm_weight")
        return {"norm": "none"}
    require("z", z, shape, "a row for each value head")
    require("norm_weight", given(arrays, "norm_weight"), shape[-1:], f"as z is {z.shape}")
    return {"norm": _NORMS[word], "z": z.dtype, "eps": options["eps"],
            "norm_weight": given(arrays, "norm_weight").dtype}


def _infer(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    x, states, g, beta = (given(arrays, name) for name in ("x", "states", "g", "beta"))
    if len(x.shape) != 2:
        raise invalid("x", f"shape {x.shape}: must be [n, D]: a token of each sequence")
    n, width = x.shape
    params = filters(arrays, width, options)
    del params["d"]
    sizes = _heads(states, width, options["state_v_first"])
    shape, capacity = (n, sizes["hv"], sizes["v"]), states.shape[0]
    heads, why = (n, sizes["hv"]), f"as x is {x.shape} and states {states.shape}"
    require("beta", beta, heads, why)
    is_scalar = len(g.shape) == 2
    if is_scalar:
        require_shape("g", g, heads, why)
    else:
        require("g", g, (*heads, sizes["k"]), why)
    require("slots", given(arrays, "slots"), (n,), "one of each sequence", "i32")
    gate, views = gate_params(arrays, options, (sizes["hv"], 1 if is_scalar else sizes["k"]))
    if is_scalar:
        views["g"] = widened(g, 2)
    views["conv_states"] = turned("conv_states", given(arrays, "conv_states"),
                                  (capacity, params["w"] - 1, width))
    out = arrays["out"]
    if out is not None:
        require("out", out, shape, why, x.dtype)
    params = {**params, **sizes, **gate, **_norm(arrays, options, shape), "n": n,
              "capacity": capacity, "state": states.dtype, "g": g.dtype, "beta": beta.dtype,
              "decay": "scalar" if is_scalar else "channel",
              "layout": "vk" if options["state_v_first"] else "kv",
              "l2norm": options["use_qk_l2norm_in_kernel"],
              "beta_logits": options["use_beta_sigmoid_in_kernel"],
              "neg_eigval": options["allow_neg_eigval"]}
    if options["scale"] is not None:
        params["scale"] = options["scale"]
    return Inferred(params, views, made={"out": (shape, x.dtype)}, origins=_ORIGINS)


_ARRAYS = ("x", "weight", "bias", "g", "beta", "A_log", "dt_bias", "slots", "z", "norm_weight",
           "conv_states", "states", "out")
_OPTIONS: dict[str, Any] = {
    "activation": "silu", "scale": None, "use_qk_l2norm_in_kernel": False,
    "use_gate_in_kernel": False, "use_beta_sigmoid_in_kernel": False, "allow_neg_eigval": False,
    "safe_gate": False, "lower_bound": None, "state_v_first": False,
    "norm_activation": "sigmoid", "eps": 1e-5}
KDA_STEP = Function(
    "kda_step", _ARRAYS, tuple("o" if name == "out" else name for name in _ARRAYS), ("out",),
    _OPTIONS, _infer, "kda_step",
    ("x", "weight", "g", "beta", *(name for name in _ARRAYS
                                   if name not in ("x", "weight", "g", "beta"))),
    "kda_step", checks=checks_of(_OPTIONS))


def kda_step(x: Any, weight: Any, g: Any, beta: Any, *, states: Any, conv_states: Any, slots: Any,
             bias: Any = None, activation: Optional[str] = "silu", A_log: Any = None,
             dt_bias: Any = None, scale: Optional[float] = None,
             use_qk_l2norm_in_kernel: bool = False, use_gate_in_kernel: bool = False,
             use_beta_sigmoid_in_kernel: bool = False, allow_neg_eigval: bool = False,
             safe_gate: bool = False, lower_bound: Optional[float] = None,
             state_v_first: bool = False, z: Any = None, norm_weight: Any = None,
             norm_activation: str = "sigmoid", eps: float = 1e-5, out: Any = None,
             context: Optional[Context] = None, stream: Any = None) -> Any:
    """A token of each sequence through a KDA or GDN layer, between its projections, in one kernel.

    What causal_conv1d_update(), kda_decode() (or gdn_decode()) and gated_rmsnorm() give one after
    the other.

    x             [n, D], D = 2 H K + HV V: the projections q, k and v, heads side by side; f32,
                  bf16 or f16
    weight, bias, activation   the convolution's, as for causal_conv1d()
    g             [n, HV, K], as for kda_decode(); [n, HV] makes it GDN
    beta          [n, HV]
    states        [capacity, HV, K, V], or with state_v_first [.., V, K]; in place
    conv_states   [capacity, W - 1, D] of x's dtype, or a transposed view of such; in place
    slots         i32 [n]: a sequence's place in both pools. One outside of them is padding: its
                  row of the output is zeros; with QUERN_CHECK=1 only -1 is that
    z, norm_weight   [n, HV, V] and [V] of the gated norm; without them there is none
    norm_activation, eps   as activation and eps of gated_rmsnorm()
    out           [n, HV, V] of x's dtype; None: a new one

    A_log, dt_bias, scale, use_qk_l2norm_in_kernel, use_gate_in_kernel, use_beta_sigmoid_in_kernel,
    allow_neg_eigval, safe_gate, lower_bound, context, stream, threads and Error as for
    kda_prefill(). Returns out.
    """
    values = (x, weight, bias, g, beta, A_log, dt_bias, slots, z, norm_weight, conv_states, states,
              out)
    options = (activation, scale, use_qk_l2norm_in_kernel, use_gate_in_kernel,
               use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound,
               state_v_first, norm_activation, eps)
    if is_traced() and context is None and stream is None:
        from .. import torch_ops
        return torch_ops.traced("kda_step", values, options)
    return run(KDA_STEP, values, options_of(KDA_STEP, options), context, stream)
