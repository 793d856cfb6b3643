"""templates/moe, a product for each expert: grouped_gemm, rows that lie together, in blocks, or
masked.

      a [m, k]                  offsets [E + 1]                        ──>  out [m, n]
      a [m, k]                  expert_ids [blocks], num_rows [1]      ──>  out [m, n]
      a [E, m, k]               counts [E]                             ──>  out [E, m, n]
      a [rows, k] by row_ids [m], with offsets or expert_ids           ──>  out [m, n]

b is [E, n, k]; with an activation [E, 2 n, k], the gate's rows first.
"""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array
from .._context import Context
from .._errors import Error, invalid
from .._forms import Arrays, checks_of, given, real, require, require_float
from .._kv_forms import absent
from .._plan import Function, Inferred
from .attention import run_function
from .gemm import output_dtype


def _form(arrays: Arrays) -> str:
    """Which of the three it is. Error: none, or several."""
    names = [name for name in ("offsets", "expert_ids", "counts") if arrays[name] is not None]
    if len(names) != 1:
        raise Error("offsets: must be given, or expert_ids and num_rows, or counts; one of them")
    return {"offsets": "offsets", "expert_ids": "blocks", "counts": "masked"}[names[0]]


def _index(arrays: Arrays, options: dict[str, Any], form: str, size: dict[str, Any]
           ) -> dict[str, Any]:
    """Parameters of the arrays that say whose rows are whose."""
    experts, rows = size["experts"], size["m"]
    if form != "blocks":
        absent(arrays, ("num_rows",), "without expert_ids")
    if form == "offsets":
        require("offsets", given(arrays, "offsets"), (experts + 1,), "as b has "
                f"{experts} experts", "i32")
    elif form == "masked":
        require("counts", given(arrays, "counts"), (experts,), "one of each expert", "i32")
        absent(arrays, ("row_ids",), "with counts")
    else:
        block = options["block_size"]
        if block < 1:
            raise Error(f"block_size={block}: must be 1 or more")
        require("expert_ids", given(arrays, "expert_ids"), ((rows + block - 1) // block,),
                f"one of each block of {block} rows", "i32")
        require("num_rows", given(arrays, "num_rows"), (1,), "the rows in use", "i32")
        return {"form": form, "block": block}
    return {"form": form}


def _gathered(arrays: Arrays, options: dict[str, Any], a: Array) -> dict[str, Any]:
    """Parameters of row_ids, if they are given."""
    rows = arrays["row_ids"]
    if rows is None:
        return {"source_rows": a.shape[-2]}
    require("row_ids", rows, tuple(rows.shape[-1:]), "a row of a for each of out", "i32")
    return {"gather": True, "source_rows": a.shape[0], "share": options["share"],
            "m": rows.shape[0]}


def _infer(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    a, b, out, form = given(arrays, "a"), given(arrays, "b"), arrays["out"], _form(arrays)
    require_float("a", a)
    if len(b.shape) != 3:
        raise invalid("b", f"shape {b.shape}: must be [E, n, k]")
    lead, act = tuple(b.shape[:1]) if form == "masked" else (), options["activation"] or "none"
    if len(a.shape) != 2 + len(lead):
        raise invalid("a", f"shape {a.shape}: must be "
                      f"{'[E, m, k], with counts' if lead else '[m, k]'}")
    if act != "none" and b.shape[1] % 2:
        raise invalid("b", f"shape {b.shape}: must be [E, 2 n, k], with an activation")
    n = b.shape[1] // (1 if act == "none" else 2)
    require("b", b, (*b.shape[:2], a.shape[-1]), f"as a is {tuple(a.shape)}", a.dtype)
    require("a", a, (*lead, *a.shape[-2:]), f"as b is {tuple(b.shape)}")
    params = {"experts": b.shape[0], "m": a.shape[-2], "n": n, "k": a.shape[-1], "dtype": a.dtype,
              "d": output_dtype(a, out, options["out_dtype"]), "activation": act,
              **_gathered(arrays, options, a)}
    params.update(_index(arrays, options, form, params))
    shape = (*lead, params["m"], n)
    if out is not None:
        require("out", out, shape, "as a and b are")
    if options["limit"] is not None:
        params["limit"] = options["limit"]
    asked = {"d": "out_dtype"} if out is None and options["out_dtype"] is not None else {}
    return Inferred(params, made={"out": (shape, params["d"])}, asked=asked, origins=_ORIGINS)


_ORIGINS = {"experts": ("b", "E"), "n": ("b", "n"), "k": ("a", "k"), "m": ("a", "m"),
            "block": ("block_size", ""), "share": ("share", "")}
_ARRAYS = ("a", "b", "offsets", "expert_ids", "num_rows", "counts", "row_ids", "out")
_OPTIONS: dict[str, Any] = {"block_size": 64, "share": 1, "activation": None, "limit": None,
                            "out_dtype": None}
GROUPED_GEMM = Function(
    "grouped_gemm", _ARRAYS, (*_ARRAYS[:-1], "d"), ("out",), _OPTIONS, _infer, "grouped_gemm",
    _ARRAYS, "grouped_gemm", checks={**checks_of(_OPTIONS), "limit": real})


def grouped_gemm(a: Any, b: Any, offsets: Any = None, *, expert_ids: Any = None,
                 num_rows: Any = None, counts: Any = None, row_ids: Any = None, share: int = 1,
                 block_size: int = 64, activation: Optional[str] = None,
                 limit: Optional[float] = None, out_dtype: Any = None, out: Any = None,
                 context: Optional[Context] = None, stream: Any = None) -> Any:
    """out[r] = a[r] b[e]^T for the rows r of each expert e.

    a             [m, k], bf16 or f16, on the CPU also f32; with counts [E, m, k]
    b             [E, n, k] of a's dtype; with an activation [E, 2 n, k], the gate's rows first
    offsets       i32 [E + 1]: rows offsets[e] to offsets[e + 1] - 1 are of expert e
    expert_ids, num_rows   instead i32 [blocks of block_size rows] and [1], as
                  moe_align_block_size() makes them: block i is of expert expert_ids[i], zeros
                  where that is -1; only the first num_rows[0] rows are computed
    counts        instead i32 [E]: of expert e's m rows the first counts[e] are computed
    row_ids, share   with offsets or expert_ids: i32 [m], row r of the product is
                  a[row_ids[r] / share], zeros where that is not in a; share=topk for slots
    block_size    rows of a block of expert_ids
    activation    "silu", "gelu", "gelu_tanh", "swiglu_oai": out is act(gate) times the rest
    limit         the gate is at most this, the rest within plus and minus this
    out_dtype     of a new out; None: a's
    out           [m, n]; with counts [E, m, n]; None: a new one
    context       None: the default one of the device that a is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Rows of no expert keep what out held; in a new one they are undefined. Index arrays are read on
    the device. Returns out. Any thread. Error: an argument, by its name.
    """
    values = a, b, offsets, expert_ids, num_rows, counts, row_ids, out
    return run_function(GROUPED_GEMM, values, (block_size, share, activation, limit, out_dtype),
                        context, stream)
