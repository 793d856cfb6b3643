"""What of torch's scaled_dot_product_attention() quern has, and that; for _sdpa.py.

An operator of torch_ops.py computes it, which fake tensors and torch.compile see as such.
"""

from __future__ import annotations

import math
from typing import Any, Tuple

import torch
from torch._subclasses.fake_tensor import FakeTensor

from .torch_ops import attention

_CLASSES = (torch.Tensor, torch.nn.Parameter, FakeTensor)
_DTYPES = {torch.bfloat16: "", torch.float16: "", torch.float32: "cpu"}  # "": anywhere
_WIDTHS = {64: 64, 96: 96, 128: 128, 192: 192, 256: 256}
_peek = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)


def _why_not_tensors(tensors: Tuple[Any, ...]) -> str:
    """Why these are none that quern reads; "" if they are."""
    first = tensors[0]
    for tensor in tensors:
        if type(tensor) not in _CLASSES:
            return type(tensor).__name__
        if tensor.is_nested:
            return "nested"
        if tensor.requires_grad and torch.is_grad_enabled():
            return "requires grad"
        if tensor.dtype != first.dtype:
            return "dtypes differ"
        if tensor.device != first.device:
            return "devices differ"
        if tensor.dim() != 4:
            return f"{tensor.dim()} dimensions"
        if tensor.layout != torch.strided or tensor.stride(-1) != 1:
            return "strides"
    if not torch.compiler.is_compiling():
        if any([tensor.is_neg() for tensor in tensors]):
            return "negated"
        if _is_transformed():
            return "torch.func"
    return _why_not_kind(first)


def _why_not_kind(tensor: Any) -> str:
    """Of the dtype, the device, and what torch is about."""
    kind, dtype = tensor.device.type, tensor.dtype
    if kind not in ("cpu", "cuda"):
        return kind
    if _DTYPES.get(dtype) not in ("", kind):
        return f"dtype {str(dtype).partition('.')[2]}"
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != dtype:
        return "autocast"
    return ""


def _is_transformed() -> bool:
    """Whether within torch.vmap() and the like, whose tensors are others than they seem."""
    return _peek() is not None


def why_not(query: Any, key: Any, value: Any, attn_mask: Any, dropout_p: Any, is_causal: bool,
            scale: Any, enable_gqa: bool) -> str:
    """Why torch's own must do a call, in a word or two; "" if quern does it."""
    if attn_mask is not None:
        return "attn_mask"
    if dropout_p != 0:
        return "dropout_p"
    if scale is not None and not (isinstance(scale, (int, float)) and abs(scale) < math.inf):
        return "scale"
    why = _why_not_tensors((query, key, value))
    if why:
        return why
    width, heads = query.shape[-1], key.shape[1]
    if key.shape[-1] != width or not (
            _WIDTHS.get(width) == value.shape[-1] or (width, value.shape[-1]) == (192, 128)):
        return f"widths {width} and {value.shape[-1]}"
    if key.shape[:3] != value.shape[:3] or key.shape[0] != query.shape[0]:
        return "shapes"
    if not (query.numel() and key.numel()):
        return "no elements"
    if query.shape[1] != heads and (not enable_gqa or query.shape[1] % heads):
        return "heads"
    if is_causal and query.shape[2] > key.shape[2]:
        return "is_causal with fewer keys than queries"
    return ""


def attend(query: Any, key: Any, value: Any, is_causal: bool, scale: Any) -> Any:
    """What quern has of it."""
    if is_causal:
        key, value = key[:, :, :query.shape[2]], value[:, :, :query.shape[2]]
    out, _ = attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
                       softmax_scale=scale, causal=bool(is_causal))
    return out.transpose(1, 2)
