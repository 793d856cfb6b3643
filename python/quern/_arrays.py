"""What an array argument is: one record for NumPy arrays, torch tensors, DLPack and views.

    user's object --read--> owner, data, kind        in every call
        View            the array inside, under the dtype that the view names
        torch.Tensor    _torch.read()     imported when torch is
        numpy.ndarray   _numpy.read()     likewise
        anything else   _dlpack.read()    if it has __dlpack__
    kind --array_of()--> Array                       where such a call is met for the first time

A kind is a plain tuple of Array's fields: what a call's inference depends on, and part of the key
under which that is remembered. Nothing is copied and nothing is checked here that depends on a
family.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, Callable, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from . import _structs
from ._errors import Error, invalid


Kind = Tuple[Any, ...]
# What keeps the memory alive; the address of element [0, 0, ...], valid while that lives and of no
# meaning in an empty array; the kind.
Reading = Tuple[Any, int, Kind]
# The same of all arguments of a call; None, 0 and None of one that is not given.
Readings = Tuple[List[Any], List[int], List[Optional[Kind]]]


class Array(NamedTuple):
    """One array argument, but for its memory."""

    shape: "tuple[int, ...]"
    strides: "tuple[int, ...]"  # in elements, outermost first
    dtype: str  # quern's name ("bf16"); of other dtypes their library's ("complex64")
    device: str  # "cpu", "cuda:0"; other kinds under their library's name
    is_writable: bool
    source: str  # "numpy", "torch", "dlpack": who makes an output like it


DEVICE = Array._fields.index("device")  # in a kind

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


# Adapters by the argument's type, filled as types are met: an import statement and the isinstance
# tests would cost more than all the rest of a reading.
_Adapter = Callable[[Any, Optional[int]], Reading]
_adapters: "dict[type, _Adapter]" = {}


def read_all(names: "Sequence[str]", values: "Iterable[Any]", stream: Optional[int] = None
             ) -> Readings:
    """Error, by its name: an argument is none of what this file's head lists.

    ``stream`` is the raw stream on which a DLPack producer makes the data ready; None: the default
    one.
    """
    owners: "list[Any]" = []
    data: "list[int]" = []
    kinds: "list[Optional[Kind]]" = []
    try:
        for value in values:
            if value is None:
                owners.append(None)
                data.append(0)
                kinds.append(None)
                continue
            adapter = _adapters.get(type(value)) or _find_adapter(value)
            owner, address, kind = adapter(value, stream)
            owners.append(owner)
            data.append(address)
            kinds.append(kind)
    except Error as error:
        raise Error(f"{names[len(kinds)]}: {error}", error.status) from error.__cause__
    return owners, data, kinds


def array_of(kind: Kind) -> Array:
    shape, *others = kind
    return Array(tuple(shape), *others)  # torch's would be printed as torch.Size([2, 3])


def describe(name: str, value: Any) -> Array:
    """The record of the argument ``name``, which is given. Error as of read_all()."""
    try:
        adapter = _adapters.get(type(value)) or _find_adapter(value)
        return array_of(adapter(value, None)[2])
    except Error as error:
        raise Error(f"{name}: {error}", error.status) from error.__cause__


def _find_adapter(value: Any) -> _Adapter:
    adapter = _adapters[type(value)] = _adapter_for(value)
    return adapter


def _adapter_for(value: Any) -> _Adapter:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        from . import _torch
        _torch.check_class(value)
        return _torch.read
    if numpy is not None and isinstance(value, numpy.ndarray):
        from . import _numpy
        return _numpy.read
    if isinstance(value, View):
        return _read_view
    if hasattr(type(value), "__dlpack__"):
        from . import _dlpack
        return _dlpack.read
    kind = type(value).__name__
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    raise Error(f"{article} {kind}: must be a NumPy array, a torch tensor or support DLPack")


def _read_view(value: View, stream: Optional[int]) -> Reading:
    adapter = _adapters.get(type(value.array)) or _find_adapter(value.array)
    owner, data, kind = adapter(value.array, stream)
    return owner, data, (*kind[:2], value.dtype, *kind[3:])


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


def maker(like: Array, shape: "tuple[int, ...]", dtype: str) -> "Callable[[], Any]":
    """Makes dense arrays on the device of ``like`` and of its library, contents undefined.

    NumPy has no bf16 and no 8-bit floats: they are ml_dtypes' where that is imported, else a View
    of unsigned integers. Error: nobody can make one.
    """
    if like.source == "torch":
        from . import _torch
        return _torch.maker(shape, dtype, like.device)
    if like.source == "numpy":
        from . import _numpy
        return partial(_numpy.empty, shape, dtype)
    raise Error("must be given: only NumPy and torch arrays have one made for them")


def row_major(shape: "tuple[int, ...]") -> "tuple[int, ...]":
    """Strides of a dense array, in elements."""
    strides, stride = [], 1
    for extent in reversed(shape):
        strides.append(stride)
        stride *= max(extent, 1)
    return tuple(reversed(strides))


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
