"""What an array argument is: one record for NumPy arrays, torch tensors, DLPack and views.

    user's object --describe()--> Array(owner, data, shape, strides, dtype, device, ...)
        View            the array inside, under the dtype that the view names
        torch.Tensor    _torch.describe()     imported when torch is
        numpy.ndarray   _numpy.describe()     likewise
        anything else   _dlpack.describe()    if it has __dlpack__

Nothing is copied and nothing is checked here that depends on a family: Array[2:] is what a call's
inference depends on, and the key under which it is remembered.
"""

from __future__ import annotations

import sys
from typing import Any, Callable, NamedTuple, Optional

from . import _structs
from ._errors import Error, invalid


class Array(NamedTuple):
    """One array argument. ``data`` is valid while ``owner`` lives."""

    owner: Any  # what keeps the memory alive
    data: int  # address of element [0, 0, ...]; of no meaning in an empty array
    shape: "tuple[int, ...]"
    strides: "tuple[int, ...]"  # in elements, outermost first
    dtype: str  # quern's name ("bf16"); of other dtypes their library's ("complex64")
    device: str  # "cpu", "cuda:0"; other kinds under their library's name
    is_writable: bool
    source: str  # "numpy", "torch", "dlpack": who makes an output like it


# Views: what the bits may be in, by their size.
_CARRIERS = {1: ("i8", "u8", "int8", "uint8"), 2: ("int16", "uint16")}


class View:
    """An array of 8-bit or 16-bit integers whose bits are those of another dtype.

    ``array`` is the array itself, ``dtype`` quern's name of what its bits mean. Made by view().
    """

    __slots__ = ("array", "dtype")
    array: Any
    dtype: str

    def __init__(self, array: Any, dtype: str) -> None:
        self.array = array
        self.dtype = dtype

    @property
    def shape(self) -> "tuple[int, ...]":
        return tuple(self.array.shape)

    def __repr__(self) -> str:
        return f"quern.view({self.array!r}, {self.dtype!r})"


def view(array: Any, dtype: str) -> View:
    """``array``, of 8-bit or 16-bit integers, taken as ``dtype``: its bits stay as they are.

    For dtypes that NumPy has not: ``quern.view(bits, "bf16")`` with ``bits`` of uint16 or int16;
    "e4m3" and "e5m2" with uint8 or int8. Any shape, strides and device. What has the shape and
    memory of the array stays the array's: ``view.array``.

    Error: a dtype of another size, or an array of anything but integers of that size.
    """
    described = describe("array", array)
    size = _structs.DTYPE_BYTES.get(dtype, 0)
    if size not in _CARRIERS:
        allowed = [name for name, n in _structs.DTYPE_BYTES.items() if n in _CARRIERS]
        raise invalid(None, f"dtype={dtype}: must be one of: {' '.join(allowed)}")
    if described.dtype not in _CARRIERS[size]:
        raise invalid("array", f"dtype {described.dtype}: must be integers of {size * 8} bits to "
                      f"be viewed as {dtype}")
    return View(array, dtype)


def describe(name: str, value: Any, stream: Optional[int] = None) -> Array:
    """The record of the argument ``name``. Error: it is none of what this file's head lists.

    ``stream`` is the raw stream on which a DLPack producer makes the data ready; None: the default
    one.
    """
    try:
        return _describe(value, stream)
    except Error as error:
        raise Error(f"{name}: {error}", error.status) from error.__cause__


# Adapters by the argument's type, filled as types are met: an import statement and the isinstance
# tests would cost more than all the rest of a description.
_Adapter = Callable[[Any, Optional[int]], Array]
_adapters: "dict[type, _Adapter]" = {}


def _describe(value: Any, stream: Optional[int]) -> Array:
    adapter = _adapters.get(type(value))
    if adapter is None:
        adapter = _adapters[type(value)] = _find_adapter(value)
    return adapter(value, stream)


def _find_adapter(value: Any) -> _Adapter:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        from . import _torch
        describe_tensor = _torch.describe
        return lambda tensor, stream: describe_tensor(tensor)
    if numpy is not None and isinstance(value, numpy.ndarray):
        from . import _numpy
        return _numpy.describe
    if isinstance(value, View):
        return lambda viewed, stream: _describe(viewed.array, stream)._replace(dtype=viewed.dtype)
    if hasattr(type(value), "__dlpack__"):
        from . import _dlpack
        return _dlpack.describe
    kind = type(value).__name__
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    raise Error(f"{article} {kind}: must be a NumPy array, a torch tensor or support DLPack")


def dtype_word(name: str, dtype: Any) -> str:
    """Quern's name of a dtype given by it, or as NumPy's or torch's. Error: none of these."""
    if isinstance(dtype, str):
        return dtype
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(dtype, torch.dtype):
        from . import _torch
        return _torch.dtype_name(dtype)
    if numpy is not None and isinstance(dtype, (type, numpy.dtype)):
        from . import _numpy
        return _numpy.dtype_name(numpy.dtype(dtype))
    raise Error(f"{name}={dtype!r}: must be a dtype or its name")


def empty_like(like: Array, shape: "tuple[int, ...]", dtype: str) -> Any:
    """A new dense array on the device of ``like`` and of its library, contents undefined.

    NumPy has no bf16 and no 8-bit floats: they are ml_dtypes' where that is imported, else a View
    of unsigned integers. Error: nobody can make one.
    """
    if like.source == "torch":
        from . import _torch
        return _torch.empty(shape, dtype, like.owner)
    if like.source == "numpy":
        from . import _numpy
        return _numpy.empty(shape, dtype)
    raise Error("must be given: only NumPy and torch arrays have one made for them")


def refuse_strides(name: str, array: Array) -> Error:
    return invalid(name, f"strides {array.strides}: the last dimension must be contiguous; pass "
                   f"{name}.copy() / {name}.contiguous()")


def check_strides(name: str, array: Array) -> None:
    """Error unless the last dimension is contiguous and no stride negative, where they matter."""
    if 0 in array.shape:
        return
    for extent, stride in zip(array.shape, array.strides):
        if stride < 0 and extent > 1:
            raise invalid(name, f"strides {array.strides}: must not be negative; pass "
                          f"{name}.copy()")
    if array.shape and array.shape[-1] > 1 and array.strides[-1] != 1:
        raise refuse_strides(name, array)


def check_device(name: str, array: Array) -> None:
    if array.device != "cpu" and not array.device.startswith("cuda:"):
        raise invalid(name, f"on {array.device}: must be on cpu or cuda")
