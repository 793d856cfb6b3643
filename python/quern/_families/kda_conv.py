"""templates/kda, the convolution before the delta rule: causal_conv1d, causal_conv1d_update.

      x  [B, T, D], or packed [T, D]          weight  [D, W]
      states, initial_state, final_state      [n, W - 1, D]: the last inputs, oldest first

An array of states may also be given as [n, D, W - 1], if it is a transposed view of such: that is
how engines pass them. FLA's caches are [n, D, W]; of these [:, :, 1:] is what a state holds.
"""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array, check_strides
from .._call import is_traced, options_of, run
from .._context import Context
from .._errors import Error, invalid
from .._forms import (Arrays, Extents, checks_of, count_sequences, given, joined, product, require,
                      require_float, widened)
from .._plan import Function, Inferred

_ACTIVATIONS = {None: "none", "silu": "silu", "swish": "silu"}
ORIGINS = {"w": ("weight", "W"), "d": ("x", "D"), "n": ("x", "B"), "t": ("x", "T"),
           "steps": ("x", "T"), "capacity": ("states", "slots")}
_PACKED = {**ORIGINS, "n": ("cu_seqlens", "n")}


def _activation(options: dict[str, Any]) -> str:
    value = options["activation"]
    if not (value is None or isinstance(value, str)) or value not in _ACTIVATIONS:
        raise Error(f"activation={value}: must be None, silu or swish")
    return _ACTIVATIONS[value]


def filters(arrays: Arrays, width: int, options: dict[str, Any]) -> dict[str, Any]:
    """Parameters of weight, bias and activation."""
    weight, bias = given(arrays, "weight"), arrays["bias"]
    if len(weight.shape) != 2 or weight.shape[0] != width:
        raise invalid("weight", f"shape {weight.shape}: must be ({width}, W), as x has {width} "
                      "channels")
    if bias is not None:
        require("bias", bias, (width,), f"as x has {width} channels")
    require_float("x", given(arrays, "x"))
    return {"d": width, "w": weight.shape[1], "dtype": given(arrays, "x").dtype,
            "weight": weight.dtype, "bias": "none" if bias is None else bias.dtype,
            "act": _activation(options)}


def turned(name: str, array: Array, shape: Extents) -> Array:
    """States as [.., W - 1, D], given so or as a transposed view of that."""
    have = tuple(array.shape)
    is_view = have == (*shape[:-2], shape[-1], shape[-2]) and array.strides[-2] == 1
    if have == shape and not (is_view and array.strides[-1] != 1):
        check_strides(name, array)
        return array
    if is_view:
        order = (*range(len(have) - 2), len(have) - 1, len(have) - 2)
        return array._replace(shape=shape, strides=tuple(array.strides[i] for i in order))
    raise invalid(name, f"shape {array.shape}: must be {shape}, or a transposed view of such an "
                  "array")


def _states(arrays: Arrays, n: int, taps: int, width: int) -> tuple[dict[str, Any],
                                                                     dict[str, Array]]:
    states, slots = arrays["states"], arrays["slots"]
    if states is None:
        raise invalid("states", "must be given with slots")
    if len(states.shape) != 3:
        raise invalid("states", f"shape {states.shape}: must be (slots, {taps}, {width})")
    pool = slots is not None
    count = states.shape[0] if pool else n
    if slots is not None:
        require("slots", slots, (n,), "one of each sequence", "i32")
    return ({"pool": pool, "capacity": count if pool else 0},
            {"states": turned("states", states, (count, taps, width))})


def _infer(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    x = given(arrays, "x")
    if len(x.shape) not in (2, 3):
        raise invalid("x", f"shape {x.shape}: must be [B, T, D], or packed [T, D]")
    lead, width = tuple(x.shape[:-1]), x.shape[-1]
    n, borders = count_sequences(arrays, "x", lead), arrays["cu_seqlens"]
    params = {**filters(arrays, width, options), "t": product(lead), "n": n,
              "varlen": borders is not None}
    if borders is not None:
        params["index"] = borders.dtype
    views: dict[str, Array] = {}
    made = {"out": (tuple(x.shape), x.dtype)}
    wants_final = options["output_final_state"] or arrays["final_state"] is not None
    shape = (n, params["w"] - 1, width)
    if arrays["states"] is not None or arrays["slots"] is not None:
        if arrays["slots"] is None:
            raise invalid("slots", "must be given with states: which of them are this call's")
        for name in ("initial_state", "final_state"):
            if arrays[name] is not None:
                raise invalid(name, "must not be given with states, whose slots hold it")
        if wants_final:
            raise invalid("output_final_state", "must not be given with states, whose slots take "
                          "it")
        pool, views = _states(arrays, n, params["w"] - 1, width)
        params.update(pool)
    for name in ("initial_state", "final_state"):
        array = arrays[name]
        if array is not None:
            views[name] = turned(name, array, shape)
    params["initial"], params["final"] = arrays["initial_state"] is not None, wants_final
    has_initial = arrays["has_initial"]
    params["has_initial"] = has_initial is not None
    if has_initial is not None:
        require("has_initial", has_initial, (n,), "one of each sequence")
        if arrays["states"] is None and arrays["initial_state"] is None:
            raise invalid("has_initial", "must not be given without states or initial_state")
        if has_initial.dtype not in ("bool", "u8"):
            raise invalid("has_initial", f"dtype {has_initial.dtype}: must be bool or u8")
        views["has_initial"] = has_initial._replace(dtype="u8")
    out = arrays["out"]
    if out is not None:
        require("out", out, x.shape, "as x is", x.dtype)
    for name, array in (("x", x), ("out", out)):
        if array is not None and len(lead) == 2:
            views[name] = joined(name, array, 1)
    if wants_final:
        made["final_state"] = shape, x.dtype
    return Inferred(params, views, made=made, origins=ORIGINS if borders is None else _PACKED)


_ARRAYS = ("x", "weight", "bias", "cu_seqlens", "slots", "has_initial", "initial_state", "out",
           "final_state", "states")
CAUSAL_CONV1D = Function(
    "causal_conv1d", _ARRAYS, tuple("y" if name == "out" else name for name in _ARRAYS),
    ("out", "final_state"), {"output_final_state": False, "activation": None}, _infer,
    "causal_conv1d", _ARRAYS, "causal_conv1d", checks=checks_of({"output_final_state": False}))


def causal_conv1d(x: Any, weight: Any, bias: Any = None, *, initial_state: Any = None,
                  output_final_state: bool = False, activation: Optional[str] = None,
                  cu_seqlens: Any = None, states: Any = None, slots: Any = None,
                  has_initial: Any = None, out: Any = None, final_state: Any = None,
                  context: Optional[Context] = None, stream: Any = None) -> Any:
    """A causal convolution of each channel over sequences: (y, final_state), as FLA's.

    x             [B, T, D]; [T, D] is one sequence, or several packed; f32, bf16 or f16
    weight, bias  [D, W], W from 2 to 4, and [D]; f32, bf16 or f16 each
    activation    None, "silu" or "swish", which is the same
    cu_seqlens    [n + 1] of i32 or i64: where packed sequences begin, and where the last one ends;
                  y of tokens of no sequence is 0
    initial_state [n, W - 1, D] of x's dtype: the inputs before, oldest first; None: zeros. A
                  transposed view [n, D, W - 1] of such is taken as it lies, as it is of final_state
                  and states
    output_final_state   also return the last inputs of each sequence, in a new array
    states, slots a pool [capacity, W - 1, D] and i32 [n], in place of initial_state and
                  final_state: sequence i begins from slot slots[i] and leaves its state there. -1:
                  begins from zeros, and is kept nowhere
    has_initial   [n], bool or u8: where it is 0, the sequence begins from zeros
    out           like x; None: a new one
    final_state   like initial_state; given, it is written and returned
    context       None: the default one of the device that x is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Any thread. Error: an argument, by its name.
    """
    values = (x, weight, bias, cu_seqlens, slots, has_initial, initial_state, out, final_state,
              states)
    options = output_final_state, activation
    if is_traced() and context is None and stream is None:
        from .. import torch_ops
        return torch_ops.traced("causal_conv1d", values, options)
    return run(CAUSAL_CONV1D, values, options_of(CAUSAL_CONV1D, options), context, stream)


def _infer_update(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    x, out, windows = given(arrays, "x"), arrays["out"], arrays["windows"]
    if len(x.shape) not in (2, 3):
        raise invalid("x", f"shape {x.shape}: must be [n, D], or [n, T, D]: T inputs of each")
    lead, width = tuple(x.shape[:-1]), x.shape[-1]
    params = {**filters(arrays, width, options), "n": lead[0], "save": windows is not None,
              "steps": lead[1] if len(lead) == 2 else 1}
    given(arrays, "states")
    pool, views = _states(arrays, lead[0], params["w"] - 1, width)
    if out is not None:
        require("out", out, x.shape, "as x is", x.dtype)
    if windows is not None:
        require("windows", windows, (*lead, params["w"] - 1, width), f"as x is {x.shape}", x.dtype)
    if len(lead) == 1:
        for name, array in (("x", x), ("out", out), ("windows", windows)):
            if array is not None:
                views[name] = widened(array, 1)
    return Inferred({**params, **pool}, views, made={"out": (tuple(x.shape), x.dtype)},
                    origins=ORIGINS)


_UPDATE_ARRAYS = ("x", "weight", "bias", "slots", "out", "states", "windows")
CAUSAL_CONV1D_UPDATE = Function(
    "causal_conv1d_update", _UPDATE_ARRAYS,
    tuple("y" if name == "out" else name for name in _UPDATE_ARRAYS), ("out",),
    {"activation": None}, _infer_update, "causal_conv1d_update",
    ("x", "states", "weight", "bias", "slots", "out", "windows"), "causal_conv1d_update")


def causal_conv1d_update(x: Any, states: Any, weight: Any, bias: Any = None, *, slots: Any = None,
                         activation: Optional[str] = None, windows: Any = None, out: Any = None,
                         context: Optional[Context] = None, stream: Any = None) -> Any:
    """causal_conv1d() for the next input of each sequence, or the next few; states in place.

    x             [n, D], or [n, T, D]
    states        [n, W - 1, D], or with slots [capacity, W - 1, D], or a transposed view
                  [.., D, W - 1] of such; moved on, unless windows is given
    slots         i32 [n]: whose state is where; -1 is padding: y is 0
    windows       [n, W - 1, D], [n, T, W - 1, D]: for speculative decoding the state after every
                  input goes here, and states stay as they are

    weight, bias, activation, out, context and stream as for causal_conv1d(). Returns y. Any thread.
    Error: an argument, by its name.
    """
    values = x, weight, bias, slots, out, states, windows
    if is_traced() and context is None and stream is None:
        from .. import torch_ops
        return torch_ops.traced("causal_conv1d_update", values, (activation,))
    return run(CAUSAL_CONV1D_UPDATE, values, (activation,), context, stream)
