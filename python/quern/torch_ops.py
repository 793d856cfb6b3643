"""quern's families as operators of PyTorch: torch.ops.quern.gemm and others.

    eager         quern.gemm(a, b) ------------------------------> _call.run
    torch.compile quern.gemm(a, b) -> traced_gemm -> torch.ops.quern.gemm -> run
                                                     while tracing: fake_gemm (shapes and dtypes)

torch.compile cannot look into a foreign call, so there quern.gemm() and quern.copy() turn into one
operator each, without a graph break; torch.export sees the same operators. `import quern` imports
this module when torch was imported before, else the first traced call does. PyTorch 2.4 or newer.
Those of templates/kda are in _kda_ops.py, those of attention in _attention_ops.py, those of
templates/moe and its neighbours in _moe_ops.py.

An operator that writes to an argument (`_out`) returns nothing, as torch.library wants it of what
is functionalized. Operators are defined with Library.define() and .impl(): about 1 us a call, where
torch.library.custom_op() adds 7 more. Their inputs' strides are those of eager mode
(needs_exact_strides).

Not here: gradients, batching rules (vmap), packing of weights, contexts other than the default one
of the tensors' device. Calls with context= or stream=, and prepared ones, are no operators: in a
compiled function they belong under torch.compiler.disable().
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch

from . import _attention_ops, _kda_ops, _moe_ops, _ops, _torch
from ._call import key_value, run
from ._errors import Error
from ._families.copy import COPY
from ._families.gemm import GEMM

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_TAGS = tuple(
    getattr(torch.Tag, name)
    for name in ("needs_exact_strides", "pt2_compliant_tag")
    if hasattr(torch.Tag, name)
)
_LIBRARY = torch.library.Library("quern", "DEF")

# ---- Checks of the fake implementations: symbolic sizes, texts as the library's ------------------


def _shape(tensor: torch.Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _check_input(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    torch._check(
        tensor.dtype in _FLOATS,
        lambda: f"{name}: dtype {_torch.dtype_name(tensor.dtype)}: must be one of: f32 bf16 f16",
    )
    torch._check(
        tensor.device == like.device,
        lambda: f"{name}: on {tensor.device}: must be on {like.device}",
    )
    torch._check(
        not (tensor.requires_grad and torch.is_grad_enabled()),
        lambda: f"{name}: {_torch.GRADIENT}",
    )


def _check_contiguous(name: str, tensor: torch.Tensor) -> None:
    """The last dimension; of extent 1 or in an empty tensor its stride does not matter."""
    torch._check(
        tensor.dim() == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 or not tensor.numel(),
        lambda: f"{name}: strides {tuple(tensor.stride())}: the last dimension must be contiguous; "
        f"pass {name}.contiguous()",
    )


def _check_shape(name: str, tensor: torch.Tensor, wanted: List[Any]) -> None:
    text = f"({', '.join(map(str, wanted))})"
    torch._check(
        tensor.dim() == len(wanted), lambda: f"{name}: shape {_shape(tensor)}: must be {text}"
    )
    for have, want in zip(tensor.shape, wanted):
        torch._check(have == want, lambda: f"{name}: shape {_shape(tensor)}: must be {text}")


# ---- gemm --------------------------------------------------------------------------------------

_LIBRARY.define(
    "gemm(Tensor a, Tensor b, Tensor? bias=None, *, str layout='nt', str math='f32',"
    " ScalarType? out_dtype=None, int packed=0, SymInt? n=None) -> Tensor",
    tags=_TAGS,
)
_LIBRARY.define(
    "gemm_out(Tensor a, Tensor b, Tensor(out!) out, Tensor? bias=None, *, str layout='nt',"
    " str math='f32', bool accumulate=False, int packed=0) -> ()",
    tags=_TAGS,
)


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: Optional[torch.Tensor] = None,
    *,
    layout: str = "nt",
    math: str = "f32",
    out_dtype: Optional[torch.dtype] = None,
    packed: int = 0,
    n: Optional[int] = None,
) -> torch.Tensor:
    """torch.ops.quern.gemm on the CPU and CUDA: quern.gemm() into a new tensor."""
    return run(GEMM, (a, b, bias, None), (False, layout, math, out_dtype, packed, n), None, None)


def gemm_out(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    bias: Optional[torch.Tensor] = None,
    *,
    layout: str = "nt",
    math: str = "f32",
    accumulate: bool = False,
    packed: int = 0,
) -> None:
    """torch.ops.quern.gemm_out on the CPU and CUDA: quern.gemm() into out."""
    run(GEMM, (a, b, bias, out), (accumulate, layout, math, None, packed, None), None, None)


def _gemm_columns(b: torch.Tensor, bias: Optional[torch.Tensor], layout: str, n: Any) -> Any:
    """n: of a plain b it is a dimension; a packed one (layout "") does not tell it."""
    if layout:
        return b.shape[-1] if layout == "nn" else b.shape[-2]
    torch._check(
        n is not None or bias is not None,
        lambda: "n: must be given with a packed b, or out, or bias",
    )
    return n if bias is None or n is not None else bias.shape[-1]


def _gemm_shape(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: Optional[torch.Tensor],
    *,
    layout: str,
    math: str,
    packed: int,
    n: Any,
) -> List[Any]:
    """[.., m, n], after all that can be said of the arguments but out before the call. What a
    packed b must be the call itself says."""
    torch._check(layout in ("nt", "nn"), lambda: f"layout={layout}: must be one of: nt nn")
    torch._check(math in ("f32", "tf32"), lambda: f"math={math}: must be one of: f32 tf32")
    for name, factor in (("a", a), ("b", b)):
        _check_input(name, factor, a)
        torch._check(
            factor.dim() in (2, 3),
            lambda: f"{name}: shape {_shape(factor)}: must have 2 dimensions, or 3 with a batch",
        )
    torch._check(
        packed in (0, 16, 32, 48, 64),
        lambda: f"packed={packed}: must be one of: 0 16 32 48 64",
    )
    _check_contiguous("a", a)
    if packed or b.stride(-2) != 1:  # else it is the other layout's
        _check_contiguous("b", b)
    columns, k = _gemm_columns(b, bias, "" if packed else layout, n), a.shape[-1]
    if not packed:
        torch._check(n is None or n == columns, lambda: f"n={n}: must be {columns}, as b is "
                     f"{_shape(b)}")
        batch = ([a.shape[0]] if a.dim() == 3 else [1]) if b.dim() == 3 else []
        _check_shape("b", b, batch + ([k, columns] if layout == "nn" else [columns, k]))
    if bias is not None:
        _check_contiguous("bias", bias)
        _check_input("bias", bias, a)
        _check_shape("bias", bias, [columns])
    return [*a.shape[:-1], columns]


def fake_gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: Optional[torch.Tensor] = None,
    *,
    layout: str = "nt",
    math: str = "f32",
    out_dtype: Optional[torch.dtype] = None,
    packed: int = 0,
    n: Any = None,
) -> torch.Tensor:
    """Shape and dtype of quern::gemm's result; sizes may be symbolic."""
    shape = _gemm_shape(a, b, bias, layout=layout, math=math, packed=packed, n=n)
    dtype = out_dtype or a.dtype
    torch._check(
        dtype in _FLOATS,
        lambda: f"out_dtype={_torch.dtype_name(dtype)}: must be one of: f32 bf16 f16",
    )
    return a.new_empty(shape, dtype=dtype)


def fake_gemm_out(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    bias: Optional[torch.Tensor] = None,
    *,
    layout: str = "nt",
    math: str = "f32",
    accumulate: bool = False,
    packed: int = 0,
) -> None:
    """Checks of quern::gemm_out."""
    _check_input("out", out, a)
    _check_contiguous("out", out)
    n = out.shape[-1] if packed and out.dim() else None
    shape = _gemm_shape(a, b, bias, layout=layout, math=math, packed=packed, n=n)
    _check_shape("out", out, shape)


def traced_gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    out: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
    accumulate: bool,
    layout: str,
    math: str,
    out_dtype: Union[torch.dtype, str, None],
    packed: int,
    n: Optional[int],
) -> torch.Tensor:
    """What quern.gemm() is while torch.compile traces it: an operator, of which there is one that
    makes its output and one that writes to it. Errors: what neither has an argument for."""
    dtype = _torch.dtype_of(out_dtype) if isinstance(out_dtype, str) else out_dtype
    if out is None:
        if accumulate:
            raise Error("out: must be given with accumulate=True")
        return torch.ops.quern.gemm.default(
            a, b, bias, layout=layout, math=math, out_dtype=dtype, packed=packed, n=n
        )
    if dtype is not None and dtype != out.dtype:
        names = _torch.dtype_name(dtype), _torch.dtype_name(out.dtype)
        raise Error(f"out_dtype={names[0]}: must be {names[1]}, as out is")
    torch.ops.quern.gemm_out.default(
        a, b, out, bias, layout=layout, math=math, accumulate=accumulate, packed=packed
    )
    return out


# ---- copy --------------------------------------------------------------------------------------

_LIBRARY.define("copy(Tensor x, *, float? alpha=None) -> Tensor", tags=_TAGS)
_LIBRARY.define(
    "copy_out(Tensor x, Tensor(out!) out, *, float? alpha=None, bool inplace=False) -> ()",
    tags=_TAGS,
)


def copy(x: torch.Tensor, *, alpha: Optional[float] = None) -> torch.Tensor:
    """torch.ops.quern.copy on the CPU and CUDA: quern.copy() into a new tensor."""
    return run(COPY, (x, None), (key_value(alpha), False), None, None)


def copy_out(
    x: torch.Tensor, out: torch.Tensor, *, alpha: Optional[float] = None, inplace: bool = False
) -> None:
    """torch.ops.quern.copy_out on the CPU and CUDA: quern.copy() into out."""
    run(COPY, (x, out), (key_value(alpha), inplace), None, None)


def _check_vector(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    _check_input(name, tensor, like)
    torch._check(
        tensor.dim() == 1, lambda: f"{name}: shape {_shape(tensor)}: must have 1 dimension"
    )
    _check_contiguous(name, tensor)


def fake_copy(x: torch.Tensor, *, alpha: Optional[float] = None) -> torch.Tensor:
    """Shape and dtype of quern::copy's result."""
    _check_vector("x", x, x)
    return x.new_empty(x.shape)


def fake_copy_out(
    x: torch.Tensor, out: torch.Tensor, *, alpha: Optional[float] = None, inplace: bool = False
) -> None:
    """Checks of quern::copy_out."""
    _check_vector("x", x, x)
    _check_vector("out", out, x)
    _check_shape("out", out, list(x.shape))
    torch._check(
        out.dtype == x.dtype,
        lambda: f"out: dtype {_torch.dtype_name(out.dtype)}: must be "
        f"{_torch.dtype_name(x.dtype)}, as x is",
    )


def traced_copy(
    x: torch.Tensor, out: Optional[torch.Tensor], alpha: Optional[float], inplace: bool
) -> torch.Tensor:
    """What quern.copy() is while torch.compile traces it."""
    if out is None:
        if inplace:
            raise Error("out: must be given with inplace=True")
        return torch.ops.quern.copy.default(x, alpha=alpha)
    torch.ops.quern.copy_out.default(x, out, alpha=alpha, inplace=inplace)
    return out


# ---- Registration ------------------------------------------------------------------------------


def _register() -> None:
    """Implementations of the CPU and CUDA, and fake ones for every other purpose."""
    operators: Dict[str, Tuple[Callable[..., Any], Callable[..., Any]]] = {
        "gemm": (gemm, fake_gemm),
        "gemm_out": (gemm_out, fake_gemm_out),
        "copy": (copy, fake_copy),
        "copy_out": (copy_out, fake_copy_out),
    }
    for name, (function, fake) in operators.items():
        for key in ("CPU", "CUDA"):
            _LIBRARY.impl(name, function, key)
        torch.library.register_fake(f"quern::{name}", fake, lib=_LIBRARY)


_register()
_MODULES: Tuple[Any, ...] = (_kda_ops, _attention_ops, _moe_ops)
for _module in _MODULES:
    _ops.register(_LIBRARY, _TAGS, _module.OPERATORS)
attention = torch.ops.quern.attention.default


def traced(name: str, values: Tuple[Any, ...], options: Tuple[Any, ...]) -> Any:
    """What the function `name` is while torch.compile traces it."""
    module = next(module for module in _MODULES if name in module.OPERATORS)
    return module.traced(name, values, options)
