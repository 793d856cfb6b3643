"""Numbers where an array of one element is asked for: k_scale=0.05.

Such an array is made once for each number and device, and kept as long as the process: calls on any
stream, and graphs that were captured of them, read it. While torch.compile traces, it is a part of
what is traced instead (_attention_ops).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ._arrays import View
from ._errors import Error

if TYPE_CHECKING:
    from ._plan import Function

_LARGEST = 3.4028234663852886e38  # of f32
_MOST = 4096  # arrays, of 512 bytes each on a GPU
_made: dict[Any, Any] = {}


def is_number(value: Any) -> bool:
    return isinstance(value, (float, int)) and not isinstance(value, bool)


def require_f32(name: str, value: float) -> None:
    """Error unless it is finite as f32."""
    if not abs(value) <= _LARGEST:
        raise Error(f"{name}={value}: must be finite as f32")


def with_arrays(function: Function, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values with arrays instead of numbers. Error: a number that none can be made of."""
    for name in function.numbers:
        place = function.arrays.index(name)
        value = values[place]
        if value is not None and is_number(value):
            like = next((other for other in values
                         if other is not None and not is_number(other)), None)
            values = (*values[:place], _array(name, value, like), *values[place + 1:])
    return values


def _array(name: str, value: float, like: Any) -> Any:
    """f32 [1] where the array `like` is, and of its library; of another one's the number, which is
    refused as no array."""
    require_f32(name, value)
    torch: Any = sys.modules.get("torch")
    numpy: Any = sys.modules.get("numpy")
    like = like.array if isinstance(like, View) else like
    if torch is not None and isinstance(like, torch.Tensor):
        key = float(value), like.device
    elif numpy is not None and isinstance(like, numpy.ndarray):
        key = float(value), "numpy"
    else:
        return value
    array = _made.get(key)
    if array is not None:
        return array
    if len(_made) >= _MOST:
        raise Error(f"{name}={value}: must be an array of f32: {_MOST} other numbers have been "
                    "given for such ones")
    is_numpy = key[1] == "numpy"
    array = _made[key] = numpy.full(1, value, numpy.float32) if is_numpy else \
        _tensor(name, value, like)
    return array


def _tensor(name: str, value: float, like: Any) -> Any:
    """Ready for every stream: a copy from the host has ended on return."""
    import torch
    from . import _torch
    _torch.check_class(like)
    if like.device.type == "cuda" and _torch.is_capturing():
        raise Error(f"{name}={value}: must be an array, or have been given in a call before, while "
                    "a CUDA graph is captured")
    return torch.tensor([value], dtype=torch.float32, device=like.device)
