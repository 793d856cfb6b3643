"""templates/kv_cache: set_kv_buffer, keys and values of new tokens into a paged cache, in place."""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array
from .._context import Context
from .._errors import invalid
from .._forms import Arrays, checks_of, given, require, require_float, widened
from .._kv_forms import either, factors, paged
from .._plan import Function, Inferred
from .attention import ORIGINS, run_function

_WIDTH, _BYTES = 576, 656  # of MLA's rows, and of one in e4m3
_INDEX = ("i32", "i64")


def _tokens(name: str, array: Array) -> Array:
    """[T, D] as [T, 1, D]."""
    if len(array.shape) == 2:
        array = widened(array, 1)
    if len(array.shape) != 3:
        raise invalid(name, f"shape {array.shape}: must be [T, H, D], or [T, D] of one head")
    return array


def _place(name: str, rows: Array, cache: Array, layout: str) -> Array:
    """A cache as [pages, page, H, D], which must have the heads and width of the rows."""
    view = paged(name, cache, layout)
    if tuple(view.shape[2:]) != tuple(rows.shape[1:]):
        raise invalid(name, f"shape {cache.shape}: must have {rows.shape[1]} heads of "
                      f"{rows.shape[2]}, as {name[0]} is {rows.shape}")
    return view


def _place_of_latent(k: Array, cache: Array, layout: str) -> Array:
    """Where there are no values: as above, or bytes [pages, page, 1, 656]. k may be [T, D]."""
    view, is_latent = cache, tuple(k.shape[1:]) in ((_WIDTH,), (1, _WIDTH))
    if len(k.shape) == 2 and len(view.shape) == 2:
        view = widened(view, 1)  # pages of one token
    if len(k.shape) == 2 and len(view.shape) == 3:
        view = widened(view, 2)
        layout = "NHD"
    if is_latent and view.dtype in ("u8", "e4m3") and view.shape[-1] == _BYTES:
        return paged("k_cache", view, layout)._replace(dtype="u8")
    return _place("k_cache", _tokens("k", k), view, layout)


def _store(arrays: Arrays, layout: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """Parameters and views of k, v and the caches."""
    cache, v = given(arrays, "k_cache"), arrays["v"]
    k = _tokens("k", given(arrays, "k"))
    params = {"t": k.shape[0], "hkv": k.shape[1], "d": k.shape[2], "dv": 0}
    if v is None:
        if arrays["v_cache"] is not None:
            raise invalid("v", "must be given with v_cache")
        return params, {"k": k, "k_cache": _place_of_latent(given(arrays, "k"), cache, layout)}
    v = _tokens("v", v)
    require("v", v, (*k.shape[:2], v.shape[2]), f"as k is {k.shape}", k.dtype)
    keys = _place("k_cache", k, cache, layout)
    values = _place("v_cache", v, given(arrays, "v_cache"), layout)
    if tuple(values.shape[:2]) != tuple(keys.shape[:2]) or values.dtype != keys.dtype:
        raise invalid("v_cache", f"shape {given(arrays, 'v_cache').shape} of {values.dtype}: must "
                      f"have the pages and dtype of k_cache, {cache.shape} of {keys.dtype}")
    return {**params, "dv": v.shape[2]}, {"k": k, "v": v, "k_cache": keys, "v_cache": values}


def _rotation(arrays: Arrays, options: dict[str, Any], t: int) -> dict[str, Any]:
    """Parameters of the rotary embedding, if there is one."""
    table, positions, q = arrays["cos_sin_cache"], arrays["positions"], arrays["q"]
    if table is None:
        for name in ("positions", "q"):
            if arrays[name] is not None:
                raise invalid(name, "must not be given without cos_sin_cache")
        return {}
    if len(table.shape) != 2:
        raise invalid("cos_sin_cache", f"shape {table.shape}: must be [positions, columns]: "
                      "cosines, then sines")
    require_float("cos_sin_cache", table)
    require("cos_sin_cache", table, table.shape, "")
    require("positions", given(arrays, "positions"), (t,), "one of each token",
            given(arrays, "loc").dtype)
    params = {"rope": "neox" if options["is_neox"] else "gptj", "rope_dim": table.shape[1],
              "max_position": table.shape[0], "rope_dtype": table.dtype}
    if q is not None:
        k = given(arrays, "k")
        if len(q.shape) != 3:
            raise invalid("q", f"shape {q.shape}: must be [T, Hq, D]")
        require("q", q, (t, q.shape[1], k.shape[-1]), f"as k is {k.shape}", k.dtype)
        params["hq"] = q.shape[1]
    assert positions is not None
    return params


def _infer(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    k = given(arrays, "k")
    require_float("k", k)
    params, views = _store(arrays, options["kv_layout"])
    cache, loc = views["k_cache"], given(arrays, "loc")
    if loc.dtype not in _INDEX:
        raise invalid("loc", f"dtype {loc.dtype}: must be one of: i32 i64")
    require("loc", loc, (params["t"],), "one of each token")
    names = ("k_scale", "v_scale") if params["dv"] else ("k_scale",)
    scales, more = factors(arrays, params["hkv"], names)
    is_mla = cache.dtype == "u8"
    params = {**params, "page": cache.shape[1], "pages": cache.shape[0], "dtype": k.dtype,
              "kv_dtype": "e4m3" if is_mla else cache.dtype, "layout": "mla" if is_mla else "plain",
              "index": loc.dtype, **scales, **_rotation(arrays, options, params["t"])}
    return Inferred(params, {**views, **more}, origins={
        **ORIGINS, "hq": ("q", "Hq"), "hkv": ("k", "H"), "d": ("k", "D"), "t": ("k", "T"),
        "rope_dim": ("cos_sin_cache", "columns"), "max_position": ("cos_sin_cache", "positions")})


_ARRAYS = ("k", "v", "loc", "positions", "cos_sin_cache", "k_scale", "v_scale", "q", "k_cache",
           "v_cache")
_OPTIONS: dict[str, Any] = {"is_neox": True, "kv_layout": "NHD"}
SET_KV_BUFFER = Function(
    "set_kv_buffer", _ARRAYS, tuple("cos_sin" if name == "cos_sin_cache" else name
                                    for name in _ARRAYS),
    (), _OPTIONS, _infer, "set_kv_buffer",
    ("k", "v", "k_cache", "v_cache", "loc", "positions", "cos_sin_cache", "k_scale", "v_scale",
     "q"), "set_kv_buffer", checks=checks_of(_OPTIONS), aliases={"slot_mapping": "loc"},
    numbers=("k_scale", "v_scale"))


def set_kv_buffer(k: Any, v: Any, k_cache: Any, v_cache: Any, loc: Any = None, *,
                  slot_mapping: Any = None, k_scale: Any = None, v_scale: Any = None,
                  positions: Any = None, cos_sin_cache: Any = None, is_neox: bool = True,
                  q: Any = None, kv_layout: str = "NHD", context: Optional[Context] = None,
                  stream: Any = None) -> None:
    """Keys and values of new tokens into a paged cache, in place; rotated on the way, if asked to.

    k, v          [T, H, D], [T, H, Dv]: f32, bf16 or f16; [T, D] is one head. v and v_cache None:
                  there are no values, as with the latent rows of MLA
    k_cache, v_cache   [pages, page, H, D], [pages, page, H, Dv], of k's dtype or e4m3;
                  [slots, H, D] are pages of one token. For MLA k is [T, 576] and the cache
                  [pages, page, 576], or 656 bytes a token as mla_decode() reads them
    loc           i32 or i64 [T]: the row page_id * page + place that each token goes to, all
                  different; -1: nowhere. One outside of the cache is that, too, unless
                  QUERN_CHECK=1, with which it is refused. slot_mapping is another name of it
    k_scale, v_scale   f32, [1] or [H], or numbers, of an e4m3 cache: what is kept are values
                  divided by these, rounded, beyond 448 448
    positions, cos_sin_cache   of loc's dtype [T] and [max position, R]: keys are rotated by these
                  rows, R / 2 cosines, then R / 2 sines; only the first R columns are
    is_neox       columns i and i + R / 2 are a pair; False: columns 2 i and 2 i + 1
    q             [T, Hq, D] of k's dtype: rotated, too, in place
    kv_layout     "NHD"; "HND": caches are [pages, H, page, D]
    context       None: the default one of the device that k is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Any thread. Error: an argument, by its name.
    """
    loc = either("loc", loc, "slot_mapping", slot_mapping)
    run_function(SET_KV_BUFFER, (k, v, loc, positions, cos_sin_cache, k_scale, v_scale, q, k_cache,
                                 v_cache), (is_neox, kv_layout), context, stream)
