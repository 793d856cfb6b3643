"""templates/decode: attention_decode; templates/attention: merge_state, merge_state_v2.

      q  [B, H, D], or [B, 1, H, D]         k_cache, v_cache  [pages, page, Hkv, D]

Argument names are those of FlashAttention's flash_attn_with_kvcache() and of FlashInfer's
functions; caches are as for attention_extend().
"""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array
from .._context import Context
from .._errors import invalid
from .._forms import Arrays, checks_of, given, require, require_float
from .._kv_forms import (cache_params, caches, cap_of, either, factors, indices_of, outputs_of,
                         page_table, scale_of, sinks_of, softcap_of, window_of)
from .._plan import Function, Inferred
from .attention import ORIGINS, run_function


def one_each(array: Array) -> Array:
    """[B, 1, ...] as [B, ...]."""
    return array._replace(shape=(array.shape[0], *array.shape[2:]),
                          strides=(array.strides[0], *array.strides[2:]))


def _queries(arrays: Arrays) -> Array:
    q = given(arrays, "q")
    if len(q.shape) not in (3, 4):
        raise invalid("q", f"shape {q.shape}: must be [B, H, D], or [B, 1, H, D]")
    if len(q.shape) == 4 and q.shape[1] != 1:
        raise invalid("q", f"shape {q.shape}: must be one token of each sequence, [B, 1, H, D]; "
                      "for several there is attention_extend()")
    require_float("q", q)
    require("q", q, q.shape, "")
    return q


def _shared(arrays: Arrays) -> tuple[dict[str, Any], dict[str, Array]]:
    """The common prefix."""
    table, length = arrays["shared_table"], arrays["shared_len"]
    if table is None and length is None:
        return {}, {}
    shape = indices_of("shared_table", given(arrays, "shared_table"), 1, "(pages,)")
    if shape[0] < 1:
        raise invalid("shared_table", f"shape {shape}: must have at least 1 page")
    length = given(arrays, "shared_len")
    if not length.shape:
        length = length._replace(shape=(1,), strides=(1,))
    require("shared_len", length, (1,), "one number", "i32")
    return {"shared_pages": shape[0]}, {"shared_len": length}


def _infer(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    q = _queries(arrays)
    keys, values = caches(arrays, options["kv_layout"])
    window, _ = window_of(options["window_size"], True)
    has_lse, made, returned = outputs_of(arrays, options, (*q.shape[:-1], values.shape[3]))
    scales, views = factors(arrays, keys.shape[2])
    shared, more = _shared(arrays)
    views.update(more, k_cache=keys, v_cache=values)
    for name in ("q", "out", "lse"):
        array = arrays[name]
        if array is not None and len(q.shape) == 4:
            views[name] = one_each(array)
    b = q.shape[0]
    params = {**cache_params(keys, values), "b": b, "hq": q.shape[-2], "dtype": q.dtype,
              "max_pages": page_table(arrays, b, "seq_lens"), **shared, **scales,
              "window": window, **cap_of(options), **sinks_of(arrays, q.shape[-2]),
              "lse": has_lse, "deterministic": options["deterministic"], **scale_of(options)}
    return Inferred(params, views, made=made, origins={**ORIGINS, "dv": ("v_cache", "Dv"),
                                                       "hkv": ("k_cache", "Hkv")},
                    returned=returned)


_ARRAYS = ("q", "k_cache", "v_cache", "page_table", "seq_lens", "shared_table", "shared_len",
           "k_scale", "v_scale", "sinks", "out", "lse")
_OPTIONS: dict[str, Any] = {"softmax_scale": None, "window_size": (-1, -1), "softcap": 0.0,
                            "deterministic": False, "return_lse": False, "kv_layout": "NHD"}
ATTENTION_DECODE = Function(
    "attention_decode", _ARRAYS, tuple("o" if name == "out" else name for name in _ARRAYS),
    ("out", "lse"), _OPTIONS, _infer, "attention_decode", _ARRAYS, "attention_decode",
    checks=checks_of(_OPTIONS),
    aliases={"block_table": "page_table", "cache_seqlens": "seq_lens", "k_descale": "k_scale",
             "v_descale": "v_scale", "learnable_sink": "sinks", "return_softmax_lse": "return_lse",
             "sm_scale": "softmax_scale", "logits_soft_cap": "softcap", "causal": "",
             "num_splits": ""},
    numbers=("k_scale", "v_scale"))


def attention_decode(q: Any, k_cache: Any, v_cache: Any, page_table: Any = None,
                     seq_lens: Any = None, *, block_table: Any = None, cache_seqlens: Any = None,
                     softmax_scale: Optional[float] = None, sm_scale: Optional[float] = None,
                     window_size: Any = (-1, -1), softcap: float = 0.0,
                     logits_soft_cap: Optional[float] = None, sinks: Any = None,
                     learnable_sink: Any = None,
                     k_scale: Any = None, v_scale: Any = None, k_descale: Any = None,
                     v_descale: Any = None, shared_table: Any = None, shared_len: Any = None,
                     deterministic: bool = False, causal: bool = True, num_splits: int = 0,
                     kv_layout: str = "NHD", return_lse: bool = False,
                     return_softmax_lse: bool = False, out: Any = None,
                     lse: Any = None, context: Optional[Context] = None, stream: Any = None
                     ) -> Any:
    """One query of each sequence attends to its tokens in a paged cache.

    q             [B, H, D] or [B, 1, H, D]; widths, dtypes and strides as for attention()
    k_cache, v_cache   as for attention_extend()
    page_table, seq_lens   i32 [B, pages of each] and [B], on the device, never read by the host:
                  where a sequence's tokens are, and how many, the query's own among them, which
                  are in the cache already. A sequence of none gives 0, and an lse of -inf.
                  block_table and cache_seqlens are other names of them
    window_size   (left, right): the last left + 1 tokens are seen; -1: all. right says nothing
    shared_table, shared_len   i32 [pages] and [1]: tokens that all sequences see before their own,
                  read once for all of them; seq_lens does not count them
    deterministic a sequence's bits depend on nothing else in the batch
    causal, num_splits   say nothing here: there is one query, and how the work is split is chosen
                  on the device

    softmax_scale, sm_scale, softcap, logits_soft_cap, sinks, learnable_sink, return_lse,
    return_softmax_lse, out, lse, context, stream, threads, results and Error as for attention();
    k_scale, v_scale, k_descale, v_descale, kv_layout as for attention_extend().
    """
    values = (q, k_cache, v_cache, either("page_table", page_table, "block_table", block_table),
              either("seq_lens", seq_lens, "cache_seqlens", cache_seqlens), shared_table,
              shared_len, either("k_scale", k_scale, "k_descale", k_descale),
              either("v_scale", v_scale, "v_descale", v_descale),
              either("sinks", sinks, "learnable_sink", learnable_sink), out, lse)
    return run_function(ATTENTION_DECODE, values,
                        (either("softmax_scale", softmax_scale, "sm_scale", sm_scale),
                         window_size, softcap_of(softcap, logits_soft_cap), deterministic,
                         return_lse or return_softmax_lse, kv_layout), context, stream)


# ---- States ------------------------------------------------------------------------------------


def _infer_merge(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    one = given(arrays, "v_a")
    if len(one.shape) != 3:
        raise invalid("v_a", f"shape {one.shape}: must be [T, H, D]")
    require_float("v_a", one)
    why = f"as v_a is {one.shape}"
    for name in ("v_a", "v_b", "v_merged"):
        array = given(arrays, name) if name != "v_merged" else arrays[name]
        if array is not None:
            require(name, array, one.shape, why, one.dtype)
    for name in ("s_a", "s_b", "s_merged"):
        array = given(arrays, name) if name != "s_merged" else arrays[name]
        if array is not None:
            require(name, array, one.shape[:2], why, "f32")
    t, h, d = one.shape
    return Inferred({"t": t, "h": h, "d": d, "dtype": one.dtype},
                    made={"v_merged": (tuple(one.shape), one.dtype), "s_merged": ((t, h), "f32")},
                    origins={"t": ("v_a", "T"), "h": ("v_a", "H"), "d": ("v_a", "D")})


def _merge(name: str) -> Function:
    arrays = ("v_a", "s_a", "v_b", "s_b", "v_merged", "s_merged")
    return Function(name, arrays, arrays, ("v_merged", "s_merged"), {}, _infer_merge,
                    name, arrays, name)


MERGE_STATE = _merge("merge_state")
MERGE_STATE_V2 = _merge("merge_state_v2")


def merge_state(v_a: Any, s_a: Any, v_b: Any, s_b: Any, v_merged: Any = None,
                s_merged: Any = None, *, context: Optional[Context] = None, stream: Any = None
                ) -> Any:
    """Attention to two sets of keys made one, as FlashInfer's merge_state(): (v_merged, s_merged).

    v_a, v_b      [T, H, D], bf16, f16 or f32: outputs of either
    s_a, s_b      f32 [T, H]: the base-2 logarithms of their denominators; -inf: an empty state
    v_merged, s_merged   where the results go; None: new arrays
    context       None: the default one of the device that v_a is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Two empty states are 0 and -inf. Any thread. Error: an argument, by its name.
    """
    return run_function(MERGE_STATE, (v_a, s_a, v_b, s_b, v_merged, s_merged), (), context, stream)


def merge_state_v2(v_a: Any, s_a: Any, v_b: Any, s_b: Any, v_merged: Any = None,
                   s_merged: Any = None, *, context: Optional[Context] = None, stream: Any = None
                   ) -> Any:
    """merge_state() of natural logarithms: of the lse that attention() and the others return.

    v_a, s_a, v_b, s_b, v_merged, s_merged, context, stream and Error as for merge_state().
    """
    return run_function(MERGE_STATE_V2, (v_a, s_a, v_b, s_b, v_merged, s_merged), (), context,
                        stream)
