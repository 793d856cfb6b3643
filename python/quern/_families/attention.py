"""templates/attention: attention (the family attention_prefill) and attention_extend.

      q [B, S, H, D]    k [B, Sk, Hkv, D]    v [B, Sk, Hkv, Dv]       out [B, S, H, Dv]

    attention   B sequences; with cu_seqlens_q and cu_seqlens_k B is 1 and S all their tokens; or
                without the B
    extend      packed: with or without a B of 1

Argument names are those of FlashAttention's flash_attn_func(), flash_attn_varlen_func() and
flash_attn_with_kvcache(), whose place these take. lse is [.., S, H], FlashAttention's transposed:
as the merging of states takes it.

What is not here: rules of widths, dtypes and ranges, which the library has.
"""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array
from .._call import is_traced, options_of, run
from .._context import Context
from .._errors import Error, invalid
from .._forms import Arrays, Extents, checks_of, given, product, require, require_float, widened
from .._kv_forms import (absent, cache_params, caches, cap_of, count_sequences, either, factors,
                         indices_of, outputs_of, page_table, require_heads, scale_of, sinks_of,
                         softcap_of, window_of)
from .._numbers import with_arrays
from .._plan import Function, Inferred

_OPTIONS: dict[str, Any] = {"softmax_scale": None, "causal": False, "window_size": (-1, -1),
                            "softcap": 0.0, "return_lse": False}
_ALIASES = {"learnable_sink": "sinks", "return_softmax_lse": "return_lse",
            "sm_scale": "softmax_scale", "logits_soft_cap": "softcap", "max_seqlen_q": "",
            "max_seqlen_k": "", "deterministic": ""}
ORIGINS = {"hq": ("q", "H"), "d": ("q", "D"), "dv": ("v", "Dv"), "hkv": ("k", "Hkv"),
           "b": ("q", "B"), "sq": ("q", "S"), "sk": ("k", "Sk"), "t": ("q", "T"),
           "scale": ("softmax_scale", ""), "page": ("k_cache", "page"),
           "pages": ("k_cache", "pages"), "max_pages": ("page_table", "pages of each"),
           "shared_pages": ("shared_table", "pages"), "indices": ("kv_indices", "rows")}


def run_function(function: Function, values: tuple[Any, ...], options: tuple[Any, ...],
                 context: Optional[Context], stream: Any) -> Any:
    """A call, or while torch.compile traces an operator."""
    if is_traced() and context is None and stream is None:
        from .. import torch_ops
        return torch_ops.traced(function.name, values, options)
    if function.numbers:
        values = with_arrays(function, values)
    return run(function, values, options_of(function, options), context, stream)


def _check_kv(arrays: Arrays, lead: Extents) -> tuple[Array, Array]:
    """k and v against each other and q; lead: their dimensions before H and D, None of any."""
    q, k, v = (given(arrays, name) for name in ("q", "k", "v"))
    for name, array in (("k", k), ("v", v)):
        if len(array.shape) != len(q.shape):
            raise invalid(name, f"shape {array.shape}: must have {len(q.shape)} dimensions, as q "
                          "has")
    if k.shape[-1] != q.shape[-1]:
        raise invalid("k", f"shape {k.shape}: its last dimension must be {q.shape[-1]}, as q is "
                      f"{q.shape}")
    wanted = (*lead, *k.shape[len(lead):])
    require("k", k, wanted, f"as q is {q.shape}", q.dtype)
    require("v", v, (*k.shape[:-1], v.shape[-1]), f"as k is {k.shape}", q.dtype)
    require_heads("k", k, q.shape[-2])
    return k, v


def _queries(arrays: Arrays, forms: str) -> Array:
    q = given(arrays, "q")
    if len(q.shape) not in (3, 4):
        raise invalid("q", f"shape {q.shape}: must be {forms}")
    require_float("q", q)
    require("q", q, q.shape, "")
    return q


# ---- attention ---------------------------------------------------------------------------------


def _sequences(arrays: Arrays, q: Array) -> int:
    """b, of borders if there are any. Error: they do not go together, or with q."""
    borders = [arrays["cu_seqlens_q"], arrays["cu_seqlens_k"]]
    if borders[0] is None and borders[1] is None:
        return q.shape[0] if len(q.shape) == 4 else 1
    b = count_sequences(arrays, "cu_seqlens_q", product(q.shape[:-2]))
    require("cu_seqlens_k", given(arrays, "cu_seqlens_k"), (b + 1,), "as cu_seqlens_q is", "i32")
    if len(q.shape) == 4 and q.shape[0] != 1:
        raise invalid("q", f"shape {q.shape}: B must be 1 with cu_seqlens_q, which packs sequences")
    return b


def _infer(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    q = _queries(arrays, "[B, S, H, D], or packed [T, H, D]")
    is_packed = len(q.shape) == 3
    k, v = _check_kv(arrays, () if is_packed else (q.shape[0],))
    b = _sequences(arrays, q)
    window, is_causal = window_of(options["window_size"], options["causal"])
    has_lse, made, returned = outputs_of(arrays, options, (*q.shape[:-1], v.shape[-1]))
    views: dict[str, Array] = {}
    for name in ("q", "k", "v", "out", "lse"):
        array = arrays[name]
        if array is not None and is_packed:
            views[name] = widened(array, 0)
    params = {"b": b, "sq": q.shape[-3], "sk": k.shape[-3], "hq": q.shape[-2],
              "hkv": k.shape[-2], "d": q.shape[-1], "dv": v.shape[-1], "dtype": q.dtype,
              "causal": is_causal, "window": window, **cap_of(options),
              **sinks_of(arrays, q.shape[-2]), "varlen": arrays["cu_seqlens_q"] is not None,
              "lse": has_lse, **scale_of(options)}
    return Inferred(params, views, made=made, origins=ORIGINS, returned=returned)


_ARRAYS = ("q", "k", "v", "sinks", "cu_seqlens_q", "cu_seqlens_k", "out", "lse")
ATTENTION = Function("attention_prefill", _ARRAYS,
                     tuple("o" if name == "out" else name for name in _ARRAYS), ("out", "lse"),
                     _OPTIONS, _infer, "attention", _ARRAYS, "attention",
                     checks=checks_of(_OPTIONS), aliases=_ALIASES)


def attention(q: Any, k: Any, v: Any, *, softmax_scale: Optional[float] = None,
              sm_scale: Optional[float] = None, causal: bool = False,
              window_size: Any = (-1, -1), softcap: float = 0.0,
              logits_soft_cap: Optional[float] = None,
              sinks: Any = None, learnable_sink: Any = None, cu_seqlens_q: Any = None,
              cu_seqlens_k: Any = None, max_seqlen_q: Optional[int] = None,
              max_seqlen_k: Optional[int] = None, dropout_p: float = 0.0,
              deterministic: bool = False, return_lse: bool = False,
              return_softmax_lse: bool = False, out: Any = None, lse: Any = None,
              context: Optional[Context] = None, stream: Any = None) -> Any:
    """softmax(q k^T softmax_scale, masked) v, as flash_attn_func() and flash_attn_varlen_func().

    q             [B, S, H, D]; [T, H, D] is one sequence, or several packed. D: 64, 96, 128, 192
                  or 256; bf16 or f16, on the CPU also f32. Any strides, if the last dimension is
                  contiguous: a [B, H, S, D] tensor goes as its transpose(1, 2)
    k, v          [B, Sk, Hkv, D], [B, Sk, Hkv, Dv] of q's dtype; head h of q reads their head
                  h // (H // Hkv). Dv is D, or 128 with a D of 192
    softmax_scale factor of the scores; None: D^-0.5. sm_scale is another name of it
    causal        query i sees keys up to i + Sk - S: aligned to the bottom right
    window_size   (left, right): keys seen before and after a query's own position; -1: all. (w, w)
                  and (w, 0), with causal any (w, right); others are refused
    softcap       c > 0: scores s become c tanh(s / c), before masks; logits_soft_cap is another
                  name of it
    sinks         [H]: exp(sinks[h]) is added to the denominator of head h; learnable_sink is
                  another name of it
    cu_seqlens_q, cu_seqlens_k   i32 [n + 1], on the device, never read by the host: where packed
                  sequences begin, and where the last one ends, which is T
    max_seqlen_q, max_seqlen_k   say nothing here
    dropout_p     must be 0
    deterministic says nothing: the bits of a call are always the same
    return_lse    also return the natural logarithms of the denominators, f32, [B, S, H] or [T, H];
                  -inf of a query that sees no key, whose output is 0. return_softmax_lse is
                  another name of it
    out, lse      where the results go; None: new arrays. An lse that is given is returned, too
    context       None: the default one of the device that q is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Returns out, or (out, lse). Any thread; on the CPU it has ended on return, on a GPU it is
    ordered by the stream. Error: an argument, by its name.
    """
    if dropout_p:
        raise Error(f"dropout_p={dropout_p}: must be 0")
    sinks = either("sinks", sinks, "learnable_sink", learnable_sink)
    return run_function(ATTENTION, (q, k, v, sinks, cu_seqlens_q, cu_seqlens_k, out, lse),
                        (either("softmax_scale", softmax_scale, "sm_scale", sm_scale), causal,
                         window_size, softcap_of(softcap, logits_soft_cap),
                         return_lse or return_softmax_lse), context, stream)


# ---- attention_extend --------------------------------------------------------------------------


def _prefix(arrays: Arrays, b: int) -> dict[str, Any]:
    """Parameters of how the prefixes are found."""
    if arrays["kv_indptr"] is None and arrays["kv_indices"] is None:
        return {"prefix": "table", "max_pages": page_table(arrays, b, "prefix_lens")}
    absent(arrays, ("page_table", "prefix_lens"), "with kv_indices")
    require("kv_indptr", given(arrays, "kv_indptr"), (b + 1,), "as cu_seqlens_q is", "i32")
    shape = indices_of("kv_indices", given(arrays, "kv_indices"), 1, "(rows of all prefixes,)")
    return {"prefix": "indices", "max_pages": 0, "indices": shape[0]}


def _infer_extend(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    q = _queries(arrays, "packed [T, H, D]")
    lead = tuple(q.shape[:-2])
    if len(lead) == 2 and lead[0] != 1:
        raise invalid("q", f"shape {q.shape}: must be packed [T, H, D]")
    k, v = _check_kv(arrays, lead)
    b = count_sequences(arrays, "cu_seqlens_q", product(lead))
    keys, values = caches(arrays, options["kv_layout"])
    for name, new, old in (("k_cache", k, keys), ("v_cache", v, values)):
        if tuple(new.shape[-2:]) != tuple(old.shape[2:]):
            raise invalid(name, f"shape {given(arrays, name).shape}: must have {new.shape[-2]} "
                          f"heads of {new.shape[-1]}, as {name[0]} is {new.shape}")
    window, is_causal = window_of(options["window_size"], options["causal"])
    has_lse, made, returned = outputs_of(arrays, options, (*lead, *q.shape[-2:-1], v.shape[-1]))
    scales, views = factors(arrays, k.shape[-2])
    views.update(k_cache=keys, v_cache=values)
    params = {**cache_params(keys, values), "b": b, "t": product(lead), "hq": q.shape[-2],
              "dtype": q.dtype, **_prefix(arrays, b), **scales, "causal": is_causal,
              "window": window, **cap_of(options), **sinks_of(arrays, q.shape[-2]),
              "lse": has_lse, **scale_of(options)}
    for name in ("q", "k", "v", "out", "lse"):
        array = arrays[name]
        if array is not None and len(lead) == 2:
            views[name] = array._replace(shape=array.shape[1:], strides=array.strides[1:])
    return Inferred(params, views, made=made, origins=ORIGINS, returned=returned)


_EXTEND_ARRAYS = ("q", "k", "v", "k_cache", "v_cache", "page_table", "kv_indptr", "kv_indices",
                  "prefix_lens", "cu_seqlens_q", "k_scale", "v_scale", "sinks", "out", "lse")
_EXTEND_OPTIONS: dict[str, Any] = {**_OPTIONS, "causal": True, "kv_layout": "NHD"}
ATTENTION_EXTEND = Function(
    "attention_extend", _EXTEND_ARRAYS,
    tuple("o" if name == "out" else name for name in _EXTEND_ARRAYS), ("out", "lse"),
    _EXTEND_OPTIONS, _infer_extend, "attention_extend", _EXTEND_ARRAYS, "attention_extend",
    checks=checks_of(_EXTEND_OPTIONS),
    aliases={**_ALIASES, "block_table": "page_table", "qo_indptr": "cu_seqlens_q",
             "k_descale": "k_scale", "v_descale": "v_scale"}, numbers=("k_scale", "v_scale"))


def attention_extend(q: Any, k: Any, v: Any, k_cache: Any, v_cache: Any, *,
                     cu_seqlens_q: Any = None, qo_indptr: Any = None, page_table: Any = None,
                     block_table: Any = None, prefix_lens: Any = None, kv_indptr: Any = None,
                     kv_indices: Any = None, softmax_scale: Optional[float] = None,
                     sm_scale: Optional[float] = None, causal: bool = True,
                     window_size: Any = (-1, -1), softcap: float = 0.0,
                     logits_soft_cap: Optional[float] = None,
                     sinks: Any = None, learnable_sink: Any = None, k_scale: Any = None,
                     v_scale: Any = None, k_descale: Any = None, v_descale: Any = None,
                     kv_layout: str = "NHD", max_seqlen_q: Optional[int] = None,
                     max_seqlen_k: Optional[int] = None, deterministic: bool = False,
                     return_lse: bool = False, return_softmax_lse: bool = False, out: Any = None,
                     lse: Any = None, context: Optional[Context] = None, stream: Any = None) -> Any:
    """New tokens of sequences attend to their prefixes in a paged cache, and to themselves.

    q, k, v       packed new tokens: [T, H, D], [T, Hkv, D], [T, Hkv, Dv]; widths, dtypes and
                  strides as for attention()
    k_cache, v_cache   [pages, page, Hkv, D], [pages, page, Hkv, Dv], of q's dtype or e4m3; page: a
                  power of two up to 256. [slots, Hkv, D] are pages of one token. Any strides, if
                  the last dimension is contiguous: halves of one array are taken as they lie
    cu_seqlens_q  i32 [B + 1]: where the sequences begin among the new tokens, and T; qo_indptr is
                  another name of it
    page_table, prefix_lens   i32 [B, pages of each] and [B]: where each prefix is, and its length;
                  block_table is another name of page_table
    kv_indptr, kv_indices   instead of these, i32 [B + 1] and [rows]: prefix s is the rows
                  kv_indices[kv_indptr[s]:kv_indptr[s + 1]] of the cache, row page_id * page + place
    causal        a new token sees its prefix and the new ones up to itself
    k_scale, v_scale   f32, [1] or [Hkv], or numbers: what the cache holds is multiplied by these;
                  k_descale and v_descale are other names of them. Both, or neither
    kv_layout     "NHD"; "HND": caches are [pages, Hkv, page, D]

    softmax_scale, sm_scale, window_size, softcap, logits_soft_cap, sinks, learnable_sink,
    max_seqlen_q, max_seqlen_k, deterministic, return_lse, return_softmax_lse, out, lse, context,
    stream, threads, results and Error as for attention().
    """
    values = (q, k, v, k_cache, v_cache, either("page_table", page_table, "block_table",
                                                block_table), kv_indptr, kv_indices, prefix_lens,
              either("cu_seqlens_q", cu_seqlens_q, "qo_indptr", qo_indptr),
              either("k_scale", k_scale, "k_descale", k_descale),
              either("v_scale", v_scale, "v_descale", v_descale),
              either("sinks", sinks, "learnable_sink", learnable_sink), out, lse)
    return run_function(ATTENTION_EXTEND, values,
                        (either("softmax_scale", softmax_scale, "sm_scale", sm_scale), causal,
                         window_size, softcap_of(softcap, logits_soft_cap),
                         return_lse or return_softmax_lse, kv_layout), context, stream)
