"""templates/moe, rows of tokens brought to their experts and back.

    moe_align_block_size   slots sorted by expert, padded to blocks, for kernels that gather
    prepare_moe_input      offsets, sizes and permutations, for products of rows that lie together
    shuffle_rows           rows by a map                        [R, K]  ──>  [R', K]
    apply_shuffle_mul_sum  rows back to their tokens, weighted  [R, K]  ──>  [T, K]
    moe_sum, moe_sum_reduce   the sum over a token's experts    [T, topk, K]  ──>  [T, K]

A slot is i = t topk + j, the j-th expert of token t. Argument names are SGLang's.
"""

from __future__ import annotations

from typing import Any, Optional

from .._arrays import Array
from .._context import Context
from .._errors import Error, invalid
from .._forms import Arrays, Extents, flag, given, real, require, require_float, whole
from .._kv_forms import either
from .._plan import Function, Inferred
from .attention import run_function
from .moe_routing import number_of


_Made = dict[str, tuple[Extents, str]]  # shapes and dtypes of outputs


def _ids(arrays: Arrays, name: str = "topk_ids") -> Extents:
    """T and topk of an array of ids."""
    ids = given(arrays, name)
    if len(ids.shape) != 2:
        raise invalid(name, f"shape {ids.shape}: must be [T, topk]")
    require(name, ids, ids.shape, "", "i32")
    return tuple(ids.shape)


def _outputs(arrays: Arrays, made: _Made, why: str) -> None:
    """Those given have the shape and dtype that is made."""
    for name, (shape, dtype) in made.items():
        array = arrays[name]
        if array is not None:
            require(name, array, shape, why, dtype)


def _counted(options: dict[str, Any], name: str, least: int = 1) -> int:
    """An option that counts, which must be given."""
    value: Optional[int] = options[name]
    if value is None:
        raise invalid(name, "must be given")
    if value < least:
        raise Error(f"{name}={value}: must be {least} or more")
    return value


# ---- moe_align_block_size ----------------------------------------------------------------------


def rows_of(slots: Any, experts: int, block: int) -> Any:
    """Slots of the sorted list with its padding, at most."""
    if slots < experts + 1:
        return slots * block
    return (slots + (experts + 1) * (block - 1) + block - 1) // block * block


def _infer_align(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    tokens, topk = _ids(arrays)
    experts, block = _counted(options, "num_experts"), _counted(options, "block_size")
    mapping = arrays["expert_map"]
    params = {"tokens": tokens, "topk": topk, "experts": experts, "block": block,
              "mapped": mapping is not None}
    if mapping is not None:
        require("expert_map", mapping, tuple(mapping.shape[-1:]), "one of each id", "i32")
    params["global"] = experts if mapping is None else mapping.shape[0]
    rows = rows_of(tokens * topk, experts, block)
    made: _Made = {"sorted_token_ids": ((rows,), "i32"), "expert_ids": ((rows // block,), "i32"),
            "num_tokens_post_pad": ((1,), "i32")}
    _outputs(arrays, made, f"as topk_ids is {(tokens, topk)}")
    return Inferred(params, made=made, origins={
        "tokens": ("topk_ids", "T"), "topk": ("topk_ids", "topk"), "experts": ("num_experts", ""),
        "block": ("block_size", ""), "global": ("expert_map", "E")})


_ALIGN_MADE = ("sorted_token_ids", "expert_ids", "num_tokens_post_pad")
_ALIGN_OPTIONS: dict[str, Any] = {"block_size": None, "num_experts": None}
MOE_ALIGN_BLOCK_SIZE = Function(
    "moe_align_block_size", ("topk_ids", "expert_map", *_ALIGN_MADE),
    ("ids", "expert_map", "sorted_ids", "expert_ids", "num_tokens_post_pad"), _ALIGN_MADE,
    _ALIGN_OPTIONS, _infer_align, "moe_align_block_size", ("topk_ids", "expert_map", *_ALIGN_MADE),
    "moe_align_block_size", checks=dict.fromkeys(_ALIGN_OPTIONS, whole),
    aliases={"experts_ids": "expert_ids"})


def moe_align_block_size(topk_ids: Any, block_size: int, num_experts: int, *,
                         expert_map: Any = None, sorted_token_ids: Any = None,
                         expert_ids: Any = None, experts_ids: Any = None,
                         num_tokens_post_pad: Any = None, context: Optional[Context] = None,
                         stream: Any = None) -> Any:
    """Slots sorted by expert: (sorted_token_ids, expert_ids, num_tokens_post_pad).

    topk_ids      i32 [T, topk]; ids outside of 0 to num_experts - 1 (-1: filtered) come first, in
                  blocks of expert -1
    block_size    each expert's slots are padded to a multiple of it
    num_experts   experts of the layout, at most 1024, without the further one that is counted
                  where SGLang's kernel is called
    expert_map    i32 [E]: id e stands for expert_map[e], -1: filtered
    sorted_token_ids, expert_ids, num_tokens_post_pad   where the results go, all i32; None: new
                  arrays. Slots t topk + j, T topk in the padding and beyond the end; the expert of
                  each block, -1 beyond the end; [1]: the rows in use. experts_ids is another name
                  of expert_ids
    context       None: the default one of the device that topk_ids is on
    stream        CUDA: a torch.cuda.Stream or an address; None: torch's current one

    Slots of an expert are in their order. Any thread. Error: an argument, by its name.
    """
    expert_ids = either("expert_ids", expert_ids, "experts_ids", experts_ids)
    return run_function(MOE_ALIGN_BLOCK_SIZE,
                        (topk_ids, expert_map, sorted_token_ids, expert_ids, num_tokens_post_pad),
                        (block_size, num_experts), context, stream)


# ---- prepare_moe_input -------------------------------------------------------------------------


def _infer_prepare(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    tokens, topk = _ids(arrays)
    experts = _counted(options, "num_experts")
    views: dict[str, Array] = {}
    n, k = _counted(options, "n", 0), _counted(options, "k", 0)
    has_blocks = options["blockscale"] or arrays["blockscale_offsets"] is not None
    made: _Made = {
        "expert_offsets": ((experts + 1,), "i32"), "problem_sizes1": ((experts, 3), "i32"),
        "problem_sizes2": ((experts, 3), "i32"), "input_permutation": ((tokens * topk,), "i32"),
        "output_permutation": ((tokens, topk), "i32")}
    if has_blocks:
        made["blockscale_offsets"] = (experts + 1,), "i32"
    flat = arrays["output_permutation"]
    if flat is not None and len(flat.shape) == 1:
        require("output_permutation", flat, (tokens * topk,), "one of each slot", "i32")
        views["output_permutation"] = _by_token(flat, tokens, topk)
    else:
        _outputs(arrays, {"output_permutation": made["output_permutation"]}, "one of each slot")
    _outputs({**arrays, "output_permutation": None}, made, f"as topk_ids is {(tokens, topk)}")
    return Inferred({"tokens": tokens, "topk": topk, "experts": experts, "n": n,
                     "k": k, "blockscale": has_blocks}, views, made=made,
                    returned=tuple(made), origins={
                        "tokens": ("topk_ids", "T"), "topk": ("topk_ids", "topk"),
                        "experts": ("num_experts", "")})


def _by_token(flat: Array, tokens: int, topk: int) -> Array:
    """[T topk] as [T, topk]."""
    return flat._replace(shape=(tokens, topk), strides=(topk * flat.strides[0], flat.strides[0]))


_PREPARE_MADE = ("expert_offsets", "problem_sizes1", "problem_sizes2", "input_permutation",
                 "output_permutation", "blockscale_offsets")
_PREPARE_OPTIONS: dict[str, Any] = {"num_experts": None, "n": None, "k": None,
                                    "blockscale": False}
PREPARE_MOE_INPUT = Function(
    "prepare_moe_input", ("topk_ids", *_PREPARE_MADE), ("ids", *_PREPARE_MADE), _PREPARE_MADE,
    _PREPARE_OPTIONS, _infer_prepare, "prepare_moe_input", ("topk_ids", *_PREPARE_MADE),
    "prepare_moe_input", checks={"num_experts": whole, "n": whole, "k": whole, "blockscale": flag})


def prepare_moe_input(topk_ids: Any, num_experts: int, n: int, k: int, *,
                      blockscale: bool = False, expert_offsets: Any = None,
                      problem_sizes1: Any = None, problem_sizes2: Any = None,
                      input_permutation: Any = None, output_permutation: Any = None,
                      blockscale_offsets: Any = None, context: Optional[Context] = None,
                      stream: Any = None) -> Any:
    """What grouped products of rows sorted by expert need: a tuple of the six below.

    topk_ids      i32 [T, topk]; ids outside of 0 to num_experts - 1 are in no segment
    num_experts, n, k   sizes of the layer: w1 is [num_experts, 2 n, k]
    expert_offsets     i32 [num_experts + 1]: where each expert's rows begin
    problem_sizes1, problem_sizes2   i32 [num_experts, 3]: (rows, 2 n, k), (rows, k, n)
    input_permutation  i32 [T topk]: the token of each row, for shuffle_rows()
    output_permutation i32 [T, topk], or [T topk]: the row of each slot, -1 of one in no segment
    blockscale_offsets i32 [num_experts + 1]: offsets with each expert's rows rounded up to 128;
                  with blockscale, or where it is given, else there are five

    Rows of an expert are in the order of their slots. What is not given is made. context, stream,
    threads and Error as for moe_align_block_size().
    """
    return run_function(PREPARE_MOE_INPUT,
                        (topk_ids, expert_offsets, problem_sizes1, problem_sizes2,
                         input_permutation, output_permutation, blockscale_offsets),
                        (num_experts, n, k, blockscale), context, stream)


# ---- shuffle_rows, apply_shuffle_mul_sum -------------------------------------------------------


def _matrix(arrays: Arrays, name: str) -> Array:
    """[R, K] of floats."""
    array = given(arrays, name)
    if len(array.shape) != 2:
        raise invalid(name, f"shape {array.shape}: must be [R, K]")
    require(name, array, array.shape, "")
    return array


def _infer_shuffle(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    source, mapping = _matrix(arrays, "input_tensor"), given(arrays, "dst2src_map")
    require("dst2src_map", mapping, tuple(mapping.shape[-1:]), "the source of each row", "i32")
    made: _Made = {"output_tensor": ((mapping.shape[0], source.shape[1]), source.dtype)}
    _outputs(arrays, made, "as dst2src_map and input_tensor are")
    return Inferred({"rows": mapping.shape[0], "inputs": source.shape[0],
                     "width": source.shape[1], "dtype": source.dtype}, made=made,
                    origins={"width": ("input_tensor", "K"), "inputs": ("input_tensor", "R"),
                             "rows": ("dst2src_map", "R")})


SHUFFLE_ROWS = Function(
    "shuffle_rows", ("input_tensor", "dst2src_map", "output_tensor"), ("in", "map", "out"),
    ("output_tensor",), {}, _infer_shuffle, "shuffle_rows",
    ("input_tensor", "dst2src_map", "output_tensor"), "shuffle_rows")


def shuffle_rows(input_tensor: Any, dst2src_map: Any, output_tensor_shape: Any = None, *,
                 output_tensor: Any = None, context: Optional[Context] = None, stream: Any = None
                 ) -> Any:
    """Row r of the output is row dst2src_map[r] of the input.

    input_tensor  [R, K], f32, bf16, f16, e4m3, e5m2, i8, u8 or i32
    dst2src_map   i32 [R']: outside of 0 to R - 1 the row is zeros
    output_tensor_shape   None, or (R', K), which is known without it
    output_tensor [R', K]; None: a new one

    Returns output_tensor. context, stream, threads and Error as for moe_align_block_size().
    """
    if output_tensor_shape is not None:
        shape = (*dst2src_map.shape, *input_tensor.shape[1:])
        if tuple(output_tensor_shape) != tuple(shape):
            raise Error(f"output_tensor_shape={tuple(output_tensor_shape)}: must be "
                        f"{tuple(shape)}")
    return run_function(SHUFFLE_ROWS, (input_tensor, dst2src_map, output_tensor), (), context,
                        stream)


def _permutation(arrays: Arrays) -> tuple[int, int, dict[str, Array]]:
    """T and topk of the permutation, which may be flat where something else says T."""
    rows = given(arrays, "permutation")
    if len(rows.shape) == 2:
        require("permutation", rows, rows.shape, "", "i32")
        return rows.shape[0], rows.shape[1], {}
    like = next((arrays[name] for name in ("factors", "output") if arrays[name] is not None), None)
    if like is None or len(like.shape) != 2 or len(rows.shape) != 1:
        raise invalid("permutation", f"shape {rows.shape}: must be [T, topk], or (T topk,) with "
                      "output or factors, which say T")
    tokens = like.shape[0]
    topk = rows.shape[0] // max(tokens, 1)
    require("permutation", rows, (tokens * topk,), f"of {tokens} tokens", "i32")
    return tokens, topk, {"permutation": _by_token(rows, tokens, topk)}


def _infer_apply(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    source, (tokens, topk, views) = _matrix(arrays, "input"), _permutation(arrays)
    require_float("input", source)
    factors = arrays["factors"]
    if factors is not None:
        require("factors", factors, (tokens, topk), "as permutation is", "f32")
    made: _Made = {"output": ((tokens, source.shape[1]), source.dtype)}
    _outputs(arrays, made, "as permutation and input are")
    return Inferred({"tokens": tokens, "topk": topk, "rows": source.shape[0],
                     "width": source.shape[1], "dtype": source.dtype,
                     "factors": factors is not None}, views, made=made,
                    origins={"tokens": ("permutation", "T"), "topk": ("permutation", "topk"),
                             "rows": ("input", "R"), "width": ("input", "K")})


_APPLY_ARRAYS = ("input", "permutation", "factors", "output")
APPLY_SHUFFLE_MUL_SUM = Function(
    "apply_shuffle_mul_sum", _APPLY_ARRAYS, ("in", "perm", "factors", "out"), ("output",), {},
    _infer_apply, "apply_shuffle_mul_sum", ("input", "output", "permutation", "factors"),
    "apply_shuffle_mul_sum")


def apply_shuffle_mul_sum(input: Any, output: Any = None, permutation: Any = None,
                          factors: Any = None, *, context: Optional[Context] = None,
                          stream: Any = None) -> Any:
    """output[t] = the sum over j of factors[t, j] input[permutation[t, j]], in f32.

    input         [R, K], f32, bf16 or f16
    output        [T, K] of input's dtype; None: a new one
    permutation   i32 [T, topk], or [T topk] where output or factors is given: one outside of 0 to
                  R - 1 adds nothing
    factors       f32 [T, topk]; None: ones

    Returns output. context, stream, threads and Error as for moe_align_block_size().
    """
    return run_function(APPLY_SHUFFLE_MUL_SUM, (input, permutation, factors, output), (), context,
                        stream)


# ---- moe_sum, moe_sum_reduce -------------------------------------------------------------------


def _infer_sum(arrays: Arrays, options: dict[str, Any]) -> Inferred:
    x = given(arrays, "input_tensor")
    if len(x.shape) != 3:
        raise invalid("input_tensor", f"shape {x.shape}: must be [T, topk, K]")
    require_float("input_tensor", x)
    require("input_tensor", x, x.shape, "")
    tokens, topk, hidden = x.shape
    made: _Made = {"output_tensor": ((tokens, hidden), x.dtype)}
    _outputs(arrays, made, f"as input_tensor is {tuple(x.shape)}")
    params = {"tokens": tokens, "topk": topk, "hidden": hidden, "dtype": x.dtype}
    if "topk_weights" in arrays:
        weights = arrays["topk_weights"]
        params["weighted"] = weights is not None
        if weights is not None:
            require("topk_weights", weights, (tokens, topk), "one of each row", "f32")
        scaling = number_of(options, "routed_scaling_factor", 1.0)
        if scaling is not None:
            params["scaling"] = scaling
    return Inferred(params, made=made, origins={
        "tokens": ("input_tensor", "T"), "topk": ("input_tensor", "topk"),
        "hidden": ("input_tensor", "K")})


MOE_SUM = Function("moe_sum", ("input_tensor", "output_tensor"), ("x", "out"), ("output_tensor",),
                   {}, _infer_sum, "moe_sum", ("input_tensor", "output_tensor"), "moe_sum")
MOE_SUM_REDUCE = Function(
    "moe_sum_reduce", ("input_tensor", "topk_weights", "output_tensor"), ("x", "weights", "out"),
    ("output_tensor",), {"routed_scaling_factor": None}, _infer_sum, "moe_sum_reduce",
    ("input_tensor", "output_tensor", "topk_weights"), "moe_sum_reduce",
    checks={"routed_scaling_factor": real})


def moe_sum(input_tensor: Any, output_tensor: Any = None, *, context: Optional[Context] = None,
            stream: Any = None) -> Any:
    """The sum over topk of [T, topk, K], in f32 and rounded once: [T, K].

    input_tensor  [T, topk, K], f32, bf16 or f16
    output_tensor [T, K] of the same dtype; None: a new one

    Returns output_tensor. context, stream, threads and Error as for moe_align_block_size().
    """
    return run_function(MOE_SUM, (input_tensor, output_tensor), (), context, stream)


def moe_sum_reduce(input_tensor: Any, output_tensor: Any = None,
                   routed_scaling_factor: Optional[float] = None, *, topk_weights: Any = None,
                   context: Optional[Context] = None, stream: Any = None) -> Any:
    """moe_sum() of rows times topk_weights, times routed_scaling_factor.

    routed_scaling_factor   None: 1
    topk_weights  f32 [T, topk]: a factor of each row; None: ones

    input_tensor, output_tensor, context, stream, threads and Error as for moe_sum().
    """
    return run_function(MOE_SUM_REDUCE, (input_tensor, topk_weights, output_tensor),
                        (routed_scaling_factor,), context, stream)
