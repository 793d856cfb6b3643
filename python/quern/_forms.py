"""Forms of arguments: what a caller has as [B, T, ...], the families have as [t, ...].

Arrays are records here (_arrays.Array): a form is other shapes and strides of the same memory.
Nothing is copied; what cannot be taken without a copy is refused by its name. Sizes may be
symbolic, since operators of torch are traced through the same functions.
"""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any, Callable, Optional

from ._arrays import Array, check_strides, refuse_dtype
from ._errors import Error, invalid

Arrays = dict[str, Optional[Array]]
Extents = tuple[int, ...]


def given(arrays: Arrays, name: str) -> Array:
    array = arrays[name]
    if array is None:
        raise invalid(name, "must be given")
    return array


def require_shape(name: str, array: Array, shape: Extents, why: str) -> None:
    """Error unless it has the shape; `why` says where that comes from."""
    if tuple(array.shape) != tuple(shape):
        raise invalid(name, f"shape {array.shape}: must be {tuple(shape)}, {why}")


def require(name: str, array: Array, shape: Extents, why: str, dtype: Optional[str] = None
            ) -> None:
    """Error unless it has the shape, and the dtype if one is named; its last dimension must be
    contiguous."""
    require_shape(name, array, shape, why)
    if dtype is not None and array.dtype != dtype:
        raise invalid(name, f"dtype {array.dtype}: must be {dtype}")
    check_strides(name, array)


def require_float(name: str, array: Array) -> None:
    """Error unless it is of a dtype that the families compute in."""
    if array.dtype not in ("f32", "bf16", "f16"):
        raise refuse_dtype(name, array.dtype, "bf16 f16 f32")


# ---- Checks of options: Function.checks ----------------------------------------------------------


def _refuse(name: str, value: Any, text: str) -> Error:
    """Of what may be an array the type is said, since its text may be long."""
    said = repr(value) if isinstance(value, (str, int, float)) else f"<{type(value).__name__}>"
    return Error(f"{name}={said}: must be {text}")


def flag(name: str, value: Any) -> bool:
    """Error unless it is True or False, 1 or 0, or NumPy's."""
    if value is True or value is False:
        return value
    own = isinstance(value, (int, getattr(sys.modules.get("numpy"), "bool_", int)))
    if not own or value not in (0, 1):
        raise _refuse(name, value, "True or False")
    return bool(value)


def real(name: str, value: Any) -> Optional[float]:
    """Error unless it is a finite number, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _refuse(name, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Error(f"{name}={number}: must be finite")
    return int(value) if isinstance(value, numbers.Integral) else number


def whole(name: str, value: Any) -> int:
    """Error unless it is a whole number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _refuse(name, value, "a whole number")
    return int(value)


def pair(name: str, value: Any) -> tuple[int, int]:
    """Error unless it is two whole numbers, or None: (-1, -1)."""
    if value is None:
        return -1, -1
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise _refuse(name, value, "two whole numbers")
    return whole(name, value[0]), whole(name, value[1])


def checks_of(options: dict[str, Any]) -> dict[str, Callable[[str, Any], Any]]:
    """Those of flags, whose defaults are False or True, of numbers and of pairs."""
    checks: dict[str, Callable[[str, Any], Any]] = {}
    for name, default in options.items():
        if isinstance(default, bool):
            checks[name] = flag
        elif isinstance(default, int):
            checks[name] = whole
        elif isinstance(default, float) or name in ("scale", "softmax_scale", "lower_bound"):
            checks[name] = real
        elif isinstance(default, tuple):
            checks[name] = pair
    return checks


def product(extents: Extents) -> int:
    """Not math.prod(), which torch.compile cannot trace with symbolic sizes."""
    count = 1
    for extent in extents:
        count = count * extent
    return count


def joined(name: str, array: Array, kept: int) -> Array:
    """All dimensions but the last `kept` as one. Error: they do not follow each other in memory."""
    count = len(array.shape) - kept
    extent, stride = 1, array.strides[count - 1]
    for size, step in zip(reversed(array.shape[:count]), reversed(array.strides[:count])):
        if size == 1:
            continue
        if extent == 1:
            stride = step
        elif step != extent * stride and 0 not in array.shape:
            raise invalid(name, f"strides {array.strides}: its first {count} dimensions must "
                          f"follow each other in memory; pass {name}.copy() / "
                          f"{name}.contiguous()")
        extent = extent * size
    return array._replace(shape=(extent, *array.shape[count:]),
                          strides=(stride, *array.strides[count:]))


def widened(array: Array, at: int) -> Array:
    """With a dimension of one before dimension `at`."""
    shape, strides = list(array.shape), list(array.strides)
    stride = strides[at] * shape[at] if at < len(shape) else 1
    shape.insert(at, 1)
    strides.insert(at, stride)
    return array._replace(shape=tuple(shape), strides=tuple(strides))


def count_sequences(arrays: Arrays, name: str, lead: Extents) -> int:
    """Sequences of a call whose array `name` is [B, T, ...] or [T, ...]. Error: cu_seqlens."""
    borders = arrays["cu_seqlens"]
    if borders is None:
        return lead[0] if len(lead) == 2 else 1
    if len(borders.shape) != 1 or borders.shape[0] < 1:
        raise invalid("cu_seqlens", f"shape {borders.shape}: must be (n + 1,): where the n "
                      "sequences begin, and where the last one ends")
    if len(lead) == 2 and lead[0] != 1:
        raise invalid(name, f"{lead[0]} of [B, T, ...]: B must be 1 with cu_seqlens, which packs "
                      "sequences")
    if borders.shape[0] == 1 and product(lead) != 0:
        raise invalid("cu_seqlens", f"shape {borders.shape}: must be (n + 1,) with n of at least "
                      f"1, as {name} has {product(lead)} tokens")
    return borders.shape[0] - 1


def gate_of(arrays: Arrays, lower_bound: Any, width: Extents) -> tuple[dict[str, Any],
                                                                      dict[str, Array]]:
    """Parameters and views of a gate with A_log and, if given, dt_bias. width: [hv, k], [hv, 1]."""
    rate, bias = given(arrays, "A_log"), arrays["dt_bias"]
    params: dict[str, Any] = {"gate": "softplus", "dt_bias": bias is not None}
    if lower_bound is not None:
        params["gate"], params["lower_bound"] = "bounded", lower_bound
    heads, columns = width
    if not rate.shape or product(rate.shape) != heads:
        raise invalid("A_log", f"shape {rate.shape}: must be ({heads},), one for each head")
    views = {"A_log": joined("A_log", rate, 0)}
    if bias is None:
        return params, views
    if tuple(bias.shape) == (heads * columns,):
        stride = bias.strides[0]
        bias = bias._replace(shape=(heads, columns), strides=(columns * stride, stride))
    elif tuple(bias.shape) != (heads, columns):
        raise invalid("dt_bias", f"shape {bias.shape}: must be ({heads * columns},) or "
                      f"({heads}, {columns})")
    views["dt_bias"] = bias
    return params, views
