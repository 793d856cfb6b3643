"""Forms of attention's arguments: windows, sinks, caches in pages and what says where they are.

      cache     [pages, page, H, D]      kv_layout="HND": [pages, H, page, D]
                [slots, H, D]            pages of one token
      factors   [1] or [H] of f32, (), or [B, H] that repeats one row

As in _forms, nothing is copied, and sizes may be symbolic.
"""

from __future__ import annotations

from typing import Any, Optional

from ._arrays import Array
from ._errors import Error, invalid
from ._forms import (Arrays, Extents, given, pair, product, require, require_float, require_shape,
                     widened)


def either(name: str, value: Any, alias: str, other: Any) -> Any:
    """The argument under its own name, or under another. Error: both are given."""
    if other is None:
        return value
    if value is not None:
        raise Error(f"{alias}: must not be given with {name}, another name of it")
    return other


def softcap_of(softcap: Any, other: Any) -> Any:
    """softcap, or FlashInfer's logits_soft_cap; 0 is none. Error: both are given."""
    if other is None:
        return 0.0 if softcap is None else softcap
    if softcap not in (None, 0):
        raise Error("logits_soft_cap: must not be given with softcap, another name of it")
    return other


def cap_of(options: dict[str, Any]) -> dict[str, Any]:
    """The family's softcap, if there is one: none is the family's default, not a given 0."""
    cap = options["softcap"]  # a number's text, or None
    return {} if cap is None or float(cap) == 0 else {"softcap": cap}


def window_of(size: Any, is_causal: bool) -> tuple[int, bool]:
    """The family's window and causal of FlashAttention's window_size. Error: it has none such."""
    left, right = size = pair("window_size", size)
    if left < -1 or right < -1:
        raise Error(f"window_size={size}: must not be below -1, which is no bound")
    if is_causal or right == 0:  # right of a causal query is nothing
        return left + 1, True
    if left != right:
        raise Error(f"window_size={size}: must be (w, w), or with causal=True (w, any), or (w, "
                    "0); -1 is no bound")
    return left + 1, False


def require_heads(name: str, array: Array, heads: int) -> None:
    """Error unless the heads of `name`, its last dimension but one, divide q's."""
    own = array.shape[-2]
    if own < 1 or heads % own:
        raise invalid(name, f"shape {array.shape}: its {own} heads must divide q's {heads}")


def sinks_of(arrays: Arrays, heads: int) -> dict[str, Any]:
    sinks = arrays["sinks"]
    if sinks is None:
        return {"sinks": False}
    require("sinks", sinks, (heads,), "one of each head of q")
    require_float("sinks", sinks)
    return {"sinks": True, "sinks_dtype": sinks.dtype}


def outputs_of(arrays: Arrays, options: dict[str, Any], shape: Extents
               ) -> tuple[bool, dict[str, tuple[Extents, str]], tuple[str, ...]]:
    """Whether there is an lse, what is made, and what is returned; out is of q's dtype."""
    q, out, lse = given(arrays, "q"), arrays["out"], arrays["lse"]
    if out is not None:
        require("out", out, shape, f"as q is {q.shape}", q.dtype)
    if lse is not None:
        require("lse", lse, shape[:-1], f"as q is {q.shape}", "f32")
    made: dict[str, tuple[Extents, str]] = {"out": (shape, q.dtype)}
    if lse is None and not options["return_lse"]:
        return False, made, ("out",)
    made["lse"] = shape[:-1], "f32"
    return True, made, ("out", "lse")


def swapped(array: Array, one: int, other: int) -> Array:
    """With two dimensions exchanged."""
    shape, strides = list(array.shape), list(array.strides)
    shape[one], shape[other] = shape[other], shape[one]
    strides[one], strides[other] = strides[other], strides[one]
    return array._replace(shape=tuple(shape), strides=tuple(strides))


def paged(name: str, array: Array, layout: Any) -> Array:
    """A cache as [pages, page, H, D]."""
    if layout not in ("NHD", "HND"):
        raise Error(f"kv_layout={layout}: must be one of: NHD HND")
    if len(array.shape) not in (3, 4):
        form = "[pages, page, H, D]" if layout == "NHD" else "[pages, H, page, D]"
        raise invalid(name, f"shape {array.shape}: must be {form}, or [slots, H, D]")
    if len(array.shape) == 3:
        return widened(array, 1)
    return array if layout == "NHD" else swapped(array, 1, 2)


def caches(arrays: Arrays, layout: Any) -> tuple[Array, Array]:
    """k_cache and v_cache as [pages, page, H, D], checked against each other and q."""
    q = given(arrays, "q")
    k = paged("k_cache", given(arrays, "k_cache"), layout)
    v = paged("v_cache", given(arrays, "v_cache"), layout)
    if tuple(v.shape[:3]) != tuple(k.shape[:3]):
        raise invalid("v_cache", f"shape {given(arrays, 'v_cache').shape}: must have the pages and "
                      f"heads of k_cache, which is {given(arrays, 'k_cache').shape}")
    if v.dtype != k.dtype:
        raise invalid("v_cache", f"dtype {v.dtype}: must be {k.dtype}, as k_cache is")
    if k.shape[3] != q.shape[-1]:
        raise invalid("k_cache", f"shape {given(arrays, 'k_cache').shape}: its last dimension must "
                      f"be {q.shape[-1]}, as q is {q.shape}")
    require_heads("k_cache", k, q.shape[-2])
    return k, v


def cache_params(k: Array, v: Array) -> dict[str, Any]:
    pages, page, hkv, d = k.shape
    return {"hkv": hkv, "d": d, "dv": v.shape[3], "page": page, "pages": pages,
            "kv_dtype": k.dtype}


def _factor(name: str, array: Array, heads: int) -> Array:
    """Of one element, or of one for each head."""
    shape, strides = tuple(array.shape), tuple(array.strides)
    if len(shape) == 2 and shape[1] == heads and (strides[0] == 0 or shape[0] == 1):
        shape, strides = shape[1:], strides[1:]  # FlashAttention's, one row expanded
        if strides[0] == 0:
            shape, strides = (1,), (1,)
    if shape not in ((), (1,), (heads,)):
        raise invalid(name, f"shape {array.shape}: must be (1,), or ({heads},), one of each head")
    view = array._replace(shape=shape or (1,), strides=strides or (1,))
    require(name, view, view.shape, "", "f32")
    return view


def factors(arrays: Arrays, heads: int, names: tuple[str, ...] = ("k_scale", "v_scale")
            ) -> tuple[dict[str, Any], dict[str, Array]]:
    """kv_scale and its views: all of the names are given, or none."""
    there = [name for name in names if arrays[name] is not None]
    if not there:
        return {}, {}
    views = {name: _factor(name, given(arrays, name), heads) for name in names
             if arrays[name] is not None}
    for name in names:
        if name not in views:
            raise invalid(name, f"must be given with {there[0]}")
        if views[name].shape != views[there[0]].shape:
            raise invalid(name, f"shape {given(arrays, name).shape}: must be "
                          f"{tuple(views[there[0]].shape)}, as {there[0]} is")
    is_one = product(views[there[0]].shape) == 1
    return {"kv_scale": "tensor" if is_one else "head"}, views


def indices_of(name: str, array: Array, rank: int, form: str) -> Extents:
    """The shape of an array of i32 of so many dimensions, the last one contiguous."""
    if len(array.shape) != rank:
        raise invalid(name, f"shape {array.shape}: must be {form}")
    require(name, array, array.shape, "", "i32")
    return tuple(array.shape)


def page_table(arrays: Arrays, b: int, lengths: str) -> int:
    """Width of the table, which with the lengths must be for b sequences."""
    table = given(arrays, "page_table")
    shape = indices_of("page_table", table, 2, "[B, pages of each]")
    require_shape("page_table", table, (b, shape[1]), "a row for each sequence")
    require(lengths, given(arrays, lengths), (b,), "one of each sequence", "i32")
    return shape[1]


def count_sequences(arrays: Arrays, name: str, tokens: int) -> int:
    """Sequences whose borders `name`, [B + 1], has. Error: none, of some tokens."""
    shape = indices_of(name, given(arrays, name), 1, "(B + 1,): where the B sequences begin, and "
                       "where the last one ends")
    if shape[0] < 1 or (shape[0] == 1 and tokens != 0):
        raise invalid(name, f"shape {shape}: must be (B + 1,) with B of at least 1, as q has "
                      f"{tokens} tokens")
    return shape[0] - 1


def absent(arrays: Arrays, names: tuple[str, ...], why: str) -> None:
    """Error: one of them is given."""
    for name in names:
        if arrays[name] is not None:
            raise invalid(name, f"must not be given {why}")


def scale_of(options: dict[str, Any]) -> dict[str, Any]:
    """The family's scale, if one is given."""
    scale: Optional[float] = options["softmax_scale"]
    return {} if scale is None else {"scale": scale}
