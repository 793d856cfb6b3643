"""templates/mla: mla_decode, concat_mla_k, concat_mla_absorb_q.

      q  [B, S, H, 576], or [B, H, 576]     kv_cache  [pages, page, 576], or e4m3 [.., 656] as bytes

Argument names are those of FlashMLA's flash_mla_with_kvcache().
"""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array
from .._context import Context
from .._errors import Error, invalid
from .._forms import Arrays, checks_of, given, require, require_float, widened
from .._kv_forms import absent, either, outputs_of, page_table, scale_of
from .._plan import Function, Inferred
from .attention import ORIGINS, run_function

_WIDTH, _VALUES, _BYTES = 576, 512, 656


def _latent(name: str, array: Array) -> Array:
    """A latent cache as [pages, page, 576] or bytes [pages, page, 656]."""
    shape = array.shape
    if len(shape) == 4 and shape[2] == 1:
        array = array._replace(shape=(*shape[:2], shape[3]),
                               strides=(*array.strides[:2], array.strides[3]))
    elif len(shape) != 3:
        raise invalid(name, f"shape {shape}: must be [pages, page, 576], [pages, page, 1, 576], or "
                      "with 656 bytes of e4m3 in place of the 576")
    if array.shape[2] == _BYTES and array.dtype in ("u8", "e4m3"):
        return array._replace(dtype="u8")
    if array.shape[2] != _WIDTH:
        raise invalid(name, f"shape {shape}: its last dimension must be 576, or 656 bytes of e4m3")
    return array


def _infer(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    q = given(arrays, "q")
    if len(q.shape) not in (3, 4) or q.shape[-1] != _WIDTH:
        raise invalid("q", f"shape {q.shape}: must be [B, S, H, 576], or [B, H, 576]")
    require_float("q", q)
    require("q", q, q.shape, "")
    cache, lead = _latent("kv_cache", given(arrays, "kv_cache")), q.shape
    indices = arrays["indices"]
    is_fp8 = cache.dtype == "u8"
    if options["is_fp8_kvcache"] and not is_fp8:
        raise Error("is_fp8_kvcache=True: must be False unless kv_cache is [pages, page, 1, 656] "
                    f"of bytes; it is {given(arrays, 'kv_cache').shape} of {cache.dtype}")
    has_lse, made, returned = outputs_of(arrays, options, (*q.shape[:-1], _VALUES))
    steps = q.shape[1] if len(q.shape) == 4 else 1
    views = {"kv_cache": cache}
    for name in ("q", "indices", "out", "lse"):
        array = arrays[name]
        if array is not None and len(q.shape) == 3:
            views[name] = widened(array, 1)
    is_causal = options["causal"] or steps == 1  # one query: the default
    params = {"b": lead[0], "sq": steps, "hq": lead[-2], "page": cache.shape[1],
              "pages": cache.shape[0], "dtype": q.dtype,
              "kv_dtype": "e4m3" if is_fp8 else cache.dtype, "causal": is_causal,
              "lse": has_lse, "deterministic": options["deterministic"], **scale_of(options)}
    if indices is None:
        params["max_pages"] = page_table(arrays, lead[0], "seq_lens")
    else:
        absent(arrays, ("page_table", "seq_lens"), "with indices, which name rows of the cache")
        require("indices", indices, (*lead[:-2], *indices.shape[-1:]), f"as q is {lead}", "i32")
        params["max_pages"], params["topk"] = 0, indices.shape[-1]
    return Inferred(params, views, made=made, returned=returned, origins={
        **ORIGINS, "sq": ("q", "S"), "page": ("kv_cache", "page"), "pages": ("kv_cache", "pages"),
        "topk": ("indices", "topk")})


_ARRAYS = ("q", "kv_cache", "page_table", "seq_lens", "indices", "out", "lse")
_OPTIONS: dict[str, Any] = {"softmax_scale": None, "causal": False, "is_fp8_kvcache": False,
                            "deterministic": False, "return_lse": False}
MLA_DECODE = Function(
    "mla_decode", _ARRAYS, tuple("o" if name == "out" else name for name in _ARRAYS),
    ("out", "lse"), _OPTIONS, _infer, "mla_decode", _ARRAYS, "mla_decode",
    checks=checks_of(_OPTIONS),
    aliases={"block_table": "page_table", "cache_seqlens": "seq_lens", "k_cache": "kv_cache",
             "return_softmax_lse": "return_lse", "sm_scale": "softmax_scale", "head_dim_v": "",
             "num_splits": ""})


def mla_decode(q: Any, kv_cache: Any, page_table: Any = None, seq_lens: Any = None, *,
               block_table: Any = None, cache_seqlens: Any = None, indices: Any = None,
               softmax_scale: Optional[float] = None, sm_scale: Optional[float] = None,
               causal: bool = False, head_dim_v: int = _VALUES, num_splits: int = 0,
               is_fp8_kvcache: bool = False, deterministic: bool = False,
               return_lse: bool = False, return_softmax_lse: bool = False, out: Any = None,
               lse: Any = None, context: Optional[Context] = None, stream: Any = None) -> Any:
    """Absorbed multi-head latent attention to a paged cache, as flash_mla_with_kvcache().

    q             [B, S, H, 576]: S query tokens of each sequence, at most 8, the rotary 64 columns
                  last; or [B, H, 576], one. bf16 or f16, on the CPU also f32
    kv_cache      [pages, page, 576] or [pages, page, 1, 576] of q's dtype: rows are the keys, their
                  first 512 columns the values; or [.., 656] of u8 or e4m3: 512 of e4m3, their 4
                  f32 factors of 128 each, 64 bf16
    page_table, seq_lens   i32 [B, pages of each] and [B]: tokens of each sequence, the S new ones
                  among them; block_table and cache_seqlens are other names of them
    indices       instead of these, i32 [B, S, topk] or [B, topk]: the rows of the cache that each
                  query sees, page_id * page + place; -1 is none
    softmax_scale factor of the scores; None: 576^-0.5. sm_scale is another name of it
    causal        query i sees the first seq_lens[s] - S + 1 + i tokens. With one query it says
                  nothing
    head_dim_v    must be 512
    num_splits    says nothing: how the work is split is chosen on the device
    is_fp8_kvcache   says nothing but that the cache must be of 656 bytes
    deterministic a sequence's bits depend on nothing else in the batch
    return_lse    also return the natural logarithms of the denominators, f32, q's shape without its
                  last dimension; -inf of a query that sees nothing, whose output is 0.
                  return_softmax_lse is another name of it
    out, lse      where the results go: out is q's shape with 512 columns; None: new arrays

    Returns out, or (out, lse). context, stream, threads and Error as for attention().
    """
    if head_dim_v != _VALUES:
        raise Error(f"head_dim_v={head_dim_v}: must be {_VALUES}")
    values = (q, kv_cache, either("page_table", page_table, "block_table", block_table),
              either("seq_lens", seq_lens, "cache_seqlens", cache_seqlens), indices, out, lse)
    return run_function(MLA_DECODE, values,
                        (either("softmax_scale", softmax_scale, "sm_scale", sm_scale), causal,
                         is_fp8_kvcache, deterministic,
                         return_lse or return_softmax_lse), context, stream)


# ---- Columns put together ----------------------------------------------------------------------


def _side_by_side(arrays: Arrays, one: str, other: str, is_shared: bool) -> Inferred:
    """Rows of two arrays, the second the same for all heads or not."""
    a, b, out = given(arrays, one), given(arrays, other), arrays["out"]
    if len(a.shape) != 3:
        raise invalid(one, f"shape {a.shape}: must be [T, H, D]")
    require_float(one, a)
    require(one, a, a.shape, "")
    views = {}
    if is_shared and len(b.shape) == 2:
        b = views[other] = widened(b, 1)
    t, h, nope = a.shape
    width = b.shape[-1] if b.shape else 0
    require(other, b, (t, 1 if is_shared else h, width), f"as {one} is {a.shape}", a.dtype)
    shape = (t, h, nope + width)
    if out is not None:
        require("out", out, shape, f"as {one} is {a.shape}", a.dtype)
    return Inferred({"t": t, "h": h, "nope": nope, "rope": width, "dtype": a.dtype}, views,
                    made={"out": (shape, a.dtype)},
                    origins={"t": (one, "T"), "h": (one, "H"), "nope": (one, "D"),
                             "rope": (other, "D")})


def _infer_k(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    return _side_by_side(arrays, "k_nope", "k_rope", True)


def _infer_q(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    return _side_by_side(arrays, "a", "b", False)


CONCAT_MLA_K = Function("concat_mla_k", ("k_nope", "k_rope", "out"), ("k_nope", "k_rope", "k"),
                        ("out",), {}, _infer_k, "concat_mla_k", ("k_nope", "k_rope", "out"),
                        "concat_mla_k")
CONCAT_MLA_ABSORB_Q = Function("concat_mla_absorb_q", ("a", "b", "out"), ("a", "b", "q"), ("out",),
                               {}, _infer_q, "concat_mla_absorb_q", ("a", "b", "out"),
                               "concat_mla_absorb_q")


def concat_mla_k(k_nope: Any, k_rope: Any, out: Any = None, *, context: Optional[Context] = None,
                 stream: Any = None) -> Any:
    """Keys of MLA's prefill: out[t, h] = k_nope[t, h], then k_rope[t], the same for all heads.

    k_nope        [T, H, N], bf16, f16 or f32; such as a part of the columns of a projection
    k_rope        [T, 1, R] or [T, R]; N and R are multiples of 8
    out           [T, H, N + R]; None: a new one
    context       None: the default one of the device that k_nope is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Returns out. Any thread. Error: an argument, by its name.
    """
    return run_function(CONCAT_MLA_K, (k_nope, k_rope, out), (), context, stream)


def concat_mla_absorb_q(a: Any, b: Any, out: Any = None, *, context: Optional[Context] = None,
                        stream: Any = None) -> Any:
    """Queries of mla_decode(): out[t, h] = a[t, h], then b[t, h].

    a, b          [T, H, N], [T, H, R], bf16, f16 or f32; N and R are multiples of 8
    out           [T, H, N + R]; None: a new one

    Returns out. context, stream, threads and Error as for concat_mla_k().
    """
    return run_function(CONCAT_MLA_ABSORB_Q, (a, b, out), (), context, stream)
