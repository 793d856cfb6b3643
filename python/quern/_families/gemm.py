"""templates/gemm: gemm, gemm_pack.

      a [.., m, k]      b [.., n, k]  nt        d [.., m, n]  (the argument out)
                          [.., k, n]  nn, and nt of what is a transposed view of it
                          [.., panels, panel]   packed ahead by gemm_pack()

What is not here: the rules of dtypes and layouts, which the library has.
"""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array, dtype_word
from .._call import is_traced, run
from .._context import Context
from .._errors import Error, invalid
from .._plan import Function, Inferred


def _required(arrays: dict[str, Optional[Array]], name: str) -> Array:
    """An array of two or three dimensions."""
    array = arrays[name]
    if array is None:
        raise invalid(name, "must be given")
    if len(array.shape) not in (2, 3):
        way = f"; pass its reshape(-1, {', '.join(map(str, array.shape[-2:]))})"
        raise invalid(name, f"shape {array.shape}: must have 2 dimensions, or 3 with a batch"
                      f"{way if len(array.shape) > 3 else ''}")
    return array


def _is_contiguous(extent: int, stride: int) -> bool:
    return stride == 1 or extent <= 1


def _turned(b: Array, layout: str) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """layout, shape and strides of b: of a transposed view those of what it is a view of."""
    shape, strides = b.shape, b.strides
    if _is_contiguous(shape[-1], strides[-1]) or not _is_contiguous(shape[-2], strides[-2]) or \
            layout not in ("nt", "nn"):
        return layout, shape, strides
    swap = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    return ("nn" if layout == "nt" else "nt", tuple(shape[i] for i in swap),
            tuple(strides[i] for i in swap))


def _batched(b_shape: tuple[int, ...], strides: tuple[int, ...], a: Array
             ) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """b of two dimensions is every batch entry's."""
    if len(b_shape) == len(a.shape) or len(a.shape) == 2:
        return b_shape, strides
    return (a.shape[0], *b_shape), (0, *strides)


def _check_terms(a: Array, b: Array, layout: str) -> None:
    """k and batch of b are those of a."""
    k = a.shape[-1]
    wanted: tuple[int, ...] = (b.shape[-2], k) if layout == "nt" else (k, b.shape[-1])
    if len(b.shape) == 3:
        batch = a.shape[0] if len(a.shape) == 3 else 1
        wanted = (batch, *wanted)
    if b.shape == wanted:
        return
    if b.shape[:-2] == wanted[:-2] and k == b.shape[-2 if layout == "nt" else -1]:
        batch_word = "batch, " if len(b.shape) == 3 else ""
        form, other, way = ((f"n, {k}", "[k, n]", "nn") if layout == "nt" else
                            (f"{k}, n", "[n, k]", "nt"))
        raise invalid("b", f"shape {b.shape}: must be ({batch_word}{form}), as a is {a.shape}; for "
                      f'a b of {other} pass layout="{way}"')
    raise invalid("b", f"shape {b.shape}: must be {wanted}, as a is {a.shape}")


def _columns_of_packed(arrays: dict[str, Optional[Array]], n: Optional[int]) -> int:
    """n of a packed b, whose panels do not tell it."""
    out, bias = arrays["out"], arrays["bias"]
    if n is not None:
        return n
    if out is not None and out.shape:
        return out.shape[-1]
    if bias is not None and bias.shape:
        return bias.shape[-1]
    raise invalid("n", "must be given with a packed b, or out, or bias")


def _infer_gemm(arrays: dict[str, Optional[Array]], options: dict[str, Any]) -> Inferred:
    a, b = _required(arrays, "a"), _required(arrays, "b")
    out, bias, layout = arrays["out"], arrays["bias"], options["layout"]
    if options["accumulate"] and out is None:
        raise invalid("out", "must be given with accumulate=True")
    packed = options["packed"]
    view: list[Any] = [b.shape, b.strides]
    if packed:
        n = _columns_of_packed(arrays, options["n"])
    else:
        if layout in ("nt", "nn"):
            _check_terms(a, b, layout)
        n = b.shape[-1] if layout == "nn" else b.shape[-2]
        if options["n"] not in (None, n):
            raise Error(f"n={options['n']}: must be {n}, as b is {b.shape}")
        layout, *view = _turned(b, layout)
    batch = a.shape[0] if len(a.shape) == 3 else 1
    params = {"m": a.shape[-2], "n": n, "k": a.shape[-1], "batch": batch, "a": a.dtype,
              "b": b.dtype, "d": output_dtype(a, out, options["out_dtype"]),
              "bias": bias.dtype if bias is not None else "none", "layout": layout,
              "accumulate": options["accumulate"], "math": options["math"], "packed": packed}
    asked = {"d": "out_dtype"} if out is None and options["out_dtype"] is not None else {}
    shape, strides = _batched(view[0], view[1], a)
    return Inferred(params, {"b": b._replace(shape=shape, strides=strides)}, len(a.shape), asked)


def output_dtype(a: Array, out: Optional[Array], asked: Any) -> str:
    """out's, else the one asked for, else a's."""
    word = dtype_word("out_dtype", asked) if asked is not None else None
    if out is None:
        return word or a.dtype
    if word not in (None, out.dtype):
        raise Error(f"out_dtype={word}: must be {out.dtype}, as out is")
    return out.dtype


GEMM = Function("gemm", ("a", "b", "bias", "out"), ("a", "b", "bias", "d"), ("out",),
                {"accumulate": False, "layout": "nt", "math": "f32", "out_dtype": None,
                 "packed": 0, "n": None}, _infer_gemm, "gemm", ("a", "b", "out", "bias"), "gemm")


def gemm(a: Any, b: Any, out: Any = None, *, bias: Any = None, accumulate: bool = False,
         layout: str = "nt", math: str = "f32", out_dtype: Any = None, packed: int = 0,
         n: Optional[int] = None, context: Optional[Context] = None, stream: Any = None
         ) -> Any:
    """out[.., m, n] = a[.., m, k] b[.., n, k]^T (+ bias[n]) (+ old out). Sums are f32.

    a           [m, k], or [batch, m, k]; f32, bf16 or f16. The last dimension is contiguous, the
                others have any stride
    b           [n, k]; [batch, n, k]; with layout="nn" [k, n] or [batch, k, n]. A transposed view
                (b.T) is taken as it lies, without a copy. Of two dimensions: the same for all the
                batch. The dtype need not be a's
    out         [m, n] or [batch, m, n], writable, sharing no memory with the others; None: a new
                one of out_dtype
    bias        [n], added to every row
    layout      what the rows of b are: "nt" [n, k], as torch.nn.Linear.weight is; "nn" [k, n], as
                in a @ b
    accumulate  add to what out holds
    math        "tf32": f32 factors may be rounded to tf32
    out_dtype   "f32", "bf16", "f16", their long names, or NumPy's or torch's dtype; None: out's,
                else a's
    packed      b is gemm_pack()'s result of this width: 16, 32, 48, 64; 0: it is plain
    n           columns of a packed b, if neither out nor bias say it
    context     None: the default one of the device that a is on
    stream      CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Returns out. The first call of a bucket compiles. Any thread; on the CPU it has ended on
    return, on a GPU it is ordered by the stream. Error: an argument, by its name.
    """
    if is_traced() and context is None and stream is None:
        from .. import torch_ops
        return torch_ops.traced_gemm(a, b, out, bias, accumulate, layout, math, out_dtype,
                                      packed, n)
    return run(GEMM, (a, b, bias, out), (accumulate, layout, math, out_dtype, packed, n), context,
               stream)


def _infer_pack(arrays: dict[str, Optional[Array]], options: dict[str, Any]) -> Inferred:
    b, layout = _required(arrays, "b"), options["layout"]
    layout, shape, strides = _turned(b, layout)
    n, k = shape[-2:] if layout != "nn" else shape[:-3:-1]
    batch = shape[0] if len(shape) == 3 else 1
    return Inferred({"n": n, "k": k, "batch": batch, "b": b.dtype, "layout": layout,
                     "panel": options["width"]},
                    {"b": b._replace(shape=shape, strides=strides)}, len(shape))


GEMM_PACK = Function("gemm_pack", ("b", "out"), ("b", "packed"), ("out",),
                     {"width": 32, "layout": "nt"}, _infer_pack, "gemm_pack", ("b", "out"),
                     "gemm_pack")


def gemm_pack(b: Any, out: Any = None, *, width: int = 32, layout: str = "nt",
              context: Optional[Context] = None, stream: Any = None) -> Any:
    """b in the panels that gemm(..., packed=width) reads, so that weights are packed once.

    b        [n, k] or [batch, n, k]; with layout="nn" [k, n] or [batch, k, n]; f32 or bf16
    out      [.., ceil(n / width), K * width] with K = k rounded up to 32; None: a new one
    width    columns of a panel: 16, 32, 48 or 64; 32 is the fastest

    Returns out. context, stream, Error and threads as for gemm().
    """
    return run(GEMM_PACK, (b, out), (width, layout), context, stream)
